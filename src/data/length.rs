//! Everything about length: rows longer than `max_length` are dropped or cut, and counted; what is
//! left must fit the model and the stream.

use std::fmt;

use super::example::{Example, Sequence};
use super::pack::{Capacity, footprint};
use crate::error::{Error, Problem, Result};

/// Checks that every example fits a model of `positions` positions and an empty stream of
/// `capacity`. `place` names a source row.
///
/// # Errors
/// Every example that does not, at once, with what would make room.
pub fn check_lengths<'a>(
    examples: impl Iterator<Item = &'a Example>,
    place: impl Fn(usize) -> String,
    positions: usize,
    capacity: Capacity,
) -> Result<()> {
    let mut problems = Vec::new();
    let mut needed = 0;
    for example in examples {
        let mut misfit = |what: String| problems.push(Problem::new(place(example.row), what));
        let rejected = example.rejected.as_ref().map_or(0, |r| r.ids.len());
        let longest = example.chosen.ids.len().max(rejected);
        if longest > positions {
            misfit(format!("has {longest} tokens, but the model {positions} positions"));
        }
        let size = footprint(example);
        if size.tokens > capacity.tokens || size.targets > capacity.targets || capacity.pairs == 0 {
            misfit(format!(
                "needs {} tokens and {} targets, but a stream has room for {} pairs with {} tokens \
                 and {} targets",
                size.tokens, size.targets, capacity.pairs, capacity.tokens, capacity.targets
            ));
            needed = needed.max(size.tokens);
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let longer = match needed {
        0 => String::new(),
        _ => format!("raise batch.stream_tokens to {needed} or more, or "),
    };
    let summary = format!("some rows do not fit; {longer}lower data.max_length");
    Err(Error::input(summary, problems))
}

/// What happens to a row that is longer than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverLength {
    /// The row is left out and counted.
    #[default]
    Drop,
    /// The prompt is cut from the left, on both sides alike; BOS and the tokens that open the
    /// answer (the generation prompt) are kept. A row that cannot be cut so is dropped.
    TruncatePrompt,
    /// The answer's end is cut, and with it its EOS. A row whose prompt leaves no room for an
    /// answer is dropped.
    TruncateResponse,
    /// The row is a problem that stops the run.
    Error,
}

/// What tokenizing did to a set of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Rows that became examples.
    pub kept: usize,
    /// Rows left out because a sequence is too long.
    pub dropped: usize,
    /// Rows left out because cutting made both sides equal.
    pub became_identical: usize,
    /// Rows whose prompt was cut.
    pub truncated_prompt: usize,
    /// Chosen sequences longer than `max_length`, before anything was cut or dropped.
    pub long_chosen: usize,
    /// Rejected sequences longer than `max_length`.
    pub long_rejected: usize,
    /// Chosen answers whose end was cut.
    pub truncated_chosen: usize,
    /// Rejected answers whose end was cut.
    pub truncated_rejected: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows kept", self.kept)?;
        for (count, what) in [
            (self.long_chosen, "chosen too long"),
            (self.long_rejected, "rejected too long"),
            (self.dropped, "rows dropped as too long"),
            (self.became_identical, "rows dropped as both sides are equal once cut"),
            (self.truncated_prompt, "prompts cut"),
            (self.truncated_chosen, "chosen answers cut"),
            (self.truncated_rejected, "rejected answers cut"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// Brings one row within `max_length`.
pub(super) struct Cut {
    /// Longest sequence, in tokens.
    pub max_length: usize,
    /// What happens to longer ones.
    pub over_length: OverLength,
    /// Beginning-of-sequence token; it stays in front of a cut prompt.
    pub bos: Option<u32>,
    /// Tokens at the prompt's end that open the answer; they stay too.
    pub opening: usize,
}

impl Cut {
    /// Cuts the sides in place; false if the row is to be dropped.
    pub(super) fn apply(
        &self,
        sides: &mut [Sequence],
        counts: &mut Counts,
    ) -> std::result::Result<bool, String> {
        let most = self.max_length;
        let over: Vec<usize> = sides.iter().map(|s| s.ids.len().saturating_sub(most)).collect();
        counts.long_chosen += usize::from(over[0] > 0);
        counts.long_rejected += usize::from(over.get(1).is_some_and(|&n| n > 0));
        let worst = over.iter().copied().max().unwrap_or(0);
        if worst == 0 {
            return Ok(true);
        }
        let cut = match self.over_length {
            OverLength::Error => {
                let lengths: Vec<String> = sides
                    .iter()
                    .zip(["chosen", "rejected"])
                    .map(|(s, name)| format!("{name} has {} tokens", s.ids.len()))
                    .collect();
                return Err(format!(
                    "{}, max_length is {most}; raise it or set over_length to drop, \
                     truncate-prompt or truncate-response",
                    lengths.join(", ")
                ));
            }
            OverLength::Drop => false,
            OverLength::TruncatePrompt => self.prompt(sides, worst),
            OverLength::TruncateResponse => self.response(sides),
        };
        if !cut {
            counts.dropped += 1;
            return Ok(false);
        }
        if sides.len() == 2 && sides[0].ids == sides[1].ids {
            counts.became_identical += 1;
            return Ok(false);
        }
        if self.over_length == OverLength::TruncatePrompt {
            counts.truncated_prompt += 1;
        } else {
            counts.truncated_chosen += usize::from(over[0] > 0);
            counts.truncated_rejected += usize::from(over.get(1).is_some_and(|&n| n > 0));
        }
        Ok(true)
    }

    /// Takes `n` tokens off the left of both prompts, behind BOS.
    fn prompt(&self, sides: &mut [Sequence], n: usize) -> bool {
        // At least one prompt token stays to predict the answer's first one.
        let opening = self.opening.max(1);
        let keeps = |side: &Sequence| {
            let bos = usize::from(self.bos.is_some_and(|bos| side.ids[0] == bos));
            (bos, side.response_start >= bos + n + opening)
        };
        if !sides.iter().all(|side| keeps(side).1) {
            return false;
        }
        for side in sides {
            let bos = keeps(side).0;
            side.ids.drain(bos..bos + n);
            side.response_start -= n;
        }
        true
    }

    /// Cuts the end of each answer that is too long.
    fn response(&self, sides: &mut [Sequence]) -> bool {
        let most = self.max_length;
        if sides.iter().any(|side| side.response_start.max(1) >= most) {
            return false;
        }
        for side in sides {
            side.ids.truncate(most);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_named_by_its_place_all_at_once() {
        let example = |row: usize, length: usize| {
            let chosen = Sequence { ids: vec![1; length], response_start: 1 };
            Example { row, chosen, rejected: None, desirable: None }
        };
        let examples = [example(0, 5), example(1, 12), example(2, 30)];
        let capacity = Capacity { tokens: 20, targets: 20, pairs: 1 };
        let place = |row: usize| format!("rows.jsonl:{}", row + 1);
        let check = |positions| check_lengths(examples.iter(), place, positions, capacity);
        let text = check(10).unwrap_err().to_string();
        for part in [
            "raise batch.stream_tokens to 30 or more, or lower data.max_length",
            "rows.jsonl:2: has 12 tokens, but the model 10 positions",
            "rows.jsonl:3: has 30 tokens, but the model 10 positions",
            "rows.jsonl:3: needs 30 tokens and 29 targets, but a stream has room for 1 pairs with 20 tokens",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("rows.jsonl:1"), "{text}");
        let text =
            check_lengths(examples[..2].iter(), place, 10, capacity).unwrap_err().to_string();
        assert!(!text.contains("stream_tokens"), "more room in the stream would not help: {text}");
        assert!(check_lengths(examples[..2].iter(), place, 12, capacity).is_ok());
    }
}
