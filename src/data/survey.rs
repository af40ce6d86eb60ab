//! What `oddgrad data check` looks at: every row of some files as training would see it, in one pass
//! over rows that are not kept.
//!
//! A file is read twice, because its form is that of all its rows; `CHUNK` rows at a time become
//! tokens, on all cores and while the next ones are read, and leave only counts behind.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use super::example::{Example, Sequence};
use super::files;
use super::length::{Counts, Cut, OverLength};
use super::rows::{
    Forms, PreferenceRow, ReadOptions, Source, Undecided, check_map, file_note, names, scan,
};
use super::surveying::{Looked, Looking, Worker};
use super::tokenize::{EosRule, Tokenizer};
use crate::error::{Error, Problem, Result};

/// Rows that become tokens together; twice as many are in memory.
const CHUNK: usize = 4096;
/// Reasons of refused rows that are kept.
const MOST_REASONS: usize = 20;
/// Rows whose hashes are kept to find duplicates: 24 bytes each, 96 MiB.
const MOST_HASHES: usize = 4 << 20;
/// Pairs of duplicates that are kept to be named.
const MOST_NAMED: usize = 5;
/// Examples that are kept to be shown.
const SHOWN: usize = 3;

/// The rules for rows that are too long, in the order of [`Survey::over_length`].
pub const RULES: [OverLength; 3] =
    [OverLength::Drop, OverLength::TruncatePrompt, OverLength::TruncateResponse];

/// What some files hold.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Rows read, refused ones included.
    pub read: usize,
    /// Rows that can be used, whatever their length.
    pub usable: usize,
    /// Rows that cannot be used.
    pub refused: usize,
    /// Rows that are left out because they prefer nothing; not among those read.
    pub undecided: Undecided,
    /// The first reasons.
    pub reasons: Vec<Problem>,
    /// Lines about the files: rows, forms, columns that are not used.
    pub notes: Vec<String>,
    /// Of the usable rows, those with a rejected side.
    pub pairs: usize,
    /// Of the usable rows, the answers with label true and those with label false, where labels are
    /// asked for; a pair is one of each.
    pub labels: [usize; 2],
    /// Tokens of prompts, chosen answers and rejected answers.
    pub prompt: Histogram,
    /// See [`Survey::prompt`].
    pub chosen: Histogram,
    /// See [`Survey::prompt`].
    pub rejected: Histogram,
    /// Tokens of the longer side with its prompt.
    pub sequence: Histogram,
    /// Chosen and rejected answers whose text does not end with an end-of-sequence token of its own,
    /// so that one is appended.
    pub unended: [usize; 2],
    /// Rows that are, token for token, an earlier one; counted among the first 4 million rows.
    pub duplicates: usize,
    /// The first of them: the row, and the earlier one.
    pub named_duplicates: Vec<(Source, Source)>,
    /// What each of [`RULES`] would do.
    pub over_length: [Counts; 3],
    /// The first usable rows.
    pub shown: Vec<(Source, Example)>,
}

/// How often each length occurs; lengths beyond the last bin are counted there.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    bins: Vec<u64>,
    count: u64,
    sum: u64,
    longest: usize,
}

impl Histogram {
    const BINS: usize = 1 << 20;

    fn add(&mut self, length: usize) {
        let bin = length.min(Self::BINS - 1);
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += 1;
        self.count += 1;
        self.sum += length as u64;
        self.longest = self.longest.max(length);
    }

    /// How many lengths there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of all lengths.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The smallest length that at least the part `share` of all do not exceed.
    pub fn quantile(&self, share: f64) -> usize {
        let wanted = ((share * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        let bin = self.bins.iter().position(|n| {
            seen += n;
            seen >= wanted
        });
        match bin {
            Some(bin) if bin < Self::BINS - 1 => bin,
            _ => self.longest,
        }
    }
}

struct Surveyor<'a> {
    tokenizer: &'a Tokenizer,
    workers: Vec<Worker>,
    max_length: usize,
    survey: Survey,
    hashes: HashMap<u64, (u32, u32)>,
    files: Vec<PathBuf>,
    /// The chunk that is becoming tokens.
    underway: Option<Underway>,
}

/// A chunk that the workers have.
struct Underway {
    /// Rows of it that could not be read.
    refused: Vec<Problem>,
    /// How many workers have a part.
    parts: usize,
    /// Rows read when it was full.
    read: usize,
}

/// Looks at every row of `paths`, as a run with `max_length` and `eos` would read it. `progress`
/// hears how many rows have been read.
///
/// # Errors
/// Paths that cannot be read; a file that breaks off; files without a row. Rows that cannot be used
/// are counted and named in the survey.
pub fn survey(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &ReadOptions,
    max_length: usize,
    eos: EosRule,
    progress: &mut dyn FnMut(usize),
) -> Result<Survey> {
    check_map(options)?;
    let found = files::expand(paths, false, options.split)?;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let looking = Looking { tokenizer, eos, needs: options.needs };
    let survey = std::thread::scope(|scope| -> Result<Survey> {
        let mut surveyor = Surveyor {
            tokenizer,
            workers: (0..cores).map(|_| Worker::start(scope, looking)).collect(),
            max_length,
            survey: Survey { notes: found.notes, ..Survey::default() },
            hashes: HashMap::new(),
            files: Vec::new(),
            underway: None,
        };
        for (path, format) in found.files {
            surveyor.file(&path, format, options, progress)?;
        }
        Ok(surveyor.survey)
    })?;
    if survey.read == 0 {
        let left = survey.undecided.left_out("; ");
        return Err(Error::input(format!("there is no row in {}{left}", names(paths)), vec![]));
    }
    Ok(survey)
}

impl Surveyor<'_> {
    fn file(
        &mut self,
        path: &Path,
        format: files::Format,
        options: &ReadOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let mut forms = Forms::default();
        let mut add = |_, row: std::result::Result<PreferenceRow, String>| {
            row.iter().for_each(|row| forms.add(row));
            true
        };
        let first = scan(path, format, options, &mut add)?;
        if let Some(broken) = first.broken {
            return Err(Error::input("the data cannot be read to its end", vec![broken]));
        }
        self.files.push(path.to_path_buf());
        let usable = self.survey.usable;
        let (mut chunk, mut refused) = (Vec::with_capacity(CHUNK), Vec::new());
        let mut failed = None;
        let mut each = |source: Source, row: std::result::Result<PreferenceRow, String>| {
            self.survey.read += 1;
            let row = row.map_err(|reason| Problem::new(source.to_string(), reason));
            match row.and_then(|row| forms.apply(row)) {
                Ok(row) => chunk.push(row),
                Err(problem) => refused.push(problem),
            }
            if chunk.len() == CHUNK {
                let rows = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                failed = self.chunk(rows, std::mem::take(&mut refused)).err();
                progress(self.survey.read);
            }
            failed.is_none()
        };
        scan(path, format, options, &mut each)?;
        if let Some(error) = failed {
            return Err(error);
        }
        self.chunk(chunk, refused)?;
        self.finish()?;
        progress(self.survey.read);
        let usable = self.survey.usable - usable;
        self.survey.notes.push(file_note(path, usable, &forms.to_string(), &first));
        self.survey.undecided.add(first.undecided);
        Ok(())
    }

    fn refuse(&mut self, problem: Problem) {
        self.survey.refused += 1;
        if self.survey.reasons.len() < MOST_REASONS {
            self.survey.reasons.push(problem);
        }
    }

    /// Hands rows to the workers, and counts those of the chunk before.
    fn chunk(&mut self, mut rows: Vec<PreferenceRow>, refused: Vec<Problem>) -> Result<()> {
        self.finish()?;
        let most = rows.len().div_ceil(self.workers.len()).max(1);
        let mut parts = 0;
        while !rows.is_empty() {
            let rest = rows.split_off(most.min(rows.len()));
            self.workers[parts].give(std::mem::replace(&mut rows, rest));
            parts += 1;
        }
        self.underway = Some(Underway { refused, parts, read: self.survey.read });
        Ok(())
    }

    /// Counts the rows that the workers have, in their order.
    fn finish(&mut self) -> Result<()> {
        let Some(Underway { refused, parts, read }) = self.underway.take() else { return Ok(()) };
        refused.into_iter().for_each(|problem| self.refuse(problem));
        for part in 0..parts {
            let looked = self.workers[part]
                .take()
                .map_err(|e| Error::input(format!("the rows cannot be tokenized: {e}"), vec![]))?;
            for (source, looked) in looked {
                match looked {
                    Ok(looked) => self.count(looked, source, read),
                    Err(problem) => self.refuse(problem),
                }
            }
        }
        Ok(())
    }

    /// `read` rows have been read in all.
    fn count(&mut self, looked: Looked, source: Source, read: usize) {
        let Looked { row, labels, hash } = looked;
        let survey = &mut self.survey;
        survey.usable += 1;
        survey.labels.iter_mut().zip(labels).for_each(|(all, n)| *all += n);
        let answer = |side: &Sequence| side.ids.len() - side.response_start;
        survey.prompt.add(row.sides[0].response_start);
        survey.chosen.add(answer(&row.sides[0]));
        if let Some(rejected) = row.sides.get(1) {
            survey.pairs += 1;
            survey.rejected.add(answer(rejected));
        }
        survey.sequence.add(row.sides.iter().map(|side| side.ids.len()).max().unwrap_or(0));
        for (unended, ended) in survey.unended.iter_mut().zip(&row.ended) {
            *unended += usize::from(!ended);
        }
        let fits = row.sides.iter().all(|side| side.ids.len() <= self.max_length);
        for (counts, over_length) in survey.over_length.iter_mut().zip(RULES) {
            if fits {
                counts.kept += 1;
                continue;
            }
            let cut = Cut {
                max_length: self.max_length,
                over_length,
                bos: self.tokenizer.bos(),
                opening: row.opening,
            };
            // None of the rules refuses a row.
            if cut.apply(&mut row.sides.clone(), counts).is_ok_and(|kept| kept) {
                counts.kept += 1;
            }
        }
        let here = (self.files.len() as u32 - 1, source.line as u32);
        let full = self.hashes.len() >= MOST_HASHES;
        match self.hashes.entry(hash) {
            Entry::Occupied(earlier) => {
                survey.duplicates += 1;
                if survey.named_duplicates.len() < MOST_NAMED {
                    let (file, line) = *earlier.get();
                    let file = self.files[file as usize].clone();
                    let earlier = Source { file, line: line as usize };
                    survey.named_duplicates.push((source.clone(), earlier));
                }
            }
            Entry::Vacant(entry) if !full => drop(entry.insert(here)),
            Entry::Vacant(_) => {}
        }
        if survey.shown.len() < SHOWN {
            let mut sides = row.sides.into_iter();
            if let Some(chosen) = sides.next() {
                let example =
                    Example { row: read, chosen, rejected: sides.next(), desirable: None };
                survey.shown.push((source, example));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let mut all = Histogram::default();
        assert_eq!((all.quantile(0.5), all.count()), (0, 0));
        for length in [3, 9, 1, 3, Histogram::BINS + 7] {
            all.add(length);
        }
        let found = [0.0, 0.2, 0.5, 0.8, 1.0].map(|share| all.quantile(share));
        assert_eq!(found, [1, 1, 3, 9, Histogram::BINS + 7]);
        assert_eq!(all.sum(), 23 + Histogram::BINS as u64);
    }
}
