//! The training loop.

use crate::data::form::Form;
use crate::data::pack::{Capacity, PackStats, PackedBatch};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::gpu::Gpu;
use crate::model::folder::{replace_model_folder, set_aside};
use crate::model::generate::Sampling;
use crate::model::weights::{ParameterValues, RandomWeights};
use crate::train::checkpoint::{self, TrainState};
use crate::train::dataset::Dataset;
use crate::train::describe::describe;
use crate::train::learner::{Learner, memory_plan};
use crate::train::lock::{Kept, RunLock};
use crate::train::metrics::{
    METRICS, MetricsRecord, MetricsWriter, Split, Sums, read_metrics, truncate_after_step,
};
use crate::train::objectives::{Accumulation, LOGP, Metric, Results};
use crate::train::prepare::{Prepared, RECIPE, prepare};
use crate::train::program::train_all;
use crate::train::recipe::Recipe;
use crate::train::sampler::Sampler;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What happens during a run, for a display.
pub enum TrainEvent<'a> {
    /// Lines that describe the run, before anything is computed.
    Plan(Vec<String>),
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
}

/// Name of the trained model's folder in a run's folder.
pub const MODEL: &str = "model";

/// The held-out rows and which of them share a stream. Streams are packed as they are evaluated:
/// all at once they would take many times the memory of the rows.
struct Heldout {
    rows: Dataset,
    shares: Vec<Vec<usize>>,
}

struct Training<'a> {
    recipe: &'a Recipe,
    learner: Learner,
    train: Dataset,
    heldout: Option<Heldout>,
    sampler: Option<Sampler>,
    metrics: MetricsWriter,
    state: TrainState,
    total: u64,
    capacity: Capacity,
    form: Form,
    stop: Arc<AtomicBool>,
    /// The step of the newest checkpoint; 0 is the start, which needs none.
    saved: u64,
    saved_at: Instant,
    lock: RunLock,
    on_event: &'a mut dyn FnMut(TrainEvent),
}

/// Runs a recipe to its end. With `resume`, goes on from the newest whole checkpoint in the
/// output folder; without one it starts anew. [`prepare`] and [`run`] in one.
///
/// # Errors
/// Everything the world can do wrong; nothing that exists is overwritten. A loss that is not
/// finite stops the run before the parameters change.
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
    let memory = memory_plan(target, config, capacity, objective, &train_all(), room)?;
    let learner = load(&mut prepared, gpu)?;
    on_event(TrainEvent::Plan(describe(gpu, &prepared, &memory)));
    let Prepared { recipe, config, capacity, form, train, .. } = prepared;
    for note in prepared.notes {
        on_event(TrainEvent::Note(note));
    }
    let held_out = |(rows, _): (Dataset, _)| {
        let shares = rows.share_out(capacity)?;
        Ok(Heldout { rows, shares })
    };
    let heldout = prepared.heldout.map(held_out).transpose()?;
    let sample = &recipe.sample;
    let sampler = match sample.every {
        0 => None,
        _ => Some(Sampler::new(
            gpu,
            learner.store(),
            &config,
            prepared.tokenizer,
            (&sample.prompts, form),
            sample.max_tokens,
        )?),
    };
    let lock = match prepared.lock {
        Some(lock) => lock,
        None => RunLock::make(&recipe.output)?,
    };
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
    let from_folder = prepared.weights.take();
    let Prepared { recipe, config, capacity, moments, state, .. } = prepared;
    let weights: Box<dyn ParameterValues> = match from_folder {
        Some(weights) => Box::new(weights),
        None => Box::new(RandomWeights { config, seed: recipe.seed }),
    };
    let objective = &*recipe.loss.objective;
    let mut learner = Learner::new(gpu, config, &*weights, *capacity, objective, &recipe.optim)?;
    if let Some(moments) = moments {
        learner.restore(state.step, moments)?;
    }
    Ok(learner)
}

/// Makes the output folder ready for a run from `step` on.
fn open_output(
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
            step => truncate_after_step(&path, step)?,
        }
    }
    MetricsWriter::open(&path)
}

impl Training<'_> {
    fn run_to_end(mut self) -> Result<TrainOutcome> {
        let t = &self.recipe.train;
        let per_epoch = self.per_epoch();
        let mut last_eval = None;
        let metrics = self.recipe.loss.objective.metrics();
        (self.on_event)(TrainEvent::Begin { step: self.state.step, total: self.total, metrics });
        if self.state.step == 0 && t.eval_at_start {
            if t.eval_every > 0 {
                last_eval = self.evaluate()?;
            }
            self.sample()?;
        }
        let mut order = self.train.order(self.state.seed, self.state.epoch);
        self.begin_epoch(&order)?;
        if self.state.step > 0 && self.misses_evaluation()? {
            last_eval = self.evaluate()?;
        }
        while self.state.step < self.total {
            if self.is_stopped() {
                return Err(self.leave()?);
            }
            if self.state.batch_in_epoch == per_epoch {
                self.state.epoch += 1;
                self.state.batch_in_epoch = 0;
                order = self.train.order(self.state.seed, self.state.epoch);
                self.begin_epoch(&order)?;
            }
            let from = self.state.batch_in_epoch as usize * self.recipe.batch.size;
            let to = (from + self.recipe.batch.size).min(order.len());
            let record = self.step(&order[from..to])?;
            let step = self.state.step;
            let due = |every: u64| every > 0 && step.is_multiple_of(every);
            if due(t.log_every) || step == self.total {
                self.metrics.write(&record)?;
            }
            (self.on_event)(TrainEvent::Step(&record));
            // What a run that stops leaves out here, it does when it goes on.
            if self.is_stopped() && step < self.total {
                continue;
            }
            if due(t.eval_every) || (t.eval_every > 0 && step == self.total) {
                last_eval = self.evaluate()?.or(last_eval);
            }
            if due(self.recipe.sample.every) {
                self.sample()?;
            }
            let minutes = self.saved_at.elapsed().as_secs_f64() / 60.0;
            let late = t.save_minutes.is_some_and(|most| minutes >= most);
            if due(t.save_every) || late || step == self.total {
                self.save()?;
            }
        }
        let model = self.save_model()?;
        Ok(TrainOutcome { model, steps: self.state.step, eval: last_eval })
    }

    /// Finds out whether the output folder is still this run's, before something is written into
    /// it. One that is gone is made again: better there than nowhere.
    fn keep_folder(&mut self) -> Result<()> {
        let output = &self.recipe.output;
        if self.lock.keep(output)? == Kept::Remade {
            self.metrics = open_output(self.recipe, self.state.step, &[], self.on_event)?;
            (self.on_event)(TrainEvent::Note(format!(
                "{} was moved or removed while the run was in it, and is made again",
                output.display()
            )));
        }
        Ok(())
    }

    /// Writes the model that was trained, whatever lies in its place.
    fn save_model(&mut self) -> Result<PathBuf> {
        self.keep_folder()?;
        let model = self.recipe.output.join(MODEL);
        let read = |name: &str| self.learner.read(name);
        let (source, form) = (Some(self.recipe.model.as_path()), Some(self.form));
        let aside = replace_model_folder(&model, source, form, &self.learner.config, &read)?;
        if let Some(aside) = aside {
            (self.on_event)(TrainEvent::Note(format!(
                "{} held another model, which was moved to {}",
                model.display(),
                aside.display()
            )));
        }
        Ok(model)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Saves what is not saved yet and says how the run goes on.
    fn leave(&mut self) -> Result<Error> {
        let (step, total) = (self.state.step, self.total);
        if self.saved < step {
            self.save()?;
        }
        let output = self.recipe.output.display();
        Ok(Error::Stopped(match step {
            0 => format!("stopped before the first step; start again with --resume ({output})"),
            _ => format!(
                "stopped after step {step} of {total}, with a checkpoint in {output}; go on with --resume"
            ),
        }))
    }

    /// Whether an evaluation is due at this step and was not recorded, because the run was stopped
    /// between the two.
    fn misses_evaluation(&self) -> Result<bool> {
        let (t, step) = (&self.recipe.train, self.state.step);
        let due = t.eval_every > 0 && (step.is_multiple_of(t.eval_every) || step == self.total);
        if !due || self.heldout.is_none() {
            return Ok(false);
        }
        let records = read_metrics(&self.recipe.output.join(METRICS))?;
        Ok(!records.iter().any(|r| r.split == Split::Eval && r.step == step))
    }

    fn begin_epoch(&mut self, order: &[usize]) -> Result<()> {
        self.state.row_order_hash = self.train.order_hash(order);
        let stats = self.train.stats(order, self.recipe.batch.size, self.capacity)?;
        (self.on_event)(TrainEvent::Epoch(self.state.epoch, stats));
        Ok(())
    }

    fn per_epoch(&self) -> u64 {
        self.train.steps_per_epoch(self.recipe.batch.size)
    }

    fn step(&mut self, indices: &[usize]) -> Result<MetricsRecord> {
        let start = Instant::now();
        let streams = self.train.pack(indices, self.capacity)?;
        let coefficients = self.recipe.loss.coefficients(&streams);
        let objective = &*self.recipe.loss.objective;
        let mut sums = Sums::default();
        let mut loss = 0.0;
        let run = &*self;
        run.learner.accumulate_all(&streams, &coefficients, |stream, results| {
            run.check_finite(stream, &results)?;
            objective.measure(stream, &results, &mut sums);
            loss += f64::from(results.loss());
            Ok(())
        })?;
        let rate = self.recipe.optim.learning_rate_at(self.state.step, self.total);
        let norm = self.learner.update(rate)?;
        if !norm.is_finite() {
            return Err(self.not_finite(
                "the gradient norm",
                indices.iter().map(|&i| self.train.examples[i].row),
            ));
        }
        let tokens: usize = streams.iter().map(|s| s.used_tokens).sum();
        self.state.step += 1;
        self.state.batch_in_epoch += 1;
        self.state.num_tokens += tokens as u64;
        let figures = objective.figures(&sums);
        let mut record = MetricsRecord::new(Split::Train, self.state.step, self.epoch(), &figures)
            .with("grad_norm", f64::from(norm))
            .with("learning_rate", rate)
            .with("num_tokens", self.state.num_tokens as f64)
            .with("tokens_per_second", tokens as f64 / start.elapsed().as_secs_f64());
        if self.recipe.loss.accumulation == Accumulation::Trl {
            // The sums say what exact accumulation would have; what was minimised is this.
            record.values.iter_mut().filter(|(k, _)| k == "loss").for_each(|(_, v)| *v = loss);
        }
        Ok(record)
    }

    fn epoch(&self) -> f64 {
        self.state.epoch as f64 + self.state.batch_in_epoch as f64 / self.per_epoch() as f64
    }

    fn check_finite(&self, stream: &PackedBatch, results: &Results) -> Result<()> {
        if results.loss().is_finite() {
            return Ok(());
        }
        let targets = stream.nll_pair.iter().zip(results.get(LOGP)).take(stream.used_targets);
        let mut pairs: Vec<u32> =
            targets.filter(|(_, logp)| !logp.is_finite()).map(|(&pair, _)| pair).collect();
        pairs.dedup();
        if pairs.is_empty() {
            pairs.extend(0..stream.rows.len() as u32);
        }
        Err(self.not_finite("the loss", pairs.iter().map(|&p| stream.rows[p as usize])))
    }

    fn not_finite(&self, what: &str, rows: impl Iterator<Item = usize>) -> Error {
        let places: Vec<String> = rows.take(8).map(|r| self.train.sources[r].to_string()).collect();
        let kept = match self.saved {
            0 => "there is no checkpoint yet".to_owned(),
            step => {
                let output = self.recipe.output.display();
                format!("the checkpoint of step {step} in {output} is untouched")
            }
        };
        Error::NonFinite(format!(
            "{what} is not finite in step {} (rows {}). The run stopped; {kept}. \
             Lower optim.learning_rate or look at these rows.",
            self.state.step + 1,
            places.join(", "),
        ))
    }

    /// The figures of the held-out rows; None without any, or if the run is stopped meanwhile.
    fn evaluate(&mut self) -> Result<Option<MetricsRecord>> {
        let Some(heldout) = &self.heldout else { return Ok(None) };
        let start = Instant::now();
        let objective = &*self.recipe.loss.objective;
        let mut sums = Sums::default();
        let mut tokens = 0;
        // The figures are sums over rows, whatever a stream's own loss is weighted by.
        let streams = heldout.shares.iter().map(|share| {
            let stream = heldout.rows.stream(share, self.capacity);
            let coefficients = objective.coefficients(&[&stream], 1).remove(0);
            (stream, coefficients)
        });
        let each = |stream: &PackedBatch, results: Results| {
            if self.is_stopped() {
                return Err(Error::Stopped(String::new()));
            }
            objective.measure(stream, &results, &mut sums);
            tokens += stream.used_tokens;
            Ok(())
        };
        match self.learner.evaluate_all(streams, each) {
            Err(Error::Stopped(_)) => return Ok(None),
            done => done?,
        }
        let figures = objective.figures(&sums);
        let record = MetricsRecord::new(Split::Eval, self.state.step, self.epoch(), &figures)
            .with("tokens_per_second", tokens as f64 / start.elapsed().as_secs_f64());
        self.metrics.write(&record)?;
        (self.on_event)(TrainEvent::Evaluated(&record));
        Ok(Some(record))
    }

    fn sample(&mut self) -> Result<()> {
        let Some(sampler) = self.sampler.as_ref().filter(|_| !self.is_stopped()) else {
            return Ok(());
        };
        let texts = sampler.run(&Sampling {
            max_tokens: self.recipe.sample.max_tokens,
            temperature: 0.0,
            seed: 0,
        })?;
        for (prompt, text) in self.recipe.sample.prompts.iter().zip(&texts) {
            (self.on_event)(TrainEvent::Sampled { step: self.state.step, prompt, text });
        }
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.keep_folder()?;
        let (output, source) = (&self.recipe.output, Some(self.recipe.model.as_path()));
        let folder = checkpoint::write(
            output,
            &self.state,
            source,
            self.form,
            &self.learner.config,
            self.learner.trained(),
            &|name| self.learner.read(name),
        )?;
        (self.saved, self.saved_at) = (self.state.step, Instant::now());
        checkpoint::prune(output, self.recipe.train.keep_checkpoints)?;
        (self.on_event)(TrainEvent::Saved(&folder));
        Ok(())
    }
}
