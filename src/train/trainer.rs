//! The training loop.

use crate::data::pack::{Capacity, PackStats, Stream};
use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::folder::save_model_folder;
use crate::model::generate::Sampling;
use crate::model::weights::{ParameterValues, RandomWeights};
use crate::train::checkpoint::{self, TrainState};
use crate::train::dataset::Dataset;
use crate::train::learner::{Learner, MemoryPlan, StreamResult, memory_plan, train_all};
use crate::train::metrics::{
    METRICS, MetricsWriter, Record, Split, StepMetrics, truncate_after_step,
};
use crate::train::objective::{Weights, group_weights, has_rejected, in_nll, weights};
use crate::train::prepare::{Prepared, RECIPE, prepare};
use crate::train::recipe::{Accumulation, NllReduction, Recipe};
use crate::train::sampler::Sampler;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// What happens during a run, for a display.
pub enum Event<'a> {
    /// Lines that describe the run, before anything is computed.
    Plan(Vec<String>),
    /// The run begins at this step of so many.
    Begin {
        /// Steps done before (a resumed run).
        step: u64,
        /// Steps of the whole run.
        total: u64,
    },
    /// A new pass over the rows.
    Epoch(u64, PackStats),
    /// A step was done.
    Step(&'a Record),
    /// The held-out rows were evaluated.
    Evaluated(&'a Record),
    /// A prompt was continued.
    Sampled {
        /// Steps done.
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
pub struct Outcome {
    /// The trained model, a Hugging Face folder.
    pub model: PathBuf,
    /// Steps done.
    pub steps: u64,
    /// The last evaluation.
    pub eval: Option<Record>,
}

/// Name of the trained model's folder in a run's folder.
pub const MODEL: &str = "model";

/// Evaluation streams with the weights that make their sum the loss of the whole set.
struct Heldout {
    streams: Vec<Stream>,
    weights: Vec<Weights>,
}

struct Run<'a> {
    recipe: &'a Recipe,
    learner: Learner,
    train: Dataset,
    heldout: Option<Heldout>,
    sampler: Option<Sampler>,
    metrics: MetricsWriter,
    state: TrainState,
    total: u64,
    capacity: Capacity,
    on_event: &'a mut dyn FnMut(Event),
}

/// Runs a recipe to its end. With `resume`, goes on from the newest whole checkpoint in the
/// output folder; without one it starts anew. [`prepare`] and [`Prepared::run`] in one.
///
/// # Errors
/// Everything the world can do wrong; nothing that exists is overwritten. A loss that is not
/// finite stops the run before the parameters change.
pub fn train(
    gpu: &Rc<Gpu>,
    recipe: &Recipe,
    resume: bool,
    on_event: &mut dyn FnMut(Event),
) -> Result<Outcome> {
    prepare(recipe, resume)?.run(gpu, on_event)
}

impl Prepared<'_> {
    /// Runs what was prepared to its end.
    ///
    /// # Errors
    /// A run that does not fit the adapter or the memory, before anything is written; and whatever
    /// can go wrong while it runs.
    pub fn run(self, gpu: &Rc<Gpu>, on_event: &mut dyn FnMut(Event)) -> Result<Outcome> {
        let Self { recipe, config, capacity, train, .. } = self;
        let output = &recipe.output;
        let memory = memory_plan(gpu.target(), &config, capacity, &train_all())?;
        let weights: Box<dyn ParameterValues> = match self.weights {
            Some(weights) => Box::new(weights),
            None => Box::new(RandomWeights { config: &config, seed: recipe.seed }),
        };
        let mut learner = Learner::new(gpu, &config, &*weights, capacity, &recipe.optim)?;
        drop(weights);
        if let Some(moments) = &self.moments {
            learner.restore(self.state.step, moments)?;
        }
        let per_epoch = train.examples.len().div_ceil(recipe.batch.size) as u64;
        let total = recipe.train.total_steps(per_epoch);
        let mut lines = describe(gpu, recipe, &config, capacity, &memory);
        lines.push(format!("train      {}", self.report));
        lines.extend(self.heldout.as_ref().map(|(_, report)| format!("held out   {report}")));
        let size = recipe.batch.size;
        lines.push(format!(
            "steps      {total} of {size} rows, {per_epoch} to a pass over the rows"
        ));
        lines.extend(skipped_lines("train", &train.skipped));
        if let Some((eval, _)) = &self.heldout {
            lines.extend(skipped_lines("held-out", &eval.skipped));
        }
        on_event(Event::Plan(lines));
        for note in self.notes {
            on_event(Event::Note(note));
        }

        let heldout = match &self.heldout {
            None => None,
            Some((eval, _)) => {
                let streams = eval.pack(&(0..eval.examples.len()).collect::<Vec<_>>(), capacity)?;
                let weights = group_weights(&streams.iter().collect::<Vec<_>>(), &recipe.loss, 1);
                Some(Heldout { streams, weights })
            }
        };
        let sampler = match recipe.sample.every {
            0 => None,
            _ => Some(Sampler::new(
                gpu,
                learner.store(),
                &config,
                self.tokenizer,
                &recipe.sample.prompts,
                recipe.sample.max_tokens,
            )?),
        };
        std::fs::create_dir_all(output).map_err(|e| Error::io("create", output, e))?;
        for folder in &self.damaged {
            let aside = checkpoint::set_aside(folder)?;
            on_event(Event::Note(format!(
                "{} is damaged and was moved to {}",
                folder.display(),
                aside.display()
            )));
        }
        let path = output.join(RECIPE);
        std::fs::write(&path, recipe.to_toml()).map_err(|e| Error::io("write", &path, e))?;
        let path = output.join(METRICS);
        if path.exists() {
            // What was written after the checkpoint is written again.
            match self.state.step {
                0 => std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?,
                step => truncate_after_step(&path, step)?,
            }
        }
        let metrics = MetricsWriter::open(&path)?;
        let mut state = self.state;
        let kernels = learner.kernels_hash();
        if !state.kernels_hash.is_empty() && state.kernels_hash != kernels {
            on_event(Event::Note(
                "the checkpoint was made with other kernels (`oddgrad tune`, --kernel, another adapter or version): the run goes on, but its last bits will differ from those of a run that was not interrupted".into(),
            ));
        }
        state.kernels_hash = kernels;
        if state.step >= total {
            on_event(Event::Note(format!("all {total} steps were done already")));
        }
        Run { recipe, learner, train, heldout, sampler, metrics, state, total, capacity, on_event }
            .run_to_end(per_epoch)
    }
}

fn skipped_lines(name: &str, skipped: &[Problem]) -> Vec<String> {
    if skipped.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("skipped    {} unusable {name} rows, for example", skipped.len())];
    lines.extend(skipped.iter().take(5).map(|p| format!("           {}: {}", p.place, p.what)));
    lines
}

fn describe(
    gpu: &Gpu,
    recipe: &Recipe,
    config: &ModelConfig,
    capacity: Capacity,
    memory: &MemoryPlan,
) -> Vec<String> {
    let loss = &recipe.loss;
    let mib = |b: u64| b as f64 / 1048576.0;
    let mut lines = vec![format!("adapter    {}", gpu.describe())];
    if gpu.is_software() {
        lines.push(
            "           this is a software adapter: no GPU was found, the CPU does the work".into(),
        );
    }
    if !gpu.target().tuned.is_empty() {
        let n = gpu.target().tuned.len();
        lines.push(format!("kernels    {n} choices of `oddgrad tune`; --untuned leaves them out"));
    }
    lines.push(format!(
        "model      {} ({} parameters, {} layers, vocabulary {})",
        recipe.model.display(),
        config.parameter_count(),
        config.layers,
        config.vocab_size
    ));
    lines.push(format!(
        "loss       {:?}: lambda {}, NLL over {:?} per {:?}, accumulation {:?}",
        recipe.objective, loss.lambda, loss.nll_scope, loss.nll_reduction, loss.accumulation
    ));
    lines.push(format!(
        "memory     {:.1} MiB planned: {:.1} weights, gradients and moments, {:.1} for a stream of {} tokens",
        mib(memory.total()),
        mib(memory.state),
        mib(memory.micro.temporaries()),
        capacity.tokens
    ));
    lines
}

impl Run<'_> {
    fn run_to_end(mut self, per_epoch: u64) -> Result<Outcome> {
        let t = &self.recipe.train;
        let mut last_eval = None;
        (self.on_event)(Event::Begin { step: self.state.step, total: self.total });
        if self.state.step == 0 && t.eval_at_start {
            last_eval = self.evaluate(per_epoch)?;
            self.sample()?;
        }
        let mut order = self.train.order(self.state.seed, self.state.epoch);
        self.begin_epoch(&order)?;
        while self.state.step < self.total {
            if self.state.batch_in_epoch == per_epoch {
                self.state.epoch += 1;
                self.state.batch_in_epoch = 0;
                order = self.train.order(self.state.seed, self.state.epoch);
                self.begin_epoch(&order)?;
            }
            let from = self.state.batch_in_epoch as usize * self.recipe.batch.size;
            let to = (from + self.recipe.batch.size).min(order.len());
            let record = self.step(&order[from..to], per_epoch)?;
            let step = self.state.step;
            let due = |every: u64| every > 0 && step.is_multiple_of(every);
            if due(t.log_every) || step == self.total {
                self.metrics.write(&record)?;
            }
            (self.on_event)(Event::Step(&record));
            if due(t.eval_every) || step == self.total {
                last_eval = self.evaluate(per_epoch)?.or(last_eval);
            }
            if due(self.recipe.sample.every) {
                self.sample()?;
            }
            if due(t.save_every) || step == self.total {
                self.save()?;
            }
        }
        let model = self.recipe.output.join(MODEL);
        // A run resumed after its end has it already.
        if !model.exists() {
            save_model_folder(&model, Some(&self.recipe.model), &self.learner.config, &|name| {
                self.learner.read(name)
            })?;
        }
        Ok(Outcome { model, steps: self.state.step, eval: last_eval })
    }

    fn begin_epoch(&mut self, order: &[usize]) -> Result<()> {
        self.state.row_order_hash = self.train.order_hash(order);
        let stats = self.train.stats(order, self.recipe.batch.size, self.capacity)?;
        (self.on_event)(Event::Epoch(self.state.epoch, stats));
        Ok(())
    }

    fn step(&mut self, indices: &[usize], per_epoch: u64) -> Result<Record> {
        let start = Instant::now();
        let streams = self.train.pack(indices, self.capacity)?;
        let weights = weights(&streams, &self.recipe.loss);
        let mut sum = StepMetrics::new(self.recipe.loss.lambda);
        let mut loss = 0.0;
        let run = &*self;
        run.learner.accumulate_all(&streams, &weights, |stream, result| {
            run.check_finite(stream, &result)?;
            add_metrics(&mut sum, run.recipe, stream, &result);
            loss += f64::from(result.loss);
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
        let mut record = Record::new(Split::Train, self.state.step, self.epoch(per_epoch), &sum)
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

    fn epoch(&self, per_epoch: u64) -> f64 {
        self.state.epoch as f64 + self.state.batch_in_epoch as f64 / per_epoch as f64
    }

    fn check_finite(&self, stream: &Stream, result: &StreamResult) -> Result<()> {
        if result.loss.is_finite() {
            return Ok(());
        }
        let bad = |p: &usize| {
            !(result.mean_logp[2 * p].is_finite() && result.mean_logp[2 * p + 1].is_finite())
        };
        let pairs: Vec<usize> = (0..stream.rows.len()).filter(bad).collect();
        let all: Vec<usize> = (0..stream.rows.len()).collect();
        let named = if pairs.is_empty() { &all } else { &pairs };
        Err(self.not_finite("the loss", named.iter().map(|&p| stream.rows[p])))
    }

    fn not_finite(&self, what: &str, rows: impl Iterator<Item = usize>) -> Error {
        let places: Vec<String> = rows.take(8).map(|r| self.train.sources[r].to_string()).collect();
        Error::NonFinite(format!(
            "{what} is not finite in step {} (rows {}). The run stopped; the last checkpoint in {} is untouched. \
             Lower optim.learning_rate or look at these rows.",
            self.state.step + 1,
            places.join(", "),
            self.recipe.output.display()
        ))
    }

    fn evaluate(&mut self, per_epoch: u64) -> Result<Option<Record>> {
        let Some(heldout) = &self.heldout else { return Ok(None) };
        let start = Instant::now();
        let mut sum = StepMetrics::new(self.recipe.loss.lambda);
        let mut tokens = 0;
        self.learner.evaluate_all(&heldout.streams, &heldout.weights, |stream, result| {
            add_metrics(&mut sum, self.recipe, stream, &result);
            tokens += stream.used_tokens;
            Ok(())
        })?;
        let record = Record::new(Split::Eval, self.state.step, self.epoch(per_epoch), &sum)
            .with("tokens_per_second", tokens as f64 / start.elapsed().as_secs_f64());
        self.metrics.write(&record)?;
        (self.on_event)(Event::Evaluated(&record));
        Ok(Some(record))
    }

    fn sample(&mut self) -> Result<()> {
        let Some(sampler) = &self.sampler else { return Ok(()) };
        let texts = sampler.run(&Sampling {
            max_tokens: self.recipe.sample.max_tokens,
            temperature: 0.0,
            seed: 0,
        })?;
        for (prompt, text) in self.recipe.sample.prompts.iter().zip(&texts) {
            (self.on_event)(Event::Sampled { step: self.state.step, prompt, text });
        }
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let (output, source) = (&self.recipe.output, Some(self.recipe.model.as_path()));
        let folder = checkpoint::write(
            output,
            &self.state,
            source,
            &self.learner.config,
            self.learner.trained(),
            &|name| self.learner.read(name),
        )?;
        checkpoint::prune(output, self.recipe.train.keep_checkpoints)?;
        (self.on_event)(Event::Saved(&folder));
        Ok(())
    }
}

/// Adds one stream's pairs and NLL to the sums.
fn add_metrics(sum: &mut StepMetrics, recipe: &Recipe, stream: &Stream, result: &StreamResult) {
    for p in 0..stream.rows.len() {
        if has_rejected(stream, p) {
            sum.add_pair(result.mean_logp[2 * p], result.mean_logp[2 * p + 1]);
        } else {
            sum.add_single(result.mean_logp[2 * p]);
        }
    }
    let mut per_pair = vec![(0.0f64, 0.0f64); stream.rows.len()];
    for ((&kind, &pair), &logp) in stream.nll.iter().zip(&stream.nll_pair).zip(&result.logp) {
        if in_nll(kind, recipe.loss.nll_scope) {
            per_pair[pair as usize].0 -= f64::from(logp);
            per_pair[pair as usize].1 += 1.0;
        }
    }
    for (total, count) in per_pair {
        match recipe.loss.nll_reduction {
            NllReduction::Token => sum.add_nll(total, count),
            NllReduction::Sequence => sum.add_nll(total / f64::max(count, 1.0), 1.0),
        }
    }
}
