//! `bradley_terry`: a preference between two answers by the difference of their scores.
//!
//! For scores x_w, x_l of the chosen and the rejected answer
//!
//! ```text
//! z    = beta (scale_w (x_w - reference_w) - scale_l (x_l - reference_l)) - offset
//! loss = sum over pairs of weight times L(z)                               L: a `Link`
//! ```
//! Source: Bradley and Terry, Biometrika 39 (1952), for L = -log sigmoid(z); as a loss of language
//! models Rafailov et al., arXiv 2305.18290, equation 7. Other links: see [`Link`].
//!
//! Backward: dloss/dx_w = weight beta scale_w L'(z), dloss/dx_l = -weight beta scale_l L'(z). The
//! forward kernel stores both, and backward multiplies them with the upstream scalar. All but x is
//! data and gets no gradient.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase, normal};
use crate::ops::values::Domain;
use crate::variant;

/// What becomes of the difference z of two answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Link {
    /// keep s(-z) + flip s(z) with s(z) = log(1 + exp(z)), so that keep = 1 and flip = 0 is
    /// -log sigmoid(z).
    Logistic {
        /// Weight of the preference as it is.
        keep: f64,
        /// Weight of the opposite one.
        flip: f64,
    },
    /// max(1 - z, 0): SLiC, Zhao et al., arXiv 2305.10425.
    Hinge,
    /// z²: IPO, Azar et al., arXiv 2310.12036, equation 17.
    Square,
    /// sigmoid(-z) = 1 - sigmoid(z): KTO, Ethayarajh et al., arXiv 2402.01306, equation 8.
    Sigmoid,
}

impl Link {
    /// -log sigmoid(z).
    pub const LOGISTIC: Self = Self::Logistic { keep: 1.0, flip: 0.0 };

    /// L(z) in f64: what the kernel is compared with, and for metrics.
    pub fn loss(self, z: f64) -> f64 {
        let softplus = |z: f64| z.max(0.0) + (-z.abs()).exp().ln_1p();
        match self {
            Self::Logistic { keep, flip: 0.0 } => keep * softplus(-z),
            Self::Logistic { keep, flip } => keep * softplus(-z) + flip * softplus(z),
            Self::Hinge => (1.0 - z).max(0.0),
            Self::Square => z * z,
            Self::Sigmoid => (-softplus(z)).exp(),
        }
    }

    /// LINK, KEEP and FLIP of the kernel.
    fn constants(self) -> (u32, f32, f32) {
        match self {
            Self::Logistic { keep, flip } => (0, keep as f32, flip as f32),
            Self::Hinge => (1, 1.0, 0.0),
            Self::Square => (2, 1.0, 0.0),
            Self::Sigmoid => (3, 1.0, 0.0),
        }
    }
}

/// What is known of the pairs beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Pairs {
    /// What is subtracted from each answer's score `[2P]`.
    pub reference: Var,
    /// What that is multiplied by `[2P]`.
    pub scale: Var,
    /// What is subtracted from each difference `[P]`.
    pub offset: Var,
    /// Each pair's weight in the loss `[P]`.
    pub weight: Var,
}

/// `[1]`: the loss of scores x `[2P]` (chosen at 2p, rejected at 2p + 1).
///
/// A pair of weight 0 adds exactly 0 to loss and gradient whatever its scores are.
///
/// # Panics
/// When the shapes do not fit, or `beta` is not finite.
#[track_caller]
pub fn bradley_terry(g: &mut Graph, x: Var, pairs: Pairs, beta: f32, link: Link) -> Var {
    let Pairs { reference, scale, offset, weight } = pairs;
    let &[pairs] = g.shape(weight) else { panic!("bradley_terry: weight is a vector") };
    assert_eq!(g.shape(offset), [pairs], "bradley_terry: offset");
    for (var, what) in [(x, "x"), (reference, "reference"), (scale, "scale")] {
        assert_eq!(g.shape(var), [2 * pairs], "bradley_terry: {what} has two values for each pair");
    }
    let loss = g.temp("preference loss", &[1]);
    let slope = g.temp("preference slope", &[2 * pairs]);
    let (kind, keep, flip) = link.constants();
    let constants = [
        ("P", pairs.into()),
        ("BETA", beta.into()),
        ("LINK", kind.into()),
        ("KEEP", keep.into()),
        ("FLIP", flip.into()),
    ];
    let read = [x, reference, scale, offset, weight];
    g.call(&FORWARD, &constants, &read, &[loss, slope], [1, 1, 1]);
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

/// The links that the case's shapes name.
const LINKS: [Link; 5] = [
    Link::LOGISTIC,
    Link::Hinge,
    Link::Square,
    Link::Sigmoid,
    Link::Logistic { keep: 0.9, flip: 0.1 },
];

fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let [x, reference, scale, offset, weight] = [0, 1, 2, 3, 4].map(|i| inputs[i].f());
    let score = |i: usize| scale[i] * (x[i] - reference[i]);
    let term = |p: usize| {
        let z = BETA * (score(2 * p) - score(2 * p + 1)) - offset[p];
        weight[p] * LINKS[s[1]].loss(z)
    };
    vec![vec![(0..s[0]).map(term).sum()]]
}

/// The case's beta.
const BETA: f64 = 1.75;

/// Shapes are `[P, LINK]`, LINK one of `LINKS`; every fifth pair is unused, every seventh answer
/// has scale 0.
pub fn case() -> OpCase {
    OpCase {
        op: "bradley_terry",
        passes: PASSES,
        shapes: &[
            &[1, 0],
            &[2, 1],
            &[31, 0],
            &[31, 1],
            &[31, 2],
            &[31, 3],
            &[31, 4],
            &[255, 4],
            &[256, 2],
            &[257, 0],
            &[257, 3],
        ],
        large: &[&[4099, 0]],
        inputs: |s, rng| {
            let weight = (0..s[0]).map(|p| if p % 5 == 4 { 0.0 } else { 0.1 }).collect();
            let lengths = [1.0, 0.5, 2.0, 1.5, -1.0, 1.0, 0.0];
            let scale = (0..2 * s[0]).map(|i| lengths[i % 7]).collect();
            let mut drawn = |n: usize| (0..n).map(|_| f64::from(normal(rng))).collect();
            let (reference, offset) = (drawn(2 * s[0]), drawn(s[0]));
            vec![
                Array::normal("x", &[2 * s[0]], rng),
                Array::fixed("reference", &[2 * s[0]], reference),
                Array::fixed("scale", &[2 * s[0]], scale),
                Array::fixed("offset", &s[..1], offset),
                Array::fixed("weight", &s[..1], weight),
            ]
        },
        build: |g, s, v| {
            let pairs = Pairs { reference: v[1], scale: v[2], offset: v[3], weight: v[4] };
            vec![bradley_terry(g, v[0], pairs, BETA as f32, LINKS[s[1]])]
        },
        reference,
        tolerance: 1e-6,
        domain: Domain::ALL,
        differentiable: true,
        bench: BenchFacts {
            dims: &["PAIRS"],
            layers: |l| vec![vec![l.tokens / 32]],
            case_shape: |_, dims| vec![dims[0], 0],
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
    fn run(z: f32, weight: f32, link: Link) -> [f32; 3] {
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        let x = g.input_with_grad("x", &[2]);
        let [reference, scale] = ["reference", "scale"].map(|n| g.input(n, &[2], DType::F32));
        let [offset, pair_weight] =
            ["offset", "pair weight"].map(|name| g.input(name, &[1], DType::F32));
        let pairs = Pairs { reference, scale, offset, weight: pair_weight };
        let loss = bradley_terry(&mut g, x, pairs, 1.0, link);
        g.backward(loss);
        let dx = g.grad(x).unwrap();
        g.output(loss);
        g.output(dx);
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        program.write(x, &[z, 0.0]);
        program.write(reference, &[0.0, 0.0]);
        program.write(scale, &[1.0, 1.0]);
        program.write(offset, &[0.0]);
        program.write(pair_weight, &[weight]);
        program.run();
        let read = program.read_many(&[loss, dx]).unwrap();
        [read[0][0], read[1][0], read[1][1]]
    }

    #[test]
    fn bradley_terry_keeps_its_digits_at_the_ends() {
        for z in [0.0f32, 1e-4, -1e-4, 9.5, -9.5, 30.0, -30.0, 79.0, -1e4] {
            let [loss, d_w, d_l] = run(z, 1.0, Link::LOGISTIC).map(f64::from);
            let [risk, r_w, _] = run(z, 1.0, Link::Sigmoid).map(f64::from);
            let z = f64::from(z);
            let slope = 1.0 / (1.0 + z.exp());
            let mut all =
                vec![(loss, Link::LOGISTIC.loss(z)), (-d_w, slope), (d_l, slope), (risk, slope)];
            if z > -80.0 {
                all.push((-r_w, slope / (1.0 + (-z).exp())));
            }
            for (got, want) in all {
                assert!((got / want - 1.0).abs() < 2e-5, "z {z}: {got:e} instead of {want:e}");
            }
        }
        for link in LINKS {
            let [loss, d_w, d_l] = run(1e15, 1.0, link);
            let want = link.loss(1e15);
            assert!((f64::from(loss) - want).abs() <= 1e-6 * want + 1e-30, "{link:?}: {loss}");
            assert!(d_w.is_finite() && d_l.is_finite());
        }
    }

    /// As PyTorch's relu: the slope at z = 1 is that of the flat side.
    #[test]
    fn bradley_terry_has_no_slope_at_the_corner_of_the_hinge() {
        assert_eq!(run(1.0, 1.0, Link::Hinge), [0.0; 3]);
        assert_eq!(run(0.5, 1.0, Link::Hinge), [0.5, -1.0, 1.0]);
    }

    #[test]
    fn bradley_terry_of_unused_pairs_is_exactly_nothing() {
        for link in LINKS {
            assert_eq!(run(f32::NAN, 0.0, link), [0.0; 3]);
        }
    }
}
