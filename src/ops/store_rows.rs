//! `store_rows`: `y[rows[n], :] = x[n, :]`, rows written into a buffer that stays.
//!
//! The keys and values of new tokens go into a model's cache this way. It has no derivative: nothing
//! is trained through a cache.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase, largest_of_pairs};
use crate::ops::values::Domain;
use crate::variant;

/// Writes the rows of `x` `[N, D]` into `y` `[R, D]` at `rows` `[N]` u32; the other rows of y stay. A
/// row of R or more is left out; those below must be distinct.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn store_rows(g: &mut Graph, x: Var, rows: Var, y: Var) {
    let (&[n, d], &[r, columns]) = (g.shape(x), g.shape(y)) else {
        panic!("store_rows: x {:?} and y {:?} are matrices", g.shape(x), g.shape(y));
    };
    assert_eq!(d, columns, "store_rows: x {:?} into y {:?}", g.shape(x), g.shape(y));
    assert_eq!(g.shape(rows), [n], "store_rows: rows");
    let constants = [("R", r.into()), ("N", n.into()), ("D", d.into())];
    g.call(&FORWARD, &constants, &[x, rows], &[y], [n * d, 1, 1]);
}

static FORWARD: Pass = Pass {
    op: "store_rows",
    name: "forward",
    variants: &[variant!("store_rows/forward_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD];

fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let d = s[2];
    let mut y = inputs[2].f().to_vec();
    for (x, &row) in inputs[0].f().chunks_exact(d).zip(inputs[1].u()) {
        if (row as usize) < s[0] {
            y[row as usize * d..][..d].copy_from_slice(x);
        }
    }
    vec![y]
}

/// Shapes are `[R, N, D]`: rows of the buffer, rows stored, columns. Some go behind the end.
pub fn case() -> OpCase {
    OpCase {
        op: "store_rows",
        passes: PASSES,
        shapes: &[&[1, 1, 1], &[31, 7, 13], &[17, 40, 16], &[512, 64, 64]],
        large: &[&[1_000, 66_000, 256]],
        inputs: |s, rng| {
            let mut rows: Vec<u32> = (0..(s[0] + s[1]) as u32).collect();
            rng.shuffle(&mut rows);
            rows.truncate(s[1]);
            let fixed = |name, shape: &[usize], rng: &mut _| {
                let values = Array::normal(name, shape, rng).f().to_vec();
                Array::fixed(name, shape, values)
            };
            let x = fixed("x", &[s[1], s[2]], rng);
            let y = fixed("y", &[s[0], s[2]], rng);
            vec![x, Array::index("rows", &[s[1]], rows), y]
        },
        build: |g, _, v| {
            store_rows(g, v[0], v[1], v[2]);
            vec![v[2]]
        },
        reference,
        tolerance: 0.0,
        domain: Domain { inputs: &["x", "y"], ..Domain::LINEAR },
        differentiable: false,
        bench: BenchFacts {
            dims: &["ROWS", "STORED", "D"],
            layers: |l| vec![vec![l.tokens, l.tokens / 2, l.kv_heads * l.head_dim]],
            sets: &[],
            largest: largest_of_pairs,
            bytes: |_, s, _| Some((8 * s[1] * s[2] + 4 * s[1]) as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::tests::forward;

    #[test]
    fn store_rows_forward() {
        forward(&case());
    }
}
