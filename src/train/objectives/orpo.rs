//! ORPO: imitation of the chosen answer and a preference over the rejected one, in one run and
//! without a reference model.
//!
//! ```text
//! L = NLL(chosen) + lambda * mean over pairs of L_OR          (ops/odds_ratio.rs)
//! ```
//! Source: Hong, Lee, Thorne, "ORPO", arXiv 2403.07691, equation 6. Every pair carries its weight
//! lambda / B as an input, B counted over the whole optimizer step.

use super::likelihood::{Likelihood, NLL_WEIGHT};
use super::preference::{self, MEAN_LOGP};
use super::{Coefficients, Compared, LOGP, Metric, Objective, Results, RowKind, Scored, Terms};
use crate::data::pack::PackedBatch;
use crate::graph::{DType, Graph};
use crate::ops::add::add;
use crate::ops::odds_ratio::odds_ratio;
use crate::train::metrics::Sums;
use crate::train::settings::{NOT_NEGATIVE, Settings, single};
use std::sync::Arc;

/// ORPO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Orpo {
    /// Weight of the odds-ratio loss.
    pub lambda: f64,
    /// The NLL of the chosen sequence.
    pub likelihood: Likelihood,
}

impl Default for Orpo {
    fn default() -> Self {
        Self { lambda: 0.1, likelihood: Likelihood::default() }
    }
}

/// Each pair's weight in the odds-ratio loss `[P]`, an input.
pub const PAIR_WEIGHT: &str = "pair weight";
/// L_OR, z, g_w, g_l of each pair `[P, 4]`, a detail.
const ODDS: &str = "odds";

pub(super) fn read(s: &mut Settings) -> Arc<dyn Objective> {
    let lambda = s.number("loss.lambda", NOT_NEGATIVE, |x| x >= 0.0 && single(x));
    let lambda = lambda.unwrap_or(Orpo::default().lambda);
    Arc::new(Orpo { lambda, likelihood: Likelihood::read(s) })
}

impl Objective for Orpo {
    fn name(&self) -> &'static str {
        "orpo"
    }

    fn rows(&self) -> RowKind {
        RowKind::Pairs
    }

    fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        let mut settings = vec![("lambda", self.lambda.into())];
        settings.extend(self.likelihood.settings());
        settings
    }

    fn declare(&self, g: &mut Graph, scored: &Scored) -> Terms {
        let (nll, nll_weight) = self.likelihood.declare(g, scored);
        let pair_weight = g.input(PAIR_WEIGHT, &[scored.capacity.pairs], DType::F32);
        let (name, mean) = preference::declare(g, scored);
        let odds = odds_ratio(g, mean, pair_weight);
        Terms {
            loss: add(g, nll, odds.loss),
            inputs: vec![nll_weight, (PAIR_WEIGHT, pair_weight)],
            results: vec![(name, mean)],
            details: vec![(ODDS, odds.table)],
        }
    }

    fn coefficients(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Coefficients> {
        let of_targets = self.likelihood.weights(streams, parts).into_iter();
        of_targets
            .zip(preference::pair_weights(streams, self.lambda, parts))
            .map(|(nll, pair)| Coefficients::from([(NLL_WEIGHT, nll), (PAIR_WEIGHT, pair)]))
            .collect()
    }

    fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums) {
        self.likelihood.measure(stream, results, sums);
        preference::measure(stream, results, sums);
    }

    fn figures(&self, sums: &Sums) -> Vec<(&'static str, f64)> {
        let nll = self.likelihood.mean(sums);
        let loss = nll + preference::odds_loss(sums, self.lambda);
        let mut figures = vec![("loss", loss), ("nll_loss", nll)];
        figures.extend(preference::answers(sums, self.lambda));
        figures.extend(preference::odds(sums));
        figures
    }

    fn metrics(&self) -> &'static [Metric] {
        &preference::METRICS
    }

    fn compared(
        &self,
        stream: &PackedBatch,
        coefficients: &Coefficients,
        results: &Results,
    ) -> Vec<Compared> {
        let terms = results.get(LOGP).iter().zip(&coefficients[NLL_WEIGHT]);
        let nll = terms.map(|(&l, &w)| -f64::from(l) * f64::from(w)).sum();
        let mut all = vec![Compared { what: "nll", key: "nll", row: None, value: nll }];
        let mean = results.get(MEAN_LOGP);
        for (p, pair) in stream.pairs().enumerate() {
            let Some(rejected) = pair.rejected else { continue };
            let z = results.get(ODDS)[4 * p + 1];
            for (what, key, value) in [
                ("mean logp chosen", "chosen_logps", mean[pair.chosen]),
                ("mean logp rejected", "rejected_logps", mean[rejected]),
                ("log odds ratio", "log_odds", z),
            ] {
                all.push(Compared { what, key, row: Some(pair.row), value: f64::from(value) });
            }
        }
        all
    }
}
