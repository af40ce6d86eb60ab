//! A GGUF file made into a model folder as transformers writes it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::config::config_json;
use super::file::GgufFile;
use super::tokenizer;
use super::weights::GgufWeights;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::folder::{hash_file, write_folder, write_text};
use crate::model::save::write_tensors;
use crate::model::weights::FolderWeights;

/// Writes the model in the GGUF file `from` as a folder: `config.json`, `model.safetensors`,
/// `tokenizer.json`, `tokenizer_config.json` with the chat template, and `generation_config.json`
/// where more than one token ends a generation. Weights of 16 bits stay so and blocks become F32,
/// which holds each of their values, unless `dtype` says another type. Returns what the user ought to
/// know of it.
///
/// # Errors
/// What [`GgufFile::open`] refuses; architectures, keys, tensors and tokenizers that are not read; an
/// existing `destination`.
pub fn import(from: &Path, destination: &Path, dtype: Option<DType>) -> Result<Vec<String>> {
    let file = GgufFile::open(from)?;
    let matrices = file.tensors().values().filter(|tensor| tensor.shape.len() > 1);
    let mut types = matrices.map(|tensor| tensor.kind.widened());
    let first = types.next().unwrap_or(DType::F32);
    let of_most = if types.all(|dtype| dtype == first) { first } else { DType::F32 };
    let (architecture, json) = config_json(&file, dtype.unwrap_or(of_most))?;
    let config = ModelConfig::from_json(&from.display().to_string(), &json)?;
    let found = tokenizer::read(&file.metadata, config.vocab_size)?;
    let tokenizer_json = found.tokenizer_json(&from.display().to_string())?;
    let head_dim = json["head_dim"].as_u64().unwrap_or(0) as usize;
    let source = GgufWeights::new(file, architecture, &config, head_dim);
    let weights = FolderWeights::of_source(from, Box::new(source), &config)?;
    let pretty = |json: &Value| format!("{json:#}\n");
    write_folder(destination, |folder| {
        write_text(&folder.join("config.json"), &pretty(&json))?;
        write_text(&folder.join("tokenizer.json"), &tokenizer_json)?;
        write_text(&folder.join("tokenizer_config.json"), &pretty(&found.config))?;
        if !found.ends.is_empty() {
            let ends: Vec<u32> =
                found.vocabulary.eos.into_iter().chain(found.ends.iter().copied()).collect();
            let generation = json!({
                "bos_token_id": json["bos_token_id"],
                "eos_token_id": ends,
                "pad_token_id": json["pad_token_id"],
            });
            write_text(&folder.join("generation_config.json"), &pretty(&generation))?;
        }
        write_tensors(folder, weights.unwritten(dtype))
    })?;
    Ok(found.notes)
}

/// A file that was imported into a cache.
pub struct Cached {
    /// The model folder.
    pub folder: PathBuf,
    /// What the user ought to know, if it was imported just now.
    pub fresh: Option<Vec<String>>,
}

/// Changes with what [`import`] writes, so that no folder of an earlier version is taken for one of
/// this.
const VERSION: u32 = 1;

/// The folder below `cache` that the GGUF file `from` was imported to, by the hash of its bytes; made
/// if it is not there.
///
/// # Errors
/// As [`import`].
pub fn import_once(from: &Path, cache: &Path) -> Result<Cached> {
    let hash = hash_file(from)?;
    let all = cache.join("gguf");
    let folder = all.join(format!("{}-{VERSION}", &hash[..16]));
    if folder.is_dir() {
        return Ok(Cached { folder, fresh: None });
    }
    // Of two processes one imports, and the other finds what it made.
    std::fs::create_dir_all(&all).map_err(|e| Error::io("create", &all, e))?;
    let lock = all.join(".lock");
    let held = std::fs::File::create(&lock).map_err(|e| Error::io("create", &lock, e))?;
    held.lock().map_err(|e| Error::io("lock", &lock, e))?;
    if folder.is_dir() {
        return Ok(Cached { folder, fresh: None });
    }
    let notes = import(from, &folder, None)?;
    Ok(Cached { folder, fresh: Some(notes) })
}
