//! DPO and its kin: the chosen answer above the rejected one by more than the model it started from
//! has it.
//!
//! ```text
//! d = (S_w - S_w^ref) - (S_l - S_l^ref)                     S: sums of log-probabilities of responses
//! type = "sigmoid"   L = -(1 - eps) log sigmoid(beta d) - eps log sigmoid(-beta d)
//!        "robust"    L = (-(1 - eps) log sigmoid(beta d) + eps log sigmoid(-beta d)) / (1 - 2 eps)
//!        "hinge"     L = max(1 - beta d, 0)
//!        "ipo"       L = (d - 1 / (2 beta))^2                        with means in the place of sums
//! ```
//! Sources: Rafailov et al., arXiv 2305.18290, equation 7; Mitchell, "A note on DPO with noisy
//! preferences" (2023) for eps in "sigmoid"; Chowdhury et al., arXiv 2403.00409, for "robust"; Zhao et
//! al., arXiv 2305.10425, for "hinge"; Azar et al., arXiv 2310.12036, equation 17, for "ipo".
//!
//! The reference model is the one that the run starts from. What it gives every answer is computed
//! once, before the first step (`train/reference_logps.rs`), so no second model is held.
//!
//! As TRL 1.16, but for one thing: its "sigmoid" takes no notice of `label_smoothing`, which is the
//! eps of Mitchell's note here (and in TRL's CPO).

use super::pairwise::{self, Imitation, Pairwise, Score};
use super::{Coefficients, Metric, Objective, Results, RowKind, Scored, Terms, spelling};
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
pub enum DpoType {
    /// -log sigmoid, as in the paper.
    Sigmoid,
    /// The same, unbiased if labels are flipped as often as `label_smoothing` says.
    Robust,
    /// A margin of 1 and no more.
    Hinge,
    /// The square of the distance from a margin.
    Ipo,
}

/// DPO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpo {
    /// Which of the losses.
    pub kind: DpoType,
    /// How strongly the model is held to its reference; tau for "ipo".
    pub beta: f64,
    /// How often labels are believed to be wrong, for "sigmoid" and "robust".
    pub label_smoothing: f64,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { kind: DpoType::Sigmoid, beta: 0.1, label_smoothing: 0.0 }
    }
}

pub(super) fn read(s: &mut Settings) -> Arc<dyn Objective> {
    use DpoType::{Hinge, Ipo, Robust, Sigmoid};
    let default = Dpo::default();
    let kind = s.choice("loss.type", &[Sigmoid, Robust, Hinge, Ipo]).unwrap_or(default.kind);
    let beta = s.number("loss.beta", POSITIVE, |x| x > 0.0 && single(x)).unwrap_or(default.beta);
    let label_smoothing = label_smoothing(s, matches!(kind, Sigmoid | Robust));
    Arc::new(Dpo { kind, beta, label_smoothing })
}

/// Takes `label_smoothing`, which only some types know.
pub(super) fn label_smoothing(s: &mut Settings, known: bool) -> f64 {
    let key = "loss.label_smoothing";
    let value = s.number(key, "from 0 to below 0.5", |x| (0.0..0.5).contains(&x)).unwrap_or(0.0);
    if value != 0.0 && !known {
        s.problem(key, "does nothing for this loss.type; remove it or choose another type");
    }
    value
}

impl Dpo {
    fn parts(&self) -> Pairwise {
        let eps = self.label_smoothing;
        let whole = 1.0 - 2.0 * eps;
        let common = Pairwise {
            link: Link::Hinge,
            scale: self.beta,
            margin: 0.0,
            score: Score::Sum,
            beta: self.beta,
            reported: Score::Sum,
            imitation: Imitation::weighing(0.0),
        };
        match self.kind {
            DpoType::Sigmoid => {
                Pairwise { link: Link::Logistic { keep: 1.0 - eps, flip: eps }, ..common }
            }
            DpoType::Robust => {
                let link = Link::Logistic { keep: (1.0 - eps) / whole, flip: -eps / whole };
                Pairwise { link, ..common }
            }
            DpoType::Hinge => common,
            DpoType::Ipo => Pairwise {
                link: Link::Square,
                scale: 1.0,
                margin: 1.0 / (2.0 * self.beta),
                score: Score::Mean,
                ..common
            },
        }
    }
}

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn rows(&self) -> RowKind {
        RowKind::Pairs
    }

    fn has_reference(&self) -> bool {
        true
    }

    fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        vec![
            ("type", spelling(self.kind)),
            ("beta", self.beta.into()),
            ("label_smoothing", self.label_smoothing.into()),
        ]
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
    pairwise::REWARD_MARGIN,
    pairwise::REWARD_ACCURACY,
    pairwise::CHOSEN_SUM,
    pairwise::REJECTED_SUM,
];
