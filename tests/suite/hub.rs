//! Models and data sets by their names on the hub: from the cache of its own tools, and fetched from a
//! server on this machine that speaks the hub's paths.

use crate::place::{Place, ROW, copy_folder};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn names_of_the_hub_are_taken_from_its_cache() {
    let p = Place::new();
    let commit = "89abcdef0123";
    let put = |kind: &str, name: &str| {
        let repository = p.path(&format!("hf/hub/{kind}--team--{name}"));
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), commit).unwrap();
        let folder = repository.join("snapshots").join(commit);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    copy_folder(&p.path("model"), &put("models", "small"));
    std::fs::write(put("datasets", "pairs").join("train.jsonl"), format!("{ROW}\n").repeat(4))
        .unwrap();
    let run = |args: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
        p.command(
            command.args(args.split(' ')).env("HF_HOME", p.path("hf")).env_remove("HF_HUB_CACHE"),
        )
    };
    let trained = run(
        "train r.toml --untuned --set model=team/small --set data.train=hf:team/pairs --set train.max_steps=1",
    );
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    assert!(trained.err.contains("4 rows"), "{}", trained.err);
    let said =
        run("generate team/small@89abcdef0123 --untuned --form plain --prompt Say --max-tokens 2");
    assert_eq!(said.code, Some(0), "{}", said.err);
    for (args, part) in [
        ("generate team/other --prompt a", "hf download team/other"),
        (
            "data check hf:team/other --model team/small",
            "hf download --repo-type dataset team/other",
        ),
        ("data check hf:other --model team/small", "write hf:owner/name"),
        (
            "train r.toml --set data.train=hf:team/none --set output=o2",
            "hf download --repo-type dataset team/none",
        ),
    ] {
        let refused = run(args);
        assert_eq!(refused.code, Some(1), "{args}");
        assert!(refused.err.contains(part), "{args}: {}", refused.err);
    }
}

/// What a server does wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    /// Every second answer with a file ends in its middle.
    Cut,
    /// The first three answers are 503.
    Busy,
    /// It knows no ranges, and cuts the first answer of each file.
    NoRanges,
    /// Nothing comes after the first bytes, the first time.
    Stall,
    /// Other contents than the list says.
    Wrong,
    /// A path out of the cache.
    Outside,
    /// Something else is at this address.
    NoHub,
    /// Every answer with a file ends in its middle, and always at the same byte.
    Never,
}

/// A hub on this machine: `team/small` and the data set `team/pairs`, for those who have the token if
/// there is one.
struct Hub {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

fn hex(digest: ring::digest::Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Hub {
    fn new(files: Vec<(String, Vec<u8>)>, private: bool, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            let mut answers: BTreeMap<String, usize> = BTreeMap::new();
            for stream in listener.incoming().flatten() {
                let files = &files;
                answer(stream, files, private, fault, &seen, &mut answers);
            }
        });
        Self { endpoint, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &[(String, Vec<u8>)],
    private: bool,
    fault: Fault,
    seen: &Mutex<Vec<String>>,
    answers: &mut BTreeMap<String, usize>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut request, mut range, mut token) = (String::new(), None, false);
    reader.read_line(&mut request).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim();
        if line.is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(from) = lower.strip_prefix("range: bytes=") {
            range = Some(from.trim_end_matches('-').parse::<usize>().unwrap());
        }
        token |= line.contains(&format!("Bearer {TOKEN}"));
    }
    let path = request.split(' ').nth(1).unwrap().to_owned();
    seen.lock().unwrap().push(path.clone());
    let mut send = |status: &str, headers: &str, body: &[u8], most: usize| {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body[..body.len().min(most)]);
    };
    let all = usize::MAX;
    if private && !token {
        return send("401 Unauthorized", "", b"{\"error\":\"who are you\"}", all);
    }
    let times = answers.entry(path.clone()).or_default();
    *times += 1;
    if fault == Fault::Busy && *times <= 2 {
        return send("503 Service Unavailable", "retry-after: 0\r\n", b"", all);
    }
    if fault == Fault::NoHub {
        return send("200 OK", "", b"<html>It works!</html>", all);
    }
    if path.starts_with("/api/") {
        if !["small", "pairs"].iter().any(|name| path.contains(name)) {
            return send("404 Not Found", "", b"{\"error\":\"Repository not found\"}", all);
        }
        let listed: Vec<_> = files
            .iter()
            .map(|(name, bytes)| {
                let name = if fault == Fault::Outside { format!("/tmp/{name}") } else { name.clone() };
                match bytes.len() > 10_000 {
                    true => serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": "0".repeat(40),
                        "lfs": {"size": bytes.len(), "sha256": hex(ring::digest::digest(&ring::digest::SHA256, bytes))}}),
                    false => {
                        let object = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
                        let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &object);
                        serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": hex(hash)})
                    }
                }
            })
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": listed}).to_string();
        return send("200 OK", "", body.as_bytes(), all);
    }
    let (_, file) = path.split_once(&format!("/resolve/{COMMIT}/")).unwrap_or(("", &path[1..]));
    let (_, bytes) =
        files.iter().find(|(name, _)| name == file.trim_start_matches("cdn/")).unwrap();
    // Large files lie elsewhere.
    if bytes.len() > 10_000 && !path.starts_with("/cdn/") {
        return send("302 Found", &format!("location: /cdn/{file}\r\n"), b"", all);
    }
    let mut bytes = bytes.clone();
    if fault == Fault::Wrong {
        bytes[0] ^= 1;
    }
    let from = range.filter(|_| fault != Fault::NoRanges).unwrap_or(0);
    let part = &bytes[from..];
    let most = match fault {
        Fault::Cut if *times % 2 == 1 => part.len() / 2,
        Fault::NoRanges if *times == 1 => part.len() / 2,
        Fault::Never => (bytes.len() / 2).saturating_sub(from),
        _ => all,
    };
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let headers = format!("content-range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    if fault == Fault::Stall && *times == 1 {
        send(status, &headers, part, part.len() / 3);
        // Longer than the patience of the test, beside the next answers.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(20));
            drop(stream);
        });
        return;
    }
    send(status, &headers, part, most);
}

fn folder_files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    files.push(("pytorch_model.bin".to_owned(), vec![1; 100]));
    files.sort();
    files
}

fn ask(p: &Place, hub: &Hub, token: Option<&str>, args: &str) -> crate::place::Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
    command
        .args(args.split(' '))
        .env("HF_HOME", p.path("hf"))
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "1")
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_TOKEN_PATH")
        .env_remove("HF_TOKEN");
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    p.command(&mut command)
}

/// Whatever a server does wrong on the way, what arrives is the folder, bit for bit.
#[test]
fn models_are_fetched_from_a_hub_that_fails_in_many_ways() {
    let faults = [
        (Fault::None, false),
        (Fault::None, true),
        (Fault::Cut, false),
        (Fault::Busy, false),
        (Fault::NoRanges, false),
        (Fault::Stall, false),
    ];
    for (fault, private) in faults {
        let p = Place::new();
        let files = folder_files(&p.path("model"));
        let hub = Hub::new(files.clone(), private, fault);
        let token = private.then_some(TOKEN);
        let looked = ask(&p, &hub, token, "doctor team/small");
        assert_eq!(looked.code, Some(0), "{fault:?}: {}", looked.err);
        assert!(looked.err.contains("fetching team/small"), "{fault:?}: {}", looked.err);
        let repository = p.path("hf/hub/models--team--small");
        let snapshot = repository.join("snapshots").join(COMMIT);
        for (name, bytes) in &files {
            let there = std::fs::read(snapshot.join(name)).ok();
            let wanted = name.ends_with(".safetensors")
                || name == "config.json"
                || name.starts_with("tokenizer");
            let expected = wanted.then(|| bytes.clone());
            assert_eq!(there, expected, "{fault:?}: {name}");
        }
        let reference = std::fs::read_to_string(repository.join("refs/main")).unwrap();
        assert_eq!(reference, COMMIT, "{fault:?}");
        let left = std::fs::read_dir(repository.join("blobs")).unwrap();
        let left = left.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        assert_eq!(left.filter(|name| name.ends_with(".incomplete")).count(), 0, "{fault:?}");
        // The cache is enough from now on.
        let before = hub.asked().len();
        let again = ask(&p, &hub, None, "doctor team/small");
        assert_eq!((again.code, hub.asked().len()), (Some(0), before), "{fault:?}: {}", again.err);
    }
}

#[test]
fn rows_are_fetched_and_trained_on() {
    let p = Place::new();
    let rows = format!("{ROW}\n").repeat(4).into_bytes();
    let files = vec![
        ("README.md".to_owned(), b"about".to_vec()),
        ("data/train.jsonl".to_owned(), rows.clone()),
        ("data/test.jsonl".to_owned(), format!("{ROW}\n").into_bytes()),
    ];
    let hub = Hub::new(files, false, Fault::None);
    let args = "train r.toml --untuned --set data.train=hf:team/pairs --set train.max_steps=1";
    let trained = ask(&p, &hub, None, args);
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    assert!(trained.err.contains("4 rows"), "{}", trained.err);
    assert_eq!(hub.asked().iter().filter(|path| path.contains("/resolve/")).count(), 2);
}

#[test]
fn what_a_hub_cannot_give_is_refused_and_nothing_is_half_there() {
    let with = |name: &str| {
        vec![(name.to_owned(), vec![7; 100]), ("config.json".to_owned(), b"{}".to_vec())]
    };
    let model = || folder_files(&Place::new().path("model"));
    let cases = [
        (model(), true, Fault::None, None, "put a token into HF_TOKEN"),
        (model(), true, Fault::None, Some("hf_other"), "the token (HF_TOKEN) does not open it"),
        (model(), false, Fault::Wrong, None, "the list says"),
        (model(), false, Fault::NoHub, None, "does not answer as a hub"),
        (model(), false, Fault::Never, None, "another run goes on from there"),
        (with("model.gguf"), false, Fault::None, None, "holds GGUF files only"),
        (with("pytorch_model.bin"), false, Fault::None, None, ".bin weights only"),
    ];
    for (files, private, fault, token, part) in cases {
        let p = Place::new();
        let hub = Hub::new(files, private, fault);
        let refused = ask(&p, &hub, token, "doctor team/small");
        assert_eq!(refused.code, Some(1), "{part}: {}", refused.err);
        assert!(refused.err.contains(part), "{part}: {}", refused.err);
        assert!(!refused.err.contains(TOKEN) && !refused.err.contains("hf_other"));
        let repository = p.path("hf/hub/models--team--small");
        assert!(!repository.join("refs/main").exists(), "{part}");
        assert!(!repository.join("snapshots").join(COMMIT).exists(), "{part}");
    }
    let p = Place::new();
    let rows = vec![("train.jsonl".to_owned(), format!("{ROW}\n").into_bytes())];
    let hub = Hub::new(rows, false, Fault::Outside);
    let outside = ask(&p, &hub, None, "data check hf:team/pairs --model model");
    assert!(outside.err.contains("without a usable path"), "{}", outside.err);
    assert!(!p.path("hf").exists() && outside.code == Some(1));
    let hub = Hub::new(model(), false, Fault::None);
    let unknown = ask(&p, &hub, None, "doctor team/none");
    assert!(unknown.err.contains("check the name and the revision"), "{}", unknown.err);
    let gone = Hub { endpoint: "http://127.0.0.1:9".to_owned(), asked: Arc::default() };
    let gone = ask(&p, &gone, None, "doctor team/small");
    assert_eq!(gone.code, Some(1));
    assert!(gone.err.contains("Without a network"), "{}", gone.err);
}
