use super::cpo::Cpo;
use super::dpo::{Dpo, DpoType};
use super::kto::{Kto, KtoType};
use super::likelihood::{Likelihood, NLL_WEIGHT, NllReduction, NllScope};
use super::lm::Lm;
use super::orpo::{Orpo, PAIR_WEIGHT};
use super::pairwise::Imitation;
use super::preference::MEAN_LOGP;
use super::sft::Sft;
use super::simpo::SimPo;
use super::*;
use crate::data::example::{Example, Sequence};
use crate::data::pack::pack;
use crate::ops::odds_ratio::log_odds;

/// The golden batch of the contract: per-token log-probs of two pairs. Token ids are indices into
/// this list, so that a target's log-prob is found by its id; 0 opens every sequence.
const GOLDEN: [f32; 14] = [
    0.0, -2.0, -1.0, -0.5, -0.25, -0.75, -1.0, -2.0, // pair 0: prompt, chosen, rejected
    -3.0, -1.5, -0.2, -0.4, -0.6, -0.8, // pair 1
];

fn example(row: usize, chosen: &[u32], rejected: &[u32], response_start: usize) -> Example {
    let sequence = |ids: &[u32]| Sequence { ids: ids.to_vec(), response_start };
    let rejected = (!rejected.is_empty()).then(|| sequence(rejected));
    Example { row, chosen: sequence(chosen), rejected, desirable: None }
}

fn golden() -> Vec<Example> {
    vec![
        example(0, &[0, 1, 2, 3, 4, 5], &[0, 1, 2, 6, 7], 3),
        example(1, &[0, 8, 9], &[0, 8, 10, 11, 12, 13], 2),
    ]
}

fn streams(examples: &[Example], tokens: usize) -> Vec<PackedBatch> {
    let capacity = Capacity { tokens, targets: 20, pairs: 3 };
    pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap()
}

/// What a model gives that predicts token id i with log-probability `logp[i]`.
fn results(stream: &PackedBatch, logp: &[f32]) -> Results {
    let logp: Vec<f32> = stream.target_id.iter().map(|&id| logp[id as usize]).collect();
    let mean = |sequence: usize| {
        let response = stream.response(sequence);
        let sum: f32 = response.iter().map(|&t| logp[t as usize]).sum();
        sum / response.len().max(1) as f32
    };
    let mean = (0..2 * stream.capacity.pairs).map(mean).collect();
    Results::new([(LOGP, logp), (MEAN_LOGP, mean)])
}

/// ORPO's loss in f64, made of the coefficients as the graph makes it.
fn minimised(streams: &[PackedBatch], loss: &Loss) -> f64 {
    let mut total = 0.0;
    for (s, coefficients) in streams.iter().zip(loss.coefficients(streams)) {
        let results = results(s, &GOLDEN);
        let terms = results.get(LOGP).iter().zip(&coefficients[NLL_WEIGHT]);
        total -= terms.map(|(&l, &w)| f64::from(l) * f64::from(w)).sum::<f64>();
        let mean = results.get(MEAN_LOGP);
        for (p, pair) in s.pairs().enumerate() {
            let rejected = mean[pair.rejected.unwrap()];
            let odds = log_odds(f64::from(mean[pair.chosen]), f64::from(rejected));
            total += f64::from(coefficients[PAIR_WEIGHT][p]) * odds.loss;
        }
    }
    total
}

fn figures(
    objective: &dyn Objective,
    streams: &[PackedBatch],
    logp: &[f32],
) -> Vec<(&'static str, f64)> {
    let mut sums = Sums::default();
    for stream in streams {
        objective.measure(stream, &results(stream, logp), &mut sums);
    }
    objective.figures(&sums)
}

fn figure(figures: &[(&str, f64)], name: &str) -> f64 {
    figures.iter().find(|(key, _)| *key == name).unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn every_objective_is_found_by_its_name_and_writes_what_it_reads() {
    for &(name, read) in OBJECTIVES {
        let mut settings = Settings::new("r.toml", toml::Table::new(), &[]);
        let objective = read(&mut settings);
        assert!(settings.finish().is_empty());
        assert_eq!(objective.name(), name);
        let mut table = toml::Table::new();
        for (key, value) in objective.settings() {
            table.insert(key.into(), value);
        }
        let table = toml::Table::from_iter([("loss".to_string(), toml::Value::Table(table))]);
        let mut settings = Settings::new("r.toml", table, &[]);
        assert_eq!(read(&mut settings).settings(), objective.settings());
        let problems = settings.finish();
        assert!(problems.is_empty(), "{name}: {problems:?}");
    }
    assert_eq!(Loss::default().objective.name(), OBJECTIVES[0].0);
}

#[test]
fn golden_batch_has_the_contracts_totals() {
    let totals = [
        (NllScope::PromptAndResponse, NllReduction::Token, 1.386813691),
        (NllScope::Response, NllReduction::Token, 0.851099405),
        (NllScope::Response, NllReduction::Sequence, 1.101099405),
    ];
    for (scope, reduction, want) in totals {
        let orpo = Orpo { likelihood: Likelihood { scope, reduction }, ..Orpo::default() };
        for tokens in [8, 20] {
            let streams = streams(&golden(), tokens);
            let got = minimised(&streams, &Loss::new(orpo));
            assert!((got - want).abs() < 1e-6, "{orpo:?}: {got}");
            let got = figure(&figures(&orpo, &streams, &GOLDEN), "loss");
            assert!((got - want).abs() < 1e-6, "{orpo:?}, reported: {got}");
        }
    }
    let orpo = figures(&Orpo::default(), &streams(&golden(), 20), &GOLDEN);
    let mean_odds_loss = (0.851099405 - 0.75) / 0.1;
    for (name, want) in [
        ("logps/chosen", -1.0),
        ("logps/rejected", -1.0),
        ("rewards/chosen", -0.1),
        ("rewards/margins", 0.0),
        ("rewards/accuracies", 0.5),
        ("log_odds_chosen", 0.0),
        ("log_odds_ratio", -mean_odds_loss),
        ("odds_floored", 0.0),
    ] {
        assert!((figure(&orpo, name) - want).abs() < 1e-6, "{name}: {orpo:?}");
    }
}

#[test]
fn averaging_micro_batch_means_changes_the_objective() {
    let two = streams(&golden(), 8);
    assert_eq!(two.len(), 2);
    let loss = Loss { accumulation: Accumulation::Trl, ..Loss::default() };
    let got = minimised(&two, &loss);
    assert!((got - 1.676099405).abs() < 1e-6, "{got}");
}

/// The figures TRL logs for three pairs (float64 run on a small model that has overfitted), by
/// responses of one token each.
#[test]
fn figures_are_those_of_trl() {
    let logp = [
        -3.771165941450615,
        -8.320064337267093,
        -10.131451632497951,
        -10.476869323850508,
        -0.01739397601647751,
        -0.013329681052983896,
        -0.008885063320988835f64,
    ];
    let logp: Vec<f32> = logp.iter().map(|&l| l as f32).collect();
    // The prompt is one more predicted token, so the NLL is a mean over six.
    let examples: Vec<Example> =
        (0..3).map(|i| example(i, &[0, 0, i as u32 + 1], &[0, 0, i as u32 + 4], 2)).collect();
    let got = figures(&Orpo::default(), &streams(&examples, 20), &logp);
    let nll =
        (3.0 * 3.771165941450615 + 8.320064337267093 + 10.131451632497951 + 10.476869323850508)
            / 6.0;
    for (name, want) in [
        ("nll_loss", nll),
        ("loss", nll + 0.1 * 14.000342732345908),
        ("log_odds_ratio", -14.000342732345908),
        ("rewards/accuracies", 0.0),
        ("rewards/margins", -0.9629592191075034),
    ] {
        assert!((figure(&got, name) - want).abs() < 1e-5, "{name}: {got:?}");
    }
}

#[test]
fn the_split_into_streams_changes_no_figure() {
    let logp: Vec<f32> = (0..40).map(|i| -0.1 - (i * 7 % 5) as f32 - (i * 3 % 7) as f32).collect();
    let mut examples: Vec<Example> = (0..3u32)
        .map(|i| {
            let chosen: Vec<u32> = (0..4 + i).map(|j| 5 * i + j).collect();
            let rejected: Vec<u32> = [5 * i, 5 * i + 1].into_iter().chain(30..33 - i).collect();
            example(i as usize, &chosen, &rejected, 2)
        })
        .collect();
    examples[1].row = 7;
    for reduction in [NllReduction::Token, NllReduction::Sequence] {
        let likelihood = Likelihood { reduction, ..Likelihood::default() };
        let orpo = Orpo { lambda: 0.2, likelihood };
        let whole = streams(&examples, 40);
        let split = streams(&examples, 9);
        assert!(whole.len() == 1 && split.len() == 3);
        let split = figures(&orpo, &split, &logp);
        for (name, a) in figures(&orpo, &whole, &logp) {
            assert!((a - figure(&split, name)).abs() < 1e-6, "{name}: {a} {split:?}");
        }
    }
}

#[test]
fn rows_without_a_rejected_answer_have_no_figures_of_pairs() {
    let names = |examples: &[Example]| {
        let figures = figures(&Sft::default(), &streams(examples, 20), &GOLDEN);
        figures.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    let alone = ["loss", "nll_loss", "logps/chosen", "rewards/chosen"];
    let mut examples = golden();
    assert_eq!(names(&[]), alone[..2]);
    examples[0].rejected = None;
    assert_eq!(names(&examples[..1]), alone);
    let both = names(&examples);
    assert!(both.starts_with(&alone) && both.contains(&"logps/rejected"));
    assert!(!both.contains(&"rewards/margins"), "{both:?}");
}

/// The golden batch's means differ by 1 and by -1.
#[test]
fn simpo_by_hand() {
    let simpo = SimPo::default();
    let got = figures(&simpo, &streams(&golden(), 20), &GOLDEN);
    let softplus = |x: f64| (1.0 + x.exp()).ln();
    for (name, want) in [
        ("loss", (softplus(-1.5) + softplus(2.5)) / 2.0),
        ("rewards/chosen", -2.0),
        ("rewards/margins", 0.0),
        ("rewards/accuracies", 0.5),
    ] {
        assert!((figure(&got, name) - want).abs() < 1e-6, "{name}: {got:?}");
    }
    // Micro-batches add up to the same weights.
    let whole = simpo.coefficients(&streams(&golden(), 20).iter().collect::<Vec<_>>(), 1);
    let two = simpo.coefficients(&streams(&golden(), 8).iter().collect::<Vec<_>>(), 1);
    let total = |all: &[Coefficients]| -> f32 { all.iter().flat_map(|c| &c[PAIR_WEIGHT]).sum() };
    assert_eq!((total(&whole), total(&two)), (1.0, 1.0));
}

fn softplus(x: f64) -> f64 {
    (1.0 + x.exp()).ln()
}

/// Sums of the golden batch: -1.5 and -3, -1.5 and -2; by the reference model 3 x -1 and 2 x -1, 0.5
/// and 4 x -0.25.
#[test]
fn dpo_by_hand() {
    let mut all = streams(&golden(), 20);
    all[0].refer(&[[-1.0, -1.0], [0.5, -0.25]]);
    let ratios = [(1.5, -1.0), (-2.0, -1.0)];
    let [a, b] = ratios.map(|(w, l)| 0.1 * (w - l));
    let hinge = (1.0 - a + 1.0 - b) / 2.0;
    let loss = |x: f64, eps: f64| (1.0 - eps) * softplus(-x) + eps * softplus(x);
    let robust = |x: f64| (0.8 * softplus(-x) - 0.2 * softplus(x)) / 0.6;
    // Means less those of the reference model, and less the margin of 5.
    let ipo = [0.5 - -0.5 - 5.0, -2.0 - -0.25 - 5.0f64].map(|z| z * z);
    let dpo = |kind, label_smoothing| Dpo { kind, label_smoothing, ..Dpo::default() };
    for (dpo, want) in [
        (Dpo::default(), (softplus(-a) + softplus(-b)) / 2.0),
        (dpo(DpoType::Sigmoid, 0.2), (loss(a, 0.2) + loss(b, 0.2)) / 2.0),
        (dpo(DpoType::Robust, 0.2), (robust(a) + robust(b)) / 2.0),
        (dpo(DpoType::Hinge, 0.0), hinge),
        (dpo(DpoType::Ipo, 0.0), (ipo[0] + ipo[1]) / 2.0),
    ] {
        let got = figures(&dpo, &all, &GOLDEN);
        for (name, want) in [
            ("loss", want),
            ("logps/chosen", -1.5),
            ("logps/rejected", -2.5),
            ("rewards/chosen", 0.1 * (1.5 - 2.0) / 2.0),
            ("rewards/rejected", -0.1),
            ("rewards/accuracies", 0.5),
            ("rewards/margins", (a + b) / 2.0),
        ] {
            assert!((figure(&got, name) - want).abs() < 1e-6, "{dpo:?}, {name}: {got:?}");
        }
    }
}

/// Sums -1.5, -3 and -2, by the reference model 3 x -1, 2 x -1 and 4 x -0.25; the divergence is 0.75.
#[test]
fn kto_by_hand() {
    let mut rows = vec![
        example(0, &[0, 1, 2, 3, 4, 5], &[], 3),
        example(1, &[0, 1, 2, 6, 7], &[], 3),
        example(2, &[0, 8, 10, 11, 12, 13], &[], 2),
    ];
    for (row, desirable) in rows.iter_mut().zip([true, false, false]) {
        row.desirable = Some(desirable);
    }
    let referred = |tokens| {
        let mut all = streams(&rows, tokens);
        for stream in &mut all {
            stream.refer(&[[-1.0, 0.0], [-1.0, 0.0], [-0.25, 0.0]]);
            stream.divergence = 0.75;
        }
        all
    };
    let [good, bad, worse] = [1.5, -1.0, -1.0];
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let loss = |beta: f64, k: f64, d: f64, u: f64| {
        let of = |r: f64| 1.0 - sigmoid(beta * (k - r));
        (d * (1.0 - sigmoid(beta * (good - k))) + u * (of(bad) + of(worse))) / 3.0
    };
    let weighted =
        Kto { beta: 0.5, desirable_weight: 2.0, undesirable_weight: 0.25, ..Kto::default() };
    let apo = Kto { kind: KtoType::ApoZeroUnpaired, ..Kto::default() };
    for (kto, want) in [
        (Kto::default(), loss(0.1, 0.75, 1.0, 1.0)),
        (weighted, loss(0.5, 0.75, 2.0, 0.25)),
        (apo, loss(0.1, 0.0, 1.0, 1.0)),
    ] {
        for tokens in [6, 20] {
            let all = referred(tokens);
            let got = figures(&kto, &all, &GOLDEN);
            for (name, want) in [
                ("loss", want),
                ("logps/chosen", -1.5),
                ("logps/rejected", -2.5),
                ("rewards/chosen", kto.beta * good),
                ("rewards/rejected", kto.beta * (bad + worse) / 2.0),
                ("rewards/margins", kto.beta * (good - (bad + worse) / 2.0)),
            ] {
                assert!((figure(&got, name) - want).abs() < 1e-6, "{kto:?}, {name}: {got:?}");
            }
            let kl = got.iter().find(|(name, _)| *name == "kl").map(|(_, kl)| *kl);
            assert_eq!(kl, (kto.kind == KtoType::Kto).then_some(0.75));
        }
    }
    // Micro-batches add up to the same weights.
    let weights = |tokens| -> f32 {
        let all = referred(tokens);
        let all = weighted.coefficients(&all.iter().collect::<Vec<_>>(), 1);
        all.iter().flat_map(|c| &c["row weight"]).sum()
    };
    assert!((weights(6) - weights(20)).abs() < 1e-7);
}

#[test]
fn kto_weighs_labels() {
    let kto = Kto::default();
    assert_eq!(kto.check_labels(4, 4), Ok(None));
    assert_eq!(kto.check_labels(4, 3), Ok(None));
    assert!(kto.check_labels(3, 0).unwrap_err().contains("objective = \"sft\""));
    assert!(kto.check_labels(0, 3).unwrap_err().contains("add rows with label true"));
    let told = kto.check_labels(30, 10).unwrap().unwrap();
    assert!(told.contains("desirable_weight from 0.33 to 0.44"), "{told}");
    assert!(told.contains("undesirable_weight from 2.25 to 3.00"), "{told}");
    for (desirable_weight, undesirable_weight) in [(0.4, 1.0), (1.0, 2.5)] {
        let weighted = Kto { desirable_weight, undesirable_weight, ..kto };
        assert_eq!(weighted.check_labels(30, 10), Ok(None));
    }
    assert_eq!(Dpo::default().check_labels(0, 0), Ok(None));
}

#[test]
fn cpo_by_hand() {
    let all = streams(&golden(), 20);
    let nll = 0.75;
    let alone = (softplus(-0.15) + softplus(-0.05)) / 2.0;
    for alpha in [0.0, 1.0, 0.3] {
        let imitation = Imitation::weighing(alpha);
        let got = figures(&Cpo { imitation, ..Cpo::default() }, &all, &GOLDEN);
        assert!((figure(&got, "loss") - alone - alpha * nll).abs() < 1e-6, "{got:?}");
        assert!((figure(&got, "rewards/margins") - 0.1).abs() < 1e-6, "{got:?}");
        let simpo = figures(&SimPo { imitation, ..SimPo::default() }, &all, &GOLDEN);
        let of_means = (softplus(-1.5) + softplus(2.5)) / 2.0;
        assert!((figure(&simpo, "loss") - of_means - alpha * nll).abs() < 1e-6, "{simpo:?}");
        assert_eq!(got.iter().any(|(name, _)| *name == "nll_loss"), alpha > 0.0);
    }
}

#[test]
fn settings_of_pairs_that_do_nothing_are_refused() {
    let problems = |objective: &str, kind: &str| {
        let text = format!(
            "objective = \"{objective}\"\n[loss]\ntype = \"{kind}\"\nlabel_smoothing = 0.1\n"
        );
        let mut settings = Settings::new("r.toml", toml::from_str(&text).unwrap(), &[]);
        Loss::read(&mut settings);
        settings
            .finish()
            .into_iter()
            .map(|p| format!("{}: {}", p.place, p.what))
            .collect::<Vec<_>>()
    };
    assert_eq!(problems("dpo", "sigmoid"), problems("dpo", "robust"));
    assert!(problems("cpo", "sigmoid").is_empty());
    for (objective, kind) in [("dpo", "hinge"), ("dpo", "ipo"), ("cpo", "hinge")] {
        let found = problems(objective, kind);
        assert!(found.len() == 1 && found[0].contains("label_smoothing"), "{found:?}");
    }
    assert!(problems("cpo", "ipo")[0].contains("one of \"sigmoid\", \"hinge\""));
}

#[test]
fn imitation_only_measures_rejected_answers() {
    let streams = streams(&golden(), 20);
    let orpo = figures(&Orpo { lambda: 0.0, ..Orpo::default() }, &streams, &GOLDEN);
    assert_eq!(figures(&Sft::default(), &streams, &GOLDEN), orpo);
    assert_eq!(figures(&Lm::default(), &streams, &GOLDEN), orpo);
    assert_eq!(figure(&orpo, "loss"), figure(&orpo, "nll_loss"));
}
