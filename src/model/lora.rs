//! LoRA: low-rank additions to a model's linear layers, which train while the model itself stays as
//! it is (Hu et al., arXiv 2106.09685). Names are PEFT's: `q_proj` stands for every layer
//! that is called so, and the factors of a layer are `{layer}.lora_A.weight` `[rank, inputs]` and
//! `{layer}.lora_B.weight` `[outputs, rank]`.
//!
//! An adapted model is a [`Decoder`] around another one, so that training, evaluation and generation
//! know nothing of it. A layer whose weight is a slice of a fused tensor shares its A with the
//! other slices, as one addition to the fused layer would.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::blocks::Head;
use super::config::ModelConfig;
use super::families::{Decoder, Outline, Place};
use super::stream::{BatchInputs, HeadRows};
use super::weights::Storage;
use crate::error::Problem;
use crate::graph::{DType, Graph, LowRank, Parameter};

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
/// What PEFT puts in front of a model's own names.
pub(super) const PREFIX: &str = "base_model.model.";

/// Which additions a model gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Rows of A.
    pub rank: usize,
    /// B A is multiplied by alpha / rank, or alpha / sqrt(rank) with `rslora`.
    pub alpha: f64,
    /// Rank-stabilised scaling (Kalajdzievski, arXiv 2312.03732).
    pub rslora: bool,
    /// The layers.
    pub targets: Targets,
}

/// Layers that get an addition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer but the head.
    AllLinear,
    /// Those that are called so, or whose name ends in one of these behind a dot.
    Named(Vec<String>),
}

impl Targets {
    /// Whether `module`, by its name in files, is one of them.
    pub(super) fn hold(&self, module: &str) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Named(names) => names.iter().any(|name| is_called(module, name)),
        }
    }

    /// The same layers by name, of a model with these; by few names, as where an adapter's tensors name
    /// each layer by itself.
    pub(super) fn resolved(&self, modules: &[String]) -> Self {
        let held = modules.iter().filter(|module| self.hold(module));
        let few = Self::Named(kinds(held));
        match (self, &few) {
            (Self::Named(names), Self::Named(kinds))
                if names.len() <= kinds.len()
                    || modules.iter().any(|m| few.hold(m) != self.hold(m)) =>
            {
                self.clone()
            }
            _ => few,
        }
    }

    /// Every name that none of `modules` has.
    pub(super) fn problems(&self, modules: &[String]) -> Vec<Problem> {
        let Self::Named(names) = self else { return Vec::new() };
        let kinds = kinds(modules.iter());
        let none = |name: &&String| !modules.iter().any(|module| is_called(module, name));
        let problem = |name: &String| {
            let what = format!(
                "is no linear layer of this model; it has {}. The embedding and the head are not adapted",
                kinds.join(", ")
            );
            Problem::new(name.clone(), what)
        };
        names.iter().filter(none).map(problem).collect()
    }
}

/// What `modules` are called, whatever holds them.
fn kinds<'a>(modules: impl Iterator<Item = &'a String>) -> Vec<String> {
    let last = |m: &String| m.rsplit('.').next().unwrap_or(m).to_owned();
    modules.map(last).collect::<BTreeSet<_>>().into_iter().collect()
}

fn is_called(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Lora {
    /// What B A is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

impl Serialize for Targets {
    /// As the section of a recipe has it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str("all"),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

/// How the matrices of a model under its additions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// As their file stores them.
    Stored,
    /// Half floats.
    #[cfg_attr(feature = "cli", value(name = "f16"))]
    F16,
    /// The upper halves of single floats.
    #[cfg_attr(feature = "cli", value(name = "bf16"))]
    BF16,
    /// Blocks of 8 bits.
    #[serde(rename = "q8_0")]
    #[cfg_attr(feature = "cli", value(name = "q8_0"))]
    Q8_0,
    /// Linear layers in blocks of 4 bits, embeddings and head in blocks of 8.
    #[serde(rename = "q4_0")]
    #[cfg_attr(feature = "cli", value(name = "q4_0"))]
    Q4_0,
}

impl Base {
    /// The type of each matrix of `model`, whose file stores them as `stored`. Rows that are no whole
    /// blocks are BF16 instead, and so are learned positions.
    pub fn storage(self, model: &ModelConfig, stored: Storage) -> Storage {
        let matrices = model.parameters().iter().filter(|p| p.shape.len() > 1);
        let linear = model.linear_layers();
        let is_linear = |name: &str| {
            name.strip_suffix(".weight").is_some_and(|name| linear.iter().any(|l| l == name))
        };
        let dtype = |p: &Parameter| match self {
            Self::Stored => None,
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::Q8_0 | Self::Q4_0 if !p.shape[1].is_multiple_of(DType::Q8_0.block().0) => {
                Some(DType::BF16)
            }
            Self::Q8_0 | Self::Q4_0 if !is_linear(&p.name) && p.shape[0] != model.vocab_size => {
                // Positions, of which a family may take a part: blocks are not sliced.
                Some(DType::BF16)
            }
            Self::Q4_0 if is_linear(&p.name) => Some(DType::Q4_0),
            Self::Q8_0 | Self::Q4_0 => Some(DType::Q8_0),
        };
        let named = matrices
            .filter(|p| !is_factor(&p.name))
            .filter_map(|p| Some((p.name.clone(), dtype(p).or(stored.get(&p.name).copied())?)));
        named.collect()
    }
}

/// True for the name of a factor: a parameter that LoRA trains.
pub fn is_factor(parameter: &str) -> bool {
    parameter.ends_with(A) || parameter.ends_with(B)
}

/// The name in files of the layer that holds the parameters of `linear`.
pub(super) fn module_of(decoder: &dyn Decoder, linear: &str) -> String {
    let tensor = decoder.place(&format!("{linear}.weight")).tensor;
    tensor.strip_suffix(".weight").unwrap_or(&tensor).to_owned()
}

/// A decoder with low-rank additions.
#[derive(Debug)]
pub(super) struct Adapted {
    pub base: Arc<dyn Decoder>,
    pub lora: Lora,
}

impl Adapted {
    /// The parameters of a layer's addition. `{linear}` differs from its module where that is fused.
    fn low_rank(base: &dyn Decoder, lora: &Lora, linear: &str) -> Option<LowRank> {
        let module = module_of(base, linear);
        lora.targets.hold(&module).then(|| LowRank {
            a: format!("{module}{A}"),
            b: format!("{linear}{B}"),
            rank: lora.rank,
            scale: lora.scale() as f32,
        })
    }
}

impl Decoder for Adapted {
    fn outline(&self) -> Outline {
        self.base.outline()
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let (base, lora) = (self.base.clone(), self.lora.clone());
        g.adapt(move |linear| Self::low_rank(&*base, &lora, linear));
        self.base.forward(g, s, rows)
    }

    fn rope_by_layer_type(&self) -> bool {
        self.base.rope_by_layer_type()
    }

    fn place(&self, parameter: &str) -> Place {
        if parameter.ends_with(A) {
            return Place::whole(&format!("{PREFIX}{parameter}"));
        }
        let Some(linear) = parameter.strip_suffix(B) else { return self.base.place(parameter) };
        let Place { slice, .. } = self.base.place(&format!("{linear}.weight"));
        let tensor = format!("{PREFIX}{}{B}", module_of(&*self.base, linear));
        Place { tensor, slice, transposed: false }
    }

    fn name_of(&self, tensor: &str) -> Option<String> {
        self.base.name_of(tensor)
    }
}

/// The layers that the factors among an adapter's tensors belong to, by their names in files.
pub(super) fn modules_of_adapter(tensors: &[String]) -> Vec<String> {
    let module = |name: &String| Some(name.strip_prefix(PREFIX)?.strip_suffix(A)?.to_owned());
    tensors.iter().filter_map(module).collect()
}

/// Names of A and B, of the linear layer whose weight is `parameter`.
pub(super) fn factors_of(decoder: &dyn Decoder, parameter: &str) -> Option<[String; 2]> {
    let linear = parameter.strip_suffix(".weight")?;
    Some([format!("{}{A}", module_of(decoder, linear)), format!("{linear}{B}")])
}
