//! `add`: y = a + b, elementwise, same shape (the residual stream).
//!
//! Backward: da = dy, db = dy. Both are passed on without a copy where that is safe; the
//! `accumulate` pass, which the graph itself uses, is what it falls back to where it is not.

use crate::graph::{ACCUMULATE, Graph, Var};
use crate::kernel::{Pass, SOFTWARE, Takes};
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::Domain;
use crate::variant;

/// y = a + b, both of the same shape.
///
/// # Panics
/// When the shapes differ.
#[track_caller]
pub fn add(g: &mut Graph, a: Var, b: Var) -> Var {
    assert_eq!(g.shape(a), g.shape(b), "add: shapes differ");
    let shape = g.shape(a).to_vec();
    let n = g.info(a).len();
    let y = g.temp("sum", &shape);
    g.call(&FORWARD, &[("N", n.into())], &[a, b], &[y], [n, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        g.grad_pass(a, dy);
        g.grad_pass(b, dy);
    };
    g.record("add", &[a, b], y, backward);
    y
}

const QUADS: Takes = Takes { quads: &[0, 1, 2], ..Takes::WORDS };

static FORWARD: Pass = Pass {
    op: "add",
    name: "forward",
    variants: &[
        variant!("add/forward_1_naive.wgsl", tile: [256, 1, 1]),
        variant!("add/forward_2_vec4.wgsl", tile: [1024, 1, 1], default_on: SOFTWARE).taking(QUADS),
    ],
};

static PASSES: &[&Pass] = &[&FORWARD, &ACCUMULATE];

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    vec![inputs[0].f().iter().zip(inputs[1].f()).map(|(a, b)| a + b).collect()]
}

/// Shapes are `[n]`.
pub fn case() -> OpCase {
    OpCase {
        op: "add",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009], &[1028]],
        large: &[&[65_535 * 256 + 3]],
        inputs: |s, rng| vec![Array::normal("a", s, rng), Array::normal("b", s, rng)],
        build: |g, _, v| vec![add(g, v[0], v[1])],
        reference,
        tolerance: 1e-6,
        domain: Domain::LINEAR,
        differentiable: true,
        bench: BenchFacts { flops: |_, s, _| Some(s[0] as f64), ..BenchFacts::ELEMENTWISE },
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::case::tests::{forward, gradient};

    #[test]
    fn add_forward() {
        forward(&super::case());
    }

    #[test]
    fn add_gradient() {
        gradient(&super::case());
    }
}
