//! Streams of several layouts, laid out the same way each time: what the case of
//! [`attention`](super) attends over.

use super::causal_spans;
use crate::ops::case::TestRng;

/// Query i attends key j.
pub fn attends(spans: &[u32], i: usize, j: usize) -> bool {
    let [ctx_start, ctx_end, own_start, own_end] = [0, 1, 2, 3].map(|c| spans[4 * i + c] as usize);
    (ctx_start..ctx_end).contains(&j) || (own_start..own_end).contains(&j)
}

/// Documents one behind the other, each attending to itself only.
pub const CAUSAL: usize = 0;
/// Pairs: a shared prefix and two branches.
pub const PAIRS: usize = 1;
/// A few pairs, and the rest of the stream is pads that attend to themselves only.
pub const PADDED: usize = 2;
/// Pairs without a common prefix.
pub const NO_PREFIX: usize = 3;
/// Documents whose later half has a context that overlaps its own range.
pub const OVERLAPPING: usize = 4;
/// Documents of keys, of which every third position has a query: what a cache sees.
pub const CACHED: usize = 5;

pub fn push_document(spans: &mut Vec<[u32; 4]>, len: u32) {
    let start = spans.len() as u32;
    spans.extend((0..len).map(|_| [start, start, start, start + len]));
}

pub fn push_pair(spans: &mut Vec<[u32; 4]>, prefix: u32, branches: [u32; 2]) {
    let start = spans.len() as u32;
    let end = start + prefix;
    spans.extend((0..prefix).map(|_| [start, start, start, end + branches[0] + branches[1]]));
    for len in branches {
        let own = spans.len() as u32;
        spans.extend((0..len).map(|_| [start, end, own, own + len]));
    }
}

pub fn push_overlapping(spans: &mut Vec<[u32; 4]>, len: u32) {
    let start = spans.len() as u32;
    let half = start + len / 2;
    spans.extend((start..half).map(|_| [0, 0, start, start + len]));
    spans.extend((half..start + len).map(|_| [start, half, start + len / 4, start + len]));
}

/// Queries of a shape.
pub fn queries_of(shape: &[usize]) -> usize {
    if shape[4] == CACHED { shape[0].div_ceil(3) } else { shape[0] }
}

/// The spans of a shape, always the same: a stream laid out as its last number says, cut to length.
pub fn spans_of(shape: &[usize]) -> Vec<u32> {
    let (tokens, kind) = (shape[0], shape[4]);
    let mut rng = TestRng::with_seed(shape.iter().fold(7, |n, &d| 31 * n + d as u64));
    let mut spans = Vec::new();
    while spans.len() < tokens {
        let mut len = |most: u32| rng.u32(1..=most);
        match kind {
            CAUSAL | CACHED => push_document(&mut spans, len(40)),
            PAIRS => push_pair(&mut spans, len(24), [len(12), len(12)]),
            PADDED if spans.len() < tokens / 2 => push_pair(&mut spans, len(12), [len(6), len(6)]),
            PADDED => push_document(&mut spans, 1),
            NO_PREFIX => push_pair(&mut spans, 0, [len(12), len(12)]),
            OVERLAPPING => push_overlapping(&mut spans, len(40)),
            _ => panic!("no layout {kind}"),
        }
    }
    spans.truncate(tokens);
    let end = tokens as u32;
    if kind == CACHED {
        return cached_spans(&spans, queries_of(shape));
    }
    let rows: Vec<u32> = spans.iter().flat_map(|&[a, b, c, d]| [a, b, c, d.min(end)]).collect();
    causal_spans(&rows)
}

/// Query n stands at position 3n of the documents and attends to its document up to there.
pub fn cached_spans(documents: &[[u32; 4]], queries: usize) -> Vec<u32> {
    let mut spans: Vec<u32> =
        (0..queries).flat_map(|n| [0, 0, documents[3 * n][2], 3 * n as u32 + 1]).collect();
    for j in 0..documents.len() {
        let of_key: Vec<u32> =
            (0..queries).filter(|&i| attends(&spans, i, j)).map(|i| i as u32).collect();
        let range = of_key.first().zip(of_key.last());
        let (first, end) = range.map_or((0, 0), |(&first, &last)| (first, last + 1));
        spans.extend([first, end, 0, 0]);
    }
    spans
}
