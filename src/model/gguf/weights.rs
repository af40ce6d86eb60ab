//! A GGUF file's tensors as those of a Hugging Face folder: by their names there, with the shapes and
//! the order of rows there.

use std::collections::HashMap;

use safetensors::tensor::Dtype;

use super::architecture::{Architecture, DIVISORS, halves, transposed};
use super::blocks::BlockType;
use super::file::GgufFile;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::layout::layout;
use crate::model::source::{TensorInfo, WeightSource};

/// The tensors of a file.
pub(super) struct GgufWeights {
    file: GgufFile,
    /// GGUF's names by those outside; a tensor that has none keeps its own.
    names: HashMap<String, String>,
    /// Those that a folder stores as `[inputs, outputs]`.
    transposed: Vec<String>,
    architecture: &'static Architecture,
    head_dim: usize,
}

impl GgufWeights {
    pub fn new(
        file: GgufFile,
        architecture: &'static Architecture,
        config: &ModelConfig,
        head_dim: usize,
    ) -> Self {
        let outside =
            |name: &String| architecture.folder_name(name).unwrap_or_else(|| name.clone());
        // The divisors of frequencies are in the configuration.
        let own = file.tensors().keys().filter(|name| *name != DIVISORS);
        let names = own.map(|name| (outside(name), name.clone())).collect();
        let transposed = layout(config).into_iter().filter(|t| t.is_transposed()).map(|t| t.name);
        Self { transposed: transposed.collect(), file, names, architecture, head_dim }
    }

    fn is_transposed(&self, name: &str) -> bool {
        self.transposed.iter().any(|t| t == name)
    }
}

impl WeightSource for GgufWeights {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.names.keys().cloned().collect();
        names.sort();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let tensor = self.file.tensors().get(self.names.get(name)?)?;
        let mut shape = tensor.shape.clone();
        if self.is_transposed(name) {
            shape.reverse();
        }
        let dtype = match tensor.kind {
            BlockType::F16 => Dtype::F16,
            BlockType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        Some(TensorInfo { shape, dtype })
    }

    fn place(&self, name: &str) -> String {
        let inside = self.names.get(name).map_or(name, String::as_str);
        format!("{}: {inside}", self.file.path().display())
    }

    fn read(&self, name: &str, values: &mut Vec<f32>) -> Result<()> {
        let inside = self.names.get(name).map_or(name, String::as_str);
        self.file.read(inside, values)?;
        let shape = &self.file.tensors()[inside].shape;
        if self.architecture.reorders(inside) {
            *values = halves(values, shape[0], self.head_dim);
        } else if self.is_transposed(name) {
            *values = transposed(values, shape[1]);
        }
        let added = self.architecture.added(inside);
        values.iter_mut().filter(|_| added != 0.0).for_each(|value| *value -= added);
        Ok(())
    }
}
