//! The negative log-likelihood of the chosen sequence, a part of most objectives.
//!
//! Every target carries its weight as an input, 0 where it does not count, so the graph is one dot
//! product (`ops/nll.rs`) for every scope and reduction.

use super::{LOGP, Results, Scored, spelling};
use crate::data::pack::{PackedBatch, TargetKind};
use crate::graph::{DType, Graph, Var};
use crate::ops::nll::nll;
use crate::train::metrics::Sums;
use crate::train::settings::Settings;
use serde::{Deserialize, Serialize};

/// Which tokens of the chosen sequence the NLL counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NllScope {
    /// All predicted tokens (the paper's code and TRL).
    #[serde(rename = "prompt+response")]
    PromptAndResponse,
    /// The response only.
    #[serde(rename = "response")]
    Response,
}

/// How the NLL is averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NllReduction {
    /// Over all tokens of the optimizer step.
    Token,
    /// Over the tokens of each sequence, then over sequences.
    Sequence,
}

/// The NLL's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Likelihood {
    /// Tokens it counts.
    pub scope: NllScope,
    /// How it is averaged.
    pub reduction: NllReduction,
}

impl Default for Likelihood {
    fn default() -> Self {
        Self { scope: NllScope::PromptAndResponse, reduction: NllReduction::Token }
    }
}

/// Each target's weight `[N]`, an input.
pub const NLL_WEIGHT: &str = "nll weight";
/// The NLL in [`Sums`].
const NLL: &str = "nll";

impl Likelihood {
    pub(super) fn read(s: &mut Settings) -> Self {
        Self::read_over(s, Self::default())
    }

    /// Takes the settings; what is not set stays as in `default`.
    pub(super) fn read_over(s: &mut Settings, default: Self) -> Self {
        use {NllReduction::*, NllScope::*};
        Self {
            scope: s
                .choice("loss.nll_scope", &[PromptAndResponse, Response])
                .unwrap_or(default.scope),
            reduction: s
                .choice("loss.nll_reduction", &[Token, Sequence])
                .unwrap_or(default.reduction),
        }
    }

    /// Its keys under `[loss]` with their values.
    pub fn settings(&self) -> [(&'static str, toml::Value); 2] {
        [("nll_scope", spelling(self.scope)), ("nll_reduction", spelling(self.reduction))]
    }

    /// Appends the NLL; returns it `[1]` and its input [`NLL_WEIGHT`].
    pub fn declare(&self, g: &mut Graph, scored: &Scored) -> (Var, (&'static str, Var)) {
        let weight = g.input(NLL_WEIGHT, &[scored.capacity.targets], DType::F32);
        (nll(g, scored.logp, weight), (NLL_WEIGHT, weight))
    }

    /// True if a target counts.
    fn counts(&self, kind: TargetKind) -> bool {
        match kind {
            TargetKind::None => false,
            TargetKind::Prompt => self.scope == NllScope::PromptAndResponse,
            TargetKind::Response => true,
        }
    }

    /// [`NLL_WEIGHT`] for streams that form one mean, divided by `parts`.
    pub fn weights(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Vec<f32>> {
        let parts = parts as f64;
        let counted: usize =
            streams.iter().map(|s| s.nll.iter().filter(|&&kind| self.counts(kind)).count()).sum();
        let sequences: usize = streams.iter().map(|s| s.rows.len()).sum();
        let of_stream = |s: &&PackedBatch| {
            let mut length = vec![0usize; s.capacity.pairs];
            for (&kind, &pair) in s.nll.iter().zip(&s.nll_pair) {
                if self.counts(kind) {
                    length[pair as usize] += 1;
                }
            }
            let weight = |(&kind, &pair): (&TargetKind, &u32)| {
                if !self.counts(kind) {
                    return 0.0;
                }
                let count = match self.reduction {
                    NllReduction::Token => counted,
                    NllReduction::Sequence => length[pair as usize] * sequences,
                };
                (1.0 / (count as f64 * parts)) as f32
            };
            s.nll.iter().zip(&s.nll_pair).map(weight).collect()
        };
        streams.iter().map(of_stream).collect()
    }

    /// Adds a stream's NLL: the negative sum of scored log-probabilities over the number of scored
    /// tokens, or, for the mean of sequences, the sum of sequence means over sequences.
    pub fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums) {
        let mut of_pair = vec![(0.0f64, 0.0f64); stream.rows.len()];
        for ((&kind, &pair), &logp) in
            stream.nll.iter().zip(&stream.nll_pair).zip(results.get(LOGP))
        {
            if self.counts(kind) {
                of_pair[pair as usize].0 -= f64::from(logp);
                of_pair[pair as usize].1 += 1.0;
            }
        }
        for (total, count) in of_pair {
            match self.reduction {
                NllReduction::Token => sums.add(NLL, total, count),
                NllReduction::Sequence => sums.add(NLL, total / f64::max(count, 1.0), 1.0),
            }
        }
    }

    /// Mean NLL; 0 when nothing was scored.
    pub fn mean(&self, sums: &Sums) -> f64 {
        sums.mean(NLL).unwrap_or(0.0)
    }
}
