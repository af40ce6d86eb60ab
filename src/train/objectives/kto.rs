//! KTO: answers that are each good or bad by themselves, made more or less likely than the model that
//! the run started from makes them.
//!
//! ```text
//! r = S - S^ref            S: sum of the log-probabilities of a response
//! k = max(0, mean over rows of r of their mismatched answers), without a derivative
//! type = "kto"                 L = w_D (1 - sigmoid(beta (r - k)))      of a desirable answer
//!                                  w_U (1 - sigmoid(beta (k - r)))      of an undesirable one
//!        "apo_zero_unpaired"   the same with k = 0
//! loss = mean over rows of L
//! ```
//! Sources: Ethayarajh et al., arXiv 2402.01306, equation 8; D'Oosterlinck et al., arXiv 2408.06266, for
//! "apo_zero_unpaired". As TRL 1.16, but for whose answers are mismatched (`data/mismatch.rs`) and over
//! what k is the mean: the whole optimizer step, so that accumulation changes nothing.
//!
//! The terms are `ops/bradley_terry.rs` with one answer only: an undesirable one has its length with a
//! minus. What the mismatched answers give comes with the streams ([`PackedBatch::divergence`]).

use super::pairwise::{self, Score};
use super::preference::{self, MEAN_LOGP};
use super::{
    Better, Coefficients, Compared, Metric, Objective, Results, RowKind, Scored, Terms, Unit,
    spelling,
};
use crate::data::pack::PackedBatch;
use crate::graph::{DType, Graph};
use crate::ops::bradley_terry::{Link, Pairs, bradley_terry};
use crate::train::metrics::Sums;
use crate::train::settings::{NOT_NEGATIVE, POSITIVE, Settings, single};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What an answer is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KtoType {
    /// The divergence from the reference model, as in the paper.
    Kto,
    /// Nothing.
    ApoZeroUnpaired,
}

/// KTO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kto {
    /// Which of the losses.
    pub kind: KtoType,
    /// How strongly the model is held to its reference.
    pub beta: f64,
    /// Weight of desirable answers.
    pub desirable_weight: f64,
    /// Weight of undesirable answers.
    pub undesirable_weight: f64,
}

impl Default for Kto {
    fn default() -> Self {
        let (desirable_weight, undesirable_weight) = (1.0, 1.0);
        Self { kind: KtoType::Kto, beta: 0.1, desirable_weight, undesirable_weight }
    }
}

pub(super) fn read(s: &mut Settings) -> Arc<dyn Objective> {
    use KtoType::{ApoZeroUnpaired, Kto as Paper};
    let default = Kto::default();
    let kind = s.choice("loss.type", &[Paper, ApoZeroUnpaired]).unwrap_or(default.kind);
    let beta = s.number("loss.beta", POSITIVE, |x| x > 0.0 && single(x)).unwrap_or(default.beta);
    let mut weight = |key| s.number(key, NOT_NEGATIVE, |x| x >= 0.0 && single(x)).unwrap_or(1.0);
    let desirable_weight = weight("loss.desirable_weight");
    let undesirable_weight = weight("loss.undesirable_weight");
    if desirable_weight == 0.0 && undesirable_weight == 0.0 {
        let what = "is 0 as loss.desirable_weight is: nothing would be trained";
        s.problem("loss.undesirable_weight", what);
    }
    Arc::new(Kto { kind, beta, desirable_weight, undesirable_weight })
}

/// Each row's weight `[P]`, an input.
const WEIGHT: &str = "row weight";
/// What is subtracted from each row's z `[P]`, an input: beta k or, of an undesirable answer, -beta k.
const OFFSET: &str = "divergence";
/// What each answer's mean is multiplied by `[2P]`, an input.
const FACTOR: &str = "answer factor";
/// Each answer's mean by the reference model `[2P]`, an input.
const REFERENCE: &str = "reference logp";

// Names in `Sums`.
const LOSS: &str = "row loss";
const DIVERGENCE: &str = "divergence";
const CHOSEN: &str = "logp of the desirable";
const REJECTED: &str = "logp of the undesirable";
const REWARD_CHOSEN: &str = "reward of the desirable";
const REWARD_REJECTED: &str = "reward of the undesirable";

impl Kto {
    /// beta k.
    fn offset(&self, stream: &PackedBatch) -> f64 {
        match self.kind {
            KtoType::Kto => self.beta * stream.divergence,
            KtoType::ApoZeroUnpaired => 0.0,
        }
    }

    /// The sign of an answer's z, and its weight.
    fn of(&self, desirable: bool) -> (f64, f64) {
        if desirable { (1.0, self.desirable_weight) } else { (-1.0, self.undesirable_weight) }
    }
}

impl Objective for Kto {
    fn name(&self) -> &'static str {
        "kto"
    }

    fn rows(&self) -> RowKind {
        RowKind::Labelled { mismatched: self.kind == KtoType::Kto }
    }

    fn has_reference(&self) -> bool {
        true
    }

    fn check_labels(&self, desirable: usize, undesirable: usize) -> Result<Option<String>, String> {
        if desirable == 0 || undesirable == 0 {
            let (all, other) = if desirable == 0 { (false, true) } else { (true, false) };
            return Err(format!(
                "has label {all} in every row, and KTO learns from what sets the two apart: add rows with label {other}{}",
                if all { ", or imitate the answers with objective = \"sft\"" } else { "" }
            ));
        }
        let (w_d, w_u) = (self.desirable_weight, self.undesirable_weight);
        let (n_d, n_u) = (desirable as f64, undesirable as f64);
        // The paper, section 4.2.
        let balance = w_d * n_d / (w_u * n_u);
        if w_d == 0.0 || w_u == 0.0 || (1.0..=4.0 / 3.0).contains(&balance) {
            return Ok(None);
        }
        let (least_d, most_u) = (w_u * n_u / n_d, w_d * n_d / n_u);
        Ok(Some(format!(
            "labels: {desirable} true, {undesirable} false; to weigh them alike, set loss.desirable_weight from {least_d:.2} to {:.2} or loss.undesirable_weight from {:.2} to {most_u:.2}",
            least_d * 4.0 / 3.0,
            most_u * 3.0 / 4.0,
        )))
    }

    fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        vec![
            ("type", spelling(self.kind)),
            ("beta", self.beta.into()),
            ("desirable_weight", self.desirable_weight.into()),
            ("undesirable_weight", self.undesirable_weight.into()),
        ]
    }

    fn declare(&self, g: &mut Graph, scored: &Scored) -> Terms {
        let rows = scored.capacity.pairs;
        let [offset, weight] = [OFFSET, WEIGHT].map(|n| g.input(n, &[rows], DType::F32));
        let [factor, reference] = [FACTOR, REFERENCE].map(|n| g.input(n, &[2 * rows], DType::F32));
        let (name, mean) = preference::declare(g, scored);
        let of_rows = Pairs { reference, scale: factor, offset, weight };
        let loss = bradley_terry(g, mean, of_rows, self.beta as f32, Link::Sigmoid);
        let inputs =
            vec![(OFFSET, offset), (WEIGHT, weight), (FACTOR, factor), (REFERENCE, reference)];
        Terms { loss, inputs, results: vec![(name, mean)], details: Vec::new() }
    }

    fn coefficients(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Coefficients> {
        let rows: usize = streams.iter().map(|stream| stream.rows.len()).sum();
        let all = rows.max(1) as f64 * parts as f64;
        let of_stream = |stream: &&PackedBatch| {
            let capacity = stream.capacity.pairs;
            let [mut offset, mut weight] = [(); 2].map(|()| vec![0.0; capacity]);
            let mut factor = vec![0.0; 2 * capacity];
            for (p, pair) in stream.pairs().enumerate() {
                let (sign, w) = self.of(stream.desirable[p]);
                offset[p] = (sign * self.offset(stream)) as f32;
                weight[p] = (w / all) as f32;
                factor[pair.chosen] = (sign * Score::Sum.factor(stream, pair.chosen)) as f32;
            }
            let reference = stream.reference.clone();
            Coefficients::from([
                (OFFSET, offset),
                (WEIGHT, weight),
                (FACTOR, factor),
                (REFERENCE, reference),
            ])
        };
        streams.iter().map(of_stream).collect()
    }

    fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums) {
        let mean = results.get(MEAN_LOGP);
        for (p, pair) in stream.pairs().enumerate() {
            let s = pair.chosen;
            let length = Score::Sum.factor(stream, s);
            let logp = length * f64::from(mean[s]);
            let reward = self.beta * (logp - length * f64::from(stream.reference[s]));
            let desirable = stream.desirable[p];
            let (sign, weight) = self.of(desirable);
            let z = sign * (reward - self.offset(stream));
            sums.add(LOSS, weight * Link::Sigmoid.loss(z), 1.0);
            sums.add(DIVERGENCE, stream.divergence, 1.0);
            let names = match desirable {
                true => [CHOSEN, REWARD_CHOSEN],
                false => [REJECTED, REWARD_REJECTED],
            };
            sums.add(names[0], logp, 1.0);
            sums.add(names[1], reward, 1.0);
        }
    }

    fn figures(&self, sums: &Sums) -> Vec<(&'static str, f64)> {
        let mut figures = vec![("loss", sums.mean(LOSS).unwrap_or(0.0))];
        if self.kind == KtoType::Kto {
            figures.push(("kl", sums.mean(DIVERGENCE).unwrap_or(0.0)));
        }
        for (key, name) in [
            ("logps/chosen", CHOSEN),
            ("rewards/chosen", REWARD_CHOSEN),
            ("logps/rejected", REJECTED),
            ("rewards/rejected", REWARD_REJECTED),
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

    fn metrics(&self) -> &'static [Metric] {
        match self.kind {
            KtoType::Kto => &METRICS,
            KtoType::ApoZeroUnpaired => &METRICS[..4],
        }
    }

    fn compared(&self, stream: &PackedBatch, _: &Coefficients, _: &Results) -> Vec<Compared> {
        let kl = Compared { what: "kl", key: "kl", row: None, value: stream.divergence };
        if self.kind == KtoType::Kto { vec![kl] } else { Vec::new() }
    }
}

/// How far the model is from its reference.
const KL: Metric = Metric {
    key: "kl",
    label: Some("kl"),
    title: "Divergence from the reference model, by mismatched answers",
    chart: Some("Divergence"),
    unit: Unit::Number,
    better: Better::Lower,
};

static METRICS: [Metric; 5] =
    [pairwise::TOTAL, pairwise::REWARD_MARGIN, pairwise::CHOSEN_SUM, pairwise::REJECTED_SUM, KL];
