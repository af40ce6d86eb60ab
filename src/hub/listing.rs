//! What a revision on the hub consists of, and what of it is wanted.

use std::path::{Component, Path};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde::Deserialize;

use super::Kind;

/// What of a model is fetched: what transformers, PEFT and this program read.
const MODEL_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    "oddgrad.json",
    "README.md",
];
/// Endings of the files of a data set that rows are read from.
const DATA_ENDINGS: [&str; 6] = [".jsonl", ".ndjson", ".gz", ".json", ".parquet", ".txt"];

impl Kind {
    /// Whether a folder of the cache holds what is needed: tools fetch single files too.
    pub(super) fn is_whole(self, folder: &Path) -> bool {
        match self {
            Self::DataSet => folder.read_dir().is_ok_and(|mut files| files.next().is_some()),
            Self::Model => {
                let files = folder.read_dir().into_iter().flatten().flatten();
                let names: Vec<String> = files
                    .filter(|entry| entry.path().exists())
                    .map(|entry| entry.file_name().to_string_lossy().into_owned())
                    .collect();
                let has = |end: &str| names.iter().any(|name| name.ends_with(end));
                let index = std::fs::read_to_string(folder.join("model.safetensors.index.json"));
                let shards = index.unwrap_or_default();
                // Every shard that the index names, in quotes.
                let shards = shards.split('"').filter(|word| word.ends_with(".safetensors"));
                has("config.json")
                    && has(".safetensors")
                    && shards.into_iter().all(|shard| names.iter().any(|name| name == shard))
            }
        }
    }
}

/// A revision as the hub describes it.
#[derive(Deserialize)]
pub(super) struct Revision {
    pub sha: String,
    pub siblings: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    #[serde(rename = "rfilename")]
    pub file: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// A file with what its contents must be.
pub(super) struct Wanted {
    pub file: String,
    pub size: u64,
    /// Hexadecimal: SHA-256 of large files, git's hash of small ones.
    pub hash: String,
    large: bool,
}

impl Wanted {
    /// A listed file, if all that is said of it can be true.
    pub(super) fn of(listed: Listed) -> Option<Self> {
        let path = Path::new(&listed.file);
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)))
            && !listed.file.contains(['\\', ':', '\0']);
        let (size, hash, large) = match listed.lfs {
            Some(lfs) => (lfs.size, lfs.sha256, true),
            None => (listed.size?, listed.blob_id?, false),
        };
        let length = if large { 64 } else { 40 };
        let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        let right = plain && hash.len() == length && hash.bytes().all(hex);
        right.then_some(Self { file: listed.file, size, hash, large })
    }

    /// The hash's beginning: git puts type and size before the contents.
    pub(super) fn begin(&self) -> Context {
        if self.large {
            return Context::new(&SHA256);
        }
        let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        context.update(format!("blob {}\0", self.size).as_bytes());
        context
    }
}

/// Whether a file of the hub is fetched.
pub(super) fn is_wanted(file: &str, kind: Kind) -> bool {
    match kind {
        Kind::Model => {
            let weights = file.ends_with(".safetensors") && !file.contains('/');
            weights || MODEL_FILES.contains(&file)
        }
        Kind::DataSet => {
            let lower = file.to_ascii_lowercase();
            DATA_ENDINGS.iter().any(|end| lower.ends_with(end))
                && !file.split('/').any(|part| part.starts_with('.'))
        }
    }
}

pub(super) fn read_list(text: &str) -> Option<Revision> {
    let revision: Revision = serde_json::from_str(text).ok()?;
    let hex = |c: char| c.is_ascii_hexdigit();
    (!revision.sha.is_empty() && revision.sha.len() <= 64 && revision.sha.chars().all(hex))
        .then_some(revision)
}

/// What is missing in a repository, in words.
pub(super) fn usable(
    wanted: &[Wanted],
    found: &[String],
    kind: Kind,
) -> std::result::Result<(), String> {
    let ends = |end: &str| found.iter().any(|file| file.ends_with(end));
    match kind {
        Kind::DataSet if wanted.is_empty() => {
            Err("holds no .jsonl, .json or .parquet file; convert it (dataset.to_parquet) and name the file".to_owned())
        }
        Kind::Model if !wanted.iter().any(|w| w.file.ends_with(".safetensors")) => Err(if ends(".gguf") {
            "holds GGUF files only; fetch one (`hf download NAME FILE.gguf`) and name that".to_owned()
        } else if ends(".bin") {
            "holds PyTorch's .bin weights only, which are programs and not read; take a revision with .safetensors".to_owned()
        } else {
            "holds no .safetensors weights".to_owned()
        }),
        _ => Ok(()),
    }
}
