//! What the decoder of every family reads besides its weights: the stream's inputs, the rows the
//! head looks at, and attention over the stream or over a cache of keys and values.

use crate::data::pack::PackedBatch;
use crate::graph::{DType, Graph, Var};
use crate::ops::attention::{attention_capped, causal_spans};
use crate::ops::gather_index::GatherIndex;
use crate::ops::store_rows::store_rows;
use crate::program::Program;
use std::cell::{OnceCell, RefCell};

/// How an attention layer attends.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Elements of a head.
    pub head_dim: usize,
    /// Bounds scores s to cap * tanh(s / cap).
    pub cap: Option<f32>,
    /// A query sees itself and the `window - 1` keys before it in its sequence; None: all of them.
    pub window: Option<usize>,
}

/// The inputs that describe a stream of T tokens.
pub struct BatchInputs {
    /// Token ids `[T]`.
    pub tokens: Var,
    /// Position of each token in its own sequence `[T]`.
    pub position: Var,
    /// Attention ranges, as [`attention`](crate::ops::attention::attention) has them: `[2T, 4]`, or `[T, 4]` over a cache.
    pub spans: Var,
    /// Which stream tokens use which embedding row, for the gradient.
    pub index: GatherIndex,
    position_index: OnceCell<GatherIndex>,
    /// Attention ranges as windows of these lengths cut them.
    windows: RefCell<Vec<(usize, Var)>>,
    /// No position reaches this.
    positions: usize,
    cache: Option<Cache>,
}

/// Keys and values of earlier tokens, kept from run to run in states of each layer.
struct Cache {
    /// Row of the cache that each token's key and value go to `[T]`.
    rows: Var,
    /// Rows of each layer's keys and values.
    capacity: usize,
}

/// A token whose key and value go into the cache.
#[derive(Debug, Clone, Copy)]
pub struct CachedToken {
    /// Its id.
    pub id: u32,
    /// Its position in its sequence.
    pub position: u32,
    /// The sequence's first row of the cache; the token's own is `start + position`.
    pub start: u32,
}

impl BatchInputs {
    /// Declares the inputs for streams of `tokens` tokens.
    pub fn declare(g: &mut Graph, tokens: usize) -> Self {
        Self {
            tokens: g.input("tokens", &[tokens], DType::U32),
            position: g.input("position", &[tokens], DType::U32),
            spans: g.input("spans", &[2 * tokens, 4], DType::U32),
            index: GatherIndex::inputs(g, "tokens", tokens, tokens),
            position_index: OnceCell::new(),
            windows: RefCell::default(),
            positions: tokens,
            cache: None,
        }
    }

    /// Declares the inputs for runs of `tokens` tokens whose keys and values go into a cache of
    /// `sequences` regions of `length` rows each, and which attend to what is in there. Programs
    /// over one store with the same sizes share the cache. There is no derivative.
    pub fn cached(g: &mut Graph, tokens: usize, sequences: usize, length: usize) -> Self {
        Self {
            tokens: g.input("tokens", &[tokens], DType::U32),
            position: g.input("position", &[tokens], DType::U32),
            spans: g.input("spans", &[tokens, 4], DType::U32),
            index: GatherIndex::inputs(g, "tokens", tokens, tokens),
            position_index: OnceCell::new(),
            windows: RefCell::default(),
            positions: length,
            cache: Some(Cache {
                rows: g.input("cache rows", &[tokens], DType::U32),
                capacity: sequences * length,
            }),
        }
    }

    /// One more than the largest position a token can have.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Which stream tokens use which row of a table of positions: an input that only models with
    /// learned positions have.
    pub fn position_index(&self, g: &mut Graph) -> GatherIndex {
        let tokens = g.shape(self.tokens)[0];
        *self.position_index.get_or_init(|| GatherIndex::inputs(g, "positions", tokens, tokens))
    }

    /// Uploads a stream.
    ///
    /// # Panics
    /// When the inputs are those of a cache.
    pub fn write(&self, program: &Program, stream: &PackedBatch) {
        assert!(self.cache.is_none(), "a stream is written to inputs without a cache");
        program.write_u32(self.tokens, &stream.tokens);
        program.write_u32(self.position, &stream.position);
        program.write_u32(self.spans, &causal_spans(&stream.spans));
        write_index(program, &self.index, &stream.tokens);
        if let Some(index) = self.position_index.get() {
            write_index(program, index, &stream.position);
        }
        for (window, spans) in self.windows.borrow().iter() {
            program.write_u32(*spans, &causal_spans(&windowed(stream, *window)));
        }
    }

    /// Uploads at most T tokens that go into the cache. Each attends to its sequence up to itself.
    ///
    /// # Panics
    /// When the inputs have no cache, or there are more tokens than fit.
    pub fn write_cached(&self, program: &Program, tokens: &[CachedToken]) {
        let cache = self.cache.as_ref().expect("inputs of a cache");
        let places = program.graph().shape(self.tokens)[0];
        assert!(tokens.len() <= places, "{} tokens, room for {places}", tokens.len());
        // What fills up the run is stored nowhere and attends to the first row.
        let filled = |value: &dyn Fn(&CachedToken) -> u32, rest: u32| -> Vec<u32> {
            let rest = std::iter::repeat_n(rest, places - tokens.len());
            tokens.iter().map(value).chain(rest).collect()
        };
        program.write_u32(self.tokens, &filled(&|t| t.id, 0));
        program.write_u32(self.position, &filled(&|t| t.position, 0));
        program.write_u32(cache.rows, &filled(&|t| t.start + t.position, cache.capacity as u32));
        let spans = |window: u32| -> Vec<u32> {
            let own = |t: &CachedToken| {
                let end = t.start + t.position + 1;
                [0, 0, t.start + (t.position + 1).saturating_sub(window), end]
            };
            let rest = std::iter::repeat_n([0, 0, 0, 1], places - tokens.len());
            tokens.iter().map(own).chain(rest).flatten().collect()
        };
        program.write_u32(self.spans, &spans(u32::MAX));
        for &(window, var) in self.windows.borrow().iter() {
            program.write_u32(var, &spans(window as u32));
        }
    }

    /// The attention ranges under a window: an input that only models with windows have.
    fn spans_of(&self, g: &mut Graph, window: Option<usize>) -> Var {
        let Some(window) = window.filter(|&w| w < self.positions) else { return self.spans };
        let mut windows = self.windows.borrow_mut();
        if let Some((_, spans)) = windows.iter().find(|(length, _)| *length == window) {
            return *spans;
        }
        let shape = g.shape(self.spans).to_vec();
        let spans = g.input(&format!("spans of {window}"), &shape, DType::U32);
        windows.push((window, spans));
        spans
    }

    /// What each query gathers from the keys it attends to: the attention of layer `layer`, for
    /// every model family. `q` is `[T, H * d]`, `k` and `v` are `[T, HKV * d]`, turned by their
    /// positions already; the result is `[T, H * d]`. With a cache, `k` and `v` are stored first.
    ///
    /// # Panics
    /// When the shapes do not fit.
    #[track_caller]
    pub fn attend(
        &self,
        g: &mut Graph,
        layer: usize,
        q: Var,
        k: Var,
        v: Var,
        options: Attention,
    ) -> Var {
        let spans = self.spans_of(g, options.window);
        let mut kept = |name: &str, x: Var| {
            let Some(cache) = &self.cache else { return x };
            let shape = [cache.capacity, g.shape(x)[1]];
            let state = g.state(&format!("cache.{}.{layer}.{name}", cache.capacity), &shape);
            store_rows(g, x, cache.rows, state);
            state
        };
        let (k, v) = (kept("keys", k), kept("values", v));
        attention_capped(g, q, k, v, spans, options.head_dim, options.cap)
    }
}

/// The ranges of a stream under a sliding window: query i keeps the keys whose positions are less
/// than `window` before its own. Positions rise by one along the context and along the own range,
/// so a window only moves the starts of both. The end of the queries of a key, which now is later
/// than need be, stays right.
fn windowed(stream: &PackedBatch, window: usize) -> Vec<u32> {
    let mut spans = stream.spans.clone();
    for (i, span) in spans.chunks_exact_mut(4).enumerate() {
        let first = (stream.position[i] as usize + 1).saturating_sub(window) as u32;
        let moved = |start: u32| start + first.saturating_sub(stream.position[start as usize]);
        if span[0] < span[1] {
            span[0] = moved(span[0]).min(span[1]);
        }
        span[2] = moved(span[2]).min(i as u32);
    }
    spans
}

/// Uploads the index of the gathered rows `ids`.
fn write_index(program: &Program, index: &GatherIndex, ids: &[u32]) {
    for (input, values) in index.values(program.graph(), ids) {
        program.write_u32(input, &values);
    }
}

/// The rows of the stream the head looks at.
pub struct HeadRows {
    /// PackedBatch row of each `[N]`.
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
    pub fn write(&self, program: &Program, rows: &[u32]) {
        program.write_u32(self.rows, rows);
        write_index(program, &self.index, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::{Example, Sequence};
    use crate::data::pack::{Capacity, pack};

    #[test]
    fn a_window_keeps_the_keys_whose_positions_are_near() {
        let side = |prompt: usize, salt: u32, n: u32| {
            let ids = (0..prompt as u32).chain((0..n).map(|j| 100 + salt + j)).collect();
            Sequence { ids, response_start: prompt }
        };
        // Prefixes that both answers share, answers of other lengths, and pads behind them.
        let examples: Vec<Example> = [(9, 7, 4), (3, 2, 6), (1, 5, 1)]
            .into_iter()
            .enumerate()
            .map(|(row, (prompt, a, b))| Example {
                row,
                chosen: side(prompt, 0, a),
                rejected: Some(side(prompt, 50, b)),
                desirable: None,
            })
            .collect();
        let capacity = Capacity { tokens: 48, targets: 48, pairs: 3 };
        let stream = &pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap()[0];
        let keys = |spans: &[u32], i: usize| -> Vec<usize> {
            let s = &spans[4 * i..][..4];
            let attends = |j: usize| {
                (s[0] as usize..s[1] as usize).contains(&j) || (s[2] as usize..=i).contains(&j)
            };
            (0..48).filter(|&j| attends(j)).collect()
        };
        for window in [1, 2, 5, 8, 40] {
            let cut = windowed(stream, window);
            let mut lost = 0;
            for i in 0..48 {
                let near = |&j: &usize| (stream.position[i] - stream.position[j]) < window as u32;
                let all = keys(&stream.spans, i);
                let kept: Vec<usize> = all.iter().copied().filter(near).collect();
                assert_eq!(keys(&cut, i), kept, "query {i}, window {window}");
                // Query ends must hold every query that is left.
                assert!(kept.iter().all(|&j| j <= i && i < cut[4 * j + 3] as usize));
                lost += all.len() - kept.len();
            }
            assert_eq!(lost == 0, window == 40);
        }
    }
}
