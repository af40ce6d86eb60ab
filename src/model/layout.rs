//! Which tensors a model's file has, and which parameters are in each: most files hold one tensor
//! a parameter, some families store matrices transposed or several parameters joined.

use std::borrow::Cow;

use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::lora::is_factor;

/// One tensor of a family's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// The parameters in it.
    pub parts: Vec<Part>,
    transposed: bool,
}

/// A parameter's place in a [`FileTensor`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name of the parameter.
    pub parameter: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its first output in the tensor, of `shape[0]`.
    pub start: usize,
}

/// The tensors of `config`'s file, in the order of the parameters; those of an adapter aside.
pub fn layout(config: &ModelConfig) -> Vec<FileTensor> {
    tensors(config, |name| !is_factor(name))
}

/// The tensors of an adapter's file.
pub fn adapter_layout(config: &ModelConfig) -> Vec<FileTensor> {
    tensors(config, is_factor)
}

fn tensors(config: &ModelConfig, holds: impl Fn(&str) -> bool) -> Vec<FileTensor> {
    let mut tensors: Vec<FileTensor> = Vec::new();
    for p in config.parameters().iter().filter(|p| holds(&p.name)) {
        let place = config.decoder.place(&p.name);
        let (start, outputs) = place.slice.unwrap_or((0, p.shape[0]));
        let part = Part { parameter: p.name.clone(), shape: p.shape.clone(), start };
        // The parts of a fused tensor are declared close to each other.
        let found = place.slice.and_then(|_| {
            tensors.iter_mut().rev().take(8).find(|tensor| tensor.name == place.tensor)
        });
        if let Some(tensor) = found {
            tensor.parts.push(part);
            continue;
        }
        let mut shape = p.shape.clone();
        shape[0] = outputs;
        if place.transposed {
            shape.reverse();
        }
        let (name, transposed) = (place.tensor, place.transposed);
        tensors.push(FileTensor { name, shape, parts: vec![part], transposed });
    }
    tensors
}

impl FileTensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a shape with a zero in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the file has it as `[inputs, outputs]`.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Its shape as `[outputs, inputs]`.
    pub fn outputs_first(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// The values of one of its parameters, from those of the tensor.
    pub fn split<'a>(&self, part: &Part, values: &'a [f32]) -> Cow<'a, [f32]> {
        let inputs: usize = part.shape[1..].iter().product();
        let (start, outputs) = (part.start, part.shape[0]);
        if !self.transposed {
            return Cow::Borrowed(&values[start * inputs..(start + outputs) * inputs]);
        }
        let columns = self.shape[1];
        let column = |o: usize| (0..inputs).map(move |i| values[i * columns + start + o]);
        Cow::Owned((0..outputs).flat_map(column).collect())
    }

    /// The values of the tensor from those of its parameters, which `read` gives by name.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn join(&self, read: &dyn Fn(&str) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
        if self.parts.len() == 1 && !self.transposed {
            return read(&self.parts[0].parameter);
        }
        let mut values = vec![0.0; self.len()];
        for part in &self.parts {
            let inputs: usize = part.shape[1..].iter().product();
            let of_part = read(&part.parameter)?;
            if !self.transposed {
                values[part.start * inputs..][..of_part.len()].copy_from_slice(&of_part);
                continue;
            }
            let columns = self.shape[1];
            for (o, row) in of_part.chunks_exact(inputs).enumerate() {
                for (i, &value) in row.iter().enumerate() {
                    values[i * columns + part.start + o] = value;
                }
            }
        }
        Ok(values)
    }
}
