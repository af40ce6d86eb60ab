//! Everything that is read from a file, and what reads it: a reader answers or refuses, whatever the
//! bytes. `malformed.rs` hands them damaged files, `fuzz/` files that a fuzzer finds.

use oddgrad::bench::facts;
use oddgrad::bench::tuned::TunedFile;
use oddgrad::data::messages::Message;
use oddgrad::data::prompts::read_prompt_rows;
use oddgrad::data::rows::{Needs, ReadOptions, read_preferences, read_texts};
use oddgrad::data::tokenize::Tokenizer;
use oddgrad::feedback::journal::Journal;
use oddgrad::model::adapter::Adapter;
use oddgrad::model::config::ModelConfig;
use oddgrad::model::gguf::import::import;
use oddgrad::model::source::{SafetensorsFile, WeightSource};
use oddgrad::model::weights::{FolderWeights, collect};
use oddgrad::ops;
use oddgrad::rounds::RoundsRecipe;
use oddgrad::train::checkpoint;
use oddgrad::train::recipe::Recipe;
use std::path::Path;

/// A kind of file.
pub struct Format {
    pub name: &'static str,
    /// What the file is called in its folder.
    pub file: &'static str,
    /// Reads it; the bytes are those of the file.
    pub read: fn(&Path, &[u8]),
}

const fn format(name: &'static str, file: &'static str, read: fn(&Path, &[u8])) -> Format {
    Format { name, file, read }
}

/// What a whole `state.json` is kept as beside the one that is damaged.
pub const WHOLE_STATE: &str = "whole";

pub static FORMATS: [Format; 15] = [
    format("safetensors", "x.safetensors", |folder, _| {
        let Ok(file) = SafetensorsFile::open(&folder.join("x.safetensors")) else { return };
        let mut values = Vec::new();
        for name in file.names() {
            let _ = (file.info(&name), file.place(&name), file.read(&name, &mut values));
        }
    }),
    format("weights", "model.safetensors", |folder, _| {
        let config = ModelConfig::load(folder).unwrap();
        let _ = FolderWeights::open(folder, &config).and_then(|weights| collect(&weights));
    }),
    format("gguf", "m.gguf", |folder, _| {
        let to = folder.join("imported");
        let done = import(&folder.join("m.gguf"), &to, None);
        assert_eq!(done.is_ok(), to.exists(), "whole or not at all");
        if done.is_ok() {
            let config = ModelConfig::load(&to).unwrap();
            FolderWeights::open(&to, &config).unwrap();
            std::fs::remove_dir_all(&to).unwrap();
        }
    }),
    format("config", "config.json", |folder, _| {
        if let Ok(config) = ModelConfig::load(folder) {
            let _ = (config.to_json(), config.parameter_count());
        }
    }),
    format("adapter", "adapter_config.json", |folder, _| {
        if let Ok(Some(adapter)) = Adapter::of(folder) {
            let _ = adapter.config();
        }
    }),
    format("tokenizer", "tokenizer.json", |folder, _| {
        let Ok(tokenizer) = Tokenizer::from_folder(folder) else { return };
        if let Ok(ids) = tokenizer.encode("Say it: \u{e9}\n\n  42 <s>") {
            let _ = tokenizer.decode(&ids, false);
        }
    }),
    format("template", "chat_template.jinja", |folder, _| {
        let Ok(tokenizer) = Tokenizer::from_folder(folder) else { return };
        let _ = tokenizer.render_prompt(&[Message::new("user", "Hello")]);
    }),
    format("recipe", "recipe.toml", |_, bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(recipe) = Recipe::parse("recipe.toml", &text, &["train.max_steps=3".into()]) {
            let again = Recipe::parse("again", &recipe.to_toml(), &[]).unwrap();
            assert_eq!(again.fingerprint(), recipe.fingerprint());
        }
        let _ = RoundsRecipe::parse("recipe.toml", &text);
    }),
    format("jsonl", "rows.jsonl", |folder, bytes| {
        rows(&folder.join("rows.jsonl"));
        journal(folder, bytes);
    }),
    format("json", "rows.json", |folder, _| rows(&folder.join("rows.json"))),
    format("gz", "rows.jsonl.gz", |folder, _| rows(&folder.join("rows.jsonl.gz"))),
    format("parquet", "rows.parquet", |folder, _| {
        let _ = read_preferences(&[folder.join("rows.parquet")], &ReadOptions::default());
    }),
    format("state", "state.json", |folder, bytes| {
        let found = checkpoint::verify(folder);
        let whole = || std::fs::read(folder.join(WHOLE_STATE)).unwrap();
        assert!(found.is_err() || bytes == whole(), "a damaged state passes");
    }),
    format("tuner", "tuned.toml", |folder, _| {
        let _ = TunedFile::load(&folder.join("tuned.toml"));
    }),
    format("wgsl", "my.wgsl", |_, bytes| {
        let text = String::from_utf8_lossy(bytes);
        let case = ops::softmax::case();
        let _ = facts::parse("my.wgsl", &text);
        let _ = facts::check_contract("my.wgsl", &text, case.passes[0]);
        let _ = facts::workgroup_bytes(&text);
    }),
];

fn rows(path: &Path) {
    let paths = [path.to_path_buf()];
    let _ = read_preferences(&paths, &ReadOptions::default());
    for needs in [Needs::Answer, Needs::Judgement, Needs::Label] {
        let options = ReadOptions { skip_bad_rows: true, needs, ..ReadOptions::default() };
        let _ = read_preferences(&paths, &options);
    }
    let _ = read_texts(&paths);
    let _ = read_prompt_rows(path);
}

/// A file of decisions is mended once, and no byte of it is lost.
fn journal(folder: &Path, bytes: &[u8]) {
    let (path, cut) = (folder.join("journal.jsonl"), folder.join("journal.jsonl.cut"));
    std::fs::write(&path, bytes).unwrap();
    if let Ok(mut journal) = Journal::open(&path, &mut |_| ()) {
        let kept = std::fs::read(&path).unwrap();
        match journal.take_notes().is_empty() {
            true => assert!(kept == bytes || kept == [bytes, b"\n"].concat()),
            false => {
                let mut aside = std::fs::read(&cut).unwrap();
                aside.pop();
                assert_eq!([kept, aside].concat(), bytes);
                std::fs::remove_file(&cut).unwrap();
            }
        }
        let mut again = Journal::open(&path, &mut |_| ()).unwrap();
        assert!(again.take_notes().is_empty(), "it is whole now");
    }
    std::fs::remove_file(&path).unwrap();
}
