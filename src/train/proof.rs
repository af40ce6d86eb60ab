//! What a run has to show before it is called finished: that every parameter which should train
//! has gradients and other values than at the start, that no other has, and that the written model
//! holds what was trained.

use crate::error::{Error, Problem, Result};
use crate::files::write_atomically;
use crate::graph::Parameter;
use crate::model::config::ModelConfig;
use crate::model::folder::hash_file;
use crate::model::save::weights_file;
use crate::model::weights::{FolderWeights, ParameterValues, Put};
use crate::train::learner::{FIRST_MOMENT, Learner, SECOND_MOMENT};
use crate::train::metrics::{MetricsRecord, Split};
use crate::train::program::TrainedSet;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Name of the proof in a run's folder.
pub const PROOF: &str = "proof.json";

/// Values that are hashed as they are handed out, so that they are known again.
pub struct Hashed<'a> {
    values: &'a dyn ParameterValues,
    hasher: RefCell<blake3::Hasher>,
}

impl<'a> Hashed<'a> {
    /// Nothing is hashed yet.
    pub fn new(values: &'a dyn ParameterValues) -> Self {
        Self { values, hasher: RefCell::default() }
    }

    /// The blake3 hash of names and values handed out so far, in hexadecimal digits.
    pub fn hash(&self) -> String {
        self.hasher.borrow().finalize().to_hex().to_string()
    }
}

impl ParameterValues for Hashed<'_> {
    fn each(&self, put: &mut Put) -> Result<()> {
        self.values.each(&mut |name, shape, values| {
            let mut hasher = self.hasher.borrow_mut();
            hasher.update(name.as_bytes()).update(&[0]).update(bytemuck::cast_slice(values));
            put(name, shape, values)
        })
    }
}

/// How far a parameter is from where it started.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The parameter.
    pub name: String,
    /// Whether it should train.
    pub trained: bool,
    /// Whether a gradient of it ever was other than zero: its moments are.
    pub had_gradients: bool,
    /// How many of its values are others than at the start.
    pub changed_values: u64,
    /// Its values.
    pub values: u64,
    /// L2 norm of what was added.
    pub change: f64,
    /// The same over the norm at the start; None if that was 0.
    pub relative: Option<f64>,
}

/// Figures of the held-out rows, by TRL's names.
pub type HeldOut = BTreeMap<String, f64>;

/// What a finished run has shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Proof {
    /// Optimizer steps of the run.
    pub steps: u64,
    /// False where every learning rate was 0, so that nothing could change.
    pub trains: bool,
    /// The blake3 hash of the starting weights: names and f32 values.
    pub start_blake3: String,
    /// The blake3 hash of the written `model.safetensors`, or `adapter_model.safetensors`.
    pub model_blake3: String,
    /// Held-out rows before the first step; None without an evaluation there.
    pub held_out_before: Option<HeldOut>,
    /// Held-out rows after the last step.
    pub held_out_after: Option<HeldOut>,
    /// Every parameter.
    pub parameters: Vec<Change>,
}

/// The run that is to be proved.
pub struct Claim<'a> {
    /// The model as it is on the device.
    pub learner: &'a Learner,
    /// The parameters that should have trained.
    pub trained: &'a TrainedSet,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Whether any step had a learning rate above 0.
    pub trains: bool,
    /// The weights the run began with.
    pub start: &'a dyn ParameterValues,
    /// Their [`Hashed::hash`] when it began; empty where a checkpoint of an earlier version lacks it.
    pub start_hash: &'a str,
    /// The folder of the written model.
    pub model: &'a Path,
    /// What was recorded.
    pub records: &'a [MetricsRecord],
}

impl Claim<'_> {
    /// Looks whether it holds. Start, device and file are read side by side, one parameter at a
    /// time.
    ///
    /// # Errors
    /// Every parameter that should have trained and has no gradient or its starting values, that
    /// should not and has others, or that the written file holds otherwise; other starting weights
    /// than the run began with; files that cannot be read.
    pub fn prove(&self) -> Result<Proof> {
        let (parameters, start_blake3) = self.changes()?;
        let mut problems = self.untrained(&parameters);
        problems.extend(self.misread()?);
        if !problems.is_empty() {
            let summary = format!(
                "the run did its steps but did not train what it should have: {} is not a finished model",
                self.model.display()
            );
            return Err(Error::input(summary, problems));
        }
        let held_out = |step: u64| -> Option<HeldOut> {
            let at = |r: &&MetricsRecord| r.split == Split::Eval && r.step == step;
            let record = self.records.iter().rev().find(at)?;
            // A speed proves nothing, and differs from run to run.
            let figures = record.values.iter().filter(|(name, _)| name != "tokens_per_second");
            Some(figures.cloned().collect())
        };
        Ok(Proof {
            steps: self.steps,
            trains: self.trains,
            start_blake3,
            model_blake3: hash_file(&self.model.join(weights_file(&self.learner.config)))?,
            held_out_before: held_out(0),
            held_out_after: held_out(self.steps),
            parameters,
        })
    }

    /// Every parameter against its starting values, and the hash of those.
    fn changes(&self) -> Result<(Vec<Change>, String)> {
        let have_moments: BTreeSet<&str> =
            self.learner.trained().iter().map(|p| p.name.as_str()).collect();
        let start = Hashed::new(self.start);
        let mut changes = Vec::new();
        start.each(&mut |name, _, before| {
            let before = self.learner.as_stored(name, before);
            let (mut changed_values, mut added, mut size) = (0, 0.0, 0.0);
            let mut left = before.iter();
            self.learner.read_in_pieces(name, &mut |now| {
                for (&b, &a) in now.iter().zip(&mut left) {
                    changed_values += u64::from(a.to_bits() != b.to_bits());
                    added += (f64::from(b) - f64::from(a)).powi(2);
                    size += f64::from(a).powi(2);
                }
            })?;
            let is_set = |suffix: &str| -> Result<bool> {
                let mut set = false;
                self.learner.read_in_pieces(&format!("{name}{suffix}"), &mut |moment| {
                    set |= moment.iter().any(|&x| x != 0.0);
                })?;
                Ok(set)
            };
            let had_gradients =
                have_moments.contains(name) && (is_set(SECOND_MOMENT)? || is_set(FIRST_MOMENT)?);
            changes.push(Change {
                name: name.to_owned(),
                trained: (self.trained)(name),
                had_gradients,
                changed_values,
                values: before.len() as u64,
                change: added.sqrt(),
                relative: (size > 0.0).then(|| (added / size).sqrt()),
            });
            Ok(())
        })?;
        let hash = start.hash();
        if !self.start_hash.is_empty() && hash != self.start_hash {
            return Err(Error::Mismatch(format!(
                "the model is written to {}, but how far it was trained cannot be said: the weights that the run began with have changed since. Put them back and run this again with --resume.",
                self.model.display()
            )));
        }
        Ok((changes, hash))
    }

    /// What did not train as it should have.
    fn untrained(&self, changes: &[Change]) -> Vec<Problem> {
        let what = |c: &Change| match (c.trained && self.trains, c.changed_values > 0) {
            (true, _) if !c.had_gradients => {
                Some("should train, but never had a gradient other than 0")
            }
            (true, false) => Some(
                "had gradients, but has its starting values: optim.learning_rate is too small to change a 32-bit float",
            ),
            (false, true) => Some("should not train, but has changed"),
            _ => None,
        };
        changes.iter().filter_map(|c| Some(Problem::new(&c.name, what(c)?))).collect()
    }

    /// What the written file holds otherwise than the device.
    fn misread(&self) -> Result<Vec<Problem>> {
        let config = ModelConfig::load(self.model)?;
        let written = FolderWeights::open(self.model, &config)?;
        let mut missing: BTreeMap<&str, &Parameter> =
            self.learner.config.parameters().iter().map(|p| (p.name.as_str(), p)).collect();
        let mut problems = Vec::new();
        let mut differs = |name: &str, what: String| {
            let place = format!("{}: {name}", self.model.display());
            problems.push(Problem::new(place, what));
        };
        written.each(&mut |name, shape, values| {
            let Some(parameter) = missing.remove(name) else {
                differs(name, "is no parameter of the model that was trained".into());
                return Ok(());
            };
            if shape != parameter.shape {
                differs(name, format!("has shape {shape:?}, trained was {:?}", parameter.shape));
                return Ok(());
            }
            let values = self.learner.as_stored(name, values);
            let (mut left, mut other) = (values.iter(), 0);
            self.learner.read_in_pieces(name, &mut |trained| {
                let pairs = trained.iter().zip(&mut left);
                other += pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            })?;
            if other > 0 {
                differs(name, format!("reads back with {other} of {} values others than those that were trained: the disk or its file system is at fault", values.len()));
            }
            Ok(())
        })?;
        for name in missing.into_keys() {
            differs(name, "was trained, but is not in the file".into());
        }
        Ok(problems)
    }
}

impl Proof {
    /// Writes it into the run's folder.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn write(&self, run_folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("a proof is JSON") + "\n";
        write_atomically(&run_folder.join(PROOF), text.as_bytes())
    }

    /// What a person is told of it.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let trained: Vec<&Change> = self.parameters.iter().filter(|c| c.trained).collect();
        match self.trains {
            false => lines.push(
                "nothing was trained: every learning rate was 0, and all weights are those of the start".into(),
            ),
            true => {
                let changed: u64 = trained.iter().map(|c| c.changed_values).sum();
                let values: u64 = trained.iter().map(|c| c.values).sum();
                lines.push(format!(
                    "trained: all {} of {} tensors had gradients and changed ({:.1} % of their values){}",
                    trained.len(),
                    self.parameters.len(),
                    100.0 * changed as f64 / values.max(1) as f64,
                    span(&trained),
                ));
            }
        }
        if let (Some(before), Some(after)) = (&self.held_out_before, &self.held_out_after) {
            let shown = ["loss", "rewards/accuracies"].iter().filter_map(|key| {
                Some(format!("{key} {:.4} -> {:.4}", before.get(*key)?, after.get(*key)?))
            });
            lines.push(format!("held out: {}", shown.collect::<Vec<_>>().join(", ")));
        }
        lines.push(format!(
            "the written model reads back bit for bit; its weights have blake3 {}",
            self.model_blake3
        ));
        lines
    }
}

/// The least and the most that tensors have changed, relative to where they started.
fn span(trained: &[&Change]) -> String {
    let known = || trained.iter().filter_map(|c| Some((c.relative?, &c.name)));
    let least = known().min_by(|a, b| a.0.total_cmp(&b.0));
    let most = known().max_by(|a, b| a.0.total_cmp(&b.0));
    let (Some((least, a)), Some((most, b))) = (least, most) else { return String::new() };
    format!(", relative to their size by {least:.1e} ({a}) to {most:.1e} ({b})")
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
