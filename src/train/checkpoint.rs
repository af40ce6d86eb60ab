//! Checkpoints: everything a run needs to go on, in a folder that is also a loadable model.
//!
//! ```text
//! runs/first/checkpoint-00000050/
//!   config.json  model.safetensors  tokenizer.json  …   the model, as transformers reads it
//!   optimizer.safetensors    adam_m.NAME and adam_v.NAME for every trained parameter NAME, f32
//!   state.json               where the run stands, the blake3 hash of each file above and of itself
//! ```
//!
//! The folder appears by a rename after everything in it is on disk, and the hashes in
//! `state.json` tell a torn or edited file from a whole one: one changed byte in any of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::form::Form;
use crate::dtype::DType;
use crate::error::{Error, Problem, Result};
use crate::files::read_file;
use crate::graph::Parameter;
use crate::model::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::model::config::ModelConfig;
use crate::model::folder::{
    PARTIAL, fill_model_folder, hash_file, partial_sibling, write_folder, write_text,
};
use crate::model::save::{ReadParameter, Unwritten, write_safetensors};
use crate::model::source::{SafetensorsFile, WeightSource};
use crate::model::weights::{FolderWeights, ParameterValues, Put};
use crate::train::best::Best;
use crate::train::learner::{FIRST_MOMENT, SECOND_MOMENT};

const PREFIX: &str = "checkpoint-";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Larger than any list of the files of a checkpoint.
const LARGEST_STATE: usize = 1 << 20;
const FORMAT: u32 = 2;
/// As [`FORMAT`], without a hash of `state.json` itself.
const UNSEALED: u32 = 1;
/// What stands for the hash of `state.json` while that is computed.
const BLANK: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Counts beyond this are no counts: no run has so many steps or tokens.
const MOST: u64 = 1 << 53;

/// Where a run stands: what is needed to go on as if it had never stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the rows finished.
    pub epoch: u64,
    /// Optimizer steps done within the current pass.
    pub batch_in_epoch: u64,
    /// Seed of the run.
    pub seed: u64,
    /// PackedBatch tokens processed so far.
    pub num_tokens: u64,
    /// Hash of the current pass's row order, so that changed data is noticed.
    pub row_order_hash: String,
    /// [`Recipe::fingerprint`](super::recipe::Recipe::fingerprint) of the run.
    pub recipe_hash: String,
    /// The resolved recipe of the run; empty in checkpoints of earlier versions.
    #[serde(default)]
    pub recipe: String,
    /// [`Learner::kernels_hash`](super::learner::Learner::kernels_hash); empty in checkpoints of
    /// earlier versions.
    #[serde(default)]
    pub kernels_hash: String,
    /// [`Hashed::hash`](super::proof::Hashed::hash) of the weights the run began with; empty in
    /// checkpoints of earlier versions.
    #[serde(default)]
    pub start_hash: String,
    /// The best evaluation so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// The time that the chat template writes into the run's conversations, in seconds since 1970,
    /// if it writes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<i64>,
}

impl TrainState {
    /// What is wrong with these counters, whatever the run.
    fn problem(&self) -> Option<String> {
        let Self { step, epoch, batch_in_epoch, num_tokens, .. } = *self;
        let counts = [
            ("step", step),
            ("epoch", epoch),
            ("batch_in_epoch", batch_in_epoch),
            ("num_tokens", num_tokens),
        ];
        let wrong = counts.into_iter().find(|(_, n)| *n > MOST);
        wrong.map(|(name, n)| format!("{name} is {n}, which no run reaches"))
    }

    /// What keeps a run of `total` steps, of which `per_epoch` are a pass, from standing here.
    pub fn misfit(&self, per_epoch: u64, total: u64) -> Option<String> {
        let Self { step, epoch, batch_in_epoch, .. } = *self;
        let counted = epoch.checked_mul(per_epoch).and_then(|n| n.checked_add(batch_in_epoch));
        if batch_in_epoch > per_epoch || counted != Some(step) {
            return Some(format!(
                "its counters do not fit the run: step {step} is not step {batch_in_epoch} of the {per_epoch} in a pass, after {epoch} passes"
            ));
        }
        (step > total).then(|| format!("is at step {step}, and the recipe ends at step {total}"))
    }
}

/// What a file calls each moment, and the suffix of its state.
const MOMENTS: [(&str, &str); 2] = [("adam_m", FIRST_MOMENT), ("adam_v", SECOND_MOMENT)];

/// Adam's moments in a checkpoint, in the shapes of their parameters. [`ParameterValues::each`]
/// hands them out by the names of their state: the parameter's and a suffix.
pub struct Moments {
    file: SafetensorsFile,
}

impl ParameterValues for Moments {
    fn each(&self, put: &mut Put) -> Result<()> {
        let (mut values, mut problems) = (Vec::new(), Vec::new());
        for key in self.file.names() {
            let Some((parameter, suffix)) = moment_of(&key) else { continue };
            let shape = self.file.info(&key).map_or_else(Vec::new, |info| info.shape);
            self.file.read(&key, &mut values)?;
            let bad = values.iter().filter(|x| !x.is_finite()).count();
            if bad > 0 {
                let what = format!("has {bad} values that are not finite: its training diverged");
                problems.push(Problem::new(self.file.place(&key), what));
            }
            put(&format!("{parameter}{suffix}"), &shape, &values)?;
        }
        if !problems.is_empty() {
            return Err(Error::input(
                "the moments of the checkpoint cannot be used; go on from an earlier one",
                problems,
            ));
        }
        Ok(())
    }
}

/// The parameter of a moment's tensor, and the suffix of its state.
fn moment_of(key: &str) -> Option<(&str, &'static str)> {
    MOMENTS.iter().find_map(|(prefix, suffix)| {
        let parameter = key.strip_prefix(prefix)?.strip_prefix('.')?;
        Some((parameter, *suffix))
    })
}

/// A checkpoint found whole: what is large in it is read when it is asked for.
pub struct Checkpoint {
    /// Where the run stood.
    pub state: TrainState,
    /// The model's shape.
    pub config: ModelConfig,
    /// The weights.
    pub weights: FolderWeights,
    /// The optimizer's moments.
    pub moments: Moments,
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    format: u32,
    state: TrainState,
    /// blake3 by file name.
    files: BTreeMap<String, String>,
    /// blake3 of this file with [`BLANK`] in this place; not in [`UNSEALED`] files.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    hash: String,
}

impl StateFile {
    fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a state is JSON") + "\n"
    }

    /// The text of the file, with its own hash in it.
    fn sealed(mut self) -> String {
        self.hash = BLANK.to_owned();
        let text = self.to_text();
        text.replace(BLANK, blake3::hash(text.as_bytes()).to_hex().as_str())
    }

    /// Reads the text of `path` and compares it with its hash.
    fn parse(path: &Path, text: &str) -> Result<Self> {
        let file: Self = serde_json::from_str(text)
            .map_err(|e| Error::file(path, format!("is not the state of a checkpoint: {e}")))?;
        let whole = match file.format {
            FORMAT if file.hash.len() == BLANK.len() => {
                let blank = text.replace(&file.hash, BLANK);
                blake3::hash(blank.as_bytes()).to_hex().as_str() == file.hash
            }
            FORMAT => false,
            UNSEALED => file.hash.is_empty(),
            other => {
                let what =
                    format!("has format {other}, this version reads {UNSEALED} and {FORMAT}");
                return Err(Error::file(path, what));
            }
        };
        let problem = match whole {
            false => Some("is torn or was changed after it was saved".into()),
            true => file.state.problem(),
        };
        problem.map_or(Ok(file), |what| Err(Error::file(path, what)))
    }
}

/// The folder of the checkpoint after `step` optimizer steps.
pub fn folder_of(run_folder: &Path, step: u64) -> PathBuf {
    run_folder.join(format!("{PREFIX}{step:08}"))
}

/// Writes the checkpoint of `state.step` into the run's folder and returns its own. `source` is
/// the model folder whose tokenizer and templates go along, `form` that of the rows. `read` gives the values of a state by
/// its name: `config`'s parameters, and with [`FIRST_MOMENT`] and [`SECOND_MOMENT`] behind the name
/// those of the `trained` ones. All is written in f32, so that a resumed run has the same bits.
///
/// # Errors
/// An existing checkpoint of that step, weights or moments that are not finite, a full disk;
/// nothing half-written stays behind.
pub fn write(
    run_folder: &Path,
    state: &TrainState,
    source: Option<&Path>,
    form: Form,
    config: &ModelConfig,
    trained: &[Parameter],
    read: &ReadParameter,
) -> Result<PathBuf> {
    let destination = folder_of(run_folder, state.step);
    write_folder(&destination, |folder| {
        fill_model_folder(folder, source, Some(form), config, read)?;
        let moments = MOMENTS.iter().flat_map(|(prefix, suffix)| {
            trained.iter().map(move |p| Unwritten {
                name: format!("{prefix}.{}", p.name),
                shape: p.shape.clone(),
                dtype: DType::F32,
                values: Box::new(move || read(&format!("{}{suffix}", p.name))),
            })
        });
        write_safetensors(&folder.join(OPTIMIZER), moments)?;
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
            let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, hash_file(&path)?);
        }
        let hash = String::new();
        let file = StateFile { format: FORMAT, state: state.clone(), files, hash };
        write_text(&folder.join(STATE), &file.sealed())
    })?;
    Ok(destination)
}

/// Checks a checkpoint: hashes, weights against the configuration, moments against those of its
/// parameters that `trained` accepts. Nothing large stays in memory.
///
/// # Errors
/// A torn or edited file; every tensor that is missing, in excess or of another shape.
pub fn read(folder: &Path, trained: &dyn Fn(&str) -> bool) -> Result<Checkpoint> {
    let state = verify(folder)?;
    let config = ModelConfig::load(folder)?;
    let weights = FolderWeights::open(folder, &config)?;
    let moments = Moments { file: SafetensorsFile::open(&folder.join(OPTIMIZER))? };
    let mut problems = Vec::new();
    let parameters: HashMap<&str, &Parameter> = config
        .parameters()
        .iter()
        .filter(|p| trained(&p.name))
        .map(|p| (p.name.as_str(), p))
        .collect();
    let keys = moments.file.names();
    for key in &keys {
        let what = match moment_of(key) {
            None => Some("is not a moment of Adam".to_owned()),
            Some((name, _)) => match (parameters.get(name), moments.file.info(key)) {
                (None, _) => Some("belongs to no trained parameter".to_owned()),
                (Some(p), Some(info)) if info.shape != p.shape => {
                    Some(format!("has shape {:?}, but its parameter {:?}", info.shape, p.shape))
                }
                (Some(_), info) => info.and_then(|info| info.problem()),
            },
        };
        problems.extend(what.map(|what| Problem::new(moments.file.place(key), what)));
    }
    let there: HashSet<&str> = keys.iter().map(String::as_str).collect();
    for (prefix, _) in MOMENTS {
        for p in config.parameters().iter().filter(|p| parameters.contains_key(p.name.as_str())) {
            let key = format!("{prefix}.{}", p.name);
            if !there.contains(key.as_str()) {
                problems.push(Problem::new(moments.file.place(&key), "is missing"));
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error::input(format!("{} cannot be resumed from", folder.display()), problems));
    }
    Ok(Checkpoint { state, config, weights, moments })
}

/// Reads the state of a checkpoint and compares every file, `state.json` itself among them, with its
/// hash.
///
/// # Errors
/// A state that is torn or counts what cannot be; every file that is missing or has another hash.
pub fn verify(folder: &Path) -> Result<TrainState> {
    let path = folder.join(STATE);
    let bytes = read_file(&path, LARGEST_STATE)?
        .ok_or_else(|| Error::io("read", &path, std::io::ErrorKind::NotFound.into()))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::file(&path, "is not UTF-8 text"))?;
    let file = StateFile::parse(&path, &text)?;
    let mut problems = Vec::new();
    let of_model = match file.files.contains_key(ADAPTER_CONFIG) {
        false => ["config.json", "model.safetensors"],
        true => [ADAPTER_CONFIG, ADAPTER_WEIGHTS],
    };
    for needed in of_model.into_iter().chain([OPTIMIZER]) {
        if !file.files.contains_key(needed) {
            problems.push(Problem::new(format!("{}: {needed}", path.display()), "has no hash"));
        }
    }
    for (name, hash) in &file.files {
        let place = folder.join(name).display().to_string();
        // The names come from a file: they must not lead out of the folder.
        if Path::new(name).file_name() != Some(name.as_ref()) {
            problems.push(Problem::new(place, "is not the name of a file in the checkpoint"));
            continue;
        }
        match hash_file(&folder.join(name)) {
            Ok(found) if found == *hash => {}
            Ok(_) => {
                problems.push(Problem::new(place, "is torn or was changed after it was saved"))
            }
            Err(error) => problems.push(Problem::new(place, error.to_string())),
        }
    }
    if problems.is_empty() {
        Ok(file.state)
    } else {
        Err(Error::input(format!("the checkpoint {} is damaged", folder.display()), problems))
    }
}

/// The newest checkpoint of a run that is whole, and why newer ones were passed over.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Latest {
    /// The checkpoint's folder, if there is one.
    pub folder: Option<PathBuf>,
    /// [`TrainState::date`] of it.
    pub date: Option<i64>,
    /// Damaged newer ones, for telling the user.
    pub skipped: Vec<Problem>,
}

/// Looks for the newest whole checkpoint of a run. Folders still being written have another name
/// and are never seen.
///
/// # Errors
/// When the folder of the run cannot be read.
pub fn latest(run_folder: &Path) -> Result<Latest> {
    let mut skipped = Vec::new();
    for (step, folder) in list(run_folder)?.into_iter().rev() {
        let why = match verify(&folder) {
            Ok(state) if state.step == step => {
                return Ok(Latest { folder: Some(folder), date: state.date, skipped });
            }
            Ok(state) => format!("it is the checkpoint of step {}", state.step),
            Err(error) => error.to_string(),
        };
        skipped.push(Problem::new(folder.display().to_string(), format!("passed over: {why}")));
    }
    Ok(Latest { folder: None, date: None, skipped })
}

/// Checkpoints of a run by step, oldest first, whole or not.
///
/// # Errors
/// When the folder of the run cannot be read.
pub fn list(run_folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run_folder).map_err(|e| Error::io("read", run_folder, e))? {
        let path = entry.map_err(|e| Error::io("read", run_folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digits = name.strip_prefix(PREFIX).unwrap_or_default();
        // "checkpoint-+1" and "checkpoint-best" are not ours.
        if digits.len() >= 8
            && digits.bytes().all(|b| b.is_ascii_digit())
            && path.is_dir()
            && let Ok(step) = digits.parse()
        {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Deletes all but the `keep` newest checkpoints (at least one stays) and that of step `best`, and
/// what a killed process left half-written. Call it after a checkpoint was written.
///
/// # Errors
/// When a folder cannot be read, renamed or deleted.
pub fn prune(run_folder: &Path, keep: usize, best: Option<u64>) -> Result<()> {
    let mut all = list(run_folder)?;
    all.retain(|(step, _)| Some(*step) != best);
    let old = all.len().saturating_sub(keep.max(1));
    for (_, folder) in &all[..old] {
        // Renamed first: a deletion that stops half-way must not look like a checkpoint.
        let doomed = partial_sibling(folder);
        fs::rename(folder, &doomed).map_err(|e| Error::io("remove", folder, e))?;
    }
    for entry in fs::read_dir(run_folder).map_err(|e| Error::io("read", run_folder, e))? {
        let path = entry.map_err(|e| Error::io("read", run_folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&format!(".{PREFIX}")) && name.ends_with(PARTIAL) && path.is_dir() {
            fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
