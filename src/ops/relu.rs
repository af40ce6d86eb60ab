//! `relu`: y = max(x, 0).
//!
//! ```text
//! y  = max(x, 0)
//! dx = dy where y > 0, else 0
//! ```
//!
//! No family of models here uses it yet; it is for graphs of your own.
//!
//! Source: Nair and Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines, 2010.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::{Domain, Values};
use crate::variant;

/// max(`x`, 0), elementwise. The gradient at 0 is 0.
#[track_caller]
pub fn relu(g: &mut Graph, x: Var) -> Var {
    let shape = g.shape(x).to_vec();
    let n = g.info(x).len();
    let y = g.temp("relu", &shape);
    g.call(&FORWARD, &[("N", n.into())], &[x], &[y], [n, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            let constants = [("N", n.into()), dx.constant()];
            g.call(&BACKWARD, &constants, &[y, dy], &[dx.var], [n, 1, 1]);
        }
    };
    g.record("relu", &[x], y, backward);
    y
}

static FORWARD: Pass = Pass {
    op: "relu",
    name: "forward",
    variants: &[variant!("relu/forward_1_naive.wgsl", tile: [256, 1, 1])],
};

static BACKWARD: Pass = Pass {
    op: "relu",
    name: "backward",
    variants: &[variant!("relu/backward_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    vec![inputs[0].f().iter().map(|x| x.max(0.0)).collect()]
}

const KINK: &[(Values, &str)] = &[
    (Values::Tiny, "a difference reaches beyond the kink"),
    (Values::Zeros, "the kink has no derivative"),
    (Values::Spikes, "the kink has no derivative"),
];

/// Shapes are `[n]`.
pub fn case() -> OpCase {
    OpCase {
        op: "relu",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009]],
        large: &[&[65_535 * 256 + 3]],
        inputs: |s, rng| {
            // Away from the kink, where a difference quotient has no meaning.
            let x = Array::normal("x", s, rng);
            vec![Array::float("x", s, x.f().iter().map(|v| v + 0.01f64.copysign(*v)).collect())]
        },
        build: |g, _, v| vec![relu(g, v[0])],
        reference,
        tolerance: 1e-6,
        domain: Domain { without_gradient: KINK, ..Domain::ALL },
        differentiable: true,
        bench: BenchFacts {
            layers: |l| vec![vec![l.tokens * l.inner]],
            flops: |pass, s, _| (pass == "forward").then(|| s[0] as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::case::tests::{forward, gradient};

    #[test]
    fn relu_forward() {
        forward(&super::case());
    }

    #[test]
    fn relu_gradient() {
        gradient(&super::case());
    }
}
