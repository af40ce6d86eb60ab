//! Figures of a chosen and a rejected answer, whether or not they are trained on.

use super::{Better, Metric, Results, Scored, Unit};
use crate::data::pack::PackedBatch;
use crate::graph::{Graph, Var};
use crate::ops::odds_ratio::log_odds;
use crate::train::metrics::Sums;

/// Mean log-probability of every sequence's response `[2P]`, a result.
pub const MEAN_LOGP: &str = "mean logp";

// Names in `Sums`.
const CHOSEN: &str = "chosen";
const REJECTED: &str = "rejected";
const PREFERRED: &str = "preferred";
const LOG_ODDS: &str = "log odds";
const ODDS_LOSS: &str = "odds-ratio loss";
const FLOORED: &str = "floored";

/// Appends the means of the responses; returns them as a result.
pub fn declare(g: &mut Graph, scored: &Scored) -> (&'static str, Var) {
    (MEAN_LOGP, scored.mean(g))
}

/// The weight of every pair `[P]` in a mean over the pairs of these streams, times `factor` and
/// divided by `parts`; 0 where a pair has one side only.
pub fn pair_weights(streams: &[&PackedBatch], factor: f64, parts: usize) -> Vec<Vec<f32>> {
    let pairs = streams.iter().flat_map(|s| s.pairs()).filter(|p| p.rejected.is_some()).count();
    let weight = (factor / (pairs.max(1) as f64 * parts as f64)) as f32;
    let of_stream = |s: &&PackedBatch| {
        let mut weights = vec![0.0; s.capacity.pairs];
        for (p, pair) in s.pairs().enumerate() {
            weights[p] = if pair.rejected.is_some() { weight } else { 0.0 };
        }
        weights
    };
    streams.iter().map(of_stream).collect()
}

/// Adds a stream's answers by their mean log-probabilities.
pub fn measure(stream: &PackedBatch, results: &Results, sums: &mut Sums) {
    let mean = results.get(MEAN_LOGP);
    for pair in stream.pairs() {
        let chosen = f64::from(mean[pair.chosen]);
        sums.add(CHOSEN, chosen, 1.0);
        let Some(rejected) = pair.rejected.map(|r| f64::from(mean[r])) else { continue };
        sums.add(REJECTED, rejected, 1.0);
        sums.add(PREFERRED, f64::from(u8::from(chosen > rejected)), 1.0);
        let odds = log_odds(chosen, rejected);
        sums.add(LOG_ODDS, odds.z, 1.0);
        sums.add(ODDS_LOSS, odds.loss, 1.0);
        sums.add(FLOORED, f64::from(u8::from(odds.floored)), 1.0);
    }
}

/// Log-probabilities of the answers, and what TRL makes of them: rewards are `factor` times the
/// mean log-probability. Those of pairs (and of responses) are left out where there were none.
/// Accuracy compares the log-probabilities themselves, which is TRL's figure for every factor above
/// 0 and still means something at 0.
pub fn answers(sums: &Sums, factor: f64) -> Vec<(&'static str, f64)> {
    let mut figures = Vec::new();
    let Some(chosen) = sums.mean(CHOSEN) else { return figures };
    figures.push(("logps/chosen", chosen));
    figures.push(("rewards/chosen", factor * chosen));
    let (Some(rejected), Some(preferred)) = (sums.mean(REJECTED), sums.mean(PREFERRED)) else {
        return figures;
    };
    figures.push(("logps/rejected", rejected));
    figures.push(("rewards/rejected", factor * rejected));
    figures.push(("rewards/accuracies", preferred));
    // Rows without a rejected answer have no margin.
    if sums.count(CHOSEN) == sums.count(REJECTED) {
        figures.push(("rewards/margins", factor * (chosen - rejected)));
    }
    figures
}

/// What means the same under every objective, so that their runs can be laid side by side; empty where
/// there was no pair.
pub fn common(sums: &Sums) -> Vec<(&'static str, f64)> {
    let means = [CHOSEN, REJECTED, PREFERRED].map(|name| sums.mean(name));
    match means {
        [Some(chosen), Some(rejected), Some(preferred)] => {
            vec![(COMMON[0].key, preferred), (COMMON[1].key, chosen), (COMMON[2].key, rejected)]
        }
        _ => Vec::new(),
    }
}

/// The figures of [`common`].
pub static COMMON: [Metric; 3] = [
    Metric { key: "mean_logps/accuracies", ..ACCURACY },
    Metric { key: "mean_logps/chosen", ..CHOSEN_LOGP },
    Metric { key: "mean_logps/rejected", ..REJECTED_LOGP },
];

/// The odds of the answers by TRL's names, and how many had to be floored.
pub fn odds(sums: &Sums) -> Vec<(&'static str, f64)> {
    let (Some(loss), Some(z)) = (sums.mean(ODDS_LOSS), sums.mean(LOG_ODDS)) else {
        return Vec::new();
    };
    vec![("log_odds_ratio", -loss), ("log_odds_chosen", z), ("odds_floored", sums.total(FLOORED))]
}

/// `lambda` times the mean odds-ratio loss; 0 without pairs.
pub fn odds_loss(sums: &Sums, lambda: f64) -> f64 {
    match sums.count(ODDS_LOSS) {
        0.0 => 0.0,
        pairs => lambda * sums.total(ODDS_LOSS) / pairs,
    }
}

/// How often the chosen answer is preferred.
pub const ACCURACY: Metric = Metric {
    key: "rewards/accuracies",
    label: Some("accuracy"),
    title: "Pairs whose chosen answer has the higher log-prob",
    chart: Some("Preference accuracy"),
    unit: Unit::Share,
    better: Better::Higher,
};

/// The chosen answer.
pub const CHOSEN_LOGP: Metric = Metric {
    key: "logps/chosen",
    label: Some("chosen"),
    title: "Log-prob per token of the chosen answer",
    chart: Some(ANSWERS),
    unit: Unit::Number,
    better: Better::Higher,
};

/// The rejected answer.
pub const REJECTED_LOGP: Metric = Metric {
    key: "logps/rejected",
    label: Some("rejected"),
    title: "Log-prob per token of the rejected answer",
    chart: Some(ANSWERS),
    unit: Unit::Number,
    better: Better::Lower,
};

/// Imitation of the chosen answer.
pub const NLL_LOSS: Metric = Metric {
    key: "nll_loss",
    label: None,
    title: "Loss on the chosen answer (NLL)",
    chart: Some("Loss on the chosen answer"),
    unit: Unit::Number,
    better: Better::Lower,
};

/// What a person is shown of two answers.
pub static METRICS: [Metric; 6] = [
    Metric {
        key: "loss",
        label: Some("loss"),
        title: "Loss, the whole objective",
        chart: None,
        unit: Unit::Number,
        better: Better::Lower,
    },
    Metric {
        key: "log_odds_chosen",
        label: Some("log odds ratio"),
        title: "Log odds ratio of the chosen answer",
        chart: Some("Log odds ratio"),
        unit: Unit::Number,
        better: Better::Higher,
    },
    ACCURACY,
    CHOSEN_LOGP,
    REJECTED_LOGP,
    NLL_LOSS,
];

/// The chart of both answers' log-probabilities.
const ANSWERS: &str = "Chosen and rejected answers";
