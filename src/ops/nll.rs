//! `nll`: weighted negative log-likelihood, one number.
//!
//! y = - sum over n of w`[n]` ln p`[n]`. The weights hold the mean over the whole optimizer step (1/N for a
//! token that counts, 0 for one that does not), so micro-batches simply add up.
//!
//! Backward: dlogp`[n]` = - w`[n]` dy; the weights are data and get no gradient.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase, normal};
use crate::ops::values::Domain;
use crate::variant;

/// `[1]` = -sum of `weight` `[N]` times `logp` `[N]`, summed in a fixed order.
///
/// # Panics
/// When the shapes differ or are no vectors.
#[track_caller]
pub fn nll(g: &mut Graph, logp: Var, weight: Var) -> Var {
    let &[n] = g.shape(logp) else { panic!("nll: logp is a vector, not {:?}", g.shape(logp)) };
    assert_eq!(g.shape(weight), [n], "nll: weight");
    let y = g.temp("nll", &[1]);
    g.call(&FORWARD, &[("N", n.into())], &[logp, weight], &[y], [1, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        let Some(sink) = g.grad_into(logp) else { return };
        let constants = [("N", n.into()), sink.constant()];
        g.call(&BACKWARD, &constants, &[weight, dy], &[sink.var], [n, 1, 1]);
    };
    g.record("nll", &[logp], y, backward);
    y
}

static FORWARD: Pass = Pass {
    op: "nll",
    name: "forward",
    variants: &[variant!("nll/forward_1_one_workgroup.wgsl", tile: [1, 1, 1])],
};

static BACKWARD: Pass = Pass {
    op: "nll",
    name: "backward",
    variants: &[variant!("nll/backward_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    vec![vec![-inputs[0].f().iter().zip(inputs[1].f()).map(|(l, w)| l * w).sum::<f64>()]]
}

/// Shapes are `[N]`.
pub fn case() -> OpCase {
    OpCase {
        op: "nll",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009]],
        large: &[&[100_003]],
        inputs: |s, rng| {
            // As in training: log-probabilities are negative, most weights equal, some zero.
            let logp = (0..s[0]).map(|_| -f64::from(normal(rng)).abs()).collect();
            let weight =
                (0..s[0]).map(|n| if n % 4 == 3 { 0.0 } else { 1.0 / s[0] as f64 }).collect();
            vec![Array::float("logp", s, logp), Array::fixed("weight", s, weight)]
        },
        build: |g, _, v| vec![nll(g, v[0], v[1])],
        reference,
        tolerance: 1e-6,
        domain: Domain::LINEAR,
        differentiable: true,
        bench: BenchFacts {
            layers: |l| vec![vec![l.tokens]],
            sets: &[],
            flops: |pass, s, _| (pass == "forward").then(|| 2.0 * s[0] as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::case::tests::{forward, gradient};

    #[test]
    fn nll_forward() {
        forward(&super::case());
    }

    #[test]
    fn nll_gradient() {
        gradient(&super::case());
    }
}
