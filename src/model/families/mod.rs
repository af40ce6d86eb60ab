//! The families of decoders, one file each.
//!
//! # How to add a family
//! 1. A file here with
//!    - `read`: takes the sizes from the [`Keys`] of its `config.json` and refuses, by key,
//!      whatever would change the output and that its forward pass does not do. Keys named as
//!      Llama names them are read by `sizes.rs`;
//!    - a [`Decoder`]: its forward pass, built from [`blocks`](super::blocks), which is also
//!      where its parameters are declared (Hugging Face's names, and their order in the layer's
//!      module); [`Decoder::place`] where the file holds a parameter transposed or in a fused
//!      tensor; [`Decoder::name_of`] for tensors that older files name otherwise or that hold
//!      nothing learnt.
//! 2. A line in `FAMILIES`, and the `mod`.
//! 3. A folder in `tests/golden` (README.md there; `scripts/families.py` and `steps.py` make it),
//!    which three tests take up: logits, loss, gradients and two steps of AdamW agree with PyTorch's,
//!    and the file's tensors are the graph's parameters.

mod gemma2;
mod gemma3;
mod gpt2;
mod granite;
mod llama;
mod mistral;
mod olmo2;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod sizes;
mod smollm3;
mod stablelm;

use std::fmt::Debug;
use std::sync::Arc;

use crate::graph::Graph;
use crate::model::blocks::Head;
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};

type Read = fn(&mut Keys) -> Arc<dyn Decoder>;

/// `model_type` of `config.json`, and what reads such a file.
pub(super) static FAMILIES: &[(&str, Read)] = &[
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("qwen2", qwen2::read),
    ("qwen3", qwen3::read),
    ("gpt2", gpt2::read),
    ("opt", opt::read),
    ("phi3", phi3::read),
    ("olmo2", olmo2::read),
    ("smollm3", smollm3::read),
    ("granite", granite::read),
    ("stablelm", stablelm::read),
    ("gemma2", gemma2::read),
    ("gemma3_text", gemma3::read),
];

/// Every supported `model_type`, as a list in words.
pub fn supported() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
    let (last, others) = names.split_last().expect("there are families");
    format!("{} and {last}", others.join(", "))
}

/// What the rest of the program asks of any model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    /// V: rows of the embedding and of the head.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// K * d: width of a token's keys, and of its values, in a layer.
    pub kv_width: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
}

/// A decoder with its sizes.
pub trait Decoder: Debug + Send + Sync {
    /// The sizes that any model has.
    fn outline(&self) -> Outline;

    /// Appends the forward pass over a stream of T tokens, as far as the head's input at `rows`;
    /// declares the parameters on its way.
    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head;

    /// Whether `rope_parameters` of its `config.json` stand by layer type.
    fn rope_by_layer_type(&self) -> bool {
        false
    }

    /// Where the family's files hold a parameter.
    fn place(&self, parameter: &str) -> Place {
        Place::whole(parameter)
    }

    /// The name in [`Decoder::place`]'s terms of a tensor found in a file; None for one that
    /// holds nothing learnt, such as the rotary frequencies in old files.
    fn name_of(&self, tensor: &str) -> Option<String> {
        (!tensor.ends_with(".rotary_emb.inv_freq")).then(|| tensor.to_owned())
    }
}

/// Where a file holds a parameter `[outputs, inputs]` (or a bias `[outputs]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the tensor.
    pub tensor: String,
    /// The parameter's first output in a fused tensor and how many outputs that has; None if the
    /// tensor is the parameter alone.
    pub slice: Option<(usize, usize)>,
    /// The tensor is stored as `[inputs, outputs]`.
    pub transposed: bool,
}

impl Place {
    /// A tensor of the parameter's own name and shape.
    pub fn whole(parameter: &str) -> Self {
        Self { tensor: parameter.to_owned(), slice: None, transposed: false }
    }

    /// Outputs `start..` of a fused tensor of `outputs`.
    pub fn slice(tensor: String, start: usize, outputs: usize) -> Self {
        Self { tensor, slice: Some((start, outputs)), transposed: false }
    }

    /// The same, stored as `[inputs, outputs]`.
    pub fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }
}
