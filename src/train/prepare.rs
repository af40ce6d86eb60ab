//! Everything about a run that can be found out without a device: the recipe's files are read and
//! checked, and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::data::check::DataReport;
use crate::data::form::Form;
use crate::data::pack::Capacity;
use crate::data::rows::Split;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::files::{TEMPORARY, check_creatable};
use crate::hub;
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::folder::PARTIAL;
use crate::model::generate::Room;
use crate::model::weight_files::check_weights_absent;
use crate::model::weights::{FolderWeights, ParameterValues, Storage};
use crate::train::checkpoint::{self, Moments, TrainState};
use crate::train::dataset::Dataset;
use crate::train::lock::{LOCK, RunLock};
use crate::train::metrics::METRICS;
use crate::train::program::Placement;
use crate::train::recipe::{self, Change, InitialWeights, Recipe};
use crate::train::sampler;
use crate::train::schedule::Schedule;
use crate::train::tensorboard::EVENTS;

/// Name of the resolved recipe in a run's folder.
pub const RECIPE: &str = "recipe.toml";
/// Name of the page about a run in its folder, for whoever draws one.
pub const REPORT: &str = "report.html";

/// The static sizes of a recipe's streams.
pub fn capacity(recipe: &Recipe) -> Capacity {
    let tokens = recipe.batch.stream_tokens;
    // An example has at least two tokens, and never more targets than tokens.
    Capacity { tokens, targets: tokens, pairs: recipe.batch.size.min(tokens / 2).max(1) }
}

/// A run whose input was read and found usable.
pub struct Prepared {
    /// With its section `[lora]` filled in.
    pub(super) recipe: Recipe,
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
    pub(super) capacity: Capacity,
    /// The form of prompts, which the trained model records.
    pub(super) form: Form,
    /// What continuing the recipe's prompts takes, if it has any.
    pub(super) room: Option<Room>,
    pub(super) train: Dataset,
    pub(super) report: DataReport,
    pub(super) heldout: Option<(Dataset, DataReport)>,
    /// Those of the checkpoint that is resumed from; None at the start.
    pub(super) weights: Option<FolderWeights>,
    /// How the model will lie on the device.
    pub(super) placement: Placement,
    pub(super) state: TrainState,
    /// The optimizer's moments of a resumed run.
    pub(super) moments: Option<Moments>,
    /// Damaged checkpoints newer than the one resumed from, to be moved aside.
    pub(super) damaged: Vec<PathBuf>,
    /// Of a folder that is there already: no other run is in it.
    pub(super) lock: Option<RunLock>,
    /// The folder that reference log-probs are kept in.
    pub(super) cache: Option<PathBuf>,
    /// Set when the run is to stop.
    pub(super) stop: Arc<AtomicBool>,
    /// Lines for the user.
    pub(super) notes: Vec<String>,
}

impl Prepared {
    /// Makes the run stop when `flag` becomes true: after the step it is in, with a checkpoint and
    /// [`Error::Stopped`].
    pub fn stop_when(self, flag: Arc<AtomicBool>) -> Self {
        Self { stop: flag, ..self }
    }

    /// Keeps in `folder` what objectives with a reference model compute before the first step, and
    /// takes it from there; without a folder every run computes it.
    pub fn cache_in(self, folder: Option<PathBuf>) -> Self {
        Self { cache: folder, ..self }
    }
}

/// Reads and checks what `recipe` names. With `resume` the newest whole checkpoint in the output
/// folder is read too; a folder in which a run stopped before its first checkpoint, or none at
/// all, is the start of the run.
///
/// # Errors
/// Everything that would stop the run later: an output folder that exists or cannot be made, a
/// folder to resume in that is not this recipe's run, a model, tokenizer, rows or prompts that
/// cannot be used or do not fit each other.
pub fn prepare(recipe: &Recipe, resume: bool) -> Result<Prepared> {
    let mut notes = Vec::new();
    let (resolved, config) = recipe.resolve()?;
    let recipe = &resolved;
    let Folder { latest, date, damaged, lock } = look_into_folder(recipe, resume, &mut notes)?;
    check_creatable(&recipe.output)?;
    notes.extend(config.notes.iter().cloned());
    let adapter = Adapter::of(&recipe.model)?;
    notes.extend(adapter.as_ref().map(|adapter| further(recipe, adapter)));
    // A checkpoint holds what trains; a frozen model is read anew.
    let starts = latest.is_none() || recipe.lora.is_some();
    let storage = match recipe.init {
        InitialWeights::Pretrained if starts => {
            FolderWeights::open(&recipe.model, &config)?.storage()
        }
        InitialWeights::Random if starts => {
            check_weights_absent(&recipe.model)?;
            notes.push(format!("the weights are drawn at random from seed {}", recipe.seed));
            Storage::new()
        }
        _ => Storage::new(),
    };
    let placement = recipe.placement(&config, storage);
    let folder = adapter.as_ref().map_or(&*recipe.model, |a| a.tokenizer_folder(&recipe.model));
    let tokenizer = Tokenizer::from_folder(folder)?;
    if let Some(date) = date {
        tokenizer.set_date(date);
    }
    let capacity = capacity(recipe);
    check_paths(recipe)?;
    notes.extend_from_slice(tokenizer.notes());
    let mut load = |paths: &[PathBuf], split| -> Result<(Dataset, DataReport)> {
        let kind = recipe.loss.objective.rows();
        let dataset = Dataset::load(&recipe.data, kind, &tokenizer, paths, split)?;
        notes.extend_from_slice(&dataset.notes);
        let report = dataset.check_fit(&tokenizer, &config, capacity)?;
        Ok((dataset, report))
    };
    let (train, report) = load(&recipe.data.train, Split::Train)?;
    let [desirable, undesirable] = report.labels;
    let told = recipe.loss.objective.check_labels(desirable, undesirable);
    let refused = |what| {
        Error::input("the rows cannot be trained on", vec![Problem::new("data.train", what)])
    };
    let told = told.map_err(refused)?;
    let form = recipe.sample.form.unwrap_or(train.form);
    let room = sampler::room(&tokenizer, &config, &recipe.sample, form)?;
    let heldout = match recipe.data.eval.as_slice() {
        [] => None,
        paths => Some(load(paths, Split::Validation)?),
    };
    notes.extend(told);
    let Start { weights, state, moments } =
        starting_point(recipe, &train, tokenizer.date(), latest, &mut notes)?;
    if let Some(date) = state.date {
        notes.push(dated(date));
    }
    Ok(Prepared {
        recipe: resolved,
        config,
        tokenizer,
        capacity,
        form,
        room,
        train,
        report,
        heldout,
        weights,
        placement,
        state,
        moments,
        damaged,
        lock,
        cache: None,
        stop: Arc::default(),
        notes,
    })
}

/// What the user hears of an adapter that is the recipe's model.
fn further(recipe: &Recipe, adapter: &Adapter) -> String {
    let reference = match recipe.loss.objective.has_reference() {
        true => "; the reference model is the adapter as it is now",
        false => "",
    };
    format!(
        "{} is an adapter, which is trained further over {}{reference}",
        recipe.model.display(),
        adapter.base.display()
    )
}

/// What a run goes on from.
struct Start {
    weights: Option<FolderWeights>,
    state: TrainState,
    moments: Option<Moments>,
}

/// The checkpoint in `latest`, or the recipe's own start.
fn starting_point(
    recipe: &Recipe,
    train: &Dataset,
    date: Option<i64>,
    latest: Option<PathBuf>,
    notes: &mut Vec<String>,
) -> Result<Start> {
    let fresh = TrainState {
        step: 0,
        epoch: 0,
        batch_in_epoch: 0,
        seed: recipe.seed,
        num_tokens: 0,
        row_order_hash: String::new(),
        recipe_hash: recipe.fingerprint(),
        recipe: recipe.to_toml(),
        kernels_hash: String::new(),
        start_hash: String::new(),
        best: None,
        date,
    };
    Ok(match latest {
        Some(folder) => {
            let found = checkpoint::read(&folder, &*recipe.trained())?;
            notes.extend(check_same_run(&found.state, recipe, train, date.is_some(), &folder)?);
            let (weights, moments) = (Some(found.weights), Some(found.moments));
            let TrainState { recipe_hash, recipe, .. } = fresh;
            Start { weights, state: TrainState { recipe_hash, recipe, ..found.state }, moments }
        }
        None => Start { weights: None, state: fresh, moments: None },
    })
}

/// What the user hears of a template with a date in it.
fn dated(seconds: i64) -> String {
    let day = chrono::DateTime::from_timestamp(seconds, 0);
    let day = day.map_or_else(|| format!("{seconds} s"), |day| day.format("%Y-%m-%d").to_string());
    format!(
        "the chat template writes the date; this run keeps that of its start, {day}, when it is resumed too"
    )
}

/// Every file or folder of rows that is not there, by its key.
fn check_paths(recipe: &Recipe) -> Result<()> {
    let data = &recipe.data;
    let named = data.train.iter().map(|p| ("data.train", p));
    let missing: Vec<Problem> = named
        .chain(data.eval.iter().map(|p| ("data.eval", p)))
        .filter_map(|(key, path)| {
            let there = hub::data_folder(path)
                .and_then(|path| fs::metadata(&path).map_err(|e| Error::io("read", &path, e)));
            there.err().map(|error| Problem::new(key, error.to_string()))
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let summary = "there are no rows; relative paths start at the current folder";
    Err(Error::input(summary, missing))
}

/// What the output folder holds.
#[derive(Default)]
struct Folder {
    /// The checkpoint to go on from, if any.
    latest: Option<PathBuf>,
    /// The time that its chat template was told.
    date: Option<i64>,
    /// Damaged checkpoints that are newer.
    damaged: Vec<PathBuf>,
    /// None where there is no folder yet.
    lock: Option<RunLock>,
}

fn look_into_folder(recipe: &Recipe, resume: bool, notes: &mut Vec<String>) -> Result<Folder> {
    let output = &recipe.output;
    if fs::symlink_metadata(output).is_err() {
        if resume {
            notes.push(format!("{} does not exist: the run starts anew", output.display()));
        }
        return Ok(Folder::default());
    }
    if !resume {
        // "Remove it" is no advice while another run is in it.
        RunLock::check_free(output)?;
        return Err(Error::file(
            output,
            "exists already. Choose another `output`, remove it, or go on from its last checkpoint with --resume.",
        ));
    }
    if !output.is_dir() {
        return Err(Error::file(
            output,
            "is not a folder, so there is no run in it to resume. Check `output`.",
        ));
    }
    // Somebody else's folder gets no lock either.
    if checkpoint::list(output)?.is_empty() {
        check_leftovers(recipe)?;
    }
    let lock = RunLock::take(output)?;
    if !lock.is_held() {
        notes.push(format!(
            "{}: its file system knows no locks, so a second run in it would not be noticed",
            output.display()
        ));
    }
    let latest = checkpoint::latest(output)?;
    if latest.folder.is_none() {
        if !latest.skipped.is_empty() {
            return Err(Error::input(
                format!(
                    "{} has no whole checkpoint to go on from. Start anew with another `output`.",
                    output.display()
                ),
                latest.skipped,
            ));
        }
        notes.push(format!("{} has no checkpoint: the run starts anew", output.display()));
    }
    notes.extend(latest.skipped.iter().map(|p| format!("{}: {}", p.place, p.what)));
    let damaged = latest.skipped.into_iter().map(|p| PathBuf::from(p.place)).collect();
    Ok(Folder { latest: latest.folder, date: latest.date, damaged, lock: Some(lock) })
}

/// A folder without checkpoints may be written into only if nothing is in it but what this very
/// run left when it stopped before its first one.
fn check_leftovers(recipe: &Recipe) -> Result<()> {
    let output = &recipe.output;
    let mut foreign = Vec::new();
    for entry in fs::read_dir(output).map_err(|e| Error::io("read", output, e))? {
        let entry = entry.map_err(|e| Error::io("read", output, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = [RECIPE, METRICS, EVENTS, REPORT, LOCK].contains(&name.as_str());
        // What a process that was killed while it wrote leaves behind.
        let half_written = name.ends_with(PARTIAL) || name.starts_with(TEMPORARY);
        if !(ours || half_written) {
            foreign.push(name);
        }
    }
    foreign.sort();
    if !foreign.is_empty() {
        return Err(Error::file(
            output,
            format!(
                "has no checkpoint to go on from, and holds something else ({}). Check `output`, or choose a new folder and leave --resume out.",
                foreign.join(", ")
            ),
        ));
    }
    let path = output.join(RECIPE);
    if path.exists() {
        let before = recipe::load(&path, &[]).ok();
        let changes = before.and_then(|before| recipe.changes_since(&before.to_toml()));
        let harmful = changes.map(|changes| harmful(&changes));
        if !harmful.as_ref().is_some_and(Vec::is_empty) {
            let summary = format!(
                "{}: is another recipe, and there is no checkpoint to go on from. Choose another `output` and leave --resume out.",
                path.display()
            );
            return Err(Error::input(summary, harmful.unwrap_or_default()));
        }
    }
    Ok(())
}

/// The changes that would make another run of it, each by its key.
fn harmful(changes: &[Change]) -> Vec<Problem> {
    let harmful = changes.iter().filter(|change| !change.is_harmless());
    harmful.map(|change| Problem::new(&change.key, change.to_string())).collect()
}

/// Compares the recipe with that of a checkpoint. `problems` gets what would make another run of
/// it; a line for the user tells the rest.
fn compare_recipes(
    found: &TrainState,
    recipe: &Recipe,
    place: &str,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let same = found.recipe_hash == recipe.fingerprint();
    let Some(changes) = recipe.changes_since(&found.recipe).filter(|_| !found.recipe.is_empty())
    else {
        let what = "was made by another recipe. Resume with the recipe.toml in the output folder, or start a new run.";
        problems.extend((!same).then(|| Problem::new(place, what)));
        return None;
    };
    let harmful = harmful(&changes);
    if !harmful.is_empty() {
        let what = "was made by another recipe. Change these settings back, or start a new run.";
        problems.push(Problem::new(place, what));
        problems.extend(harmful);
        return None;
    }
    let told: Vec<String> = changes
        .iter()
        .filter(|change| change.key != "output")
        .map(|change| format!("{} {change}", change.key))
        .collect();
    if told.is_empty() {
        return None;
    }
    let length = changes.iter().any(Change::is_of_length);
    let optim = &recipe.optim;
    let follows = length && (optim.schedule != Schedule::Constant || optim.warmup_ratio.is_some());
    let rate = if follows { "; the learning rate follows the new length from here on" } else { "" };
    Some(format!("changed since the checkpoint: {}{rate}", told.join(", ")))
}

/// A resumed run must be the same run. Gives a line about settings that have changed.
fn check_same_run(
    found: &TrainState,
    recipe: &Recipe,
    train: &Dataset,
    dated: bool,
    place: &Path,
) -> Result<Option<String>> {
    let place = place.display().to_string();
    let mut problems = Vec::new();
    let told = compare_recipes(found, recipe, &place, &mut problems);
    let order = train.order(found.seed, found.epoch);
    if found.row_order_hash != train.order_hash(&order) {
        let what = if dated {
            "was made on other tokens, as it seems because of the date: the chat template writes it into every conversation (strftime_now). Put a date of your own in the place of strftime_now in the template, and start a new run."
        } else {
            "was made on other rows or another tokenizer: resuming would not give the same model."
        };
        problems.push(Problem::new(&place, what));
    } else if problems.is_empty() {
        let per_epoch = train.steps_per_epoch(recipe.batch.size);
        let misfit = found.misfit(per_epoch, recipe.train.total_steps(per_epoch));
        problems.extend(misfit.map(|what| Problem::new(&place, what)));
    }
    if problems.is_empty() {
        return Ok(told);
    }
    Err(Error::input("cannot resume", problems))
}
