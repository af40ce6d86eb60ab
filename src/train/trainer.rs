//! Runs a recipe: puts what was prepared on the device, makes the folder ready, and starts the
//! loop.

use crate::data::pack::PackStats;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::gpu::Gpu;
use crate::model::folder::set_aside;
use crate::model::weights::ParameterValues;
use crate::train::best::Best;
use crate::train::dataset::Dataset;
use crate::train::describe::describe;
use crate::train::learner::{Learner, LearnerOptions, fitting_plan};
use crate::train::lock::RunLock;
use crate::train::metrics::{METRICS, MetricsRecord, MetricsWriter, truncate_after_step};
use crate::train::objectives::Metric;
use crate::train::prepare::{Prepared, RECIPE, prepare};
use crate::train::proof::{Hashed, Proof};
use crate::train::recipe::Recipe;
use crate::train::reference_logps::{ReferenceModel, Resumed};
use crate::train::sampler::{Sampler, encode_prompts};
use crate::train::training::{Heldout, Training};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// What happens during a run, for a display.
pub enum TrainEvent<'a> {
    /// Lines that describe the run, before anything is computed.
    Plan(Vec<String>),
    /// The initial weights are about to give so many rows their reference log-probs.
    Referring {
        /// How many.
        rows: usize,
    },
    /// The run begins at this step of so many.
    Begin {
        /// Steps done before (a resumed run).
        step: u64,
        /// Steps of the whole run.
        total: u64,
        /// The figures of its records to be shown.
        metrics: &'static [Metric],
    },
    /// A new pass over the rows.
    Epoch(u64, PackStats),
    /// A step was done.
    Step(&'a MetricsRecord),
    /// The held-out rows were evaluated.
    Evaluated(&'a MetricsRecord),
    /// A prompt was continued.
    Sampled {
        /// Optimizer steps done before it.
        step: u64,
        /// The prompt as given in the recipe.
        prompt: &'a str,
        /// What the model made of it.
        text: &'a str,
    },
    /// A checkpoint was written.
    Saved(&'a Path),
    /// The last evaluation is the best so far, and its checkpoint is written.
    Best(&'a Best),
    /// Something worth a line.
    Note(String),
}

/// What a finished run leaves.
#[derive(Debug)]
pub struct TrainOutcome {
    /// The trained model, a Hugging Face folder.
    pub model: PathBuf,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// The last evaluation.
    pub eval: Option<MetricsRecord>,
    /// The best evaluation and its checkpoint, which is a model folder too; None without any, or
    /// if the checkpoint is gone.
    pub best: Option<(Best, PathBuf)>,
    /// What the run has shown to be called finished.
    pub proof: Proof,
}

/// Name of the trained model's folder in a run's folder.
pub const MODEL: &str = "model";

/// Runs a recipe to its end. With `resume`, goes on from the newest whole checkpoint in the
/// output folder; without one it starts anew. [`prepare`] and [`run`] in one.
///
/// # Errors
/// Everything the world can do wrong; nothing that exists is overwritten. A loss that is not
/// finite stops the run before the parameters change; a run that did not train what it should have,
/// or whose written model is another, is an error at its end (see [`Proof`]).
pub fn train(
    gpu: &Rc<Gpu>,
    recipe: &Recipe,
    resume: bool,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<TrainOutcome> {
    run(prepare(recipe, resume)?, gpu, on_event)
}

/// Runs what was prepared to its end.
///
/// # Errors
/// A run that does not fit the adapter or the memory, or weights that cannot be used, before
/// anything is written; whatever can go wrong while it runs; [`Error::Stopped`] when it was asked to
/// stop ([`Prepared::stop_when`]) and has a checkpoint.
pub fn run(
    mut prepared: Prepared,
    gpu: &Rc<Gpu>,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<TrainOutcome> {
    let objective = &*prepared.recipe.loss.objective;
    let (config, capacity) = (&prepared.config, prepared.capacity);
    let (target, room) = (gpu.target(), prepared.room);
    let (placement, recompute) = (&mut prepared.placement, prepared.recipe.batch.recompute);
    let memory = fitting_plan(target, config, capacity, objective, placement, room, recompute)?;
    let learner = load(&mut prepared, gpu)?;
    on_event(TrainEvent::Plan(describe(gpu, &prepared, &memory)));
    let Prepared { recipe, config, capacity, form, mut train, .. } = prepared;
    let (recipe, objective) = (&recipe, &*recipe.loss.objective);
    for note in prepared.notes {
        on_event(TrainEvent::Note(note));
    }
    let held_out = |(rows, _): (Dataset, _)| {
        let shares = rows.share_out(capacity)?;
        Ok(Heldout { rows, shares })
    };
    let mut heldout = prepared.heldout.map(held_out).transpose()?;
    let sample = &recipe.sample;
    let sampler = match sample.every {
        0 => None,
        _ => {
            let (tokenizer, prompts) = (prepared.tokenizer, (&sample.prompts[..], form));
            let prompts = encode_prompts(&tokenizer, &config, prompts, sample.max_tokens)?;
            let store = learner.store();
            Some(Sampler::new(gpu, store, &config, tokenizer, prompts, sample.max_tokens)?)
        }
    };
    let lock = match prepared.lock {
        Some(lock) => lock,
        None => RunLock::make(&recipe.output)?,
    };
    if objective.has_reference() {
        let reference = ReferenceModel {
            learner: &learner,
            objective,
            capacity,
            model: &recipe.model,
            start_hash: &prepared.state.start_hash,
            cache: prepared.cache.as_deref(),
            stop: &prepared.stop,
        };
        let heldout_rows = heldout.as_mut().map(|heldout| ("held-out ", &mut heldout.rows));
        let mut all: Vec<_> = [("", &mut train)].into_iter().chain(heldout_rows).collect();
        // Apart from their rows for as long as both are written to.
        let mut mismatched: Vec<_> = all
            .iter_mut()
            .map(|(name, rows)| (format!("{name}mismatched "), rows.mismatched.take()))
            .collect();
        let checkpoint = prepared.weights.filter(|_| prepared.moments.is_some());
        let initial = checkpoint.as_ref().map(|_| recipe.initial_weights(&config)).transpose()?;
        let both = initial.as_deref().zip(checkpoint.as_ref());
        let resumed = both.map(|(initial, checkpoint)| Resumed { initial, checkpoint });
        let others = mismatched
            .iter_mut()
            .filter_map(|(name, rows)| Some((name.as_str(), &mut **rows.as_mut()?)));
        let sets = all.iter_mut().map(|(name, rows)| (*name, &mut **rows)).chain(others).collect();
        reference.enter(sets, resumed, on_event)?;
        for ((_, rows), (_, other)) in all.iter_mut().zip(mismatched) {
            rows.mismatched = other;
        }
    }
    let metrics = open_output(recipe, prepared.state.step, &prepared.damaged, on_event)?;
    let mut state = prepared.state;
    let kernels = learner.kernels_hash();
    if !state.kernels_hash.is_empty() && state.kernels_hash != kernels {
        on_event(TrainEvent::Note(
            "the checkpoint was made with other kernels (`oddgrad tune`, --kernel, another adapter or version): the run goes on, but its last bits will differ from those of a run that was not interrupted".into(),
        ));
    }
    state.kernels_hash = kernels;
    let total = recipe.train.total_steps(train.steps_per_epoch(recipe.batch.size));
    if state.step >= total {
        on_event(TrainEvent::Note(format!("all {total} steps were done already")));
    }
    Training {
        recipe,
        learner,
        train,
        heldout,
        sampler,
        metrics,
        total,
        capacity,
        form,
        stop: prepared.stop,
        saved: state.step,
        saved_at: Instant::now(),
        state,
        lock,
        on_event,
    }
    .run_to_end()
}

/// Puts the weights, and the moments of a resumed run, on the device.
fn load(prepared: &mut Prepared, gpu: &Rc<Gpu>) -> Result<Learner> {
    let Prepared { recipe, config, capacity, weights, moments, state, placement, .. } = prepared;
    let initial;
    let weights: &dyn ParameterValues = match weights {
        Some(of_checkpoint) => of_checkpoint,
        None => {
            initial = recipe.initial_weights(config)?;
            &*initial
        }
    };
    let (objective, optim) = (&*recipe.loss.objective, &recipe.optim);
    let weights = Hashed::new(weights);
    let options = LearnerOptions { placement: placement.clone(), ..LearnerOptions::default() };
    let mut learner =
        Learner::with_options(gpu, config, &weights, *capacity, objective, optim, &options)?;
    match moments {
        Some(moments) => learner.restore(state.step, moments)?,
        None => state.start_hash = weights.hash(),
    }
    Ok(learner)
}

/// Makes the output folder ready for a run from `step` on.
pub(super) fn open_output(
    recipe: &Recipe,
    step: u64,
    damaged: &[PathBuf],
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<MetricsWriter> {
    let output = &recipe.output;
    for folder in damaged {
        let aside = set_aside(folder, "damaged")?;
        on_event(TrainEvent::Note(format!(
            "{} is damaged and was moved to {}",
            folder.display(),
            aside.display()
        )));
    }
    let path = output.join(RECIPE);
    write_atomically(&path, recipe.to_toml().as_bytes())?;
    let path = output.join(METRICS);
    if path.exists() {
        // What was written after the checkpoint is written again.
        match step {
            0 => std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?,
            step => {
                if let Some(aside) = truncate_after_step(&path, step)? {
                    on_event(TrainEvent::Note(format!(
                        "{} has lines that are no records, as a power cut leaves them: they are left out, and the file as it was is {}",
                        path.display(),
                        aside.display()
                    )));
                }
            }
        }
    }
    MetricsWriter::open(&path)
}
