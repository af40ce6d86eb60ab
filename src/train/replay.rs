//! A recorded training run, done again from its start: the part of [`verify`](super::verify) that
//! compares with TRL's log.

use crate::data::example::Example;
use crate::data::pack::{Capacity, pack};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::weights::FolderWeights;
use crate::train::dataset::Dataset;
use crate::train::divergence::divergence;
use crate::train::learner::Learner;
use crate::train::metrics::Sums;
use crate::train::objectives::{self, Loss, RowKind};
use crate::train::recipe::OptimSettings;
use crate::train::reference::{
    batch_examples, count, mismatched_rows, number, read_json, schedule_of_trl,
};
use crate::train::reference_logps::answers;
use crate::train::schedule::Schedule;
use crate::train::verify::{Comparison, capacity_for, worse};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const LOSS_BAR: f64 = 1e-4;
const NORM_BAR: f64 = 1e-3;
const FIGURES_BAR: f64 = 1e-3;

/// A recorded run, read.
pub struct RunReference {
    pub(super) config: ModelConfig,
    weights: FolderWeights,
    batches: Vec<Vec<Example>>,
    /// The rows of each batch with the answers of others, if the objective asks for them.
    mismatched: Vec<Vec<Example>>,
    schedule: Schedule,
    optim: OptimSettings,
    loss: Loss,
    warmup: u64,
    /// Micro-batches of one optimizer step.
    group: usize,
    /// Micro-batches of one pass over the rows.
    epoch: usize,
    log_path: PathBuf,
    steps: Vec<Value>,
}

impl RunReference {
    pub(super) fn load(folder: &Path) -> Result<Self> {
        let log_path = folder.join("log.json");
        let log = read_json(&log_path)?;
        let arg = |key: &str| number(&log_path, &log, &["args", key]);
        let text = |v: Option<&Value>, what: &str| {
            let text = v.and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| Error::file(&log_path, format!("has no text at {what}")))
        };
        let model = folder.join("../..").join(text(log.get("model"), "model")?);
        let kind = text(
            log.get("args").and_then(|a| a.get("lr_scheduler_type")),
            "args.lr_scheduler_type",
        )?;
        let schedule = schedule_of_trl(&kind).ok_or_else(|| {
            Error::file(&log_path, format!("schedule `{kind}` is not known here"))
        })?;
        let steps = log.get("log").and_then(Value::as_array).cloned().unwrap_or_default();
        let total = count(&log_path, &log, &["args", "max_steps"])?;
        if steps.len() != total {
            return Err(Error::file(&log_path, format!("logs {} steps of {total}", steps.len())));
        }
        let group = count(&log_path, &log, &["args", "gradient_accumulation_steps"])?;
        let epoch = match log.get("batches_per_epoch") {
            None => 8,
            Some(_) => count(&log_path, &log, &["batches_per_epoch"])?,
        };
        let config = ModelConfig::load(&model)?;
        let batches_path = folder.join("batches.json");
        let batches = read_json(&batches_path)?;
        let batches: Vec<Vec<Example>> = batches
            .as_array()
            .ok_or_else(|| Error::file(&batches_path, "is not a list of micro-batches"))?
            .iter()
            .map(|b| batch_examples(&batches_path, b, config.vocab_size))
            .collect::<Result<_>>()?;
        if batches.len() < total {
            let what = format!("has {} micro-batches, too few for {total} steps", batches.len());
            return Err(Error::file(&batches_path, what));
        }
        let optim = OptimSettings {
            beta1: arg("adam_beta1")?,
            beta2: arg("adam_beta2")?,
            eps: arg("adam_epsilon")?,
            weight_decay: arg("weight_decay")?,
            max_grad_norm: arg("max_grad_norm")?,
            ..OptimSettings::new(arg("learning_rate")?)
        };
        let loss = objectives::of_reference(&log_path, &log, &["args"])?;
        let labelled = matches!(loss.objective.rows(), RowKind::Labelled { .. });
        if batches.iter().flatten().any(|example| example.desirable.is_some() != labelled) {
            let what = "has other rows than those that the objective of log.json trains on";
            return Err(Error::file(&batches_path, what));
        }
        let mut mismatched = Vec::new();
        if loss.objective.rows() == (RowKind::Labelled { mismatched: true }) {
            let most = count(&log_path, &log, &["args", "max_length"])?;
            let of_batch = |batch: &Vec<Example>| mismatched_rows(batch, most, &batches_path);
            mismatched = batches.iter().map(of_batch).collect::<Result<_>>()?;
        }
        let warmup = arg("warmup_steps")? as u64;
        let weights = FolderWeights::open(&model, &config)?;
        let epoch = epoch.min(batches.len());
        Ok(Self {
            config,
            weights,
            batches,
            mismatched,
            schedule,
            optim,
            loss,
            warmup,
            group,
            epoch,
            log_path,
            steps,
        })
    }

    pub(super) fn compare(&self, gpu: &Rc<Gpu>) -> Result<Vec<Comparison>> {
        let Self { batches, optim, log_path, steps, .. } = self;
        let total = steps.len() as u64;
        let all = batches.iter().chain(&self.mismatched);
        let sizes: Vec<Capacity> = all.map(|b| capacity_for(b, 0)).collect();
        let most = |f: fn(&Capacity) -> usize| sizes.iter().map(f).max().unwrap_or(1);
        let capacity = Capacity {
            tokens: most(|c| c.tokens),
            targets: most(|c| c.targets),
            pairs: most(|c| c.pairs),
        };
        let objective = &*self.loss.objective;
        let mut learner =
            Learner::new(gpu, &self.config, &self.weights, capacity, objective, optim)?;

        let refer = |batch: &Vec<Example>| {
            let streams = pack(&batch.iter().collect::<Vec<_>>(), capacity)?;
            let mut by_row = vec![[0.0; 2]; batch.len()];
            answers(&learner, objective, streams, |stream, answers| {
                stream.rows.iter().zip(answers).for_each(|(&row, &both)| by_row[row] = both);
                Ok(())
            })?;
            Ok(by_row)
        };
        let (mut reference, mut mismatched) = (Vec::new(), Vec::new());
        if objective.has_reference() {
            reference = batches.iter().map(refer).collect::<Result<_>>()?;
            let of_batch = |batch: &Vec<Example>| {
                let mut rows = Dataset::of_examples(batch.clone(), "batches.json");
                rows.refer(&refer(batch)?);
                Ok(rows)
            };
            mismatched = self.mismatched.iter().map(of_batch).collect::<Result<Vec<_>>>()?;
        }
        let (mut next, mut worst) = (0usize, [0.0f64; 4]);
        for (k, logged) in steps.iter().enumerate() {
            // The last group of an epoch may be short.
            let parts = self.group.min(self.epoch - next % self.epoch).min(batches.len() - next);
            if parts == 0 {
                let what = format!("logs step {}, for which there is no micro-batch left", k + 1);
                return Err(Error::file(log_path, what));
            }
            let mut loss = 0.0;
            let mut sums = Sums::default();
            for (i, batch) in batches.iter().enumerate().skip(next).take(parts) {
                let mut streams = pack(&batch.iter().collect::<Vec<_>>(), capacity)?;
                if let Some(by_row) = reference.get(i) {
                    streams.iter_mut().for_each(|stream| stream.refer(by_row));
                }
                if let Some(rows) = mismatched.get(i) {
                    let all: Vec<usize> = (0..rows.examples.len()).collect();
                    let found = divergence(&learner, objective, rows, &all, capacity, || Ok(()))?;
                    streams.iter_mut().for_each(|stream| stream.divergence = found);
                }
                // TRL averages the means of the micro-batches.
                let coefficients = self.loss.of_one_mean(&streams, parts);
                for (stream, coefficients) in streams.iter().zip(&coefficients) {
                    let results = learner.accumulate(stream, coefficients)?;
                    loss += f64::from(results.loss());
                    objective.measure(stream, &results, &mut sums);
                }
            }
            next += parts;
            let rate =
                self.schedule.learning_rate(optim.learning_rate, k as u64, self.warmup, total);
            let norm = f64::from(learner.update(rate)?);
            let want = |key: &str| number(log_path, logged, &[key]);
            let want_norm = want("grad_norm")?;
            worst[0] = worse(worst[0], loss - want("loss")?);
            worst[1] = worse(worst[1], (norm - want_norm) / want_norm);
            worst[2] = worse(worst[2], rate - want("learning_rate")?);
            // TRL's figures of several micro-batches are means of means, and where two rewards are
            // equal rounding decides the accuracy.
            let known = |name: &str| name != "loss" && name != "rewards/accuracies";
            for (name, value) in objective.figures(&sums) {
                let logged = logged.get(name).and_then(Value::as_f64);
                if let Some(want) = logged.filter(|_| known(name) && parts == 1) {
                    worst[3] = worse(worst[3], (value - want) / want.abs().max(1.0));
                }
            }
        }
        let row = |what: &str, i: usize, bar, measure| Comparison {
            what: format!("{what}, {} steps", steps.len()),
            values: steps.len(),
            difference: worst[i],
            bar,
            measure,
        };
        Ok(vec![
            row("loss", 0, LOSS_BAR, "absolute"),
            row("grad_norm", 1, NORM_BAR, "relative"),
            row("learning_rate", 2, 1e-12, "absolute"),
            row("log-probs, rewards and other figures", 3, FIGURES_BAR, "relative"),
        ])
    }
}
