//! `bradley_terry`: a preference between two answers by the difference of their scores.
//!
//! For scores x_w, x_l of the chosen and the rejected answer and z = beta (x_w - x_l) - offset:
//! L = -log sigmoid(z), loss = sum over pairs of weight times L. Source: Bradley and Terry,
//! Biometrika 39 (1952); as a loss of language models Rafailov et al., arXiv 2305.18290, equation 7.
//!
//! Backward: dloss/dx_w = -weight beta sigmoid(-z), dloss/dx_l its negative. The forward kernel
//! stores both, and backward multiplies them with the upstream scalar. Offset and weight are data
//! and get no gradient.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase, normal};
use crate::ops::values::Domain;
use crate::variant;

/// `[1]`: the loss of scores x `[2P]` (chosen at 2p, rejected at 2p + 1) with `offset` and
/// `pair_weight` `[P]`.
///
/// A pair of weight 0 adds exactly 0 to loss and gradient whatever its scores are.
///
/// # Panics
/// When the shapes do not fit, or `beta` is not finite.
#[track_caller]
pub fn bradley_terry(g: &mut Graph, x: Var, offset: Var, pair_weight: Var, beta: f32) -> Var {
    let &[pairs] = g.shape(pair_weight) else { panic!("bradley_terry: pair_weight is a vector") };
    assert_eq!(g.shape(offset), [pairs], "bradley_terry: offset");
    assert_eq!(g.shape(x), [2 * pairs], "bradley_terry: x holds two scores for each pair");
    let loss = g.temp("preference loss", &[1]);
    let slope = g.temp("preference slope", &[2 * pairs]);
    let constants = [("P", pairs.into()), ("BETA", beta.into())];
    g.call(&FORWARD, &constants, &[x, offset, pair_weight], &[loss, slope], [1, 1, 1]);
    let backward = move |g: &mut Graph, dloss: Var| {
        let Some(sink) = g.grad_into(x) else { return };
        let constants = [("S", (2 * pairs).into()), sink.constant()];
        g.call(&BACKWARD, &constants, &[slope, dloss], &[sink.var], [2 * pairs, 1, 1]);
    };
    g.record("bradley_terry", &[x], loss, backward);
    loss
}

static FORWARD: Pass = Pass {
    op: "bradley_terry",
    name: "forward",
    variants: &[variant!("bradley_terry/forward_1_one_workgroup.wgsl", tile: [1, 1, 1])],
};

static BACKWARD: Pass = Pass {
    op: "bradley_terry",
    name: "backward",
    variants: &[variant!("bradley_terry/backward_1_naive.wgsl", tile: [64, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

/// -log sigmoid(z) in f64: what the kernel is compared with, and for metrics.
pub fn preference_loss(z: f64) -> f64 {
    (-z).max(0.0) + (-z.abs()).exp().ln_1p()
}

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let [x, offset, weight] = [0, 1, 2].map(|i| inputs[i].f());
    let term =
        |(p, x): (usize, &[f64])| weight[p] * preference_loss(BETA * (x[0] - x[1]) - offset[p]);
    vec![vec![x.chunks(2).enumerate().map(term).sum()]]
}

/// The case's beta.
const BETA: f64 = 1.75;

/// Shapes are `[P]`; every fifth pair is unused.
pub fn case() -> OpCase {
    OpCase {
        op: "bradley_terry",
        passes: PASSES,
        shapes: &[&[1], &[2], &[31], &[255], &[256], &[257]],
        large: &[&[4099]],
        inputs: |s, rng| {
            let weight = (0..s[0]).map(|p| if p % 5 == 4 { 0.0 } else { 0.1 }).collect();
            let offset = (0..s[0]).map(|_| f64::from(normal(rng))).collect();
            vec![
                Array::normal("x", &[2 * s[0]], rng),
                Array::fixed("offset", s, offset),
                Array::fixed("pair_weight", s, weight),
            ]
        },
        build: |g, _, v| vec![bradley_terry(g, v[0], v[1], v[2], BETA as f32)],
        reference,
        tolerance: 1e-6,
        domain: Domain::ALL,
        differentiable: true,
        bench: BenchFacts {
            dims: &["PAIRS"],
            layers: |l| vec![vec![l.tokens / 32]],
            sets: &[],
            flops: |pass, s, _| (pass == "forward").then(|| 40.0 * s[0] as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::program::{Program, Store};

    #[test]
    fn bradley_terry_forward() {
        forward(&case());
    }

    #[test]
    fn bradley_terry_gradient() {
        gradient(&case());
    }

    /// Loss and gradient of single pairs by their z.
    fn run(z: f32, weight: f32) -> [f32; 3] {
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        let x = g.input_with_grad("x", &[2]);
        let [offset, pair_weight] =
            ["offset", "pair weight"].map(|name| g.input(name, &[1], DType::F32));
        let loss = bradley_terry(&mut g, x, offset, pair_weight, 1.0);
        g.backward(loss);
        let dx = g.grad(x).unwrap();
        g.output(loss);
        g.output(dx);
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        program.write(x, &[z, 0.0]);
        program.write(offset, &[0.0]);
        program.write(pair_weight, &[weight]);
        program.run();
        let read = program.read_many(&[loss, dx]).unwrap();
        [read[0][0], read[1][0], read[1][1]]
    }

    #[test]
    fn bradley_terry_keeps_its_digits_at_the_ends() {
        for z in [0.0f32, 1e-4, -1e-4, 9.5, -9.5, 30.0, -30.0, 79.0, -1e4] {
            let [loss, d_w, d_l] = run(z, 1.0).map(f64::from);
            let z = f64::from(z);
            let slope = 1.0 / (1.0 + z.exp());
            for (got, want) in [(loss, preference_loss(z)), (-d_w, slope), (d_l, slope)] {
                assert!((got / want - 1.0).abs() < 2e-5, "z {z}: {got:e} instead of {want:e}");
            }
        }
        let [loss, d_w, d_l] = run(1e30, 1.0);
        assert!(loss == 0.0 || loss < 1e-30, "{loss}");
        assert!(d_w.is_finite() && d_l.is_finite());
    }

    #[test]
    fn bradley_terry_of_unused_pairs_is_exactly_nothing() {
        assert_eq!(run(f32::NAN, 0.0), [0.0; 3]);
    }
}
