//! `gather_rows`: `y[n, :] = x[rows[n], :]`, for example the hidden rows that some loss term scores.
//!
//! Backward: dx`[r]` = sum of dy`[n]` over the n with rows`[n]` = r, zero for rows not gathered. The sum walks an
//! index built on the CPU ([`super::gather_index`]) in ascending order of n: no atomics, same bits
//! on every run. A gradient that is not there yet is zeroed first, then the distinct rows are
//! added to it.
//!
//! A table that is too large to be bound in one piece is bound in blocks of rows, a call each.

use crate::graph::{DType, FILL, Graph, RowBlock, Var};
use crate::kernel::{Const, Pass, SOFTWARE, Variant};
use crate::ops::case::{Array, BenchFacts, OpCase, TestRng, largest_of_pairs};
use crate::ops::gather_index::{GatherIndex, build_index};
use crate::ops::values::Domain;
use crate::variant;
use std::collections::BTreeSet;

/// y `[N, D]` = rows of x `[R, D]` named by `rows` `[N]` u32; `index` holds
/// [`build_index`] of the same rows.
///
/// # Panics
/// When x is no matrix, `rows` no vector, or the index is for another number of rows.
#[track_caller]
pub fn gather_rows(g: &mut Graph, x: Var, rows: Var, index: GatherIndex) -> Var {
    let (&[r, d], &[n]) = (g.shape(x), g.shape(rows)) else {
        panic!(
            "gather_rows: x is [R, D] and rows [N], not {:?} and {:?}",
            g.shape(x),
            g.shape(rows)
        );
    };
    let &[slots] = g.shape(index.unique) else { panic!("gather_rows: unique is [slots]") };
    assert_eq!(g.shape(index.offsets), [slots + 1], "gather_rows: offsets");
    assert_eq!(g.shape(index.list), [n], "gather_rows: list");
    let y = g.temp("rows", &[n, d]);
    for block in g.row_blocks(x) {
        let constants = [&of_block(block, r)[..], &[("N", n.into()), ("D", d.into())]].concat();
        g.call(&FORWARD, &constants, &[block.var, rows], &[y], [n * d, 1, 1]);
    }
    let backward = move |g: &mut Graph, dy: Var| {
        let Some(sink) = g.grad_into(x) else { return };
        if !sink.accumulate {
            g.call(&FILL, &[("N", (r * d).into())], &[], &[sink.var], [r * d, 1, 1]);
        }
        for block in g.row_blocks(sink.var) {
            let sizes = [("N", n.into()), ("D", d.into()), ("SLOTS", slots.into())];
            let constants = [&of_block(block, r)[..], &sizes].concat();
            let reads = [index.unique, index.offsets, index.list, dy];
            g.call(&BACKWARD, &constants, &reads, &[block.var], [slots * d, 1, 1]);
        }
    };
    g.record("gather_rows", &[x], y, backward);
    y
}

/// What the kernels know of a block of a table of `r` rows. Rows outside of it belong to the calls of
/// other blocks.
fn of_block(block: RowBlock, r: usize) -> [(&'static str, Const); 3] {
    let part = block.rows < r;
    [("R", block.rows.into()), ("FIRST", block.start.into()), ("PART", part.into())]
}

static FORWARD: Pass = Pass {
    op: "gather_rows",
    name: "forward",
    variants: &[
        variant!("gather_rows/forward_1_naive.wgsl", tile: [256, 1, 1]),
        PACKED.decoding(&[(0, DType::F16)]),
        PACKED.decoding(&[(0, DType::BF16)]),
        PACKED.decoding(&[(0, DType::Q8_0)]),
        PACKED.decoding(&[(0, DType::Q4_0)]),
    ],
};

const PACKED: Variant = variant!("gather_rows/forward_2_packed.wgsl", tile: [256, 1, 1]);

static BACKWARD: Pass = Pass {
    op: "gather_rows",
    name: "backward",
    variants: &[
        variant!("gather_rows/backward_1_naive.wgsl", tile: [256, 1, 1]),
        variant!("gather_rows/backward_2_quad_columns.wgsl", tile: [1024, 1, 1], default_on: SOFTWARE),
    ],
};

pub(super) static PASSES: &[&Pass] = &[&FORWARD, &FILL, &BACKWARD];

/// Inputs x, rows and the index, for shape `[R, N, D]`.
pub(super) fn inputs(s: &[usize], rng: &mut TestRng) -> Vec<Array> {
    let &[r, n, d] = s else { panic!("[R, N, D]") };
    let x = Array::normal("x", &[r, d], rng);
    // A third of the positions share one row, so ranges of every length occur.
    let ids: Vec<u32> = (0..n).map(|i| if i % 3 == 1 { 0 } else { rng.u32(0..r as u32) }).collect();
    let slots = r.min(n);
    let index = build_index(&ids, slots);
    vec![
        x,
        Array::index("rows", &[n], ids),
        Array::index("unique", &[slots], index.unique),
        Array::index("offsets", &[slots + 1], index.offsets),
        Array::index("list", &[n], index.list),
    ]
}

pub(super) fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let d = s[2];
    let x = inputs[0].f();
    vec![inputs[1].u().iter().flat_map(|&r| x[r as usize * d..][..d].iter().copied()).collect()]
}

/// Facts for a shape `[R, N, D]`, as [`inputs`] has it.
pub(super) fn bench() -> BenchFacts {
    BenchFacts {
        dims: &["ROWS", "GATHERED", "D"],
        layers: |l| vec![vec![l.tokens, l.tokens / 2, l.hidden]],
        sets: &[],
        largest: largest_of_pairs,
        bytes,
        ..BenchFacts::ELEMENTWISE
    }
}

/// The table is large, and a pass touches a part of it.
fn bytes(pass: &str, s: &[usize], inputs: &[Array]) -> Option<f64> {
    let &[_, n, d] = s else { panic!("[R, N, D]") };
    if pass == FORWARD.name {
        return Some(8.0 * (n * d) as f64);
    }
    // What arrives, the indices, and each row that occurs, twice because it is added to.
    let rows: BTreeSet<_> = inputs[1].u().iter().collect();
    let used = rows.len();
    (pass == BACKWARD.name).then(|| 4.0 * (n * d + n + 2 * used + 2 * used * d) as f64)
}

/// Shapes are `[R, N, D]`: rows of x, gathered rows, columns.
pub fn case() -> OpCase {
    OpCase {
        op: "gather_rows",
        passes: PASSES,
        shapes: &[
            &[1, 1, 1],
            &[5, 9, 51],
            &[17, 5, 3],
            &[64, 8, 32],
            &[13, 101, 257],
            &[3, 4, 8192],
        ],
        large: &[&[1009, 2053, 8192]],
        inputs,
        build: |g, _, v| {
            vec![gather_rows(
                g,
                v[0],
                v[1],
                GatherIndex { unique: v[2], offsets: v[3], list: v[4] },
            )]
        },
        reference,
        tolerance: 1e-6,
        domain: Domain::LINEAR,
        differentiable: true,
        bench: bench(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::program::{Program, Store};

    #[test]
    fn gather_rows_forward() {
        forward(&case());
    }

    #[test]
    fn gather_rows_gradient() {
        gradient(&case());
    }

    #[test]
    fn gather_rows_gradient_of_a_temporary_counts_every_use() {
        // x is used three times: twice gathered and once passed on, so two sinks accumulate.
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        let leaf = g.input_with_grad("leaf", &[3, 2]);
        let x = crate::ops::add::add(&mut g, leaf, leaf);
        let rows = g.input("rows", &[4], crate::graph::DType::U32);
        let index = GatherIndex::inputs(&mut g, "rows", 4, 3);
        let y = gather_rows(&mut g, x, rows, index);
        let z = gather_rows(&mut g, x, rows, index);
        let seeds: Vec<_> = [(y, 4), (z, 4), (x, 3)]
            .map(|(v, n)| (v, g.input("cotangent", &[n, 2], crate::graph::DType::F32)))
            .to_vec();
        g.backward_from(&seeds);
        let grad = g.grad(leaf).unwrap();
        g.output(grad);
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        let ids = [2, 0, 2, 2];
        let arrays = build_index(&ids, 3);
        program.write(leaf, &[0.0; 6]);
        program.write_u32(rows, &ids);
        program.write_u32(index.unique, &arrays.unique);
        program.write_u32(index.offsets, &arrays.offsets);
        program.write_u32(index.list, &arrays.list);
        program.write(seeds[0].1, &[1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0]);
        program.write(seeds[1].1, &[1.0; 8]);
        program.write(seeds[2].1, &[0.5; 6]);
        program.run();
        // Row 0: 2 + 1 + 0.5, row 1: 0.5, row 2: (1 + 3 + 4) + 3 + 0.5; twice, as x = 2 leaf.
        assert_eq!(program.read(grad).unwrap(), [7.0, 43.0, 1.0, 1.0, 23.0, 167.0]);
    }
}
