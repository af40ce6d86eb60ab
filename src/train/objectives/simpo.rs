//! SimPO: the chosen answer's mean log-probability above the rejected one's by a margin.
//!
//! ```text
//! L = mean over pairs of -log sigmoid(beta (l_w - l_l) - gamma)          (ops/bradley_terry.rs)
//! ```
//! Source: Meng, Xia, Chen, "SimPO", arXiv 2405.14734, equation 6. l are mean log-probabilities of
//! responses, so no reference model is needed. TRL adds `cpo_alpha` times an NLL unless that is 0;
//! the paper's loss has none, and neither has this. Every pair carries its weight 1 / B as an input.

use super::preference::{self, MEAN_LOGP};
use super::{Better, Coefficients, Metric, Objective, Results, RowKind, Scored, Terms, Unit};
use crate::data::pack::PackedBatch;
use crate::graph::{DType, Graph};
use crate::ops::bradley_terry::{bradley_terry, preference_loss};
use crate::train::metrics::Sums;
use crate::train::settings::{NOT_NEGATIVE, POSITIVE, Settings, single};
use std::sync::Arc;

/// SimPO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimPo {
    /// Scale of the difference.
    pub beta: f64,
    /// The margin, in units of beta times a log-probability.
    pub gamma: f64,
}

impl Default for SimPo {
    fn default() -> Self {
        Self { beta: 2.0, gamma: 0.5 }
    }
}

/// Each pair's weight `[P]`, an input.
const PAIR_WEIGHT: &str = "pair weight";
/// Each pair's margin `[P]`, an input.
const MARGIN: &str = "margin";
/// The loss in [`Sums`].
const LOSS: &str = "simpo loss";

pub(super) fn read(s: &mut Settings) -> Arc<dyn Objective> {
    let default = SimPo::default();
    Arc::new(SimPo {
        beta: s.number("loss.beta", POSITIVE, |x| x > 0.0 && single(x)).unwrap_or(default.beta),
        gamma: s
            .number("loss.gamma", NOT_NEGATIVE, |x| x >= 0.0 && single(x))
            .unwrap_or(default.gamma),
    })
}

impl Objective for SimPo {
    fn name(&self) -> &'static str {
        "simpo"
    }

    fn rows(&self) -> RowKind {
        RowKind::Pairs
    }

    fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        vec![("beta", self.beta.into()), ("gamma", self.gamma.into())]
    }

    fn declare(&self, g: &mut Graph, scored: &Scored) -> Terms {
        let [margin, weight] =
            [MARGIN, PAIR_WEIGHT].map(|name| g.input(name, &[scored.capacity.pairs], DType::F32));
        let (name, mean) = preference::declare(g, scored);
        Terms {
            loss: bradley_terry(g, mean, margin, weight, self.beta as f32),
            inputs: vec![(MARGIN, margin), (PAIR_WEIGHT, weight)],
            results: vec![(name, mean)],
            details: Vec::new(),
        }
    }

    fn coefficients(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Coefficients> {
        let weights = preference::pair_weights(streams, 1.0, parts).into_iter();
        weights
            .map(|weight| {
                let margin = vec![self.gamma as f32; weight.len()];
                Coefficients::from([(MARGIN, margin), (PAIR_WEIGHT, weight)])
            })
            .collect()
    }

    fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums) {
        preference::measure(stream, results, sums);
        let mean = results.get(MEAN_LOGP);
        for pair in stream.pairs() {
            let Some(rejected) = pair.rejected else { continue };
            let difference = f64::from(mean[pair.chosen]) - f64::from(mean[rejected]);
            sums.add(LOSS, preference_loss(self.beta * difference - self.gamma), 1.0);
        }
    }

    fn figures(&self, sums: &Sums) -> Vec<(&'static str, f64)> {
        let mut figures = vec![("loss", sums.mean(LOSS).unwrap_or(0.0))];
        figures.extend(preference::answers(sums, self.beta));
        figures
    }

    fn metrics(&self) -> &'static [Metric] {
        &METRICS
    }
}

static METRICS: [Metric; 4] = [
    Metric {
        key: "loss",
        label: Some("loss"),
        title: "Loss",
        chart: Some("Loss"),
        unit: Unit::Number,
        better: Better::Lower,
    },
    preference::ACCURACY,
    preference::CHOSEN_LOGP,
    preference::REJECTED_LOGP,
];
