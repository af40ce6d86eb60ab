//! What the decoder of every family reads besides its weights: the stream's inputs, the rows the
//! head looks at, and attention over the stream.

use crate::data::pack::Stream;
use crate::graph::{DType, Graph, Var};
use crate::ops::attention::{Attention, attention};
use crate::ops::gather_index::GatherIndex;
use crate::step::Step;

/// The inputs that describe a stream of T tokens.
pub struct StreamInputs {
    /// Token ids `[T]`.
    pub tokens: Var,
    /// Position of each token in its own sequence `[T]`.
    pub position: Var,
    /// Attention ranges [T, 4]: ctx_start, ctx_end, own_start, query_end.
    pub spans: Var,
    /// Which stream tokens use which embedding row, for the gradient.
    pub index: GatherIndex,
}

impl StreamInputs {
    /// Declares the inputs for streams of `tokens` tokens.
    pub fn declare(g: &mut Graph, tokens: usize) -> Self {
        Self {
            tokens: g.input("tokens", &[tokens], DType::U32),
            position: g.input("position", &[tokens], DType::U32),
            spans: g.input("spans", &[tokens, 4], DType::U32),
            index: GatherIndex::inputs(g, "tokens", tokens, tokens),
        }
    }

    /// Uploads a stream.
    pub fn write(&self, step: &Step, stream: &Stream) {
        step.write_u32(self.tokens, &stream.tokens);
        step.write_u32(self.position, &stream.position);
        step.write_u32(self.spans, &stream.spans);
        self.index.write(step, &stream.tokens);
    }

    /// What each query gathers from the keys it attends to: the attention of layer `layer`, for
    /// every model family. `q` is `[T, H * d]`, `k` and `v` are `[T, HKV * d]`, turned by their
    /// positions already; the result is `[T, H * d]`.
    ///
    /// # Panics
    /// When the shapes do not fit.
    #[track_caller]
    pub fn attend(
        &self,
        g: &mut Graph,
        _layer: usize,
        q: Var,
        k: Var,
        v: Var,
        options: Attention,
    ) -> Var {
        attention(g, q, k, v, self.spans, options)
    }
}

/// The rows of the stream the head looks at.
pub struct HeadRows {
    /// Stream row of each `[N]`.
    pub rows: Var,
    /// Inverse index, for the gradient.
    pub index: GatherIndex,
}

impl HeadRows {
    /// Declares `n` head rows over a stream of `tokens` tokens.
    pub fn declare(g: &mut Graph, n: usize, tokens: usize) -> Self {
        let index = GatherIndex::inputs(g, "head rows", n, n.min(tokens));
        Self { rows: g.input("head rows", &[n], DType::U32), index }
    }

    /// Uploads the rows.
    pub fn write(&self, step: &Step, rows: &[u32]) {
        step.write_u32(self.rows, rows);
        self.index.write(step, rows);
    }
}
