//! CPO: DPO's preference without a reference model, and imitation of the chosen answer in its place.
//!
//! ```text
//! d = S_w - S_l                                             S: sums of log-probabilities of responses
//! type = "sigmoid"   L = -(1 - eps) log sigmoid(beta d) - eps log sigmoid(-beta d) + alpha NLL(chosen)
//!        "hinge"     L = max(1 - beta d, 0) + alpha NLL(chosen)
//! ```
//! Source: Xu et al., "Contrastive preference optimization", arXiv 2401.08417, equation 3. Signs,
//! reductions and defaults are TRL 1.16's: alpha is its `cpo_alpha`, and the NLL is that of the answer
//! alone, a mean over the tokens of the step.

use super::dpo::label_smoothing;
use super::pairwise::{self, Imitation, Pairwise, Score};
use super::{
    Coefficients, Metric, Objective, Results, RowKind, Scored, Terms, preference, spelling,
};
use crate::data::pack::PackedBatch;
use crate::graph::Graph;
use crate::ops::bradley_terry::Link;
use crate::train::metrics::Sums;
use crate::train::settings::{POSITIVE, Settings, single};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What becomes of the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpoType {
    /// -log sigmoid, as in the paper.
    Sigmoid,
    /// A margin of 1 and no more.
    Hinge,
}

/// CPO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpo {
    /// Which of the losses.
    pub kind: CpoType,
    /// Scale of the difference.
    pub beta: f64,
    /// How often labels are believed to be wrong, for "sigmoid".
    pub label_smoothing: f64,
    /// The NLL of the chosen answer.
    pub imitation: Imitation,
}

impl Default for Cpo {
    fn default() -> Self {
        let imitation = Imitation::weighing(1.0);
        Self { kind: CpoType::Sigmoid, beta: 0.1, label_smoothing: 0.0, imitation }
    }
}

pub(super) fn read(s: &mut Settings) -> Arc<dyn Objective> {
    let default = Cpo::default();
    let kind = s.choice("loss.type", &[CpoType::Sigmoid, CpoType::Hinge]).unwrap_or(default.kind);
    Arc::new(Cpo {
        kind,
        beta: s.number("loss.beta", POSITIVE, |x| x > 0.0 && single(x)).unwrap_or(default.beta),
        label_smoothing: label_smoothing(s, kind == CpoType::Sigmoid),
        imitation: Imitation::read(s, default.imitation.alpha),
    })
}

impl Cpo {
    fn parts(&self) -> Pairwise {
        let eps = self.label_smoothing;
        Pairwise {
            link: match self.kind {
                CpoType::Sigmoid => Link::Logistic { keep: 1.0 - eps, flip: eps },
                CpoType::Hinge => Link::Hinge,
            },
            scale: self.beta,
            margin: 0.0,
            score: Score::Sum,
            beta: self.beta,
            reported: Score::Sum,
            imitation: self.imitation,
        }
    }
}

impl Objective for Cpo {
    fn name(&self) -> &'static str {
        "cpo"
    }

    fn rows(&self) -> RowKind {
        RowKind::Pairs
    }

    fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        let mut settings = vec![
            ("type", spelling(self.kind)),
            ("beta", self.beta.into()),
            ("label_smoothing", self.label_smoothing.into()),
        ];
        settings.extend(self.imitation.settings());
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

static METRICS: [Metric; 5] = [
    pairwise::TOTAL,
    preference::ACCURACY,
    pairwise::CHOSEN_SUM,
    pairwise::REJECTED_SUM,
    preference::NLL_LOSS,
];
