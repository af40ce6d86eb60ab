//! A model folder made into one GGUF file for llama.cpp.

use std::path::Path;

use super::architecture::{DIVISORS, POSITIONS, pairs};
use super::blocks::BlockType;
use super::described::{Described, described};
use super::metadata::Value;
use super::tokenizer::keys;
use super::writer::{Unwritten, write};
use crate::data::tokenize::Tokenizer;
use crate::data::vocabulary::Vocabulary;
use crate::error::{Error, Problem, Result};
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::layout::{FileTensor, layout};
use crate::model::weights::FolderWeights;

/// Writes the model in `folder` to the file `destination`, its matrices as `kind`: F32, F16 or Q8_0.
/// Vectors stay F32, and so do learned positions; rows that do not fill blocks become F16. Returns
/// what the user ought to know of it.
///
/// # Errors
/// An adapter; families and tokenizers that GGUF or llama.cpp has no name for; weights that cannot be
/// used, or that `kind` cannot hold.
pub fn export(folder: &Path, destination: &Path, kind: BlockType) -> Result<Vec<String>> {
    if Adapter::of(folder)?.is_some() {
        let what = "is a LoRA adapter; make one model of it and its base with `oddgrad merge`, and export that";
        return Err(Error::file(folder, what));
    }
    let config = ModelConfig::load(folder)?;
    let Described { architecture, keys: of_model, head_dim, divisors, mut notes } =
        described(&config)?;
    let tokenizer = Tokenizer::from_folder(folder)?;
    let vocabulary = Vocabulary::of(&tokenizer, config.vocab_size).map_err(|what| {
        let place = folder.join("tokenizer.json").display().to_string();
        Error::input("the tokenizer cannot be written as GGUF", vec![Problem::new(place, what)])
    })?;
    let weights = FolderWeights::open(folder, &config)?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut all = vec![
        ("general.architecture".to_owned(), Value::Text(architecture.name.into())),
        ("general.type".to_owned(), Value::Text("model".into())),
        ("general.name".to_owned(), Value::Text(name)),
        ("general.file_type".to_owned(), Value::Unsigned(file_type(kind))),
        ("general.quantization_version".to_owned(), Value::Unsigned(2)),
    ];
    all.extend(of_model);
    all.extend(keys(&vocabulary, tokenizer.template_source()));

    let mut narrow = 0;
    let mut tensors = Vec::new();
    for tensor in layout(&config) {
        let Some(name) = architecture.gguf_name(&tensor.name) else {
            let what = format!("{} has no name in GGUF, so the model is not written", tensor.name);
            return Err(Error::file(folder, what));
        };
        let shape = tensor.outputs_first();
        let (kind, is_narrow) = kind_of(&name, &shape, kind);
        narrow += usize::from(is_narrow);
        let (weights, rows, reorders) = (&weights, shape[0], architecture.reorders(&name));
        let added = architecture.added(&name);
        let values = move || {
            let mut values = joined(&tensor, weights)?;
            values.iter_mut().filter(|_| added != 0.0).for_each(|value| *value += added);
            Ok(if reorders { pairs(&values, rows, head_dim) } else { values })
        };
        tensors.push(Unwritten { name, shape, kind, values: Box::new(values) });
    }
    tensors.extend(divisors.map(|divisors| Unwritten {
        name: DIVISORS.to_owned(),
        shape: vec![divisors.len()],
        kind: BlockType::F32,
        values: Box::new(move || Ok(divisors.clone())),
    }));
    if narrow > 0 {
        notes.push(format!(
            "{narrow} matrices are F16: their rows are no multiple of {} values",
            kind.block().0
        ));
    }
    write(destination, &all, &tensors)?;
    Ok(notes)
}

/// How a tensor is written, and whether that is F16 because its rows fill no blocks.
fn kind_of(name: &str, shape: &[usize], wanted: BlockType) -> (BlockType, bool) {
    // llama.cpp adds vectors and positions as they are.
    if shape.len() < 2 || name.starts_with(POSITIONS) {
        return (BlockType::F32, false);
    }
    match shape[1].is_multiple_of(wanted.block().0) {
        true => (wanted, false),
        false => (BlockType::F16, true),
    }
}

/// A tensor's values `[outputs, inputs]`.
fn joined(tensor: &FileTensor, weights: &FolderWeights) -> Result<Vec<f32>> {
    let mut parts: Vec<_> = tensor.parts.iter().collect();
    parts.sort_by_key(|part| part.start);
    let mut values = Vec::with_capacity(tensor.len());
    for part in parts {
        values.extend(weights.read(&part.parameter)?);
    }
    Ok(values)
}

/// llama.cpp's number for what most of a file's tensors are.
fn file_type(kind: BlockType) -> u64 {
    match kind {
        BlockType::F32 => 0,
        BlockType::F16 => 1,
        BlockType::Q8_0 => 7,
        other => unreachable!("nothing is written in {other:?}"),
    }
}
