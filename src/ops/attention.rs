//! `attention`: softmax attention over the packed stream, grouped heads, no `[T, T]` matrix.
//!
//! Query i attends key j iff `ctx_start[i] <= j < ctx_end[i]` or `own_start[i] <= j < own_end[i]`;
//! query head h reads key head h / (H / HKV). Queries and keys are counted apart: in a packed
//! stream each token is both, over a cache few queries attend to many keys. With d the head
//! dimension and sums over the attended keys,
//!
//! ```text
//! s[i,j] = q[i] . k[j] / sqrt(d)
//! lse[i] = ln(sum over j of exp(s[i,j]))
//! p[i,j] = exp(s[i,j] - lse[i])
//! o[i]   = sum over j of p[i,j] * v[j]
//! ```
//!
//! With a soft-cap c (Gemma 2) the scores are c tanh(s_ij / c), and ds below is times
//! 1 - tanh(s_ij / c)^2.
//!
//! Backward, with do the gradient of o:
//!
//! ```text
//! dp[i,j]  = do[i] . v[j]
//! delta[i] = sum over j of p[i,j] * dp[i,j] = do[i] . o[i]
//! ds[i,j]  = p[i,j] * (dp[i,j] - delta[i])
//! dq[i] = sum over j of ds[i,j] * k[j] / sqrt(d)
//! dk[j] = sum over i of ds[i,j] * q[i] / sqrt(d)
//! dv[j] = sum over i of p[i,j] * do[i]
//! ```
//!
//! where the sums for a key also run over the query heads that share it. The forward pass is a
//! running softmax that keeps lse; both gradient passes recompute p from it, so memory is linear
//! in T and nothing is added atomically.
//!
//! Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao et
//! al., "FlashAttention" (2022), section 3 and appendix B for the gradients.

use crate::graph::{DType, Graph, Sink, Var};
use crate::kernel::{Const, HARDWARE, Pass, SOFTWARE, Takes};
use crate::ops::case::{Array, BenchFacts, OpCase, TestRng, product};
use crate::ops::values::{Domain, Values};
use crate::variant;
use layouts::*;

#[path = "attention_layouts.rs"]
mod layouts;

/// o = softmax(q kᵀ / sqrt(head_dim)) v over the keys each query attends to.
///
/// `q` is `[TQ, H * head_dim]`; `k` and `v` are `[TK, HKV * head_dim]` with HKV a divisor of H; the
/// result is `[TQ, H * head_dim]`. `spans` is `[TQ + TK, 4]` u32. Row i < TQ is query i's
/// (ctx_start, ctx_end, own_start, own_end): the keys it attends to, at least one. Row TQ + j is
/// key j's (query_start, query_end, 0, 0): no query outside of it attends key j. The rows of keys
/// serve the gradients of k and v; `[TQ, 4]` is enough where no gradient is wanted. Every end must
/// be at most TK, or TQ for queries. [`causal_spans`] makes them for a stream.
///
/// # Panics
/// When a shape does not fit the others or `spans` holds no indices.
#[track_caller]
pub fn attention(g: &mut Graph, q: Var, k: Var, v: Var, spans: Var, head_dim: usize) -> Var {
    attention_capped(g, q, k, v, spans, head_dim, None)
}

/// As [`attention`], with scores s bounded to `cap` * tanh(s / `cap`).
///
/// # Panics
/// As [`attention`]; when `cap` is not above 0 and finite.
#[track_caller]
pub fn attention_capped(
    g: &mut Graph,
    q: Var,
    k: Var,
    v: Var,
    spans: Var,
    head_dim: usize,
    cap: Option<f32>,
) -> Var {
    let dims = Dims::of(g, q, k, v, spans, head_dim, cap);
    let (o, lse) = forward(g, dims, q, k, v, spans);
    let backward = move |g: &mut Graph, d_o: Var| {
        assert_eq!(
            g.shape(spans)[0],
            dims.queries + dims.keys,
            "attention: the gradient needs the rows of the keys in spans"
        );
        let stats = g.temp("attention stats", &[dims.queries, dims.heads, 2]);
        let [queries, _, heads, _, head_dim, ..] = dims.constants();
        let rows = dims.queries * dims.heads;
        g.call(&DELTA, &[queries, heads, head_dim], &[o, d_o, lse], &[stats], [rows, 1, 1]);
        let reads = [dims.by_head(g, q), k, v, spans, d_o, stats];
        if let Some(sink) = g.grad_into(q) {
            dq(g, dims, &reads, sink);
        }
        // One variable as k and v: its two gradients are computed apart and added.
        let sink_k = g.grad_into(k);
        if k == v && sink_k.is_some() {
            let d_v = g.temp("values.grad", &[dims.keys, dims.key_heads * dims.head_dim]);
            dk_dv(g, dims, &reads, sink_k, Some(Sink { var: d_v, accumulate: false }));
            g.grad_pass(v, d_v);
        } else {
            let sink_v = g.grad_into(v);
            dk_dv(g, dims, &reads, sink_k, sink_v);
        }
    };
    g.record("attention", &[q, k, v], o, backward);
    o
}

/// The spans of a stream in which token i is query i and key i and attends to nothing behind it.
/// Rows `[T, 4]` are (ctx_start, ctx_end, own_start, query_end): token i attends to the context and
/// to `own_start ..= i`, and no token from query_end on attends to it. The result is `[2T, 4]`.
pub fn causal_spans(rows: &[u32]) -> Vec<u32> {
    let rows = || rows.chunks_exact(4).zip(0u32..);
    let queries = rows().flat_map(|(s, i)| [s[0], s[1], s[2], i + 1]);
    queries.chain(rows().flat_map(|(s, i)| [i, s[3], 0, 0])).collect()
}

/// The output `[TQ, H * head_dim]` and lse `[TQ, H]`.
fn forward(g: &mut Graph, dims: Dims, q: Var, k: Var, v: Var, spans: Var) -> (Var, Var) {
    let o = g.temp("attended", &[dims.queries, dims.heads * dims.head_dim]);
    let lse = g.temp("lse", &[dims.queries, dims.heads]);
    let mut constants = dims.constants().to_vec();
    constants.push(("HEADS", dims.heads_together().into()));
    let extent = [dims.queries, dims.heads / dims.heads_together(), 1];
    let q = dims.by_head(g, q);
    g.call(&FORWARD, &constants, &[q, k, v, spans], &[o, lse], extent);
    (o, lse)
}

fn dq(g: &mut Graph, dims: Dims, reads: &[Var], sink: Sink) {
    let mut constants = dims.constants().to_vec();
    constants.push(("HEADS", dims.heads_together().into()));
    constants.push(sink.constant());
    let extent = [dims.queries, dims.heads / dims.heads_together(), 1];
    g.call(&DQ, &constants, reads, &[sink.var], extent);
}

fn dk_dv(g: &mut Graph, dims: Dims, reads: &[Var], dk: Option<Sink>, dv: Option<Sink>) {
    if dk.is_none() && dv.is_none() {
        return;
    }
    let mut constants = dims.constants().to_vec();
    constants.push(("WANT_DK", dk.is_some().into()));
    constants.push(("WANT_DV", dv.is_some().into()));
    constants.push(("ACCUMULATE_DK", dk.is_some_and(|s| s.accumulate).into()));
    constants.push(("ACCUMULATE_DV", dv.is_some_and(|s| s.accumulate).into()));
    // The kernel has two outputs; one that is not wanted is bound to a
    // dummy of four bytes that it never touches.
    let mut bound =
        |sink: Option<Sink>| sink.map_or_else(|| g.temp("attention unwanted", &[1]), |s| s.var);
    let writes = [bound(dk), bound(dv)];
    g.call(&DK_DV, &constants, reads, &writes, [dims.keys, dims.key_heads, 1]);
}

#[derive(Clone, Copy)]
struct Dims {
    queries: usize,
    keys: usize,
    heads: usize,
    key_heads: usize,
    head_dim: usize,
    cap: Option<f32>,
}

impl Dims {
    #[track_caller]
    fn of(
        g: &Graph,
        q: Var,
        k: Var,
        v: Var,
        spans: Var,
        head_dim: usize,
        cap: Option<f32>,
    ) -> Self {
        assert!(cap.is_none_or(|c| c > 0.0 && c.is_finite()), "attention: soft-cap {cap:?}");
        let (sq, sk, sv) = (g.shape(q), g.shape(k), g.shape(v));
        let multiple =
            |s: &[usize]| s.len() == 2 && s[1] > 0 && head_dim > 0 && s[1].is_multiple_of(head_dim);
        assert!(
            multiple(sq) && multiple(sk) && sk == sv && sq[1].is_multiple_of(sk[1]),
            "attention: q {sq:?}, k {sk:?}, v {sv:?} do not fit together with heads of {head_dim}"
        );
        let (queries, keys) = (sq[0], sk[0]);
        let rows = [[queries + keys, 4], [queries, 4]];
        assert!(
            rows.iter().any(|r| g.shape(spans) == r) && g.info(spans).dtype == DType::U32,
            "attention: spans {:?} must be u32 {:?}, or {:?} without a gradient",
            g.shape(spans),
            rows[0],
            rows[1]
        );
        let (heads, key_heads) = (sq[1] / head_dim, sk[1] / head_dim);
        Self { queries, keys, heads, key_heads, head_dim, cap }
    }

    fn constants(&self) -> [(&'static str, Const); 7] {
        [
            ("TQ", self.queries.into()),
            ("TK", self.keys.into()),
            ("H", self.heads.into()),
            ("HKV", self.key_heads.into()),
            ("HEAD_DIM", self.head_dim.into()),
            ("CAPPED", self.cap.is_some().into()),
            ("CAP", self.cap.unwrap_or(1.0).into()),
        ]
    }

    /// A view of q with a row for each head, by whose length kernels are chosen.
    fn by_head(&self, g: &mut Graph, q: Var) -> Var {
        g.view(q, &[self.queries * self.heads, self.head_dim])
    }

    /// How many query heads of a group are computed together, because they share the loaded
    /// keys: a divisor of the group, at most 4 (variant 2 has 64 invocations for each), and no
    /// more than registers hold (`shaders/attention/README.md` has the figures).
    fn heads_together(&self) -> usize {
        let group = self.heads / self.key_heads;
        let most = (192 / self.head_dim).clamp(1, 4);
        (1..=most).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1)
    }
}

/// Heads of so many elements that register_rows takes long to compile on software adapters: q is
/// bound as `[TQ * H, head_dim]`.
const WIDE: Takes = Takes { long: Some((0, 65)), ..Takes::WORDS };

/// As [`WIDE`], for gradients: up to 128 elements register_rows is so much faster that a few steps
/// make up for its compilation.
const WIDEST: Takes = Takes { long: Some((0, 129)), ..Takes::WORDS };

static FORWARD: Pass = Pass {
    op: "attention",
    name: "forward",
    variants: &[
        variant!("attention/forward_0_naive.wgsl", tile: [64, 1, 1], default_on: &[]),
        variant!("attention/forward_1_register_rows.wgsl", tile: [32, 1, 1]),
        variant!("attention/forward_2_shared_blocks.wgsl", tile: [64, 1, 1], default_on: HARDWARE),
        variant!("attention/forward_3_memory_rows.wgsl", tile: [64, 1, 1], default_on: SOFTWARE)
            .taking(WIDE),
    ],
};

static DELTA: Pass = Pass {
    op: "attention",
    name: "delta",
    variants: &[variant!("attention/delta_1_row.wgsl", tile: [64, 1, 1])],
};

static DQ: Pass = Pass {
    op: "attention",
    name: "dq",
    variants: &[
        variant!("attention/dq_0_naive.wgsl", tile: [64, 1, 1], default_on: &[]),
        variant!("attention/dq_1_register_rows.wgsl", tile: [32, 1, 1]),
        variant!("attention/dq_2_shared_blocks.wgsl", tile: [64, 1, 1], default_on: HARDWARE),
        variant!("attention/dq_3_memory_rows.wgsl", tile: [64, 1, 1], default_on: SOFTWARE)
            .taking(WIDEST),
    ],
};

static DK_DV: Pass = Pass {
    op: "attention",
    name: "dk_dv",
    variants: &[
        variant!("attention/dk_dv_0_naive.wgsl", tile: [64, 1, 1], default_on: &[]),
        variant!("attention/dk_dv_1_register_rows.wgsl", tile: [32, 1, 1]),
        variant!("attention/dk_dv_2_shared_blocks.wgsl", tile: [64, 1, 1], default_on: HARDWARE),
        variant!("attention/dk_dv_3_memory_rows.wgsl", tile: [64, 1, 1], default_on: SOFTWARE)
            .taking(WIDEST),
    ],
};

static PASSES: &[&Pass] = &[&FORWARD, &DELTA, &DQ, &DK_DV];

/// o and lse, row by row as the formula says.
fn reference_with_lse(
    shape: &[usize],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    spans: &[u32],
) -> Vec<Vec<f64>> {
    let [t, h, hkv, d] = [shape[0], shape[1], shape[2], shape[3]];
    let queries = queries_of(shape);
    let (mut o, mut lse) = (vec![0.0; queries * h * d], vec![0.0; queries * h]);
    for i in 0..queries {
        let keys: Vec<usize> = (0..t).filter(|&j| attends(spans, i, j)).collect();
        for head in 0..h {
            let row = (i * h + head) * d;
            let key = |j: usize| (j * hkv + head / (h / hkv)) * d;
            let dot = |j: usize| {
                (0..d).map(|c| q[row + c] * k[key(j) + c]).sum::<f64>() / (d as f64).sqrt()
            };
            let cap = cap_of(shape).map(f64::from);
            let bounded = |s: f64| cap.map_or(s, |c| c * (s / c).tanh());
            let scores: Vec<f64> = keys.iter().map(|&j| bounded(dot(j))).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            lse[i * h + head] = top + sum.ln();
            for (&j, s) in keys.iter().zip(&scores) {
                let p = (s - top).exp() / sum;
                for c in 0..d {
                    o[row + c] += p * v[key(j) + c];
                }
            }
        }
    }
    vec![o, lse]
}

fn reference(shape: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let [q, k, v] = [0, 1, 2].map(|i| inputs[i].f());
    let mut both = reference_with_lse(shape, q, k, v, inputs[3].u());
    both.truncate(1);
    both
}

/// The soft-cap of a shape: its sixth number.
fn cap_of(shape: &[usize]) -> Option<f32> {
    shape.get(5).map(|&cap| cap as f32)
}

fn inputs(shape: &[usize], rng: &mut TestRng) -> Vec<Array> {
    let [t, h, hkv, d] = [shape[0], shape[1], shape[2], shape[3]];
    let queries = queries_of(shape);
    vec![
        Array::normal("q", &[queries, h * d], rng),
        Array::normal("k", &[t, hkv * d], rng),
        Array::normal("v", &[t, hkv * d], rng),
        Array::index("spans", &[queries + t, 4], spans_of(shape)),
    ]
}

/// Pairs of a query and a key it attends to, per head; `spans` are those of the queries.
fn pairs(spans: &[u32]) -> u64 {
    let keys = |span: &[u32]| {
        let (context, own) = (span[0]..span[1].max(span[0]), span[2]..span[3].max(span[2]));
        let both = own.end.min(context.end).saturating_sub(own.start.max(context.start));
        (context.len() + own.len()) as u64 - u64::from(both)
    };
    spans.chunks_exact(4).map(keys).sum()
}

/// A multiplication and an addition per pair and column: for scores and output in the forward pass,
/// for scores, dp and dq in `dq`, for scores, dp, dk and dv in `dk_dv`.
fn flops(pass: &str, shape: &[usize], inputs: &[Array]) -> Option<f64> {
    let products = match pass {
        "forward" => 2,
        "dq" => 3,
        "dk_dv" => 4,
        _ => return None,
    };
    let spans = &inputs.last().expect("the spans").u()[..4 * queries_of(shape)];
    Some(2.0 * products as f64 * pairs(spans) as f64 * (shape[1] * shape[3]) as f64)
}

/// Scores of up to some hundreds. Sums of products of that size are rounded by a part in 10^7 of
/// them, and so are the exponentials.
const DOMAIN: Domain = Domain {
    large: 8.0,
    looser: &[
        (Values::Large, 100.0, "scores of some hundreds are rounded before the exponential"),
        (Values::Spikes, 30.0, "scores of some dozens are rounded before the exponential"),
    ],
    without_gradient: &[
        (Values::Large, "one key has all the weight, and what is left is smaller than rounding"),
        (Values::Tiny, "the gradient of q is smaller than a rounding of the output"),
        (Values::Equal, "the gradients of q and k cancel to zero"),
    ],
    ..Domain::ALL
};

/// Shapes are `[T, H, HKV, head_dim, layout of the spans]`, perhaps with a soft-cap.
pub fn case() -> OpCase {
    OpCase {
        op: "attention",
        passes: PASSES,
        shapes: &[
            &[1, 1, 1, 16, CAUSAL],
            &[3, 2, 1, 8, PAIRS],
            &[63, 2, 2, 16, PAIRS],
            &[64, 3, 1, 20, CAUSAL],
            &[65, 4, 2, 32, PADDED],
            &[131, 4, 2, 32, PAIRS],
            &[97, 6, 2, 16, NO_PREFIX],
            &[67, 2, 1, 18, OVERLAPPING],
            &[33, 1, 1, 7, PAIRS],
            &[64, 3, 1, 64, PAIRS],
            &[32, 2, 1, 128, PAIRS],
            &[1, 2, 1, 16, CACHED],
            &[130, 4, 2, 32, CACHED],
            &[97, 3, 1, 20, CACHED],
            // Wide heads, which kernels of their own take.
            &[40, 2, 2, 66, CACHED],
            &[67, 2, 1, 130, OVERLAPPING],
            &[65, 4, 2, 20, PAIRS, 1],
        ],
        large: &[],
        inputs,
        build: |g, s, v| vec![attention_capped(g, v[0], v[1], v[2], v[3], s[3], cap_of(s))],
        reference,
        tolerance: 1e-6,
        domain: DOMAIN,
        differentiable: true,
        bench: BenchFacts {
            dims: &[
                "T",
                "HEADS",
                "KV_HEADS",
                "HEAD_DIM",
                "LAYOUT (0 causal documents, 1 pairs, 5 a cache)",
            ],
            layers: |l| vec![vec![l.tokens, l.heads, l.kv_heads, l.head_dim, PAIRS]],
            sets: &[
                ("skinny", &[&[4096, 1, 1, 64, PAIRS]]),
                ("batched", &[&[1024, 32, 8, 32, CAUSAL], &[1024, 32, 8, 64, CAUSAL]]),
            ],
            largest: |dims| {
                let &[t, h, hkv, d, layout] = dims else { return None };
                let heads = hkv > 0 && h <= 65_535 && h.is_multiple_of(hkv);
                product(&[t, h, d]).filter(|_| heads && d <= 128 && layout <= CACHED)
            },
            flops,
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
