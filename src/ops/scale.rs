//! `scale`: y = factor * x with a factor fixed when the graph is built.
//!
//! Backward: dx = factor * dy.
//!
//! `low_rank` scales with it, and so do families with multipliers (Granite, Gemma).

use crate::graph::{Graph, Sink, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::Domain;
use crate::variant;

/// `factor` * `x`, elementwise. A factor that changes between steps must be an input of another
/// operation: this one is compiled into the kernel.
///
/// # Panics
/// When `factor` is not finite.
#[track_caller]
pub fn scale(g: &mut Graph, x: Var, factor: f32) -> Var {
    assert!(factor.is_finite(), "scale: factor {factor} is not finite");
    let shape = g.shape(x).to_vec();
    let y = g.temp("scale", &shape);
    scaled(g, x, factor, Sink { var: y, accumulate: false });
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            scaled(g, dy, factor, dx);
        }
    };
    g.record("scale", &[x], y, backward);
    y
}

/// Puts `factor` * `x` into the sink, and nothing on the tape.
pub(super) fn scaled(g: &mut Graph, x: Var, factor: f32, to: Sink) {
    let n = g.info(x).len();
    let constants = [("N", n.into()), ("FACTOR", factor.into()), to.constant()];
    g.call(&FORWARD, &constants, &[x], &[to.var], [n, 1, 1]);
}

static FORWARD: Pass = Pass {
    op: "scale",
    name: "forward",
    variants: &[variant!("scale/forward_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD];

/// The factor of the case: exact in binary, and neither 1 nor its own inverse.
const FACTOR: f32 = -2.375;

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    vec![inputs[0].f().iter().map(|x| f64::from(FACTOR) * x).collect()]
}

/// Shapes are `[n]`.
pub fn case() -> OpCase {
    OpCase {
        op: "scale",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009]],
        large: &[&[65_535 * 256 + 3]],
        inputs: |s, rng| vec![Array::normal("x", s, rng)],
        build: |g, _, v| vec![scale(g, v[0], FACTOR)],
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
    fn scale_forward() {
        forward(&super::case());
    }

    #[test]
    fn scale_gradient() {
        gradient(&super::case());
    }
}
