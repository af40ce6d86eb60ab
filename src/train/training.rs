//! The loop of a run: its steps, and what is due between them.

use crate::data::form::Form;
use crate::data::pack::{Capacity, PackedBatch};
use crate::error::{Error, Result};
use crate::model::folder::replace_model_folder;
use crate::model::generate::Sampling;
use crate::train::best::{BEST, Best};
use crate::train::checkpoint::{self, TrainState};
use crate::train::dataset::Dataset;
use crate::train::divergence::divergence;
use crate::train::learner::Learner;
use crate::train::lock::{Kept, RunLock};
use crate::train::metrics::{METRICS, MetricsRecord, MetricsWriter, Split, Sums, read_metrics};
use crate::train::objectives::{Accumulation, LOGP, Results, preference};
use crate::train::proof::{Claim, PROOF, Proof};
use crate::train::recipe::Recipe;
use crate::train::sampler::Sampler;
use crate::train::trainer::{MODEL, TrainEvent, TrainOutcome, open_output};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The held-out rows and which of them share a stream. Streams are packed as they are evaluated:
/// all at once they would take many times the memory of the rows.
pub(super) struct Heldout {
    pub rows: Dataset,
    pub shares: Vec<Vec<usize>>,
}

/// A run on its way.
pub(super) struct Training<'a> {
    pub recipe: &'a Recipe,
    pub learner: Learner,
    pub train: Dataset,
    pub heldout: Option<Heldout>,
    pub sampler: Option<Sampler>,
    pub metrics: MetricsWriter,
    pub state: TrainState,
    pub total: u64,
    pub capacity: Capacity,
    pub form: Form,
    pub stop: Arc<AtomicBool>,
    /// The step of the newest checkpoint; 0 is the start, which needs none.
    pub saved: u64,
    pub saved_at: Instant,
    pub lock: RunLock,
    pub on_event: &'a mut dyn FnMut(TrainEvent),
}

impl Training<'_> {
    /// Does the steps that are left, and what is due between them.
    ///
    /// # Errors
    /// Whatever can go wrong meanwhile; [`Error::Stopped`] when it was asked to stop.
    pub fn run_to_end(mut self) -> Result<TrainOutcome> {
        let t = &self.recipe.train;
        let per_epoch = self.per_epoch();
        let mut last_eval = None;
        let metrics = self.recipe.loss.objective.metrics();
        (self.on_event)(TrainEvent::Begin { step: self.state.step, total: self.total, metrics });
        self.recall_best()?;
        if self.state.step == 0 && t.eval_at_start {
            if t.eval_every > 0 {
                last_eval = self.evaluate()?;
                self.is_best(last_eval.as_ref())?;
            }
            self.sample()?;
        }
        let mut order = self.train.order(self.state.seed, self.state.epoch);
        self.begin_epoch(&order)?;
        if self.state.step > 0 && self.misses_evaluation()? {
            last_eval = self.evaluate()?;
            if last_eval.is_none() {
                return Err(self.leave()?);
            }
            if self.is_best(last_eval.as_ref())? {
                self.record_best()?;
            }
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
            let mut best = false;
            if due(t.eval_every) || (t.eval_every > 0 && step == self.total) {
                let eval = self.evaluate()?;
                if eval.is_none() && self.heldout.is_some() {
                    return Err(self.leave()?); // stopped in the midst of it, at the last step perhaps
                }
                best = self.is_best(eval.as_ref())?;
                last_eval = eval.or(last_eval);
            }
            if due(self.recipe.sample.every) {
                self.sample()?;
            }
            let minutes = self.saved_at.elapsed().as_secs_f64() / 60.0;
            let late = t.save_minutes.is_some_and(|most| minutes >= most);
            if due(t.save_every) || late || best || step == self.total {
                self.save()?;
            }
            if best {
                self.record_best()?;
            }
        }
        let model = self.save_model()?;
        let proof = self.prove(&model)?;
        let best = self.find_best();
        Ok(TrainOutcome { model, steps: self.state.step, eval: last_eval, best, proof })
    }

    /// What of the best evaluation is known when a run begins or goes on. A checkpoint does not know
    /// the evaluation of its own step if the run was stopped between the two.
    fn recall_best(&mut self) -> Result<()> {
        let metric = self.recipe.best_metric();
        self.state.best =
            self.state.best.take().filter(|b| metric.is_some_and(|m| m.key == b.metric));
        let own = self.recorded_evaluation()?;
        self.is_best(own.as_ref())?;
        let output = &self.recipe.output;
        let path = output.join(BEST);
        match &self.state.best {
            Some(best) => best.write(output),
            // Of what happened after the checkpoint.
            None if path.exists() => {
                std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))
            }
            None => Ok(()),
        }
    }

    /// Whether this evaluation is the best so far, which is remembered.
    fn is_best(&mut self, eval: Option<&MetricsRecord>) -> Result<bool> {
        let (Some(eval), Some(metric)) = (eval, self.recipe.best_metric()) else {
            return Ok(false);
        };
        let better = match Best::of(eval, metric, self.state.best.as_ref()) {
            Ok(better) => better,
            Err(error) => {
                // The setting can be changed, and the run goes on from here.
                if self.saved < self.state.step {
                    self.save()?;
                }
                return Err(error);
            }
        };
        let is_best = better.is_some();
        self.state.best = better.or_else(|| self.state.best.take());
        Ok(is_best)
    }

    /// Says which evaluation is the best, now that its checkpoint is written.
    fn record_best(&mut self) -> Result<()> {
        if let Some(best) = &self.state.best {
            best.write(&self.recipe.output)?;
            (self.on_event)(TrainEvent::Best(best));
        }
        Ok(())
    }

    /// The best evaluation and its checkpoint, if that is still whole.
    fn find_best(&mut self) -> Option<(Best, PathBuf)> {
        let best = self.state.best.clone()?;
        match best.checkpoint(&self.recipe.output) {
            Ok(folder) => Some((best, folder)),
            Err(error) => {
                (self.on_event)(TrainEvent::Note(format!(
                    "the best evaluation was that of step {} ({} {:.4}), but its checkpoint cannot be used: {error}",
                    best.step, best.metric, best.value
                )));
                None
            }
        }
    }

    /// Shows that the run trained what it should have and that `model` holds it.
    fn prove(&mut self, model: &Path) -> Result<Proof> {
        let Self { recipe, learner, state, total, .. } = self;
        let path = recipe.output.join(PROOF);
        // One that is there is of a shorter run, and must not outlive a failure.
        if path.exists() {
            std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        let start = recipe.initial_weights(&learner.config)?;
        let claim = Claim {
            learner,
            trained: &recipe.trained(),
            steps: state.step,
            trains: (0..*total).any(|step| recipe.optim.learning_rate_at(step, *total) > 0.0),
            start: &*start,
            start_hash: &state.start_hash,
            model,
            records: &read_metrics(&recipe.output.join(METRICS))?,
        };
        let proof = claim.prove()?;
        proof.write(&recipe.output)?;
        for line in proof.lines() {
            (self.on_event)(TrainEvent::Note(line));
        }
        Ok(proof)
    }

    /// Finds out whether the output folder is still this run's, before something is written into
    /// it. One that is gone is made again: better there than nowhere.
    fn keep_folder(&mut self) -> Result<()> {
        let output = &self.recipe.output;
        if self.lock.keep(output)? == Kept::Remade {
            self.metrics = open_output(self.recipe, self.state.step, &[], self.on_event)?;
            // Its checkpoint went with the folder.
            self.state.best = self.state.best.take().filter(|b| b.step == self.state.step);
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
        Ok(due && self.heldout.is_some() && self.recorded_evaluation()?.is_none())
    }

    /// The evaluation of this step, if it is in the metrics.
    fn recorded_evaluation(&self) -> Result<Option<MetricsRecord>> {
        let step = self.state.step;
        let records = read_metrics(&self.recipe.output.join(METRICS))?;
        Ok(records.into_iter().find(|r| r.split == Split::Eval && r.step == step))
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
        let mut streams = self.train.pack(indices, self.capacity)?;
        let divergence = self.divergence(&self.train, indices, || Ok(()))?;
        streams.iter_mut().for_each(|stream| stream.divergence = divergence);
        let coefficients = self.recipe.loss.coefficients(&streams);
        let objective = &*self.recipe.loss.objective;
        let mut sums = Sums::default();
        let mut loss = 0.0;
        let run = &*self;
        run.learner.accumulate_all(&streams, &coefficients, |stream, results| {
            run.check_finite(&run.train, stream, &results)?;
            objective.measure(stream, &results, &mut sums);
            loss += f64::from(results.loss());
            Ok(())
        })?;
        let rate = self.recipe.optim.learning_rate_at(self.state.step, self.total);
        let norm = self.learner.update(rate)?;
        if !norm.is_finite() {
            return Err(self.not_finite(
                "the gradient norm",
                &self.train,
                indices.iter().map(|&i| self.train.examples[i].row),
            ));
        }
        let figures = objective.figures(&sums);
        self.check_figures(&self.train, indices.iter().copied(), &figures)?;
        let tokens: usize = streams.iter().map(|s| s.used_tokens).sum();
        self.state.step += 1;
        self.state.batch_in_epoch += 1;
        self.state.num_tokens += tokens as u64;
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

    /// How far the model is from its reference, by the mismatched answers of these rows; 0 where they
    /// have none.
    fn divergence(
        &self,
        rows: &Dataset,
        indices: &[usize],
        go_on: impl Fn() -> Result<()>,
    ) -> Result<f64> {
        let Some(mismatched) = &rows.mismatched else { return Ok(0.0) };
        let objective = &*self.recipe.loss.objective;
        divergence(&self.learner, objective, mismatched, indices, self.capacity, go_on)
    }

    fn epoch(&self) -> f64 {
        self.state.epoch as f64 + self.state.batch_in_epoch as f64 / self.per_epoch() as f64
    }

    /// Refuses results of `rows` whose loss is not finite, and names those that made it so.
    fn check_finite(&self, rows: &Dataset, stream: &PackedBatch, results: &Results) -> Result<()> {
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
        let bad = pairs.iter().map(|&p| stream.rows[p as usize]);
        Err(self.not_finite("the loss", rows, bad))
    }

    /// Refuses figures over `rows` that are not finite.
    fn check_figures(
        &self,
        rows: &Dataset,
        indices: impl Iterator<Item = usize>,
        figures: &[(&str, f64)],
    ) -> Result<()> {
        let bad: Vec<&str> =
            figures.iter().filter(|(_, value)| !value.is_finite()).map(|(name, _)| *name).collect();
        if bad.is_empty() {
            return Ok(());
        }
        Err(self.not_finite(&bad.join(", "), rows, indices.map(|i| rows.examples[i].row)))
    }

    /// The end of a run in which `what` came out NaN or infinite, over these rows of `rows`: those
    /// of the step it is in, or held-out ones after the step before.
    fn not_finite(&self, what: &str, rows: &Dataset, bad: impl Iterator<Item = usize>) -> Error {
        const SHOWN: usize = 8;
        let mut places: Vec<String> = Vec::new();
        let mut more = 0;
        for row in bad {
            match places.len() < SHOWN {
                true => places.push(rows.sources[row].to_string()),
                false => more += 1,
            }
        }
        if more > 0 {
            places.push(format!("and {more} more"));
        }
        let when = match std::ptr::eq(rows, &self.train) {
            true => format!("in step {}", self.state.step + 1),
            false => format!("in the evaluation of held-out rows after step {}", self.state.step),
        };
        let kept = match self.saved {
            0 => "there is no checkpoint yet".to_owned(),
            step => {
                let output = self.recipe.output.display();
                format!("the checkpoint of step {step} in {output} is untouched")
            }
        };
        Error::NonFinite(format!(
            "{what} is not finite {when} (rows {}). The run stopped; {kept}. \
             Lower optim.learning_rate, which is {:e}, or look at these rows.",
            places.join(", "),
            self.recipe.optim.learning_rate,
        ))
    }

    /// The figures of the held-out rows; None without any, or if the run is stopped meanwhile.
    fn evaluate(&mut self) -> Result<Option<MetricsRecord>> {
        let Some(heldout) = &self.heldout else { return Ok(None) };
        let start = Instant::now();
        let objective = &*self.recipe.loss.objective;
        let (mut sums, mut pairs) = (Sums::default(), Sums::default());
        let mut tokens = 0;
        let all: Vec<usize> = (0..heldout.rows.examples.len()).collect();
        let go_on = || match self.is_stopped() {
            true => Err(Error::Stopped(String::new())),
            false => Ok(()),
        };
        let divergence = match self.divergence(&heldout.rows, &all, go_on) {
            Err(Error::Stopped(_)) => return Ok(None),
            done => done?,
        };
        // The figures are sums over rows, whatever a stream's own loss is weighted by.
        let streams = heldout.shares.iter().map(|share| {
            let mut stream = heldout.rows.stream(share, self.capacity);
            stream.divergence = divergence;
            let coefficients = objective.coefficients(&[&stream], 1).remove(0);
            (stream, coefficients)
        });
        let each = |stream: &PackedBatch, results: Results| {
            go_on()?;
            self.check_finite(&heldout.rows, stream, &results)?;
            objective.measure(stream, &results, &mut sums);
            if results.has(preference::MEAN_LOGP) {
                preference::measure(stream, &results, &mut pairs);
            }
            tokens += stream.used_tokens;
            Ok(())
        };
        match self.learner.evaluate_all(streams, each) {
            Err(Error::Stopped(_)) => return Ok(None),
            done => done?,
        }
        let mut figures = objective.figures(&sums);
        figures.extend(preference::common(&pairs));
        self.check_figures(&heldout.rows, 0..heldout.rows.examples.len(), &figures)?;
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
        let texts =
            sampler.run(&Sampling::greedy(self.recipe.sample.max_tokens), &[], &mut |_, _| ())?;
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
        let best = self.state.best.as_ref().map(|best| best.step);
        checkpoint::prune(output, self.recipe.train.keep_checkpoints, best)?;
        (self.on_event)(TrainEvent::Saved(&folder));
        Ok(())
    }
}
