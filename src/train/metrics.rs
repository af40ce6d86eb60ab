//! What a step or an evaluation reports, under TRL's names, and the `metrics.jsonl` it goes into.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::model::folder::set_aside;
use crate::train::tensorboard::{EVENTS, EventWriter};

/// Name of the file of metrics in a run's folder.
pub const METRICS: &str = "metrics.jsonl";

/// Sums over the rows of an optimizer step or of an evaluation, by name. Numerators and
/// denominators are apart, in f64, so that an evaluation says the same however its rows were split
/// into streams.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums(BTreeMap<&'static str, (f64, f64)>);

impl Sums {
    /// Adds `value` to a numerator and `count` to its denominator.
    pub fn add(&mut self, name: &'static str, value: f64, count: f64) {
        let (total, number) = self.0.entry(name).or_default();
        *total += value;
        *number += count;
    }

    /// The numerator; 0 where nothing was added.
    pub fn total(&self, name: &str) -> f64 {
        self.0.get(name).map_or(0.0, |sum| sum.0)
    }

    /// The denominator; 0 where nothing was added.
    pub fn count(&self, name: &str) -> f64 {
        self.0.get(name).map_or(0.0, |sum| sum.1)
    }

    /// Numerator over denominator; None where the denominator is 0.
    pub fn mean(&self, name: &str) -> Option<f64> {
        let count = self.count(name);
        (count != 0.0).then(|| self.total(name) / count)
    }
}

/// Whether a line of `metrics.jsonl` speaks of training or of the held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Keys as they are, without a prefix.
    Train,
    /// Keys with `eval_` in front.
    Eval,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Eval => "eval",
        }
    }
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the rows done.
    pub epoch: f64,
    /// Training or held-out.
    pub split: Split,
    /// Figures by TRL's name, without prefix.
    pub values: Vec<(String, f64)>,
}

impl MetricsRecord {
    /// A record of an objective's figures; more is added by [`MetricsRecord::with`].
    pub fn new(split: Split, step: u64, epoch: f64, figures: &[(&str, f64)]) -> Self {
        let values = figures.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        Self { step, epoch, split, values }
    }

    /// Adds a figure, for example `grad_norm`, `learning_rate`, `num_tokens`.
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.values.push((name.to_string(), value));
        self
    }

    /// A figure by its name without prefix.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(k, _)| k == name).map(|(_, v)| *v)
    }

    fn to_line(&self) -> String {
        let prefix = if self.split == Split::Eval { "eval_" } else { "" };
        let mut map = Map::new();
        map.insert("step".into(), self.step.into());
        map.insert("epoch".into(), number(self.epoch));
        for (name, value) in &self.values {
            map.insert(format!("{prefix}{name}"), number(*value));
        }
        format!("{}\n", Value::Object(map))
    }

    fn from_map(map: &Map<String, Value>) -> Option<Self> {
        let step = map.get("step")?.as_u64()?;
        let epoch = map.get("epoch").and_then(Value::as_f64).unwrap_or(f64::NAN);
        let split =
            if map.keys().any(|k| k.starts_with("eval_")) { Split::Eval } else { Split::Train };
        let values = map
            .iter()
            .filter(|(k, _)| *k != "step" && *k != "epoch")
            .map(|(k, v)| {
                let name = k.strip_prefix("eval_").unwrap_or(k).to_string();
                (name, v.as_f64().unwrap_or(f64::NAN))
            })
            .collect();
        Some(Self { step, epoch, split, values })
    }
}

/// Counts stay whole; JSON has no NaN, so it becomes null.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Value::from(value as i64);
    }
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// Appends records to `metrics.jsonl`, one JSON object per line, each flushed, so that a run can be
/// watched and a killed one loses nothing; and to a file of TensorBoard's beside it.
#[derive(Debug)]
pub struct MetricsWriter {
    file: File,
    path: PathBuf,
    events: EventWriter,
}

impl MetricsWriter {
    /// Opens the file for appending; creates it if it is not there. TensorBoard's is written anew from
    /// what is in it.
    ///
    /// # Errors
    /// When the files can be neither opened nor created; a line that is no record.
    pub fn open(path: &Path) -> Result<Self> {
        let mut events = EventWriter::create(&path.with_file_name(EVENTS))?;
        let before = if path.exists() { read_metrics(path)? } else { Vec::new() };
        before.iter().try_for_each(|record| {
            events.write(record.split.name(), record.step, &record.values)
        })?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| Error::io("create", path, e))?;
        Ok(Self { file, path: path.to_path_buf(), events })
    }

    /// Writes one record.
    ///
    /// # Errors
    /// When the disk takes no more.
    pub fn write(&mut self, record: &MetricsRecord) -> Result<()> {
        let line = record.to_line();
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.flush())
            .map_err(|e| Error::io("write", &self.path, e))?;
        self.events.write(record.split.name(), record.step, &record.values)
    }
}

/// Every record of a `metrics.jsonl`. A last line without a line break, which a killed process
/// leaves, is not one.
///
/// # Errors
/// A file that cannot be read; a line that is no record, with its number.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricsRecord>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let numbered = whole_lines(&bytes).zip(1..);
    let record = |(line, number)| {
        record_of(line).ok_or_else(|| {
            let what = format!("line {number} is not a record with a step; move the file away");
            Error::file(path, what)
        })
    };
    numbered.map(record).collect()
}

/// Seconds that the optimizer steps of these records took, in all parts of a run that was resumed.
pub fn step_seconds(records: &[MetricsRecord]) -> f64 {
    let (mut before, mut seconds) = (0.0, 0.0);
    for record in records.iter().filter(|record| record.split == Split::Train) {
        let counts = (record.get("num_tokens"), record.get("tokens_per_second"));
        if let (Some(tokens), Some(rate)) = counts {
            seconds += (tokens - before) / rate;
            before = tokens;
        }
    }
    seconds
}

/// The lines that end, each with its line break.
fn whole_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|&b| b == b'\n').filter(|line| line.ends_with(b"\n"))
}

/// The record in a line; None if it holds none.
fn record_of(line: &[u8]) -> Option<MetricsRecord> {
    MetricsRecord::from_map(&serde_json::from_slice(line).ok()?)
}

/// Removes what was recorded after `step`, so that a resumed run continues the file where its
/// checkpoint was made. Lines that are no records (zeros after a power cut, another program's) are
/// left out too, and the file with them stays beside it: returns where. A file that is not there
/// needs nothing.
///
/// # Errors
/// A file that cannot be read, renamed or written.
pub fn truncate_after_step(path: &Path, step: u64) -> Result<Option<PathBuf>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let (mut kept, mut damaged) = (Vec::new(), false);
    for line in whole_lines(&bytes) {
        match record_of(line) {
            Some(record) if record.step <= step => kept.extend_from_slice(line),
            Some(_) => {}
            None => damaged = true,
        }
    }
    let aside = damaged.then(|| set_aside(path, "damaged")).transpose()?;
    write_atomically(path, &kept)?;
    Ok(aside)
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
