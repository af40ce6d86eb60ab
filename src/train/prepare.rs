//! Everything about a run that can be found out without a device: the recipe's files are read and
//! checked, and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::data::check::DataReport;
use crate::data::pack::Capacity;
use crate::data::rows::Split;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::files::check_creatable;
use crate::model::config::ModelConfig;
use crate::model::folder::PARTIAL;
use crate::model::generate::Room;
use crate::model::weight_files::check_weights_absent;
use crate::model::weights::FolderWeights;
use crate::train::checkpoint::{self, Moments, TrainState};
use crate::train::dataset::Dataset;
use crate::train::metrics::METRICS;
use crate::train::recipe::{self, InitialWeights, Recipe};
use crate::train::sampler;

/// Name of the resolved recipe in a run's folder.
pub const RECIPE: &str = "recipe.toml";

/// The static sizes of a recipe's streams.
pub fn capacity(recipe: &Recipe) -> Capacity {
    let tokens = recipe.batch.stream_tokens;
    // An example has at least two tokens, and never more targets than tokens.
    Capacity { tokens, targets: tokens, pairs: recipe.batch.size.min(tokens / 2).max(1) }
}

/// A run whose input was read and found usable.
pub struct Prepared<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
    pub(super) capacity: Capacity,
    /// What continuing the recipe's prompts takes, if it has any.
    pub(super) room: Option<Room>,
    pub(super) train: Dataset,
    pub(super) report: DataReport,
    pub(super) heldout: Option<(Dataset, DataReport)>,
    /// None where they are drawn from the seed.
    pub(super) weights: Option<FolderWeights>,
    pub(super) state: TrainState,
    /// The optimizer's moments of a resumed run.
    pub(super) moments: Option<Moments>,
    /// Damaged checkpoints newer than the one resumed from, to be moved aside.
    pub(super) damaged: Vec<PathBuf>,
    /// Lines for the user.
    pub(super) notes: Vec<String>,
}

/// Reads and checks what `recipe` names. With `resume` the newest whole checkpoint in the output
/// folder is read too; a folder in which a run stopped before its first checkpoint, or none at
/// all, is the start of the run.
///
/// # Errors
/// Everything that would stop the run later: an output folder that exists or cannot be made, a
/// folder to resume in that is not this recipe's run, a model, tokenizer, rows or prompts that
/// cannot be used or do not fit each other.
pub fn prepare(recipe: &Recipe, resume: bool) -> Result<Prepared<'_>> {
    let mut notes = Vec::new();
    let (latest, damaged) = look_for_checkpoint(recipe, resume, &mut notes)?;
    check_creatable(&recipe.output)?;
    let config = ModelConfig::load(&recipe.model)?;
    notes.extend(config.notes.iter().cloned());
    let initial = match &latest {
        None => initial_weights(recipe, &config, &mut notes)?,
        Some(_) => None,
    };
    let tokenizer = Tokenizer::from_folder(&recipe.model)?;
    let room = sampler::room(&tokenizer, &config, &recipe.sample)?;
    let capacity = capacity(recipe);
    check_paths(recipe)?;
    notes.extend_from_slice(tokenizer.notes());
    let mut load = |paths: &[PathBuf], split| -> Result<(Dataset, DataReport)> {
        let dataset = Dataset::load(recipe, &tokenizer, paths, split)?;
        notes.extend_from_slice(&dataset.notes);
        let report = dataset.check_fit(&tokenizer, &config, capacity)?;
        Ok((dataset, report))
    };
    let (train, report) = load(&recipe.data.train, Split::Train)?;
    let heldout = match recipe.data.eval.as_slice() {
        [] => None,
        paths => Some(load(paths, Split::Validation)?),
    };
    let Start { weights, state, moments } =
        starting_point(recipe, &train, tokenizer.is_dated(), latest, initial)?;
    Ok(Prepared {
        recipe,
        config,
        tokenizer,
        capacity,
        room,
        train,
        report,
        heldout,
        weights,
        state,
        moments,
        damaged,
        notes,
    })
}

/// What a run goes on from.
struct Start {
    weights: Option<FolderWeights>,
    state: TrainState,
    moments: Option<Moments>,
}

/// The weights that the recipe starts from; None if they are to be drawn.
///
/// # Errors
/// A folder without weights that can be used, unless random ones were asked for; and then one with
/// weights.
fn initial_weights(
    recipe: &Recipe,
    config: &ModelConfig,
    notes: &mut Vec<String>,
) -> Result<Option<FolderWeights>> {
    let Recipe { model, init, seed, .. } = recipe;
    match init {
        InitialWeights::Random => {
            check_weights_absent(model)?;
            notes.push(format!("the weights are drawn at random from seed {seed}"));
            Ok(None)
        }
        InitialWeights::Pretrained => FolderWeights::open(model, config).map(Some),
    }
}

/// The checkpoint in `latest`, or the recipe's own start with the `initial` weights.
fn starting_point(
    recipe: &Recipe,
    train: &Dataset,
    dated: bool,
    latest: Option<PathBuf>,
    initial: Option<FolderWeights>,
) -> Result<Start> {
    let fresh = TrainState {
        step: 0,
        epoch: 0,
        batch_in_epoch: 0,
        seed: recipe.seed,
        num_tokens: 0,
        row_order_hash: String::new(),
        recipe_hash: recipe.fingerprint(),
        kernels_hash: String::new(),
    };
    Ok(match latest {
        Some(folder) => {
            let found = checkpoint::read(&folder, &|_| true)?;
            check_same_run(&found.state, &fresh, train, dated, &folder)?;
            let (weights, moments) = (Some(found.weights), Some(found.moments));
            Start { weights, state: found.state, moments }
        }
        None => Start { weights: initial, state: fresh, moments: None },
    })
}

/// Every file or folder of rows that is not there, by its key.
fn check_paths(recipe: &Recipe) -> Result<()> {
    let data = &recipe.data;
    let named = data.train.iter().map(|p| ("data.train", p));
    let missing: Vec<Problem> = named
        .chain(data.eval.iter().map(|p| ("data.eval", p)))
        .filter_map(|(key, path)| {
            let error = fs::metadata(path).err()?;
            let what = format!("{} cannot be read: {error}", path.display());
            Some(Problem::new(key, what))
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let summary = "there are no rows; relative paths start at the current folder";
    Err(Error::input(summary, missing))
}

/// The checkpoint to go on from, if any, and the damaged ones that are newer.
fn look_for_checkpoint(
    recipe: &Recipe,
    resume: bool,
    notes: &mut Vec<String>,
) -> Result<(Option<PathBuf>, Vec<PathBuf>)> {
    let output = &recipe.output;
    if fs::symlink_metadata(output).is_err() {
        if resume {
            notes.push(format!("{} does not exist: the run starts anew", output.display()));
        }
        return Ok((None, Vec::new()));
    }
    if !resume {
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
        check_leftovers(recipe)?;
        notes.push(format!("{} has no checkpoint: the run starts anew", output.display()));
    }
    notes.extend(latest.skipped.iter().map(|p| format!("{}: {}", p.place, p.what)));
    let damaged = latest.skipped.into_iter().map(|p| PathBuf::from(p.place)).collect();
    Ok((latest.folder, damaged))
}

/// A folder without checkpoints may be written into only if nothing is in it but what this very
/// run left when it stopped before its first one.
fn check_leftovers(recipe: &Recipe) -> Result<()> {
    let output = &recipe.output;
    let mut foreign = Vec::new();
    for entry in fs::read_dir(output).map_err(|e| Error::io("read", output, e))? {
        let entry = entry.map_err(|e| Error::io("read", output, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !(name == RECIPE || name == METRICS || name.ends_with(PARTIAL)) {
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
    if path.exists()
        && recipe::load(&path, &[]).map(|r| r.fingerprint()).ok() != Some(recipe.fingerprint())
    {
        return Err(Error::file(
            path,
            "is another recipe, and there is no checkpoint to go on from. Choose another `output` and leave --resume out.",
        ));
    }
    Ok(())
}

/// A resumed run must be the same run.
fn check_same_run(
    found: &TrainState,
    fresh: &TrainState,
    train: &Dataset,
    dated: bool,
    place: &Path,
) -> Result<()> {
    let mut problems = Vec::new();
    if found.recipe_hash != fresh.recipe_hash {
        problems.push(Problem::new(
            place.display().to_string(),
            "was made by another recipe. Resume with the recipe.toml in the output folder, or start a new run.",
        ));
    }
    let order = train.order(found.seed, found.epoch);
    if found.row_order_hash != train.order_hash(&order) {
        let what = if dated {
            "was made on other tokens, as it seems because of the date: the chat template writes it into every conversation (strftime_now). Put a date of your own in the place of strftime_now in the template, and start a new run."
        } else {
            "was made on other rows or another tokenizer: resuming would not give the same model."
        };
        problems.push(Problem::new(place.display().to_string(), what));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input("cannot resume", problems))
}
