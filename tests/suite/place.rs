//! The binary in a folder of its own.

use crate::golden;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A folder of its own, with a model, a recipe and rows that work until a test breaks them.
pub struct Place {
    pub dir: tempfile::TempDir,
}

/// What the binary answered.
pub struct Answer {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub const ROW: &str = r#"{"prompt": "Say it.", "chosen": "Yes, of course.", "rejected": "No."}"#;

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::write(to.join(path.file_name().unwrap()), std::fs::read(&path).unwrap()).unwrap();
    }
}

/// Every file and folder below `folder`, with what is in it.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// [`contents`] without the files of a run that tell the time.
pub fn timeless(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = contents(folder);
    all.retain(|path, _| {
        !path.ends_with("report.html") && !path.ends_with("events.out.tfevents.oddgrad")
    });
    all
}

impl Place {
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        copy_folder(&golden("llama_tied"), &place.path("model"));
        place.write("rows.jsonl", format!("{ROW}\n").repeat(4));
        place.write(
            "r.toml",
            "model = \"model\"\noutput = \"run\"\n[data]\ntrain = \"rows.jsonl\"\n\
             [optim]\nlearning_rate = 1e-3\n[batch]\nsize = 2\nstream_tokens = 96\n\
             [train]\nmax_steps = 4\nsave_every = 2\neval_at_start = false\n",
        );
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// A copy of the model under another name.
    pub fn model(&self, name: &str) {
        copy_folder(&golden("llama_tied"), &self.path(name));
    }

    /// A copy of the model without weights.
    pub fn shape(&self, name: &str) {
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            let bytes = std::fs::read(golden("llama_tied").join(file)).unwrap();
            self.write(&format!("{name}/{file}"), bytes);
        }
    }

    /// Changes a JSON file by `change`.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        let mut value = serde_json::from_str(&text).unwrap();
        change(&mut value);
        self.write(name, value.to_string());
    }

    pub fn command(&self, command: &mut Command) -> Answer {
        self.fed(command, Stdio::null())
    }

    fn fed(&self, command: &mut Command, input: Stdio) -> Answer {
        let [out, err] = ["stdout", "stderr"].map(|_| tempfile::NamedTempFile::new().unwrap());
        // A name that is no folder is a name of the hub: tests ask none but their own.
        if command.get_envs().all(|(name, _)| name != "HF_ENDPOINT") {
            command.env("HF_HUB_OFFLINE", "1");
        }
        let mut child = command
            .current_dir(self.dir.path())
            .env("RUST_BACKTRACE", "0")
            .stdin(input)
            .stdout(out.reopen().unwrap())
            .stderr(err.reopen().unwrap())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code();
            }
            if start.elapsed() > Duration::from_secs(100) {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{command:?} hangs");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let text = |file: &tempfile::NamedTempFile| {
            String::from_utf8_lossy(&std::fs::read(file.path()).unwrap()).into_owned()
        };
        Answer { code, out: text(&out), err: text(&err) }
    }

    pub fn run(&self, args: &str) -> Answer {
        self.command(Command::new(env!("CARGO_BIN_EXE_oddgrad")).args(args.split_whitespace()))
    }

    /// Runs `oddgrad args` with these lines to read.
    pub fn talk(&self, args: &str, lines: &str) -> Answer {
        self.write("lines.txt", lines);
        let input = std::fs::File::open(self.path("lines.txt")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
        self.fed(command.args(args.split_whitespace()), input.into())
    }

    /// Runs `oddgrad args` and checks that it was refused as it should be.
    #[track_caller]
    pub fn refused(&self, args: &str, phrases: &[&str]) {
        let list: Vec<&str> = args.split_whitespace().collect();
        self.refused_args(&list, phrases);
    }

    #[track_caller]
    pub fn refused_args(&self, args: &[&str], phrases: &[&str]) {
        let before = contents(self.dir.path());
        let answer = self.command(Command::new(env!("CARGO_BIN_EXE_oddgrad")).args(args));
        let shown = format!("oddgrad {}\n{}{}", args.join(" "), answer.out, answer.err);
        assert_eq!(answer.code, Some(1), "{shown}");
        assert!(!answer.err.contains("panicked"), "{shown}");
        // A kernel of the self-test that takes over a second to compile has a line, on a busy machine.
        let mut lines = answer.err.lines().skip_while(|line| line.starts_with("compiling "));
        let first = lines.next().unwrap_or_default();
        assert!(first.starts_with("error: "), "nothing comes before the error: {shown}");
        let errors = answer.err.lines().filter(|line| line.starts_with("error")).count();
        assert_eq!(errors, 1, "one error: {shown}");
        for phrase in phrases {
            assert!(answer.err.contains(phrase), "`{phrase}` is missing: {shown}");
        }
        let after = contents(self.dir.path());
        let names = |c: &BTreeMap<PathBuf, Vec<u8>>| c.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&before), names(&after), "{shown}");
        assert!(before == after, "a file was changed: {shown}");
    }
}
