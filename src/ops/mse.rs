//! `mse`: mean squared error, one number.
//!
//! y = 1/N sum over i of (p_i - t_i)^2
//!
//! Backward: dp_i = 2/N (p_i - t_i) dy; the target is data and gets no gradient.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::Domain;
use crate::variant;

/// `[1]` = the mean over all elements of (`prediction` - `target`)^2, both of one shape, summed in a
/// fixed order.
///
/// # Panics
/// When the shapes differ.
#[track_caller]
pub fn mse(g: &mut Graph, prediction: Var, target: Var) -> Var {
    assert_eq!(g.shape(prediction), g.shape(target), "mse: shapes differ");
    let n = g.info(prediction).len();
    let y = g.temp("mse", &[1]);
    g.call(&FORWARD, &[("N", n.into())], &[prediction, target], &[y], [1, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        let Some(sink) = g.grad_into(prediction) else { return };
        let constants = [("N", n.into()), sink.constant()];
        g.call(&BACKWARD, &constants, &[prediction, target, dy], &[sink.var], [n, 1, 1]);
    };
    g.record("mse", &[prediction], y, backward);
    y
}

static FORWARD: Pass = Pass {
    op: "mse",
    name: "forward",
    variants: &[variant!("mse/forward_1_one_workgroup.wgsl", tile: [1, 1, 1])],
};

static BACKWARD: Pass = Pass {
    op: "mse",
    name: "backward",
    variants: &[variant!("mse/backward_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let squares = inputs[0].f().iter().zip(inputs[1].f()).map(|(p, t)| (p - t) * (p - t));
    vec![vec![squares.sum::<f64>() / s[0] as f64]]
}

/// Shapes are `[N]`.
pub fn case() -> OpCase {
    OpCase {
        op: "mse",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009]],
        large: &[&[100_003]],
        inputs: |s, rng| {
            let target = Array::normal("target", s, rng);
            vec![
                Array::normal("prediction", s, rng),
                Array::fixed("target", s, target.f().to_vec()),
            ]
        },
        build: |g, _, v| vec![mse(g, v[0], v[1])],
        reference,
        tolerance: 1e-6,
        domain: Domain::ALL,
        differentiable: true,
        bench: BenchFacts {
            flops: |pass, s, _| (pass == "forward").then(|| 3.0 * s[0] as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::case::tests::{forward, gradient};

    #[test]
    fn mse_forward() {
        forward(&super::case());
    }

    #[test]
    fn mse_gradient() {
        gradient(&super::case());
    }
}
