//! SFT: imitation of the chosen answer alone.
//!
//! ```text
//! L = NLL(chosen)
//! ```
//! It is ORPO with lambda = 0: rejected answers, where rows have them, are measured and not trained
//! on, so that the two can be compared figure by figure.

use super::likelihood::{Likelihood, NLL_WEIGHT};
use super::{Coefficients, Metric, Objective, Results, RowKind, Scored, Terms, preference};
use crate::data::pack::PackedBatch;
use crate::graph::Graph;
use crate::train::metrics::Sums;
use crate::train::settings::Settings;
use std::sync::Arc;

/// SFT's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sft {
    /// The NLL of the chosen sequence.
    pub likelihood: Likelihood,
}

pub(super) fn read(s: &mut Settings) -> Arc<dyn Objective> {
    Arc::new(Sft::read(s))
}

impl Sft {
    /// Takes the settings; `lambda` may stand there, but only as 0.
    pub(super) fn read(s: &mut Settings) -> Self {
        if s.number("loss.lambda", "0 or absent", |_| true).is_some_and(|lambda| lambda != 0.0) {
            s.problem("loss.lambda", "must be 0 or absent unless objective is \"orpo\"");
        }
        Self { likelihood: Likelihood::read(s) }
    }
}

impl Objective for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn rows(&self) -> RowKind {
        RowKind::Answers
    }

    fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        let mut settings = vec![("lambda", 0.0.into())];
        settings.extend(self.likelihood.settings());
        settings
    }

    fn declare(&self, g: &mut Graph, scored: &Scored) -> Terms {
        let (loss, nll_weight) = self.likelihood.declare(g, scored);
        let results = vec![preference::declare(g, scored)];
        Terms { loss, inputs: vec![nll_weight], results, details: Vec::new() }
    }

    fn coefficients(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Coefficients> {
        let weights = self.likelihood.weights(streams, parts).into_iter();
        weights.map(|nll| Coefficients::from([(NLL_WEIGHT, nll)])).collect()
    }

    fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums) {
        self.likelihood.measure(stream, results, sums);
        preference::measure(stream, results, sums);
    }

    fn figures(&self, sums: &Sums) -> Vec<(&'static str, f64)> {
        let nll = self.likelihood.mean(sums);
        let mut figures = vec![("loss", nll), ("nll_loss", nll)];
        figures.extend(preference::answers(sums, 0.0));
        figures.extend(preference::odds(sums));
        figures
    }

    fn metrics(&self) -> &'static [Metric] {
        &preference::METRICS
    }
}
