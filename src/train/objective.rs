//! The objective as a graph, and the weights that make gradient accumulation exact.
//!
//! ```text
//! L = NLL(chosen) + lambda * mean over pairs of L_OR          (docs: ops/odds_ratio.rs)
//! ```
//! The graph knows neither lambda nor batch sizes: every target carries its weight in the NLL and
//! every pair its weight in the odds-ratio term. The collator knows the whole optimizer step
//! beforehand, so k micro-batches give the gradient of one large batch. SFT is lambda = 0.

use crate::data::pack::{Capacity, Stream, TargetKind};
use crate::graph::{DType, Graph, Var};
use crate::model::config::ModelConfig;
use crate::model::stream::{HeadRows, StreamInputs};
use crate::model::transformer::{decoder, head_input, head_weight};
use crate::ops::add::add;
use crate::ops::nll::nll;
use crate::ops::odds_ratio::odds_ratio;
use crate::ops::segment_mean::segment_mean;
use crate::ops::token_logp::token_logp;
use crate::step::Step;
use crate::train::recipe::{Accumulation, LossSettings, NllReduction, NllScope};

/// Inputs and outputs of the objective's graph.
pub struct Objective {
    stream: StreamInputs,
    head: HeadRows,
    target_id: Var,
    owner: Var,
    seq_offset: Var,
    seq_target: Var,
    nll_weight: Var,
    pair_weight: Var,
    capacity: Capacity,
    /// The loss `[1]`, of which the derivative is taken.
    pub loss: Var,
    /// Log-probability of every target `[N]`.
    pub logp: Var,
    /// Mean log-probability of every sequence's response `[2P]`.
    pub mean_logp: Var,
    /// Per pair: L_OR, z, g_w, g_l `[P, 4]`.
    pub odds: Var,
}

impl Objective {
    /// Appends the forward pass of the objective for streams of `capacity`.
    pub fn declare(g: &mut Graph, c: &ModelConfig, capacity: Capacity) -> Self {
        let Capacity { tokens, targets, pairs } = capacity;
        let stream = StreamInputs::declare(g, tokens);
        let head = HeadRows::declare(g, targets, tokens);
        let target_id = g.input("target id", &[targets], DType::U32);
        let owner = g.input("owner", &[targets, 2], DType::U32);
        let seq_offset = g.input("sequence offset", &[2 * pairs + 1], DType::U32);
        let seq_target = g.input("sequence targets", &[2 * targets], DType::U32);
        let nll_weight = g.input("nll weight", &[targets], DType::F32);
        let pair_weight = g.input("pair weight", &[pairs], DType::F32);

        let hidden = decoder(g, c, &stream);
        let h = head_input(g, c, hidden, &head);
        let w = head_weight(g, c);
        let logp = token_logp(g, h, w, target_id);
        let chosen_nll = nll(g, logp, nll_weight);
        let mean_logp = segment_mean(g, logp, seq_offset, seq_target, owner);
        let odds = odds_ratio(g, mean_logp, pair_weight);
        let loss = add(g, chosen_nll, odds.loss);
        for out in [loss, logp, mean_logp, odds.table] {
            g.output(out);
        }
        Self {
            stream,
            head,
            target_id,
            owner,
            seq_offset,
            seq_target,
            nll_weight,
            pair_weight,
            capacity,
            loss,
            logp,
            mean_logp,
            odds: odds.table,
        }
    }

    /// The static sizes of its streams.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Uploads a stream and its weights.
    pub fn write(&self, step: &Step, stream: &Stream, weights: &Weights) {
        self.stream.write(step, stream);
        self.head.write(step, &stream.target_row);
        step.write_u32(self.target_id, &stream.target_id);
        step.write_u32(self.owner, &stream.owner);
        step.write_u32(self.seq_offset, &stream.seq_offset);
        step.write_u32(self.seq_target, &stream.seq_target);
        step.write(self.nll_weight, &weights.nll);
        step.write(self.pair_weight, &weights.pair);
    }
}

/// What one stream's targets and pairs weigh in the loss of the optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Per target, `[N]`: its part of the negative log-likelihood.
    pub nll: Vec<f32>,
    /// Per pair, `[P]`: lambda / B.
    pub pair: Vec<f32>,
}

/// True if a target counts in the NLL under `scope`.
pub fn in_nll(kind: TargetKind, scope: NllScope) -> bool {
    match kind {
        TargetKind::None => false,
        TargetKind::Prompt => scope == NllScope::PromptAndResponse,
        TargetKind::Response => true,
    }
}

/// Weights of all streams of one optimizer step.
///
/// `exact` accumulation counts tokens and pairs over the whole step; `trl` averages the means of
/// the micro-batches, as TRL does, which changes the objective when they differ in length.
pub fn weights(streams: &[Stream], loss: &LossSettings) -> Vec<Weights> {
    match loss.accumulation {
        Accumulation::Exact => group_weights(&streams.iter().collect::<Vec<_>>(), loss, 1),
        Accumulation::Trl => {
            streams.iter().flat_map(|s| group_weights(&[s], loss, streams.len())).collect()
        }
    }
}

/// Weights of streams that form one mean, divided by `parts`.
pub fn group_weights(streams: &[&Stream], loss: &LossSettings, parts: usize) -> Vec<Weights> {
    let parts = parts as f64;
    let counted: usize =
        streams.iter().map(|s| s.nll.iter().filter(|&&k| in_nll(k, loss.nll_scope)).count()).sum();
    let sequences: usize = streams.iter().map(|s| s.rows.len()).sum();
    let pairs: usize =
        streams.iter().map(|s| (0..s.rows.len()).filter(|&p| has_rejected(s, p)).count()).sum();
    let pair_weight = loss.lambda / (pairs.max(1) as f64 * parts);
    streams
        .iter()
        .map(|s| {
            let mut length = vec![0usize; s.capacity.pairs];
            for (&kind, &pair) in s.nll.iter().zip(&s.nll_pair) {
                if in_nll(kind, loss.nll_scope) {
                    length[pair as usize] += 1;
                }
            }
            let one = |kind, pair: u32| {
                if !in_nll(kind, loss.nll_scope) {
                    return 0.0;
                }
                let count = match loss.nll_reduction {
                    NllReduction::Token => counted,
                    NllReduction::Sequence => length[pair as usize] * sequences,
                };
                (1.0 / (count as f64 * parts)) as f32
            };
            let pair =
                (0..s.capacity.pairs)
                    .map(|p| {
                        if p < s.rows.len() && has_rejected(s, p) {
                            pair_weight as f32
                        } else {
                            0.0
                        }
                    })
                    .collect();
            Weights { nll: s.nll.iter().zip(&s.nll_pair).map(|(&k, &p)| one(k, p)).collect(), pair }
        })
        .collect()
}

/// True if pair `p` of the stream has a rejected answer.
pub fn has_rejected(s: &Stream, p: usize) -> bool {
    s.seq_offset[2 * p + 2] > s.seq_offset[2 * p + 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::{Example, Sequence};
    use crate::data::pack::pack;
    use crate::train::metrics::log_odds;

    /// The golden batch of the contract: per-token log-probs of two pairs. Token ids are indices
    /// into this list, so that a target's log-prob is found by its id; 0 opens every sequence.
    const LOGP: [f64; 16] = [
        0.0, -2.0, -1.0, -0.5, -0.25, -0.75, -1.0, -2.0, // pair 0: prompt, chosen, rejected
        -3.0, -1.5, -0.2, -0.4, -0.6, -0.8, 0.0, 0.0, // pair 1
    ];

    fn batch() -> Vec<Example> {
        let sequence = |ids: &[u32], response_start| Sequence { ids: ids.to_vec(), response_start };
        vec![
            Example {
                row: 0,
                chosen: sequence(&[0, 1, 2, 3, 4, 5], 3),
                rejected: Some(sequence(&[0, 1, 2, 6, 7], 3)),
            },
            Example {
                row: 1,
                chosen: sequence(&[0, 8, 9], 2),
                rejected: Some(sequence(&[0, 8, 10, 11, 12, 13], 2)),
            },
        ]
    }

    /// The loss of streams under `settings`, in f64 on the CPU.
    fn loss(streams: &[Stream], settings: &LossSettings) -> f64 {
        let mut total = 0.0;
        for (s, w) in streams.iter().zip(weights(streams, settings)) {
            let logp: Vec<f64> = s.target_id.iter().map(|&id| LOGP[id as usize]).collect();
            total -= logp.iter().zip(&w.nll).map(|(l, &w)| l * f64::from(w)).sum::<f64>();
            let mean = |q: usize| {
                let list = &s.seq_target[s.seq_offset[q] as usize..s.seq_offset[q + 1] as usize];
                list.iter().map(|&t| logp[t as usize]).sum::<f64>() / list.len() as f64
            };
            for p in 0..s.rows.len() {
                total += f64::from(w.pair[p]) * log_odds(mean(2 * p), mean(2 * p + 1)).loss;
            }
        }
        total
    }

    fn streams(tokens: usize) -> Vec<Stream> {
        let capacity = Capacity { tokens, targets: 20, pairs: 3 };
        pack(&batch().iter().collect::<Vec<_>>(), capacity).unwrap()
    }

    #[test]
    fn golden_batch_has_the_contracts_totals() {
        let totals = [
            (NllScope::PromptAndResponse, NllReduction::Token, 1.386813691),
            (NllScope::Response, NllReduction::Token, 0.851099405),
            (NllScope::Response, NllReduction::Sequence, 1.101099405),
        ];
        for (nll_scope, nll_reduction, want) in totals {
            let settings = LossSettings { nll_scope, nll_reduction, ..LossSettings::default() };
            for tokens in [8, 20] {
                let got = loss(&streams(tokens), &settings);
                assert!((got - want).abs() < 1e-6, "{nll_scope:?} {nll_reduction:?}: {got}");
            }
        }
    }

    #[test]
    fn averaging_micro_batch_means_changes_the_objective() {
        let two = streams(8);
        assert_eq!(two.len(), 2);
        let settings = LossSettings { accumulation: Accumulation::Trl, ..LossSettings::default() };
        let got = loss(&two, &settings);
        assert!((got - 1.676099405).abs() < 1e-6, "{got}");
    }
}
