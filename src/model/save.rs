//! Writes safetensors files, each tensor's values fetched when its turn comes.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensorError, View};

use super::adapter::ADAPTER_WEIGHTS;
use super::config::ModelConfig;
use super::layout::{FileTensor, adapter_layout, layout};
use crate::dtype::DType;
use crate::error::{Error, Problem, Result};

/// Gives a parameter's values by its name.
pub type ReadParameter<'a> = dyn Fn(&str) -> Result<Vec<f32>> + 'a;

/// A tensor to be written.
pub struct Unwritten<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How its values are written: F32, F16 or BF16.
    pub dtype: DType,
    /// Gives its values, as many as the product of `shape`.
    pub values: Box<dyn Fn() -> Result<Vec<f32>> + 'a>,
}

/// Writes `model.safetensors` into an existing folder, as the family's files are, with the
/// metadata that transformers expects.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_weights(folder: &Path, config: &ModelConfig, read: &ReadParameter) -> Result<()> {
    write_layout(&folder.join(WEIGHTS), layout(config), read)
}

/// As [`write_weights`], the factors of an adapter as PEFT has them.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_factors(folder: &Path, config: &ModelConfig, read: &ReadParameter) -> Result<()> {
    write_layout(&folder.join(ADAPTER_WEIGHTS), adapter_layout(config), read)
}

fn write_layout(path: &Path, layout: Vec<FileTensor>, read: &ReadParameter) -> Result<()> {
    let tensors = layout.into_iter().map(|tensor| Unwritten {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        dtype: DType::F32,
        values: Box::new(move || tensor.join(read)),
    });
    write_safetensors(path, tensors)
}

/// Writes `model.safetensors` of these tensors into an existing folder.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_tensors<'a>(
    folder: &Path,
    tensors: impl IntoIterator<Item = Unwritten<'a>>,
) -> Result<()> {
    write_safetensors(&folder.join(WEIGHTS), tensors)
}

/// The file of a model's weights in the folder that is written of it: those of an adapted model are
/// its factors.
pub fn weights_file(config: &ModelConfig) -> &'static str {
    if config.lora().is_some() { ADAPTER_WEIGHTS } else { WEIGHTS }
}

const WEIGHTS: &str = "model.safetensors";
const F16_MOST: f32 = 65504.0;

/// Writes one safetensors file. After an error there is none.
///
/// # Errors
/// Tensors with values that are not finite, or not in their type, all named at once; the errors of those that give the
/// values; whatever the disk refuses.
///
/// # Panics
/// If a tensor's values are not as many as its shape says: that is a programming error.
#[track_caller]
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = Unwritten<'a>>,
) -> Result<()> {
    let wrong = RefCell::new(Wrong::default());
    let views = tensors.into_iter().map(|tensor| {
        let name = tensor.name.clone();
        (name, Turn { tensor, path, wrong: &wrong })
    });
    // The writer goes through a private temporary file, which would leave the weights readable to
    // their owner only: an ordinary file in that place shows what the permissions should be.
    let permissions = match std::fs::metadata(path) {
        Ok(existing) => Ok(existing.permissions()),
        Err(_) => File::create_new(path).and_then(|f| f.metadata()).map(|m| m.permissions()),
    }
    .map_err(|e| Error::io("create", path, e))?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let written =
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
            SafeTensorError::IoError(e) => Error::io("write", path, e),
            other => Error::file(path, format!("cannot be written: {other}")),
        });
    let written = written.and_then(|()| wrong.into_inner().result()).and_then(|()| {
        std::fs::set_permissions(path, permissions).map_err(|e| Error::io("write", path, e))
    });
    if written.is_err() {
        // The first error is the one worth telling.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// What went wrong while values were fetched: the writer knows no errors but the disk's.
#[derive(Default)]
struct Wrong {
    error: Option<Error>,
    problems: Vec<Problem>,
}

impl Wrong {
    fn result(self) -> Result<()> {
        match (self.error, self.problems) {
            (Some(error), _) => Err(error),
            (None, problems) if problems.is_empty() => Ok(()),
            (None, problems) => Err(Error::input("these weights are not written", problems)),
        }
    }
}

/// A tensor that becomes bytes when its turn to be written comes.
struct Turn<'a> {
    tensor: Unwritten<'a>,
    path: &'a Path,
    wrong: &'a RefCell<Wrong>,
}

impl View for Turn<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let Unwritten { name, shape, dtype, values } = &self.tensor;
        let mut wrong = self.wrong.borrow_mut();
        let fetched = if wrong.error.is_none() { values() } else { Ok(Vec::new()) };
        let values = match fetched {
            Ok(values) if wrong.error.is_none() => values,
            fetched => {
                wrong.error = fetched.err().or(wrong.error.take());
                return Cow::Owned(vec![0; self.data_len()]);
            }
        };
        let bytes = dtype.encode(&values);
        assert_eq!(bytes.len(), self.data_len(), "{name}: shape {shape:?}");
        let bad = values.iter().filter(|x| !x.is_finite()).count();
        // bf16 has the range of f32.
        let large = match dtype {
            DType::F16 => values.iter().filter(|x| x.is_finite() && x.abs() > F16_MOST).count(),
            _ => 0,
        };
        if bad + large > 0 {
            let what = match bad {
                0 => format!("has {large} values beyond {F16_MOST}, the largest that f16 holds"),
                _ => format!("has {bad} values that are not finite"),
            };
            let place = format!("{}: {name}", self.path.display());
            wrong.problems.push(Problem::new(place, what));
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.dtype.bytes(self.tensor.shape.iter().product()) as usize
    }
}
