//! The packed preference stream: a micro-batch as one flat list of tokens.
//!
//! A pair is laid out as `[shared prefix | chosen rest | rejected rest]`, so what both sequences
//! have in common (the prompt, and equal first words of the answers) is computed once. Pairs
//! follow one another in a stream of T tokens, which is the same for the whole run: one program,
//! no padding to the longest row.
//!
//! ```text
//! row          0 1 2 3 4 | 5 6 7 | 8 9 | 10 …                 pad pad
//!              prefix    | chosen| rej.| prefix of next pair
//! position     0 1 2 3 4 | 5 6 7 | 5 6 | 0 …                   0   0
//! ctx          (0, 0)    | (0, 5)| (0,5) (0, 0)
//! own_start    0         | 5     | 8   | 10
//! query_end    10        | 8     | 10  | …
//! ```
//!
//! Query `i` may attend key `j` iff `ctx_start <= j < ctx_end` or `own_start <= j <= i`. Backward
//! asks the opposite question, and `query_end[j]` bounds it: no query at or past it attends key
//! `j`. A pad token attends only to itself, so every softmax has a key and nothing else sees it.
//!
//! What is scored is a list of N targets `(hidden row, token id)`. The target at index `t` of a
//! sequence is predicted by the row of its token `t - 1`; the first token is never predicted. A
//! target in the common part is owned by both sequences; the last common row predicts the first
//! differing token of both, so a hidden row can be scored twice. Rows no loss term uses (the
//! prompt on the rejected side) are no targets at all.

use super::example::Example;
use super::length::check_lengths;
use crate::error::Result;

/// "No sequence", "no pair": what an index holds where there is nothing to point at.
pub const NONE: u32 = u32::MAX;

/// The static sizes of a stream; one program serves every stream of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// T: rows of the stream.
    pub tokens: usize,
    /// N: scored targets.
    pub targets: usize,
    /// P: pairs; the stream has S = 2P sequences.
    pub pairs: usize,
}

/// Which part of the chosen sequence's negative log-likelihood a target belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetKind {
    /// No part of it: a target of the rejected branch, or an unused entry.
    #[default]
    None,
    /// A token of the prompt.
    Prompt,
    /// A token of the chosen answer.
    Response,
}

/// One micro-batch. Every array has its full static length; the unused tail is inert.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedBatch {
    /// The static sizes T, N and P.
    pub capacity: Capacity,
    /// `[T]` token ids; 0 in the unused tail.
    pub tokens: Vec<u32>,
    /// `[T]` index of the token in its own sequence; 0 in the unused tail.
    pub position: Vec<u32>,
    /// `[T, 4]`: `ctx_start`, `ctx_end`, `own_start`, `query_end`.
    pub spans: Vec<u32>,
    /// `[N]` hidden row that predicts the target; 0 where unused.
    pub target_row: Vec<u32>,
    /// `[N]` the token to be predicted; 0 where unused.
    pub target_id: Vec<u32>,
    /// `[N, 2]` the sequences whose response mean holds this target: the chosen one or [`NONE`],
    /// the rejected one or [`NONE`].
    pub owner: Vec<u32>,
    /// `[N]` which part of the chosen sequence's NLL this target is.
    pub nll: Vec<TargetKind>,
    /// `[N]` pair of the target within this stream; [`NONE`] where unused.
    pub nll_pair: Vec<u32>,
    /// `[S + 1]` where each sequence's entries start in `seq_target`; sequence `2p` is the chosen
    /// one of pair `p`, `2p + 1` the rejected one (empty if the row has none).
    pub seq_offset: Vec<u32>,
    /// `[2 N]` indices of targets, sequence after sequence; 0 in the unused tail.
    pub seq_target: Vec<u32>,
    /// `[S]` mean log-probability of each sequence's response by the model that a run started from;
    /// 0 where nobody has said so ([`PackedBatch::refer`]).
    pub reference: Vec<f32>,
    /// `[P]` whether each pair's answer is one to be given, of rows that say so; true elsewhere.
    pub desirable: Vec<bool>,
    /// How far the model is from the one that a run started from, in nats per answer, by the
    /// mismatched answers of all rows that form one mean; 0 where nobody has said so.
    pub divergence: f64,
    /// Source row of each pair, in the order of the pairs; its length is the number of pairs.
    pub rows: Vec<usize>,
    /// How many of the T tokens are used.
    pub used_tokens: usize,
    /// How many of the N targets are used.
    pub used_targets: usize,
}

/// What one example takes up in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Tokens the two sequences share and the stream holds once.
    pub shared: usize,
    /// Tokens in the stream.
    pub tokens: usize,
    /// Targets that some loss term scores.
    pub targets: usize,
}

/// The room an example needs: the prefix once, both rests, and the targets some loss term uses.
pub fn footprint(example: &Example) -> Footprint {
    let chosen = &example.chosen.ids;
    let nll_targets = chosen.len().saturating_sub(1);
    match &example.rejected {
        None => Footprint { shared: 0, tokens: chosen.len(), targets: nll_targets },
        Some(rejected) => {
            let shared = shared_prefix(chosen, &rejected.ids);
            let first = shared.max(rejected.response_start).max(1);
            Footprint {
                shared,
                tokens: chosen.len() + rejected.ids.len() - shared,
                targets: nll_targets + rejected.ids.len().saturating_sub(first),
            }
        }
    }
}

/// Length of the longest common prefix that leaves each side at least one token of its own.
pub fn shared_prefix(chosen: &[u32], rejected: &[u32]) -> usize {
    let most = chosen.len().min(rejected.len()).saturating_sub(1);
    chosen.iter().zip(rejected).take(most).take_while(|(a, b)| a == b).count()
}

/// Packs examples into as few streams as first-fit by decreasing length finds.
///
/// The result depends on nothing but the arguments: equal lengths keep their order, streams come
/// in the order they were opened.
///
/// # Errors
/// Every example that does not fit an empty stream, by its row (1-based); see [`check_lengths`],
/// which knows the rows' files.
pub fn pack(examples: &[&Example], capacity: Capacity) -> Result<Vec<PackedBatch>> {
    let shares = share_out(examples, capacity)?;
    let fill = |share: &Vec<usize>| PackedBatch::of(share.iter().map(|&i| examples[i]), capacity);
    Ok(shares.iter().map(fill).collect())
}

/// The examples of each stream that [`pack`] would make, by their places in `examples`.
///
/// # Errors
/// As [`pack`].
pub fn share_out(examples: &[&Example], capacity: Capacity) -> Result<Vec<Vec<usize>>> {
    assign(examples, capacity).map(|(_, bins)| bins)
}

/// What each example takes up, and which of them share a stream.
fn assign(examples: &[&Example], capacity: Capacity) -> Result<(Vec<Footprint>, Vec<Vec<usize>>)> {
    let place = |row: usize| format!("row {}", row + 1);
    check_lengths(examples.iter().copied(), place, usize::MAX, capacity)?;
    let sizes: Vec<Footprint> = examples.iter().map(|e| footprint(e)).collect();
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(sizes[i].tokens), i));

    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut open: Vec<(usize, Room)> = Vec::new();
    // Nothing smaller comes than the last one: a bin with less room is out of the search for good.
    let least = order.last().map_or(0, |&i| sizes[i].tokens);
    for &i in &order {
        let found = open.iter().position(|(_, room)| room.holds(&sizes[i]));
        let slot = found.unwrap_or_else(|| {
            open.push((bins.len(), Room::empty(capacity)));
            bins.push(Vec::new());
            open.len() - 1
        });
        let (bin, room) = &mut open[slot];
        bins[*bin].push(i);
        room.take(&sizes[i]);
        if room.tokens < least || room.pairs == 0 {
            open.remove(slot);
        }
    }
    Ok((sizes, bins))
}

/// What is left of a stream's capacity.
#[derive(Clone, Copy)]
struct Room {
    tokens: usize,
    targets: usize,
    pairs: usize,
}

impl Room {
    fn empty(capacity: Capacity) -> Self {
        Self { tokens: capacity.tokens, targets: capacity.targets, pairs: capacity.pairs }
    }

    fn holds(&self, size: &Footprint) -> bool {
        self.pairs > 0 && size.tokens <= self.tokens && size.targets <= self.targets
    }

    fn take(&mut self, size: &Footprint) {
        self.tokens -= size.tokens;
        self.targets -= size.targets;
        self.pairs -= 1;
    }
}

/// One pair of a stream, or a single sequence: where its sequences stand in arrays `[2P]` and in
/// [`PackedBatch::seq_offset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Source row.
    pub row: usize,
    /// The chosen sequence.
    pub chosen: usize,
    /// The rejected one, if the row has one.
    pub rejected: Option<usize>,
}

impl PackedBatch {
    /// Pair `p` of the stream.
    ///
    /// # Panics
    /// When the stream has fewer pairs.
    pub fn pair(&self, p: usize) -> Pair {
        let (row, chosen, rejected) = (self.rows[p], 2 * p, 2 * p + 1);
        let rejected = (!self.response(rejected).is_empty()).then_some(rejected);
        Pair { row, chosen, rejected }
    }

    /// Its pairs in order.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> {
        (0..self.rows.len()).map(|p| self.pair(p))
    }

    /// The targets of a sequence's response.
    pub fn response(&self, sequence: usize) -> &[u32] {
        let [start, end] = [sequence, sequence + 1].map(|s| self.seq_offset[s] as usize);
        &self.seq_target[start..end]
    }

    /// A stream without pairs: pads only.
    pub fn empty(capacity: Capacity) -> Self {
        let Capacity { tokens, targets, pairs } = capacity;
        Self {
            capacity,
            tokens: vec![0; tokens],
            position: vec![0; tokens],
            spans: (0..tokens as u32).flat_map(|i| [0, 0, i, i + 1]).collect(),
            target_row: vec![0; targets],
            target_id: vec![0; targets],
            owner: vec![NONE; 2 * targets],
            nll: vec![TargetKind::None; targets],
            nll_pair: vec![NONE; targets],
            seq_offset: vec![0; 2 * pairs + 1],
            seq_target: vec![0; 2 * targets],
            reference: vec![0.0; 2 * pairs],
            desirable: vec![true; pairs],
            divergence: 0.0,
            rows: Vec::new(),
            used_tokens: 0,
            used_targets: 0,
        }
    }

    /// Enters what the model that a run started from gives both answers of each row, by source row.
    ///
    /// # Panics
    /// When a row of the stream is beyond `by_row`.
    pub fn refer(&mut self, by_row: &[[f32; 2]]) {
        for (answers, &row) in self.reference.chunks_mut(2).zip(&self.rows) {
            answers.copy_from_slice(&by_row[row]);
        }
    }

    /// A stream of these examples.
    ///
    /// # Panics
    /// When they do not fit `capacity`; [`share_out`] finds out which do.
    pub fn of<'a>(examples: impl Iterator<Item = &'a Example>, capacity: Capacity) -> Self {
        let mut stream = Self::empty(capacity);
        examples.for_each(|example| stream.push(example, footprint(example)));
        stream
    }

    /// Appends one example; the caller has made sure that it fits.
    fn push(&mut self, example: &Example, size: Footprint) {
        let pair = self.rows.len() as u32;
        let chosen = &example.chosen;
        let start = self.used_tokens;
        let end = start + size.tokens;
        // Without a rejected side the whole sequence is the prefix and there are no branches.
        let shared = if example.rejected.is_some() { size.shared } else { chosen.ids.len() };
        let chosen_end = start + chosen.ids.len();
        let prefix = (start, start + shared);

        self.lay(&chosen.ids[..shared], start, 0, (0, 0), end);
        self.lay(&chosen.ids[shared..], prefix.1, shared, prefix, chosen_end);
        if let Some(rejected) = &example.rejected {
            self.lay(&rejected.ids[shared..], chosen_end, shared, prefix, end);
        }

        let mut owned: [Vec<u32>; 2] = [Vec::new(), Vec::new()];
        for (t, &id) in chosen.ids.iter().enumerate().skip(1) {
            let in_chosen = t >= chosen.response_start;
            let in_rejected = t < shared
                && example.rejected.as_ref().is_some_and(|rejected| t >= rejected.response_start);
            let kind = if in_chosen { TargetKind::Response } else { TargetKind::Prompt };
            let owners = [in_chosen, in_rejected];
            self.target(start + t - 1, id, pair, owners, kind, &mut owned);
        }
        if let Some(rejected) = &example.rejected {
            let first = shared.max(rejected.response_start).max(1);
            for (t, &id) in rejected.ids.iter().enumerate().skip(first) {
                // The first token of the branch is predicted by the last row of the prefix.
                let row = if t == shared { prefix.1 - 1 } else { chosen_end + t - shared - 1 };
                self.target(row, id, pair, [false, true], TargetKind::None, &mut owned);
            }
        }
        self.own(pair as usize, &owned);
        self.desirable[pair as usize] = example.desirable.unwrap_or(true);
        self.rows.push(example.row);
        self.used_tokens = end;
    }

    /// Writes one run of tokens that attends `ctx` and itself.
    fn lay(
        &mut self,
        ids: &[u32],
        at: usize,
        position: usize,
        ctx: (usize, usize),
        query_end: usize,
    ) {
        // An empty prefix leaves an empty range, written like every other empty one.
        let ctx = if ctx.0 == ctx.1 { (0, 0) } else { ctx };
        for (k, &id) in ids.iter().enumerate() {
            self.tokens[at + k] = id;
            self.position[at + k] = (position + k) as u32;
            let span = [ctx.0 as u32, ctx.1 as u32, at as u32, query_end as u32];
            self.spans[4 * (at + k)..4 * (at + k + 1)].copy_from_slice(&span);
        }
    }

    /// Appends one target and enters it with its owners.
    fn target(
        &mut self,
        row: usize,
        id: u32,
        pair: u32,
        owners: [bool; 2],
        kind: TargetKind,
        owned: &mut [Vec<u32>; 2],
    ) {
        let n = self.used_targets;
        self.target_row[n] = row as u32;
        self.target_id[n] = id;
        self.nll[n] = kind;
        self.nll_pair[n] = pair;
        for side in 0..2 {
            if owners[side] {
                self.owner[2 * n + side] = 2 * pair + side as u32;
                owned[side].push(n as u32);
            }
        }
        self.used_targets += 1;
    }

    /// Appends the pair's two target lists; later, unused sequences stay empty segments.
    fn own(&mut self, pair: usize, owned: &[Vec<u32>; 2]) {
        let mut end = self.seq_offset[2 * pair] as usize;
        for (side, targets) in owned.iter().enumerate() {
            self.seq_target[end..end + targets.len()].copy_from_slice(targets);
            end += targets.len();
            self.seq_offset[2 * pair + side + 1..].fill(end as u32);
        }
    }
}

/// What packing saved, for the line printed once an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackStats {
    /// Examples that were packed.
    pub examples: usize,
    /// Streams they took.
    pub streams: usize,
    /// Tokens computed: streams x T, unused tails included.
    pub stream_tokens: usize,
    /// Tokens of the streams that are not padding.
    pub used_tokens: usize,
    /// What padded concatenation computes: per batch 2 x pairs x its longest sequence.
    pub padded_concat_tokens: usize,
}

impl PackStats {
    /// Compares the streams that [`pack`] would make with padded concatenation of the same
    /// examples, in the given order and in batches of `pairs_per_batch`. Rows without a rejected
    /// side count one sequence. No stream is made for it.
    ///
    /// # Errors
    /// As [`pack`].
    pub fn new(examples: &[&Example], capacity: Capacity, pairs_per_batch: usize) -> Result<Self> {
        let (sizes, bins) = assign(examples, capacity)?;
        let padded = examples.chunks(pairs_per_batch.max(1)).map(|batch| {
            let lengths = batch.iter().flat_map(|e| {
                std::iter::once(e.chosen.ids.len()).chain(e.rejected.iter().map(|r| r.ids.len()))
            });
            lengths.clone().count() * lengths.max().unwrap_or(0)
        });
        Ok(Self {
            examples: examples.len(),
            streams: bins.len(),
            stream_tokens: bins.len() * capacity.tokens,
            used_tokens: sizes.iter().map(|size| size.tokens).sum(),
            padded_concat_tokens: padded.sum(),
        })
    }

    /// Adds another step's figures.
    pub fn add(&mut self, other: &Self) {
        self.examples += other.examples;
        self.streams += other.streams;
        self.stream_tokens += other.stream_tokens;
        self.used_tokens += other.used_tokens;
        self.padded_concat_tokens += other.padded_concat_tokens;
    }

    /// Padded concatenation over tokens computed; above 1 the stream is the cheaper one. The
    /// unused tails are counted against the stream.
    pub fn ratio(&self) -> f64 {
        self.padded_concat_tokens as f64 / (self.stream_tokens.max(1)) as f64
    }
}

impl std::fmt::Display for PackStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} examples in {} streams: {} tokens ({} used); padded concatenation {} tokens, {:.2}x",
            self.examples,
            self.streams,
            self.stream_tokens,
            self.used_tokens,
            self.padded_concat_tokens,
            self.ratio()
        )
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
