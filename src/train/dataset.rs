//! From a recipe's files to examples, and the order they are trained in.

use crate::data::check::{DataReport, check_examples};
use crate::data::example::Example;
use crate::data::form::Form;
use crate::data::length::check_lengths;
use crate::data::mismatch::mismatch;
use crate::data::pack::{Capacity, PackStats, PackedBatch, pack, share_out};
use crate::data::rows::{
    ReadOptions, Source, Split, Text, Texts, read_preferences, read_usable_texts,
};
use crate::data::tokenize::{Counts, Examples, TokenizeOptions, Tokenizer};
use crate::error::{Error, Problem, Result, shown};
use crate::model::config::ModelConfig;
use crate::train::objectives::RowKind;
use crate::train::recipe::DataSettings;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::path::PathBuf;

/// The examples of one split with the places they came from.
#[derive(Debug)]
pub struct Dataset {
    /// What is trained on.
    pub examples: Vec<Example>,
    /// Where each row ([`Example::row`]) came from.
    pub sources: Vec<Source>,
    /// The form of the rows: conversations if any of them is one.
    pub form: Form,
    /// What was cut or dropped for its length.
    pub counts: Counts,
    /// Rows that were skipped because they cannot be used.
    pub skipped: Vec<Problem>,
    /// Lines for the user about the files and what of them is not used.
    pub notes: Vec<String>,
    /// The same examples with the answers of other rows, for objectives that ask for them.
    pub mismatched: Option<Box<Dataset>>,
    /// What the reference model gives both answers of each row; empty without one.
    reference: Vec<[f32; 2]>,
}

fn form_of<'a>(mut texts: impl Iterator<Item = &'a Text>) -> Form {
    let chat = texts.any(|text| text.form() == Form::Chat);
    if chat { Form::Chat } else { Form::Plain }
}

impl Dataset {
    /// Reads and tokenizes rows of this kind from `paths`, as `d` says; of a folder whose files name
    /// splits, those of `split`.
    ///
    /// # Errors
    /// Unreadable files and every unusable row at once.
    pub fn load(
        d: &DataSettings,
        kind: RowKind,
        tokenizer: &Tokenizer,
        paths: &[PathBuf],
        split: Split,
    ) -> Result<Self> {
        let options =
            TokenizeOptions { max_length: d.max_length, over_length: d.over_length, eos: d.eos };
        if kind == RowKind::Texts {
            return Self::load_texts(tokenizer, paths, &options, d.skip_bad_rows, split);
        }
        let read = ReadOptions {
            map: d.map.clone(),
            skip_bad_rows: d.skip_bad_rows,
            needs: kind.needs(),
            split,
        };
        let rows = read_preferences(paths, &read)?;
        let tokenized = tokenizer.examples(&rows.rows, &options, d.skip_bad_rows)?;
        let mut skipped = rows.skipped;
        skipped.extend_from_slice(&tokenized.skipped);
        let sources = rows.rows.iter().map(|r| r.source.clone()).collect();
        let form = form_of(rows.rows.iter().map(|r| &r.prompt));
        let mut notes = rows.notes;
        if !tokenized.unused.is_empty() {
            let keys: Vec<String> =
                tokenized.unused.iter().take(20).map(|k| shown(k, 60)).collect();
            notes.push(format!(
                "keys of messages that the chat template does not use: {}",
                keys.join(", ")
            ));
        }
        let Examples { examples, counts, .. } = tokenized;
        let (mismatched, reference) = (None, Vec::new());
        let mut dataset =
            Self { examples, sources, form, counts, skipped, notes, mismatched, reference };
        if kind == (RowKind::Labelled { mismatched: true }) {
            dataset.mismatched = Some(Box::new(dataset.mismatch(d.max_length)?));
        }
        Ok(dataset)
    }

    /// The examples with the answers of other rows ([`mismatch`]).
    ///
    /// # Errors
    /// Every row for which there is none.
    fn mismatch(&self, max_length: usize) -> Result<Self> {
        let mismatched = mismatch(&self.examples, max_length);
        let alone = self.examples.iter().zip(&mismatched).filter(|(_, other)| other.is_none());
        let what = "there is no other row whose prompt and whose answer are both different";
        let problems: Vec<Problem> = alone
            .map(|(example, _)| Problem::new(self.sources[example.row].to_string(), what))
            .collect();
        if !problems.is_empty() {
            let summary = "the divergence from the reference model is estimated with answers to other prompts, and some rows have none: add rows, or set loss.type = \"apo_zero_unpaired\", which does without";
            return Err(Error::input(summary, problems));
        }
        Ok(Self {
            examples: mismatched.into_iter().flatten().collect(),
            sources: self.sources.clone(),
            form: self.form,
            counts: Counts::default(),
            skipped: Vec::new(),
            notes: Vec::new(),
            mismatched: None,
            reference: Vec::new(),
        })
    }

    fn load_texts(
        tokenizer: &Tokenizer,
        paths: &[PathBuf],
        options: &TokenizeOptions,
        skip_bad_rows: bool,
        split: Split,
    ) -> Result<Self> {
        let Texts { documents: texts, skipped: mut problems, notes } =
            read_usable_texts(paths, skip_bad_rows, split)?;
        let mut examples = Vec::new();
        for (row, (source, text)) in texts.iter().enumerate() {
            match tokenizer.document(row, source, text, options) {
                Ok(pieces) => examples.extend(pieces),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() && !skip_bad_rows {
            return Err(Error::input(
                format!("{} documents cannot be used", problems.len()),
                problems,
            ));
        }
        let counts = Counts { kept: texts.len(), ..Counts::default() };
        let form = form_of(texts.iter().map(|(_, text)| text));
        let sources = texts.into_iter().map(|(source, _)| source).collect();
        Ok(Self {
            examples,
            sources,
            form,
            counts,
            skipped: problems,
            notes,
            mismatched: None,
            reference: Vec::new(),
        })
    }

    /// Examples that come from no file; `source` says where from.
    pub fn of_examples(examples: Vec<Example>, source: &str) -> Self {
        let rows = examples.iter().map(|example| example.row + 1).max().unwrap_or(0);
        let place = |row: usize| Source { file: source.into(), line: row + 1 };
        Self {
            counts: Counts { kept: examples.len(), ..Counts::default() },
            examples,
            sources: (0..rows).map(place).collect(),
            form: Form::Plain,
            skipped: Vec::new(),
            notes: Vec::new(),
            mismatched: None,
            reference: Vec::new(),
        }
    }

    /// Checks the examples against the tokenizer, the model and the stream.
    ///
    /// # Errors
    /// Everything that does not fit, at once, by file and line.
    pub fn check_fit(
        &self,
        tokenizer: &Tokenizer,
        model: &ModelConfig,
        capacity: Capacity,
    ) -> Result<DataReport> {
        let place = |row: usize| self.sources[row].to_string();
        let (examples, counts) = (&self.examples, &self.counts);
        let report =
            check_examples(examples, place, tokenizer.vocab_size(), model.vocab_size, counts)?;
        check_lengths(examples.iter(), place, model.max_positions, capacity)?;
        if let Some(mismatched) = &self.mismatched {
            let place = |row| format!("{} with the answer of another row", place(row));
            check_lengths(mismatched.examples.iter(), place, model.max_positions, capacity)?;
        }
        Ok(report)
    }

    /// The order of epoch `epoch`: a permutation that depends on the seed and the epoch only, so
    /// a resumed run needs no generator state.
    pub fn order(&self, seed: u64, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.examples.len()).collect();
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        order.shuffle(&mut ChaCha8Rng::from_seed(key));
        order
    }

    /// Optimizer steps of `batch` rows in a pass over all of them.
    pub fn steps_per_epoch(&self, batch: usize) -> u64 {
        self.examples.len().div_ceil(batch) as u64
    }

    /// Packs the examples at `indices`.
    ///
    /// # Errors
    /// When one does not fit `capacity`; [`Dataset::check_fit`] finds that beforehand.
    pub fn pack(&self, indices: &[usize], capacity: Capacity) -> Result<Vec<PackedBatch>> {
        let picked: Vec<&Example> = indices.iter().map(|&i| &self.examples[i]).collect();
        let mut streams = pack(&picked, capacity)?;
        streams.iter_mut().for_each(|stream| self.refer_in(stream));
        Ok(streams)
    }

    /// Keeps what the reference model gives both answers of each example, for the streams to come.
    pub(super) fn refer(&mut self, by_example: &[[f32; 2]]) {
        self.reference = vec![[0.0; 2]; self.sources.len()];
        for (example, &answers) in self.examples.iter().zip(by_example) {
            self.reference[example.row] = answers;
        }
    }

    fn refer_in(&self, stream: &mut PackedBatch) {
        if !self.reference.is_empty() {
            stream.refer(&self.reference);
        }
    }

    /// The examples of each stream that packing all of them makes, by their indices.
    ///
    /// # Errors
    /// As [`Dataset::pack`].
    pub fn share_out(&self, capacity: Capacity) -> Result<Vec<Vec<usize>>> {
        share_out(&self.examples.iter().collect::<Vec<_>>(), capacity)
    }

    /// The stream of one share of [`Dataset::share_out`].
    pub fn stream(&self, share: &[usize], capacity: Capacity) -> PackedBatch {
        let mut stream = PackedBatch::of(share.iter().map(|&i| &self.examples[i]), capacity);
        self.refer_in(&mut stream);
        stream
    }

    /// What packing an epoch in this order saves against padded concatenation. Nothing is packed.
    ///
    /// # Errors
    /// As [`Dataset::pack`].
    pub fn stats(&self, order: &[usize], batch: usize, capacity: Capacity) -> Result<PackStats> {
        let mut total = PackStats::default();
        for indices in order.chunks(batch) {
            let picked: Vec<&Example> = indices.iter().map(|&i| &self.examples[i]).collect();
            total.add(&PackStats::new(&picked, capacity, batch)?);
        }
        Ok(total)
    }

    /// A hash of an order and of the tokens in it, so that a resume on other data is noticed.
    pub fn order_hash(&self, order: &[usize]) -> String {
        let mut hasher = blake3::Hasher::new();
        for &i in order {
            let e = &self.examples[i];
            if let Some(desirable) = e.desirable {
                hasher.update(&[u8::from(desirable)]);
            }
            for side in std::iter::once(&e.chosen).chain(&e.rejected) {
                hasher.update(&(side.response_start as u64).to_le_bytes());
                hasher.update(bytemuck::cast_slice(&side.ids));
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}
