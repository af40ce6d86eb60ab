//! The parts that families build their decoders from. Each declares its parameters when it is
//! made and is applied afterwards, so the order of a model's parameters is that of the lines
//! which make its blocks.
//!
//! T tokens of the stream, D hidden size, H heads, K key/value heads, d head size, F feed-forward
//! size, V vocabulary, N rows that the head looks at.

use crate::error::Result;
use crate::graph::{Graph, Init, LowRank, RowBlock, Var};
use crate::model::rotary::Rotary;
use crate::model::stream::{Attention, BatchInputs, HeadRows};
use crate::ops::embedding::embedding;
use crate::ops::gather_rows::gather_rows;
use crate::ops::layer_norm::layer_norm;
use crate::ops::low_rank::{Factors, low_rank_linear};
use crate::ops::matmul::linear;
use crate::ops::rms_norm::rms_norm_plus;
use crate::ops::rope::{rope, rope_table};
use crate::ops::scale::scale;
use crate::ops::soft_cap::soft_cap;
use crate::program::Program;

/// y = x Wᵀ + b with `{name}.weight` `[outputs, inputs]` and perhaps `{name}.bias` `[outputs]`, and
/// the low-rank addition that the graph has for it ([`Graph::adapt`]).
pub struct Linear {
    weight: Var,
    bias: Option<Var>,
    added: Option<Factors>,
}

impl Linear {
    /// Declares `{name}.weight`.
    pub fn new(g: &mut Graph, name: &str, inputs: usize, outputs: usize, init: Init) -> Self {
        let weight = g.parameter(&format!("{name}.weight"), &[outputs, inputs], init);
        let added = g.low_rank(name).map(|LowRank { a, b, rank, scale }| {
            // Kaiming's uniform values with slope sqrt(5), as PEFT draws A; B is 0, so that training
            // begins with the model as it is.
            let bound = 1.0 / (inputs as f64).sqrt();
            let a = g.parameter(&a, &[rank, inputs], Init::Uniform(bound));
            let b = g.parameter(&b, &[outputs, rank], Init::Zeros);
            Factors { a, b, scale }
        });
        Self { weight, bias: None, added }
    }

    /// Declares `{name}.weight` and `{name}.bias`.
    pub fn biased(g: &mut Graph, name: &str, inputs: usize, outputs: usize, init: Init) -> Self {
        let unbiased = Self::new(g, name, inputs, outputs, init);
        let bias = g.parameter(&format!("{name}.bias"), &[outputs], Init::Zeros);
        Self { bias: Some(bias), ..unbiased }
    }

    /// x `[T, inputs]` to `[T, outputs]`.
    pub fn apply(&self, g: &mut Graph, x: Var) -> Var {
        match self.added {
            None => linear(g, x, self.weight, self.bias),
            Some(factors) => low_rank_linear(g, x, self.weight, self.bias, factors),
        }
    }
}

/// Each row divided by its root mean square and scaled by `{name}.weight`, or by 1 more.
pub struct RmsNorm {
    weight: Var,
    offset: f32,
    eps: f32,
}

impl RmsNorm {
    /// Declares `{name}.weight` `[width]`.
    pub fn new(g: &mut Graph, name: &str, width: usize, eps: f64) -> Self {
        let weight = g.parameter(&format!("{name}.weight"), &[width], Init::Ones);
        Self { weight, offset: 0.0, eps: eps as f32 }
    }

    /// Declares `{name}.weight` `[width]`, to which 1 is added.
    pub fn plus_one(g: &mut Graph, name: &str, width: usize, eps: f64) -> Self {
        let weight = g.parameter(&format!("{name}.weight"), &[width], Init::Zeros);
        Self { weight, offset: 1.0, eps: eps as f32 }
    }

    /// x `[T, width]`, or `[T, heads * width]` of which each head is normalised by itself.
    pub fn apply(&self, g: &mut Graph, x: Var) -> Var {
        let shape = g.shape(x).to_vec();
        let width = g.shape(self.weight)[0];
        if shape[1] == width {
            return rms_norm_plus(g, x, self.weight, self.offset, self.eps);
        }
        let heads = g.view(x, &[shape[0] * shape[1] / width, width]);
        let y = rms_norm_plus(g, heads, self.weight, self.offset, self.eps);
        g.view(y, &shape)
    }
}

/// Each row shifted to mean 0, scaled to variance 1, then by `{name}.weight` and `{name}.bias`.
pub struct LayerNorm {
    weight: Var,
    bias: Var,
    eps: f32,
}

impl LayerNorm {
    /// Declares `{name}.weight` and `{name}.bias`, both `[width]`.
    pub fn new(g: &mut Graph, name: &str, width: usize, eps: f64) -> Self {
        let weight = g.parameter(&format!("{name}.weight"), &[width], Init::Ones);
        let bias = g.parameter(&format!("{name}.bias"), &[width], Init::Zeros);
        Self { weight, bias, eps: eps as f32 }
    }

    /// x `[T, width]`.
    pub fn apply(&self, g: &mut Graph, x: Var) -> Var {
        layer_norm(g, x, self.weight, self.bias, self.eps)
    }
}

/// Causal self-attention over the stream.
pub struct SelfAttention {
    /// D to H * d.
    pub q: Linear,
    /// D to K * d.
    pub k: Linear,
    /// D to K * d.
    pub v: Linear,
    /// H * d to D.
    pub o: Linear,
    /// d, the width of one head.
    pub head_dim: usize,
    /// Norms over d of each query head and of each key head, or over all of them together.
    pub norms: Option<[RmsNorm; 2]>,
    /// Turns queries and keys by their positions.
    pub rope: Option<Rope>,
    /// Multiplies the queries: scores are this times q · k / sqrt(d).
    pub scale: Option<f64>,
    /// Bounds the scores to cap * tanh(score / cap).
    pub cap: Option<f64>,
    /// A token sees itself and the `window - 1` before it; None: all before it.
    pub window: Option<usize>,
}

impl SelfAttention {
    /// x `[T, D]` to `[T, D]`, in layer `layer`.
    pub fn apply(&self, g: &mut Graph, s: &BatchInputs, layer: usize, x: Var) -> Var {
        let [mut q, mut k, v] = [&self.q, &self.k, &self.v].map(|l| l.apply(g, x));
        if let Some([of_q, of_k]) = &self.norms {
            (q, k) = (of_q.apply(g, q), of_k.apply(g, k));
        }
        if let Some(Rope { table }) = self.rope {
            q = rope(g, q, s.position, table, self.head_dim);
            k = rope(g, k, s.position, table, self.head_dim);
        }
        if let Some(factor) = self.scale {
            q = times(g, q, factor);
        }
        let cap = self.cap.map(|cap| cap as f32);
        let options = Attention { head_dim: self.head_dim, cap, window: self.window };
        let o = s.attend(g, layer, q, k, v, options);
        self.o.apply(g, o)
    }
}

/// Rotary positions: one table of angles for all layers.
#[derive(Clone, Copy)]
pub struct Rope {
    table: Var,
}

impl Rope {
    /// The angles that `rotary` gives. No position reaches the smaller of `max_positions` and
    /// [`BatchInputs::positions`].
    pub fn new(g: &mut Graph, s: &BatchInputs, max_positions: usize, rotary: &Rotary) -> Self {
        let positions = max_positions.min(s.positions());
        let frequencies = rotary.frequencies();
        let table = rope_table(positions, &frequencies, rotary.amplitude());
        Self { table: g.constant("rope table", &[positions, frequencies.len(), 2], &table) }
    }
}

/// down(f(gate x, up x)), with [`silu_mul`](crate::ops::silu_mul::silu_mul) or
/// [`gelu_mul`](crate::ops::gelu_mul::gelu_mul) as `f`.
pub struct GatedMlp {
    /// D to F.
    pub gate: Linear,
    /// D to F.
    pub up: Linear,
    /// Of both.
    pub gated: fn(&mut Graph, Var, Var) -> Var,
    /// F to D.
    pub down: Linear,
}

impl GatedMlp {
    /// x `[T, D]` to `[T, D]`.
    pub fn apply(&self, g: &mut Graph, x: Var) -> Var {
        let gate = self.gate.apply(g, x);
        let up = self.up.apply(g, x);
        let h = (self.gated)(g, gate, up);
        self.down.apply(g, h)
    }
}

/// down(f(up x)) with an elementwise `f`, as [`gelu`](crate::ops::gelu::gelu).
pub struct Mlp {
    /// D to F.
    pub up: Linear,
    /// Between the two.
    pub activation: fn(&mut Graph, Var) -> Var,
    /// F to D.
    pub down: Linear,
}

impl Mlp {
    /// x `[T, D]` to `[T, D]`.
    pub fn apply(&self, g: &mut Graph, x: Var) -> Var {
        let h = self.up.apply(g, x);
        let h = (self.activation)(g, h);
        self.down.apply(g, h)
    }
}

/// A table `{name}.weight` `[rows, D]` of which tokens or positions take rows.
#[derive(Clone, Copy)]
pub struct Embedding {
    /// `[rows, D]`; a tied head is this matrix.
    pub weight: Var,
}

impl Embedding {
    /// Declares `{name}.weight`.
    pub fn new(g: &mut Graph, name: &str, rows: usize, width: usize, std: f64) -> Self {
        Self { weight: g.parameter(&format!("{name}.weight"), &[rows, width], Init::Normal(std)) }
    }

    /// The row of each token `[T, D]`.
    pub fn of_tokens(&self, g: &mut Graph, s: &BatchInputs) -> Var {
        embedding(g, self.weight, s.tokens, s.index)
    }

    /// The row of each token's position `[T, D]`.
    pub fn of_positions(&self, g: &mut Graph, s: &BatchInputs) -> Var {
        let index = s.position_index(g);
        embedding(g, self.weight, s.position, index)
    }
}

/// What the log-probabilities are made of: logits = input · weightᵀ.
pub struct Head {
    /// `[N, D]`, behind the final norm.
    pub input: Var,
    /// `[V, D]`.
    pub weight: Var,
    /// Bounds the logits z to cap * tanh(z / cap).
    pub cap: Option<f32>,
}

impl Head {
    /// Logits `[N, V]`: for generation and `verify`. Training never makes them.
    pub fn logits(&self, g: &mut Graph) -> Logits {
        let blocks = g.row_blocks(self.weight);
        let part = |block: RowBlock| {
            let logits = linear(g, self.input, block.var, None);
            let logits = match self.cap {
                None => logits,
                Some(cap) => soft_cap(g, logits, cap),
            };
            g.output(logits)
        };
        let parts = blocks.into_iter().map(part).collect();
        Logits { parts }
    }
}

/// Logits `[N, V]` as outputs of a graph: some columns each where the head's weight is bound in blocks,
/// else all in one.
pub struct Logits {
    parts: Vec<Var>,
}

impl Logits {
    /// The logits of the last run, row-major.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn read(&self, program: &Program) -> Result<Vec<f32>> {
        let mut parts = program.read_many(&self.parts)?;
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let width = |&var: &Var| program.graph().shape(var)[1];
        let widths: Vec<usize> = self.parts.iter().map(width).collect();
        let rows = program.graph().shape(self.parts[0])[0];
        let row = |row: usize| {
            parts
                .iter()
                .zip(&widths)
                .flat_map(move |(part, &w)| part[row * w..][..w].iter().copied())
        };
        Ok((0..rows).flat_map(row).collect())
    }
}

/// `factor` * x.
pub fn times(g: &mut Graph, x: Var, factor: f64) -> Var {
    if factor == 1.0 { x } else { scale(g, x, factor as f32) }
}

/// The rows that the head looks at `[N, D]`. Rows that no loss term uses never get there.
pub fn head_rows(g: &mut Graph, hidden: Var, rows: &HeadRows) -> Var {
    gather_rows(g, hidden, rows.rows, rows.index)
}
