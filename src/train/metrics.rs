//! What a step or an evaluation reports, under TRL's names, and the `metrics.jsonl` it goes into.
//!
//! Numerators and denominators are summed apart, in f64, so that an evaluation says the same
//! however its rows were split into batches.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Name of the file of metrics in a run's folder.
pub const METRICS: &str = "metrics.jsonl";

/// `1 - p` is not let below this: nearer to 1 an f32 log-probability carries no information, and
/// the gradient grows without bound.
pub const ODDS_FLOOR: f64 = 1e-7;

/// The odds-ratio loss of one pair and its derivatives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Odds {
    /// Log odds ratio of chosen against rejected.
    pub z: f64,
    /// `-log sigmoid(z)`.
    pub loss: f64,
    /// `-dloss/dl_w`, never negative.
    pub g_w: f64,
    /// `+dloss/dl_l`, never negative.
    pub g_l: f64,
    /// One of the two answers was certain to [`ODDS_FLOOR`].
    pub floored: bool,
}

/// The log odds ratio of two mean log-probabilities, by the closed form that overflows nowhere
/// (Hong, Lee, Thorne 2024, arXiv 2403.07691, rearranged):
///
/// ```text
/// q    = max(1 - exp(l), 1e-7)
/// z    = (l_w - l_l) - (log q_w - log q_l)
/// r    = exp(l_w - l_l)
/// loss = log1p(q_w / (r q_l))
/// g_w  = 1 / (q_w + r q_l)
/// g_l  = q_w / (q_l (q_w + r q_l))
/// ```
///
/// Where `q` is floored the derivatives keep this form, so that they stay bounded and keep their
/// sign. NaN in gives NaN out.
pub fn log_odds(l_w: f64, l_l: f64) -> Odds {
    let (exact_w, exact_l) = (-l_w.exp_m1(), -l_l.exp_m1());
    let (q_w, q_l) = (exact_w.max(ODDS_FLOOR), exact_l.max(ODDS_FLOOR));
    let z = (l_w - l_l) - (q_w.ln() - q_l.ln());
    let r = (l_w - l_l).exp();
    let t = q_w / (r * q_l);
    let sum = q_w + r * q_l;
    Odds {
        z,
        // r underflows where the chosen answer is hopeless; there log1p(t) = log t = -z.
        loss: if t.is_infinite() { -z } else { t.ln_1p() },
        g_w: 1.0 / sum,
        g_l: q_w / (q_l * sum),
        floored: exact_w < ODDS_FLOOR || exact_l < ODDS_FLOOR,
    }
}

/// Sums over the rows of an optimizer step or of an evaluation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepMetrics {
    lambda: f64,
    pairs: u64,
    chosen: u64,
    sum_chosen: f64,
    sum_rejected: f64,
    sum_z: f64,
    sum_odds_loss: f64,
    preferred: u64,
    floored: u64,
    nll_numerator: f64,
    nll_denominator: f64,
}

impl StepMetrics {
    /// Empty sums for a loss with this weight of the odds-ratio term.
    pub fn new(lambda: f64) -> Self {
        Self { lambda, ..Self::default() }
    }

    /// Adds a pair by its mean log-probabilities of the chosen and the rejected response.
    pub fn add_pair(&mut self, l_w: f32, l_l: f32) -> Odds {
        let odds = log_odds(f64::from(l_w), f64::from(l_l));
        self.add_pair_with(l_w, l_l, &odds);
        odds
    }

    /// Adds a pair whose odds are known already.
    pub fn add_pair_with(&mut self, l_w: f32, l_l: f32, odds: &Odds) {
        self.add_single(l_w);
        self.pairs += 1;
        self.sum_rejected += f64::from(l_l);
        self.sum_z += odds.z;
        self.sum_odds_loss += odds.loss;
        self.preferred += u64::from(l_w > l_l);
        self.floored += u64::from(odds.floored);
    }

    /// Adds a row without a rejected answer by the mean log-probability of its response.
    pub fn add_single(&mut self, l_w: f32) {
        self.chosen += 1;
        self.sum_chosen += f64::from(l_w);
    }

    /// Adds to the NLL: the negative sum of scored log-probabilities over the number of scored
    /// tokens, or, for the per-sequence reduction, the sum of sequence means over sequences.
    pub fn add_nll(&mut self, numerator: f64, denominator: f64) {
        self.nll_numerator += numerator;
        self.nll_denominator += denominator;
    }

    /// Adds what another part of the same batch or evaluation summed.
    pub fn merge(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.chosen += other.chosen;
        self.sum_chosen += other.sum_chosen;
        self.sum_rejected += other.sum_rejected;
        self.sum_z += other.sum_z;
        self.sum_odds_loss += other.sum_odds_loss;
        self.preferred += other.preferred;
        self.floored += other.floored;
        self.nll_numerator += other.nll_numerator;
        self.nll_denominator += other.nll_denominator;
    }

    /// Pairs so far.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// Pairs whose probability was floored; see [`ODDS_FLOOR`].
    pub fn floored(&self) -> u64 {
        self.floored
    }

    /// Mean NLL; 0 when nothing was scored.
    pub fn nll_loss(&self) -> f64 {
        if self.nll_denominator == 0.0 { 0.0 } else { self.nll_numerator / self.nll_denominator }
    }

    /// `NLL + lambda * mean odds-ratio loss`.
    pub fn loss(&self) -> f64 {
        if self.pairs == 0 {
            return self.nll_loss();
        }
        self.nll_loss() + self.lambda * self.sum_odds_loss / self.pairs as f64
    }

    /// The figures under TRL's names. Those of pairs (and of responses) are left out where there
    /// were none. Accuracy compares the log-probabilities themselves, which is TRL's figure for
    /// every lambda above 0 and still means something at 0.
    pub fn values(&self) -> Vec<(&'static str, f64)> {
        let mut values = vec![("loss", self.loss()), ("nll_loss", self.nll_loss())];
        if self.chosen > 0 {
            let chosen = self.sum_chosen / self.chosen as f64;
            values.push(("logps/chosen", chosen));
            values.push(("rewards/chosen", self.lambda * chosen));
        }
        if self.pairs > 0 {
            let n = self.pairs as f64;
            let rejected = self.sum_rejected / n;
            values.push(("logps/rejected", rejected));
            values.push(("rewards/rejected", self.lambda * rejected));
            values.push(("rewards/accuracies", self.preferred as f64 / n));
            // Rows without a rejected answer have no margin.
            if self.chosen == self.pairs {
                values.push(("rewards/margins", self.lambda * (self.sum_chosen / n - rejected)));
            }
            values.push(("log_odds_ratio", -self.sum_odds_loss / n));
            values.push(("log_odds_chosen", self.sum_z / n));
            values.push(("odds_floored", self.floored as f64));
        }
        values
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

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the rows done.
    pub epoch: f64,
    /// Training or held-out.
    pub split: Split,
    /// Figures by TRL's name, without prefix.
    pub values: Vec<(String, f64)>,
}

impl Record {
    /// A record of what was summed; more is added by [`Record::with`].
    pub fn new(split: Split, step: u64, epoch: f64, metrics: &StepMetrics) -> Self {
        let values = metrics.values().into_iter().map(|(k, v)| (k.to_string(), v)).collect();
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
/// watched and a killed one loses nothing.
#[derive(Debug)]
pub struct MetricsWriter {
    file: File,
    path: PathBuf,
}

impl MetricsWriter {
    /// Opens the file for appending; creates it if it is not there.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| Error::io("create", path, e))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Writes one line.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let line = record.to_line();
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.flush())
            .map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Every record of a `metrics.jsonl`. A last line without a line break, which a killed process
/// leaves, is not one.
pub fn read_metrics(path: &Path) -> Result<Vec<Record>> {
    Ok(read_lines(path)?.into_iter().map(|(_, record)| record).collect())
}

fn read_lines(path: &Path) -> Result<Vec<(String, Record)>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let text =
        std::str::from_utf8(&bytes[..whole]).map_err(|_| Error::file(path, "is not UTF-8 text"))?;
    let mut records = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let record = serde_json::from_str::<Map<String, Value>>(line)
            .ok()
            .as_ref()
            .and_then(Record::from_map);
        match record {
            Some(record) => records.push((format!("{line}\n"), record)),
            None => {
                let what =
                    format!("line {} is not a record with a step; move the file away", number + 1);
                return Err(Error::file(path, what));
            }
        }
    }
    Ok(records)
}

/// Removes what was recorded after `step`, so that a resumed run continues the file where its
/// checkpoint was made. A file that is not there needs nothing.
pub fn truncate_after_step(path: &Path, step: u64) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let kept: String = read_lines(path)?
        .into_iter()
        .filter(|(_, record)| record.step <= step)
        .map(|(line, _)| line)
        .collect();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let replace = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(kept.as_bytes())?;
        file.as_file().sync_all()?;
        // A temporary file is private; the one it replaces may have been readable to others.
        file.as_file().set_permissions(std::fs::metadata(path)?.permissions())?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    replace().map_err(|e| Error::io("write", path, e))
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
