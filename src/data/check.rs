//! What is looked at before a run, when all rows have become tokens.

use std::fmt;

use super::example::{Example, Sequence};
use super::length::Counts;
use super::pack::{footprint, shared_prefix};
use crate::error::{Error, Problem, Result};

/// Figures about a set of examples, for the lines printed before a run.
#[derive(Debug, Clone, PartialEq)]
pub struct DataReport {
    /// Examples with a rejected side.
    pub pairs: usize,
    /// Examples without one: SFT rows, pieces of documents.
    pub singles: usize,
    /// Examples whose answer is labelled as desirable, and as undesirable.
    pub labels: [usize; 2],
    /// Tokens of both sequences of every example, each counted in full.
    pub tokens: usize,
    /// Tokens that the two sides share and that are computed once.
    pub shared_tokens: usize,
    /// Lengths of the chosen sequences' prompts.
    pub prompt: Lengths,
    /// Lengths of the chosen answers, EOS included.
    pub chosen: Lengths,
    /// Lengths of the rejected answers; None without pairs.
    pub rejected: Option<Lengths>,
    /// Largest room one example takes in the stream: its tokens.
    pub largest_tokens: usize,
    /// Largest number of targets of one example.
    pub largest_targets: usize,
    /// What tokenizing cut and dropped.
    pub counts: Counts,
}

/// Shortest, median and longest, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of the shortest.
    pub shortest: usize,
    /// Tokens of the median; of an even number the upper one.
    pub median: usize,
    /// Tokens of the longest.
    pub longest: usize,
}

const SUMMARY: &str = "the data does not suit the model";

/// Checks examples against each other and against the model that is to learn from them.
///
/// `place` names a source row for messages; `vocab_size` is the tokenizer's (largest id + 1),
/// `vocab_rows` the rows of the embedding.
///
/// # Errors
/// All at once: no examples; a vocabulary larger than the embedding; ids beyond it; a side without a
/// token to learn; sides that are the same tokens.
pub fn check_examples(
    examples: &[Example],
    place: impl Fn(usize) -> String,
    vocab_size: usize,
    vocab_rows: usize,
    counts: &Counts,
) -> Result<DataReport> {
    let mut problems = Vec::new();
    if vocab_size > vocab_rows {
        let what = format!(
            "the tokenizer has {vocab_size} tokens, the model's embedding {vocab_rows} rows; take \
             the tokenizer the model was trained with, or enlarge the embedding"
        );
        // Rows with such tokens follow from it; to list them would only hide the cause.
        return Err(Error::input(SUMMARY, vec![Problem::new("tokenizer.json", what)]));
    }
    for example in examples {
        let place = || place(example.row);
        for (name, side) in sides(example) {
            if side.ids.len() <= side.response_start.max(1) {
                problems.push(Problem::new(place(), format!("{name} has no token to learn")));
            }
            if let Some(id) = side.ids.iter().find(|&&id| id as usize >= vocab_rows) {
                let what = format!("{name} has token {id}, the embedding only {vocab_rows} rows");
                problems.push(Problem::new(place(), what));
            }
        }
        if example.rejected.as_ref().is_some_and(|rejected| rejected.ids == example.chosen.ids) {
            problems.push(Problem::new(place(), "both sides are the same tokens"));
        }
    }
    if !problems.is_empty() {
        return Err(Error::input(SUMMARY, problems));
    }
    let answer = |side: &Sequence| side.ids.len() - side.response_start;
    let rejected = || examples.iter().filter_map(|e| e.rejected.as_ref());
    let (Some(prompt), Some(chosen)) = (
        lengths(examples.iter().map(|e| e.chosen.response_start)),
        lengths(examples.iter().map(|e| answer(&e.chosen))),
    ) else {
        return Err(Error::input("there is no row to train on", vec![]));
    };
    let largest = |size: fn(&Example) -> usize| examples.iter().map(size).max().unwrap_or(0);
    Ok(DataReport {
        pairs: rejected().count(),
        singles: examples.len() - rejected().count(),
        labels: [true, false]
            .map(|label| examples.iter().filter(|e| e.desirable == Some(label)).count()),
        tokens: examples.iter().flat_map(sides).map(|(_, side)| side.ids.len()).sum(),
        shared_tokens: examples
            .iter()
            .filter_map(|e| Some(shared_prefix(&e.chosen.ids, &e.rejected.as_ref()?.ids)))
            .sum(),
        prompt,
        chosen,
        rejected: lengths(rejected().map(answer)),
        largest_tokens: largest(|e| footprint(e).tokens),
        largest_targets: largest(|e| footprint(e).targets),
        counts: *counts,
    })
}

fn sides(example: &Example) -> impl Iterator<Item = (&'static str, &Sequence)> {
    std::iter::once(("chosen", &example.chosen))
        .chain(example.rejected.iter().map(|rejected| ("rejected", rejected)))
}

fn lengths(values: impl Iterator<Item = usize>) -> Option<Lengths> {
    let mut sorted: Vec<usize> = values.collect();
    sorted.sort_unstable();
    let (shortest, longest) = (*sorted.first()?, *sorted.last()?);
    Some(Lengths { shortest, median: sorted[sorted.len() / 2], longest })
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {} / {}", self.shortest, self.median, self.longest)
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pairs, self.singles) {
            (pairs, 0) => writeln!(f, "{pairs} preference pairs")?,
            (0, singles) => match self.labels {
                [0, 0] => writeln!(f, "{singles} sequences")?,
                [yes, no] => {
                    writeln!(f, "{singles} sequences, {yes} with label true, {no} with false")?
                }
            },
            (pairs, singles) => {
                writeln!(f, "{pairs} preference pairs, {singles} single sequences")?;
            }
        }
        writeln!(f, "  {}", self.counts)?;
        let share = 100.0 * self.shared_tokens as f64 / self.tokens as f64;
        writeln!(f, "  {} tokens, {share:.1} % of them shared and computed once", self.tokens)?;
        write!(f, "  tokens shortest / median / longest: prompt {}, ", self.prompt)?;
        write!(f, "chosen {}", self.chosen)?;
        if let Some(rejected) = &self.rejected {
            write!(f, ", rejected {rejected}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: usize) -> String {
        format!("row {}", index + 1)
    }

    fn example(
        row: usize,
        chosen: &[u32],
        rejected: Option<&[u32]>,
        response_start: usize,
    ) -> Example {
        let side = |ids: &[u32]| Sequence { ids: ids.to_vec(), response_start };
        Example { row, chosen: side(chosen), rejected: rejected.map(side), desirable: None }
    }

    #[test]
    fn figures_are_counted() {
        let examples = [
            example(0, &[1, 2, 3, 4], Some(&[1, 2, 5]), 2),
            example(1, &[1, 2, 3, 4, 5, 6], Some(&[1, 7]), 1),
            example(2, &[1, 2, 3], None, 1),
        ];
        let counts = Counts { kept: 3, dropped: 1, ..Counts::default() };
        let report = check_examples(&examples, row, 8, 8, &counts).unwrap();
        assert_eq!((report.pairs, report.singles), (2, 1));
        assert_eq!((report.tokens, report.shared_tokens), (18, 3));
        assert_eq!(report.prompt, Lengths { shortest: 1, median: 1, longest: 2 });
        assert_eq!(report.chosen, Lengths { shortest: 2, median: 2, longest: 5 });
        assert_eq!(report.rejected, Some(Lengths { shortest: 1, median: 1, longest: 1 }));
        assert_eq!((report.largest_tokens, report.largest_targets), (7, 6));
        let text = report.to_string();
        assert!(text.starts_with("2 preference pairs, 1 single sequences\n"), "{text}");
        assert!(text.contains("1 rows dropped as too long") && text.contains("16.7 %"), "{text}");
    }

    #[test]
    fn everything_unusable_is_named_at_once() {
        let examples = [
            example(0, &[1, 2], Some(&[1, 9]), 1),
            example(4, &[1, 2], Some(&[1, 2]), 1),
            example(5, &[1, 2], Some(&[1]), 1),
        ];
        let text =
            check_examples(&examples, row, 9, 8, &Counts::default()).unwrap_err().to_string();
        assert!(text.contains("9 tokens, the model's embedding 8 rows"), "{text}");
        assert!(!text.contains("row 1"), "the cause alone is told: {text}");
        let text =
            check_examples(&examples, row, 8, 8, &Counts::default()).unwrap_err().to_string();
        for part in
            ["row 1: rejected has token 9", "row 5: both sides", "row 6: rejected has no token"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(check_examples(&examples[..0], row, 8, 8, &Counts::default()).is_err());
    }
}
