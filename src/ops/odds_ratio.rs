//! `odds_ratio`: ORPO's preference term, with loss and both gradients from one closed form.
//!
//! For the average log-probabilities lw and ll of the chosen and the rejected answer:
//!
//! ```text
//! q    = 1 - exp(l), at least Q_FLOOR
//! z    = (lw - ll) - (ln qw - ln ql)
//! L_OR = -ln sigmoid(z)
//! loss = sum over pairs of c * L_OR, with c = lambda / B
//! ```
//!
//! Source: Hong, Lee, Thorne, "ORPO", arXiv 2403.07691, equations 6 and 7.
//!
//! With r = exp(lw - ll) nothing overflows and no logarithm of 1 - exp(l) is taken:
//! L_OR = log1p(qw / (r ql)). Backward: - dL_OR/dlw = g_w = 1 / (qw + r ql) and
//! dL_OR/dll = g_l = qw / (ql (qw + r ql)). The forward kernel stores
//! both, and backward multiplies them with the upstream scalar.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase, normal};
use crate::ops::values::{Domain, Values};
use crate::variant;

/// The smallest 1 - p the closed form works with: nearer to 1 an f32 log-probability carries no
/// information, and the gradient would exceed 10^7. The kernel's `Q_FLOOR` is this one. An average log-probability above `-Q_FLOOR` lies in the floored region.
pub const Q_FLOOR: f64 = 1e-7;

/// What [`odds_ratio`] gives.
#[derive(Debug, Clone, Copy)]
pub struct OddsRatio {
    /// `[1]`: sum of weight times L_OR. The derivative goes through this one.
    pub loss: Var,
    /// `[P, 4]`: L_OR, z, g_w, g_l of each pair, unweighted; for metrics, without a derivative.
    pub table: Var,
}

/// The odds-ratio term for `l` `[2P]` (chosen at 2p, rejected at 2p + 1) and `pair_weight` `[P]`.
///
/// A pair of weight 0 (unused, or lambda = 0) adds exactly 0 to loss and gradient whatever its l
/// is; its row of the table is computed like the others, so a run with lambda = 0 still reports
/// its odds. Finite for every l from -10^4 to 0 (clamped to that), and NaN for NaN.
///
/// # Panics
/// When l has not two elements per pair.
#[track_caller]
pub fn odds_ratio(g: &mut Graph, l: Var, pair_weight: Var) -> OddsRatio {
    let &[pairs] = g.shape(pair_weight) else { panic!("odds_ratio: pair_weight is a vector") };
    assert_eq!(
        g.shape(l),
        [2 * pairs],
        "odds_ratio: l holds two answers for each of {pairs} pairs"
    );
    let loss = g.temp("odds-ratio loss", &[1]);
    let table = g.temp("odds table", &[pairs, 4]);
    let slope = g.temp("odds slope", &[2 * pairs]);
    let constants = [("P", pairs.into()), ("Q_FLOOR", (Q_FLOOR as f32).into())];
    g.call(&FORWARD, &constants, &[l, pair_weight], &[loss, table, slope], [1, 1, 1]);
    let backward = move |g: &mut Graph, dloss: Var| {
        let Some(sink) = g.grad_into(l) else { return };
        let constants = [("S", (2 * pairs).into()), sink.constant()];
        g.call(&BACKWARD, &constants, &[slope, dloss], &[sink.var], [2 * pairs, 1, 1]);
    };
    g.record("odds_ratio", &[l], loss, backward);
    OddsRatio { loss, table }
}

static FORWARD: Pass = Pass {
    op: "odds_ratio",
    name: "forward",
    variants: &[variant!("odds_ratio/forward_1_one_workgroup.wgsl", tile: [1, 1, 1])],
};

static BACKWARD: Pass = Pass {
    op: "odds_ratio",
    name: "backward",
    variants: &[variant!("odds_ratio/backward_1_naive.wgsl", tile: [64, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

/// The log odds ratio of a pair and its loss, in f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogOdds {
    /// z: log odds ratio of chosen against rejected.
    pub z: f64,
    /// L_OR = `-log sigmoid(z)`.
    pub loss: f64,
    /// One of the two answers was certain to [`Q_FLOOR`].
    pub floored: bool,
}

/// The log odds ratio of two average log-probabilities: for metrics, and what the kernel is compared
/// with. NaN in gives NaN out.
pub fn log_odds(l_w: f64, l_l: f64) -> LogOdds {
    let [exact_w, exact_l] = [l_w, l_l].map(|l| -l.exp_m1());
    let (q_w, q_l) = (exact_w.max(Q_FLOOR), exact_l.max(Q_FLOOR));
    let z = (l_w - l_l) - (q_w.ln() - q_l.ln());
    let t = q_w / ((l_w - l_l).exp() * q_l);
    // The exponential underflows where the chosen answer is hopeless; there log1p(t) = log t = -z.
    let loss = if t.is_infinite() { -z } else { t.ln_1p() };
    LogOdds { z, loss, floored: exact_w < Q_FLOOR || exact_l < Q_FLOOR }
}

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let term = |(l, weight): (&[f64], &f64)| weight * log_odds(l[0], l[1]).loss;
    vec![vec![inputs[0].f().chunks(2).zip(inputs[1].f()).map(term).sum()]]
}

/// Log-probabilities are negative, and below -10,000 they count as that.
const DOMAIN: Domain = Domain {
    large: 1e3,
    without: &[
        (Values::Zeros, "the odds of a probability of 1 are infinite"),
        (Values::Spikes, "the odds of a probability of 1 are infinite"),
        (Values::Alternating, "no probability is above 1"),
    ],
    without_gradient: &[(Values::Tiny, "a difference reaches beyond a probability of 1")],
    ..Domain::ALL
};

/// Shapes are `[P]`; every fifth pair is unused. Compares the loss; the table has tests of its own.
pub fn case() -> OpCase {
    OpCase {
        op: "odds_ratio",
        passes: PASSES,
        shapes: &[&[1], &[2], &[31], &[255], &[256], &[257]],
        large: &[&[4099]],
        inputs: |s, rng| {
            let l = (0..2 * s[0]).map(|_| -0.2 - f64::from(normal(rng)).abs()).collect();
            let weight = (0..s[0]).map(|p| if p % 5 == 4 { 0.0 } else { 0.1 }).collect();
            vec![Array::float("l", &[2 * s[0]], l), Array::fixed("pair_weight", s, weight)]
        },
        build: |g, _, v| vec![odds_ratio(g, v[0], v[1]).loss],
        reference,
        tolerance: 1e-6,
        domain: DOMAIN,
        differentiable: true,
        bench: BenchFacts {
            dims: &["PAIRS"],
            layers: |l| vec![vec![l.tokens / 32]],
            sets: &[],
            flops: |pass, s, _| (pass == "forward").then(|| 100.0 * s[0] as f64),
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
    fn odds_ratio_forward() {
        forward(&case());
    }

    #[test]
    fn odds_ratio_gradient() {
        gradient(&case());
    }

    struct Run {
        loss: f32,
        /// L_OR, z, g_w, g_l per pair.
        table: Vec<f32>,
        /// dloss/dl for an upstream gradient of 1.
        dl: Vec<f32>,
    }

    fn run(l: &[[f32; 2]], weight: &[f32]) -> Run {
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        let l_var = g.input_with_grad("l", &[2 * l.len()]);
        let weight_var = g.input("pair_weight", &[l.len()], DType::F32);
        let out = odds_ratio(&mut g, l_var, weight_var);
        g.backward(out.loss);
        let dl = g.grad(l_var).unwrap();
        for v in [out.loss, out.table, dl] {
            g.output(v);
        }
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        program.write(l_var, l.as_flattened());
        program.write(weight_var, weight);
        program.run();
        let mut read = program.read_many(&[out.loss, out.table, dl]).unwrap();
        let dl = read.remove(2);
        Run { loss: read[0][0], table: read.remove(1), dl }
    }

    /// Smallest normal f32: below it adapters may flush to zero.
    const TINY: f64 = 1.2e-38;

    /// `got` is `want` to 1e-5 relative, or both are below what an f32 holds.
    fn close(what: &str, got: f32, want: f64) -> f64 {
        let got = f64::from(got);
        if want.abs() < TINY {
            assert!(got.abs() <= TINY, "{what}: {got:e} instead of {want:e}");
            return 0.0;
        }
        let off = (got / want - 1.0).abs();
        assert!(off <= 1e-5, "{what}: {got:e} instead of {want:e} ({off:.1e})");
        off
    }

    /// l_w, l_l, z, L_OR, g_w, g_l, worked out with 50 digits.
    const ROWS: [[f64; 6]; 9] = [
        [-1.0, -1.5, 0.706192686, 0.401135488, 0.522749431, 0.425348811],
        [-2.3, -2.1, -0.224980509, 0.811951165, 0.617965595, 0.633597119],
        [-0.5, -3.0, 3.38168295, 0.033425301, 0.0835461488, 0.0345952438],
        [-0.01, -4.0, 8.58168057, 0.000187492011, 0.018841337, 0.000190972214],
        [-1e-4, -1e-4, 0.0, std::f64::consts::LN_2, 5000.25, 5000.25],
        [-1e-6, -2.0, 15.6700966, 1.56517709e-07, 0.156517775, 1.81015477e-07],
        [-2.0, -1e-6, -15.6700966, 15.6700968, 1.15651746, 1000000.34],
        [-12.0, -0.7, -11.9863349, 11.9863411, 0.999999916, 1.98642149],
        [-8.0, -30.0, 22.0003355, 2.78853233e-10, 2.78946809e-10, 2.78853233e-10],
    ];

    /// A row of tests/golden/odds.
    #[derive(serde::Deserialize)]
    struct Row {
        chosen: f64,
        rejected: f64,
        log_odds: f64,
        or_loss: f64,
        d_chosen: f64,
        d_rejected: f64,
    }

    fn long_table() -> Vec<Row> {
        let rows: Vec<Row> =
            serde_json::from_str(include_str!("../../tests/golden/odds/odds_table.json")).unwrap();
        assert_eq!(rows.len(), 361);
        rows
    }

    #[test]
    fn log_odds_agree_with_fifty_digits() {
        let near = |got: f64, want: f64, bar: f64| (got / want - 1.0).abs() <= bar;
        for [l_w, l_l, z, loss, ..] in ROWS {
            let odds = log_odds(l_w, l_l);
            assert!(odds.z == z || near(odds.z, z, 1e-8), "{l_w} {l_l}: {odds:?}");
            assert!(near(odds.loss, loss, 1e-8) && !odds.floored, "{l_w} {l_l}: {odds:?}");
        }
        let mut floored = 0;
        for row in long_table() {
            let odds = log_odds(row.chosen, row.rejected);
            let place = format!("{} {}: {odds:?}", row.chosen, row.rejected);
            assert_eq!(odds.floored, row.chosen.max(row.rejected) > -1e-7 - 1e-14, "{place}");
            if odds.floored {
                // Only soundness can be asked for there.
                floored += 1;
                assert!(odds.z.is_finite() && odds.loss >= 0.0, "{place}");
                continue;
            }
            assert!(
                (odds.z - row.log_odds).abs() <= 1e-13 * row.log_odds.abs().max(1.0),
                "{place}"
            );
            // The loss carries z's rounding as a relative error.
            assert!(near(odds.loss, row.or_loss, 1e-12), "{place}");
        }
        assert!((30..361 / 2).contains(&floored), "{floored}");
    }

    #[test]
    fn log_odds_are_finite_at_the_ends_and_nan_for_nan() {
        const ENDS: [f64; 7] = [0.0, 1e-6, -1e-300, -1e-9, -1.0, -800.0, -1e6];
        for (l_w, l_l) in ENDS.iter().flat_map(|&w| ENDS.map(|l| (w, l))) {
            let odds = log_odds(l_w, l_l);
            assert!(odds.z.is_finite() && odds.loss.is_finite(), "{l_w} {l_l}: {odds:?}");
        }
        let hopeless = log_odds(-1000.0, -0.5);
        assert!((hopeless.loss / -hopeless.z - 1.0).abs() < 1e-15, "{hopeless:?}");
        assert!(log_odds(f64::NAN, -1.0).loss.is_nan() && log_odds(f64::NAN, -1.0).z.is_nan());
    }

    #[test]
    fn odds_ratio_agrees_with_the_table_of_the_paper_form() {
        let l: Vec<_> = ROWS.iter().map(|r| [r[0] as f32, r[1] as f32]).collect();
        let got = run(&l, &[1.0; 9]);
        for (row, got) in ROWS.iter().zip(got.table.chunks(4)) {
            let name = format!("l = {}, {}", row[0], row[1]);
            close(&format!("{name}: L_OR"), got[0], row[3]);
            close(&format!("{name}: g_w"), got[2], row[4]);
            close(&format!("{name}: g_l"), got[3], row[5]);
            assert!(
                (f64::from(got[1]) - row[2]).abs() < 1e-6 * row[2].abs().max(1.0),
                "{name}: z {}",
                got[1]
            );
        }
        assert!((f64::from(got.loss) / ROWS.iter().map(|r| r[3]).sum::<f64>() - 1.0).abs() < 1e-6);
        // The golden batch of the contract.
        let got = run(&[[-0.5, -1.5], [-1.5, -0.5]], &[0.05; 2]);
        for (z, want) in [got.table[1], got.table[5]].into_iter().zip([1.68026967, -1.68026967]) {
            close("golden batch: z", z, want);
        }
    }

    #[test]
    fn odds_ratio_agrees_with_361_pairs_of_fifty_digits() {
        let rows = long_table();
        let l: Vec<_> = rows.iter().map(|r| [r.chosen as f32, r.rejected as f32]).collect();
        let got = run(&l, &vec![1.0; rows.len()]);
        assert!(got.table.iter().chain(&got.dl).all(|v| v.is_finite()));
        let (mut floored, mut vanishing) = (0, 0);
        let mut worst = [0.0f64; 4];
        for (i, row) in rows.iter().enumerate() {
            // The golden file holds exact f32 values, but q of the one nearest to the floor may
            // round to either side of it.
            let q = |l: f64| -l.exp_m1();
            if q(row.chosen).min(q(row.rejected)) < Q_FLOOR * (1.0 - 1e-6) {
                floored += 1;
                continue;
            }
            vanishing += usize::from(row.or_loss < TINY);
            let name = format!("l = {}, {}", row.chosen, row.rejected);
            let wanted = [
                ("L_OR", got.table[4 * i], row.or_loss),
                ("dL/dl_w", got.dl[2 * i], row.d_chosen),
                ("dL/dl_l", got.dl[2 * i + 1], row.d_rejected),
            ];
            for (k, (what, got, want)) in wanted.into_iter().enumerate() {
                worst[k] = worst[k].max(close(&format!("{name}: {what}"), got, want));
            }
            let z = f64::from(got.table[4 * i + 1]);
            let off = (z - row.log_odds).abs() / row.log_odds.abs().max(1.0);
            worst[3] = worst[3].max(off);
            assert!(off < 2e-6, "{name}: z {z} instead of {}", row.log_odds);
        }
        println!(
            "odds table: {} of 361 rows compared, {floored} in the floored region (q < 1e-7), {vanishing} below the \
             smallest f32; largest relative differences: L_OR {:.1e}, dL/dl_w {:.1e}, dL/dl_l {:.1e}, z {:.1e}",
            361 - floored,
            worst[0],
            worst[1],
            worst[2],
            worst[3]
        );
        assert!(floored < 361 / 2, "the table must not be excused away");
    }

    #[test]
    fn odds_ratio_is_finite_at_the_ends() {
        let ends =
            [0.0, 1e-6, -1e-30, -1e-9, -1e-7, -0.35, -1.0, -90.0, -103.0, -1000.0, -1e4, -1e30];
        let l: Vec<[f32; 2]> = ends.iter().flat_map(|&w| ends.map(|l| [w, l])).collect();
        let got = run(&l, &vec![0.01; l.len()]);
        assert!(got.loss.is_finite());
        for (i, l) in l.iter().enumerate() {
            let row = &got.table[4 * i..][..4];
            assert!(
                row.iter().chain(&got.dl[2 * i..][..2]).all(|v| v.is_finite()),
                "{l:?}: {row:?}"
            );
            assert!(row[0] >= 0.0 && row[2] >= 0.0 && row[3] >= 0.0, "{l:?}: {row:?}");
        }
    }

    #[test]
    fn odds_ratio_of_unused_pairs_is_exactly_nothing() {
        let l = [[-1.0, -1.5], [0.0, 0.0], [f32::NAN, f32::INFINITY], [-2.0, -0.1]];
        let got = run(&l, &[0.5, 0.0, 0.0, 0.0]);
        let alone = run(&l[..1], &[0.5]);
        assert_eq!(got.loss, alone.loss);
        assert_eq!(got.dl[..2], alone.dl[..]);
        assert!(got.dl[2..].iter().all(|&d| d == 0.0));
        // The table speaks of them all the same: z of (-2, -0.1).
        assert!((got.table[13] + 4.1068).abs() < 1e-3, "{:?}", got.table);
    }

    /// The whole ORPO loss as training builds it: log-probabilities of targets that feed both the
    /// likelihood and the averages, one target owned by both answers of a pair.
    #[test]
    fn odds_ratio_in_the_whole_orpo_loss_differentiates() {
        use crate::ops::{add, nll, segment_mean, token_logp};
        const NONE: u32 = segment_mean::NO_OWNER;
        // Not `Array::float`, which rounds to single precision.
        fn double(name: &'static str, values: Vec<f64>) -> Array {
            Array::exact(name, &[values.len()], values)
        }
        let whole = OpCase {
            op: "odds_ratio",
            passes: PASSES,
            shapes: &[&[9, 150, 6]],
            large: &[],
            inputs: |s, rng| {
                // Pair 0: chosen 2, 3, 4 and rejected 4, 5; pair 1: chosen 7 and rejected 8, 6.
                // Targets 0 and 1 are a prompt; pair 2 is unused.
                let owner = [
                    NONE, NONE, NONE, NONE, 0, NONE, 0, NONE, 0, 1, 1, NONE, 3, NONE, 2, NONE, 3,
                    NONE,
                ];
                let mut inputs = (token_logp::case().inputs)(s, rng);
                inputs.push(Array::fixed(
                    "nll weight",
                    &[9],
                    vec![0.2, 0.2, 0.2, 0.2, 0.2, 0.0, 0.0, 0.2, 0.0],
                ));
                inputs.push(Array::index("seq_offset", &[7], vec![0, 3, 5, 6, 8, 8, 8]));
                inputs.push(Array::index(
                    "seq_target",
                    &[12],
                    vec![2, 3, 4, 4, 5, 7, 8, 6, 0, 0, 0, 0],
                ));
                inputs.push(Array::index("owner", &[9, 2], owner.to_vec()));
                inputs.push(Array::fixed("pair_weight", &[3], vec![0.25, 0.25, 0.0]));
                inputs
            },
            build: |g, _, v| {
                let logp = token_logp::token_logp(g, v[0], v[1], v[2]);
                let likelihood = nll::nll(g, logp, v[3]);
                let l = segment_mean::segment_mean(g, logp, v[4], v[5], v[6]);
                let preference = odds_ratio(g, l, v[7]).loss;
                vec![add::add(g, likelihood, preference)]
            },
            reference: |s, inputs| {
                let logp = (token_logp::case().reference)(s, &inputs[..3]).remove(0);
                let logp = double("logp", logp);
                let likelihood =
                    (nll::case().reference)(s, &[logp.clone(), inputs[3].clone()])[0][0];
                let mean = &segment_mean::case().reference;
                let l = mean(s, &[logp, inputs[4].clone(), inputs[5].clone()]).remove(0);
                vec![vec![likelihood + reference(s, &[double("l", l), inputs[7].clone()])[0][0]]]
            },
            tolerance: 1e-6,
            domain: token_logp::case().domain,
            differentiable: true,
            bench: case().bench,
        };
        forward(&whole);
        gradient(&whole);
    }
}
