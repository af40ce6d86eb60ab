//! SimPO: the chosen answer's mean log-probability above the rejected one's by a margin.
//!
//! ```text
//! L = mean over pairs of -log sigmoid(beta (l_w - l_l) - gamma)          (objectives/pairwise.rs)
//! ```
//! Source: Meng, Xia, Chen, "SimPO", arXiv 2405.14734, equation 6. l are mean log-probabilities of
//! responses, so no reference model is needed. TRL adds an NLL of the chosen answer unless its
//! `cpo_alpha` is 0; the paper's loss has none, and neither has this unless `cpo_alpha` asks for it.

use super::pairwise::{self, Imitation, Pairwise, Score};
use super::{Coefficients, Metric, Objective, Results, RowKind, Scored, Terms, preference};
use crate::data::pack::PackedBatch;
use crate::graph::Graph;
use crate::ops::bradley_terry::Link;
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
    /// The NLL of the chosen answer; none by default.
    pub imitation: Imitation,
}

impl Default for SimPo {
    fn default() -> Self {
        Self { beta: 2.0, gamma: 0.5, imitation: Imitation::weighing(0.0) }
    }
}

pub(super) fn read(s: &mut Settings) -> Arc<dyn Objective> {
    let default = SimPo::default();
    Arc::new(SimPo {
        beta: s.number("loss.beta", POSITIVE, |x| x > 0.0 && single(x)).unwrap_or(default.beta),
        gamma: s
            .number("loss.gamma", NOT_NEGATIVE, |x| x >= 0.0 && single(x))
            .unwrap_or(default.gamma),
        imitation: Imitation::read(s, default.imitation.alpha),
    })
}

impl SimPo {
    fn parts(&self) -> Pairwise {
        Pairwise {
            link: Link::LOGISTIC,
            scale: self.beta,
            margin: self.gamma,
            score: Score::Mean,
            beta: self.beta,
            reported: Score::Mean,
            imitation: self.imitation,
        }
    }
}

impl Objective for SimPo {
    fn name(&self) -> &'static str {
        "simpo"
    }

    fn rows(&self) -> RowKind {
        RowKind::Pairs
    }

    fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        let mut settings = vec![("beta", self.beta.into()), ("gamma", self.gamma.into())];
        // The default is left out: fingerprints of runs that never heard of the keys stay.
        if self.imitation != Self::default().imitation {
            settings.extend(self.imitation.settings());
        }
        settings
    }

    fn declare(&self, g: &mut Graph, scored: &Scored) -> Terms {
        self.parts().declare(g, scored)
    }

    fn coefficients(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Coefficients> {
        self.parts().coefficients(streams, parts)
    }

    fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums) {
        self.parts().measure(stream, results, sums);
    }

    fn figures(&self, sums: &Sums) -> Vec<(&'static str, f64)> {
        self.parts().figures(sums)
    }

    fn metrics(&self) -> &'static [Metric] {
        &METRICS
    }
}

static METRICS: [Metric; 4] =
    [pairwise::TOTAL, preference::ACCURACY, preference::CHOSEN_LOGP, preference::REJECTED_LOGP];
