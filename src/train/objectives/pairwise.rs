//! The chosen answer above the rejected one, a part of DPO, CPO and SimPO.
//!
//! ```text
//! z = scale (s_w - s_l) - margin          s: sum or mean of log-probabilities of the response, less
//! L = mean over pairs of link(z) + alpha NLL(chosen)                        the reference model's
//! ```
//! The terms are `ops/bradley_terry.rs`. Every pair carries its weight 1 / B as an input, and every
//! answer its length and what the reference model gives it ([`PackedBatch::reference`]; 0 for
//! objectives without one).

use super::likelihood::{Likelihood, NLL_WEIGHT, NllScope};
use super::preference::{self, MEAN_LOGP};
use super::{Better, Coefficients, Metric, Results, Scored, Terms, Unit};
use crate::data::pack::PackedBatch;
use crate::graph::{DType, Graph};
use crate::ops::add::add;
use crate::ops::bradley_terry::{Link, Pairs, bradley_terry};
use crate::ops::scale::scale;
use crate::train::metrics::Sums;
use crate::train::settings::{NOT_NEGATIVE, Settings, single};

/// What of a response's log-probabilities is its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
}

impl Score {
    /// What a mean is multiplied by to become the score of the `sequence` of a stream.
    pub fn factor(self, stream: &PackedBatch, sequence: usize) -> f64 {
        match self {
            Self::Sum => stream.response(sequence).len() as f64,
            Self::Mean => 1.0,
        }
    }
}

/// The NLL of the chosen sequence beside the preference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Imitation {
    /// Its weight in the loss; 0 leaves it out.
    pub alpha: f64,
    /// What it counts.
    pub likelihood: Likelihood,
}

impl Imitation {
    /// TRL's cross-entropy: of the answer alone, a mean over tokens.
    pub fn weighing(alpha: f64) -> Self {
        let likelihood = Likelihood { scope: NllScope::Response, ..Likelihood::default() };
        Self { alpha, likelihood }
    }

    /// Takes `cpo_alpha`, which is `alpha` by default, and the settings of the NLL.
    pub(super) fn read(s: &mut Settings, alpha: f64) -> Self {
        let default = Self::weighing(alpha);
        let alpha = s.number("loss.cpo_alpha", NOT_NEGATIVE, |x| x >= 0.0 && single(x));
        let likelihood = Likelihood::read_over(s, default.likelihood);
        Self { alpha: alpha.unwrap_or(default.alpha), likelihood }
    }

    /// Its keys under `[loss]` with their values.
    pub(super) fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        let mut settings = vec![("cpo_alpha", self.alpha.into())];
        settings.extend(self.likelihood.settings());
        settings
    }
}

/// A loss of pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pairwise {
    /// What becomes of z.
    pub link: Link,
    /// What the difference of the scores is multiplied by.
    pub scale: f64,
    /// What is subtracted from that.
    pub margin: f64,
    /// What of a response is compared.
    pub score: Score,
    /// TRL's beta: rewards are beta times the score less the reference's.
    pub beta: f64,
    /// What of a response TRL reports.
    pub reported: Score,
    /// The NLL beside it.
    pub imitation: Imitation,
}

/// Each pair's weight `[P]`, an input.
pub const PAIR_WEIGHT: &str = "pair weight";
/// Each pair's margin `[P]`, an input.
const MARGIN: &str = "margin";
/// What each answer's mean is multiplied by `[2P]`, an input.
const FACTOR: &str = "answer factor";
/// Each answer's mean by the reference model `[2P]`, an input.
const REFERENCE: &str = "reference logp";

// Names in `Sums`.
const LOSS: &str = "pair loss";
const CHOSEN: &str = "logp of the chosen";
const REJECTED: &str = "logp of the rejected";
const REWARD_CHOSEN: &str = "reward of the chosen";
const REWARD_REJECTED: &str = "reward of the rejected";
const PREFERRED: &str = "preferred by reward";

impl Pairwise {
    /// Appends the loss.
    pub fn declare(&self, g: &mut Graph, scored: &Scored) -> Terms {
        let pairs = scored.capacity.pairs;
        let [offset, weight] = [MARGIN, PAIR_WEIGHT].map(|n| g.input(n, &[pairs], DType::F32));
        let [factor, reference] = [FACTOR, REFERENCE].map(|n| g.input(n, &[2 * pairs], DType::F32));
        let mut inputs =
            vec![(MARGIN, offset), (PAIR_WEIGHT, weight), (FACTOR, factor), (REFERENCE, reference)];
        let (name, mean) = preference::declare(g, scored);
        let of_pairs = Pairs { reference, scale: factor, offset, weight };
        let mut loss = bradley_terry(g, mean, of_pairs, self.scale as f32, self.link);
        if self.imitation.alpha != 0.0 {
            let (nll, weight) = self.imitation.likelihood.declare(g, scored);
            let nll = match self.imitation.alpha {
                1.0 => nll,
                alpha => scale(g, nll, alpha as f32),
            };
            loss = add(g, loss, nll);
            inputs.push(weight);
        }
        Terms { loss, inputs, results: vec![(name, mean)], details: Vec::new() }
    }

    /// What goes into its inputs.
    pub fn coefficients(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Coefficients> {
        let weights = preference::pair_weights(streams, 1.0, parts);
        let of_stream = |(stream, weight): (&&PackedBatch, Vec<f32>)| {
            let sequences = 0..2 * stream.capacity.pairs;
            let factor = sequences.map(|s| self.score.factor(stream, s) as f32).collect();
            Coefficients::from([
                (MARGIN, vec![self.margin as f32; weight.len()]),
                (PAIR_WEIGHT, weight),
                (FACTOR, factor),
                (REFERENCE, stream.reference.clone()),
            ])
        };
        let mut all: Vec<Coefficients> = streams.iter().zip(weights).map(of_stream).collect();
        if self.imitation.alpha != 0.0 {
            let weights = self.imitation.likelihood.weights(streams, parts);
            for (coefficients, weights) in all.iter_mut().zip(weights) {
                coefficients.insert(NLL_WEIGHT, weights);
            }
        }
        all
    }

    /// Adds a stream's pairs.
    pub fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums) {
        if self.imitation.alpha != 0.0 {
            self.imitation.likelihood.measure(stream, results, sums);
        }
        let mean = results.get(MEAN_LOGP);
        let at = |s: usize| (f64::from(mean[s]), f64::from(stream.reference[s]));
        let score = |s: usize| self.score.factor(stream, s) * (at(s).0 - at(s).1);
        let logp = |s: usize| self.reported.factor(stream, s) * at(s).0;
        let reward = |s: usize| self.beta * self.reported.factor(stream, s) * (at(s).0 - at(s).1);
        for pair in stream.pairs() {
            let Some(rejected) = pair.rejected else { continue };
            let z = self.scale * (score(pair.chosen) - score(rejected)) - self.margin;
            let won = reward(pair.chosen) > reward(rejected);
            for (name, value) in [
                (LOSS, self.link.loss(z)),
                (CHOSEN, logp(pair.chosen)),
                (REJECTED, logp(rejected)),
                (REWARD_CHOSEN, reward(pair.chosen)),
                (REWARD_REJECTED, reward(rejected)),
                (PREFERRED, f64::from(u8::from(won))),
            ] {
                sums.add(name, value, 1.0);
            }
        }
    }

    /// The figures by TRL's names; only the loss where there was no pair.
    pub fn figures(&self, sums: &Sums) -> Vec<(&'static str, f64)> {
        let mut loss = sums.mean(LOSS).unwrap_or(0.0);
        let mut figures = Vec::new();
        if self.imitation.alpha != 0.0 {
            let nll = self.imitation.likelihood.mean(sums);
            loss += self.imitation.alpha * nll;
            figures.push(("nll_loss", nll));
        }
        figures.insert(0, ("loss", loss));
        for (key, name) in [
            ("logps/chosen", CHOSEN),
            ("rewards/chosen", REWARD_CHOSEN),
            ("logps/rejected", REJECTED),
            ("rewards/rejected", REWARD_REJECTED),
            ("rewards/accuracies", PREFERRED),
        ] {
            figures.extend(sums.mean(name).map(|value| (key, value)));
        }
        if let (Some(chosen), Some(rejected)) =
            (sums.mean(REWARD_CHOSEN), sums.mean(REWARD_REJECTED))
        {
            figures.push(("rewards/margins", chosen - rejected));
        }
        figures
    }
}

/// The loss, where it is no other objective's.
pub const TOTAL: Metric = Metric {
    key: "loss",
    label: Some("loss"),
    title: "Loss",
    chart: Some("Loss"),
    unit: Unit::Number,
    better: Better::Lower,
};

/// How far the chosen answer's reward is above the rejected one's.
pub const REWARD_MARGIN: Metric = Metric {
    key: "rewards/margins",
    label: Some("margin"),
    title: "Reward of the chosen answer above that of the rejected one",
    chart: Some("Reward margin"),
    unit: Unit::Number,
    better: Better::Higher,
};

/// How often the chosen answer has the higher reward.
pub const REWARD_ACCURACY: Metric = Metric {
    key: "rewards/accuracies",
    label: Some("accuracy"),
    title: "Pairs whose chosen answer has the higher reward",
    chart: Some("Reward accuracy"),
    unit: Unit::Share,
    better: Better::Higher,
};

/// The whole chosen answer.
pub const CHOSEN_SUM: Metric = Metric {
    key: "logps/chosen",
    label: Some("chosen"),
    title: "Log-prob of the whole chosen answer",
    chart: Some(ANSWERS),
    unit: Unit::Number,
    better: Better::Higher,
};

/// The whole rejected answer.
pub const REJECTED_SUM: Metric = Metric {
    key: "logps/rejected",
    label: Some("rejected"),
    title: "Log-prob of the whole rejected answer",
    chart: Some(ANSWERS),
    unit: Unit::Number,
    better: Better::Lower,
};

/// The chart of both answers' log-probabilities.
const ANSWERS: &str = "Chosen and rejected answers, whole";
