//! Compares this engine with reference values made elsewhere (PyTorch, TRL).
//!
//! Two layouts are known:
//! - a *model folder* in Hugging Face layout with `batch.json` (tokenized rows), `golden.json`
//!   (loss parts), `golden.safetensors` (logits, token log-probs) and `grads_f64.safetensors`.
//!   `golden.json` may name the `objective` and its `loss` settings as a recipe does; without, it is
//!   ORPO's with lambda under `beta`. An objective with a reference model needs what that gives the
//!   rows, mean log-probs at `reference.chosen_logps` and `reference.rejected_logps`. For one that
//!   trains on labelled rows each pair is two of them, first all chosen answers, then all rejected ones,
//!   and the reference has one list at `reference.logps` and that of the mismatched answers, cut at
//!   `max_length`, at `reference.mismatched_logps`. In an adapter's
//!   folder the gradients are those of its factors. Some have the parameters after two steps of AdamW
//!   besides (`steps.rs`);
//! - a *recorded run* with `log.json` (arguments and per-step log), `batches.json` (every
//!   micro-batch) and the model it started from in `../../<model>`. `log.json` names the objective as
//!   `golden.json` does, with ORPO's lambda under `args.beta`; the reference model, if there is one, is
//!   the model it started from.

use crate::data::example::{Example, Sequence};
use crate::data::pack::{Capacity, PackedBatch, footprint, pack};
use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::graph::GRAD;
use crate::model::config::ModelConfig;
use crate::model::layout::{adapter_layout, layout};
use crate::model::lora::is_factor;
use crate::model::source::{Tensor64, read_safetensors_f64};
use crate::model::stream::{BatchInputs, HeadRows};
use crate::model::weights::FolderWeights;
use crate::program::Program;
use crate::train::dataset::Dataset;
use crate::train::divergence::divergence;
use crate::train::evaluator::Evaluator;
use crate::train::learner::{Learner, LearnerOptions};
use crate::train::objectives::{self, Coefficients, LOGP, Loss, RowKind};
use crate::train::program::{Placement, TrainedSet, train_all};
use crate::train::recipe::OptimSettings;
use crate::train::reference::{
    count, mismatched_rows, number, read_batch, read_json, reference_logp, unpaired,
};
use crate::train::replay::RunReference;
use crate::train::steps;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// One compared quantity.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What was compared.
    pub what: String,
    /// Number of values.
    pub values: usize,
    /// The largest difference, in the measure of `bar`.
    pub difference: f64,
    /// What is allowed.
    pub bar: f64,
    /// "absolute", "relative", "relative L2".
    pub measure: &'static str,
}

impl Comparison {
    /// True if the difference is within the bar; NaN is not.
    pub fn passed(&self) -> bool {
        self.difference <= self.bar
    }
}

/// By how much more than on the golden folders' models (2 layers, 64 wide) rounding may show on one
/// of `layers` layers of width `width`: rounding errors are independent, so that a sum of n terms
/// errs by about sqrt(n) units (Higham and Mary 2019, "A new approach to probabilistic rounding
/// error analysis"), and so do the errors of layers that follow each other. Every bar grows with
/// sqrt(layers / 2 * width / 64), and none shrinks. On 30 layers, 576 wide, that is 11.6: PyTorch
/// in single precision is off by 1e-4 there, where 5e-6 is usual on the golden folders.
fn rounding_growth(layers: usize, width: usize) -> f64 {
    (f64::max(layers as f64 / 2.0, 1.0) * f64::max(width as f64 / 64.0, 1.0)).sqrt()
}

/// Bars that a correct single-precision implementation meets on the golden folders.
const LOSS_BAR: f64 = 5e-6;
const LOGITS_BAR: f64 = 3e-5;
const LOGP_BAR: f64 = 3e-5;
const GRADIENT_BAR: f64 = 3e-5;

/// Reference values, read and checked.
pub enum Reference {
    /// A model folder with expected values.
    Model(Box<ModelReference>),
    /// A recorded run.
    Run(Box<RunReference>),
}

impl Reference {
    /// Reads what is in `folder`; nothing is computed.
    ///
    /// # Errors
    /// When the folder is neither layout, or a file is missing or damaged; rows that do not fit
    /// the model are all named at once.
    pub fn load(folder: &Path) -> Result<Self> {
        std::fs::metadata(folder).map_err(|e| Error::io("read", folder, e))?;
        if folder.join("golden.json").is_file() {
            return Ok(Self::Model(Box::new(ModelReference::load(folder, folder)?)));
        }
        if folder.join("log.json").is_file() {
            return Ok(Self::Run(Box::new(RunReference::load(folder)?)));
        }
        Err(Error::file(
            folder,
            "holds no reference values: neither golden.json (a model with expected values) nor log.json (a recorded run)",
        ))
    }

    /// As [`Reference::load`], the expected values in `folder` of the model in another one.
    ///
    /// # Errors
    /// As [`Reference::load`].
    pub fn of_model(folder: &Path, model: &Path) -> Result<Self> {
        Ok(Self::Model(Box::new(ModelReference::load(folder, model)?)))
    }

    /// Computes and compares everything; each bar is multiplied by `tolerance`.
    ///
    /// # Errors
    /// When the device fails or the model does not fit it. Differences are not errors: see
    /// [`Comparison::passed`].
    pub fn compare(&self, gpu: &Rc<Gpu>, tolerance: f64) -> Result<Vec<Comparison>> {
        let rows = match self {
            Self::Model(reference) => reference.compare(gpu)?,
            Self::Run(reference) => reference.compare(gpu)?,
        };
        Ok(self.with_bars(rows, tolerance))
    }

    /// Compares the parameters after the `steps` steps of AdamW that a model folder records; the bar
    /// is multiplied by `tolerance`.
    ///
    /// # Errors
    /// As [`Reference::compare`]; when the folder records no steps, or as many others.
    pub fn compare_steps(
        &self,
        gpu: &Rc<Gpu>,
        steps: usize,
        tolerance: f64,
    ) -> Result<Vec<Comparison>> {
        let row = match self {
            Self::Model(reference) => steps::compare(reference, &reference.folder, gpu, steps)?,
            Self::Run(_) => {
                let what = "is for model folders; a recorded run has steps of its own";
                let problem = Problem::new("--steps", what);
                return Err(Error::input("cannot verify a recorded run", vec![problem]));
            }
        };
        Ok(self.with_bars(vec![row], tolerance))
    }

    /// `rows` with the bars that fit the model's size and `tolerance`.
    fn with_bars(&self, mut rows: Vec<Comparison>, tolerance: f64) -> Vec<Comparison> {
        let config = match self {
            Self::Model(reference) => &reference.config,
            Self::Run(reference) => &reference.config,
        };
        let growth = rounding_growth(config.layers, config.hidden_size);
        for row in rows.iter_mut().filter(|row| !row.what.starts_with("learning_rate")) {
            row.bar *= growth;
        }
        for row in &mut rows {
            row.bar *= tolerance;
        }
        rows
    }
}

/// Compares everything in `folder`; each bar is multiplied by `tolerance`.
///
/// # Errors
/// As [`Reference::load`] and [`Reference::compare`].
pub fn verify(gpu: &Rc<Gpu>, folder: &Path, tolerance: f64) -> Result<Vec<Comparison>> {
    Reference::load(folder)?.compare(gpu, tolerance)
}

/// A capacity that takes `examples` in one stream with `spare` unused room.
pub(super) fn capacity_for(examples: &[Example], spare: usize) -> Capacity {
    let sizes: Vec<_> = examples.iter().map(footprint).collect();
    Capacity {
        tokens: sizes.iter().map(|s| s.tokens).sum::<usize>() + spare,
        targets: sizes.iter().map(|s| s.targets).sum::<usize>() + spare,
        pairs: examples.len(),
    }
}

/// A gradient this much smaller than all together is zero but for rounding: that of a key's bias is,
/// which softmax does not see.
const NOTHING: f64 = 1e-12;

/// The L2 norm of `got` - `want` over that of `want`, or, where `want` is zero but for rounding, over
/// that of all gradients together, `whole`.
fn relative_l2(got: &[f32], want: &[f64], whole: f64) -> f64 {
    let difference: f64 = got.iter().zip(want).map(|(&g, &w)| (f64::from(g) - w).powi(2)).sum();
    let size = norm(want);
    difference.sqrt() / if size > NOTHING * whole { size } else { whole }
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// A model folder with expected values, read.
pub struct ModelReference {
    folder: PathBuf,
    config: ModelConfig,
    weights: FolderWeights,
    examples: Vec<Example>,
    /// The examples with the answers of other rows, if the objective asks for them.
    mismatched: Option<Dataset>,
    loss: Loss,
    golden_path: PathBuf,
    golden: Value,
    tensors_path: PathBuf,
    tensors: BTreeMap<String, Tensor64>,
    gradients_path: PathBuf,
    gradients: BTreeMap<String, Tensor64>,
}

impl ModelReference {
    fn load(folder: &Path, model: &Path) -> Result<Self> {
        let config = ModelConfig::load(model)?;
        let golden_path = folder.join("golden.json");
        let golden = read_json(&golden_path)?;
        let mut examples = read_batch(&folder.join("batch.json"), config.vocab_size)?;
        let loss = objectives::of_reference(&golden_path, &golden, &[])?;
        let mut mismatched = None;
        if let RowKind::Labelled { mismatched: asked } = loss.objective.rows() {
            examples = unpaired(examples);
            if asked {
                mismatched = Some(mismatched_of(&examples, &golden_path, &golden)?);
            }
        }
        let tensors_path = folder.join("golden.safetensors");
        let gradients_path = folder.join("grads_f64.safetensors");
        Ok(Self {
            folder: folder.to_owned(),
            weights: FolderWeights::open(model, &config)?,
            config,
            examples,
            mismatched,
            loss,
            tensors: read_safetensors_f64(&tensors_path)?,
            gradients: read_safetensors_f64(&gradients_path)?,
            golden_path,
            golden,
            tensors_path,
            gradients_path,
        })
    }

    fn compare(&self, gpu: &Rc<Gpu>) -> Result<Vec<Comparison>> {
        let Self { config, loss, golden_path, golden, .. } = self;
        let objective = &*loss.objective;
        // Of an adapter's folder the factors train, and theirs are the gradients.
        let (trained, tensors): (TrainedSet, _) = match config.lora() {
            None => (train_all(), layout(config)),
            Some(_) => (Rc::new(is_factor), adapter_layout(config)),
        };
        let optim = OptimSettings::new(0.0);
        let (learner, stream, coefficients) = self.learner(gpu, &optim, Placement::of(trained))?;
        let (stream, coefficients) = (&stream, &coefficients);
        let results = learner.accumulate_in_detail(stream, coefficients)?;

        let mut out = Vec::new();
        let mut absolute = |what: &str, got: f64, want: f64| {
            out.push(Comparison {
                what: what.into(),
                values: 1,
                difference: (got - want).abs(),
                bar: LOSS_BAR,
                measure: "absolute",
            });
        };
        let want = number(golden_path, golden, &["float64", "loss"])?;
        absolute("loss", f64::from(results.loss()), want);
        for compared in objective.compared(stream, coefficients, &results) {
            let (what, key, value) = (compared.what, compared.key, compared.value);
            let Some(row) = compared.row else {
                absolute(what, value, number(golden_path, golden, &["float64", key])?);
                continue;
            };
            let list = golden.get("float64").and_then(|g| g.get(key)).and_then(|l| l.get(row));
            let want = list
                .and_then(Value::as_f64)
                .ok_or_else(|| Error::file(golden_path, format!("has no float64.{key}[{row}]")))?;
            absolute(&format!("pair {row} {what}"), value, want);
        }
        let (gradients_path, expected) = (&self.gradients_path, &self.gradients);
        let whole = norm(&expected.values().map(|t| norm(&t.data)).collect::<Vec<_>>());
        for tensor in &tensors {
            let name = &tensor.name;
            let got = tensor.join(&|parameter| learner.read(&format!("{parameter}{GRAD}")))?;
            let want = &expected
                .get(name)
                .ok_or_else(|| Error::file(gradients_path, format!("has no gradient of {name}")))?
                .data;
            if want.len() != got.len() {
                return Err(Error::file(
                    gradients_path,
                    format!("the gradient of {name} has another size"),
                ));
            }
            out.push(Comparison {
                what: format!("gradient {name}"),
                values: want.len(),
                difference: relative_l2(&got, want, whole),
                bar: GRADIENT_BAR,
                measure: "relative L2",
            });
        }
        drop(learner);
        let at = out.len() - tensors.len();
        out.splice(at..at, self.compare_logits(gpu)?);
        Ok(out)
    }

    /// All rows in one stream.
    fn capacity(&self) -> Capacity {
        capacity_for(&self.examples, 7)
    }

    /// A learner of the model, the stream of all rows, and its coefficients.
    pub(super) fn learner(
        &self,
        gpu: &Rc<Gpu>,
        optim: &OptimSettings,
        placement: Placement,
    ) -> Result<(Learner, PackedBatch, Coefficients)> {
        let Self { config, weights, examples, loss, .. } = self;
        let (objective, capacity) = (&*loss.objective, self.capacity());
        let options = LearnerOptions { placement, ..LearnerOptions::default() };
        let learner =
            Learner::with_options(gpu, config, weights, capacity, objective, optim, &options)?;
        let mut streams = pack(&examples.iter().collect::<Vec<_>>(), capacity)?;
        if objective.has_reference() {
            streams[0].refer(&self.reference_logps()?);
        }
        if let Some(mismatched) = &self.mismatched {
            let all: Vec<usize> = (0..examples.len()).collect();
            let found = divergence(&learner, objective, mismatched, &all, capacity, || Ok(()))?;
            streams[0].divergence = found;
        }
        let coefficients = loss.coefficients(&streams).remove(0);
        Ok((learner, streams.remove(0), coefficients))
    }

    /// What the reference model gives the answers of each row.
    fn reference_logps(&self) -> Result<Vec<[f32; 2]>> {
        let Self { golden_path: path, golden, examples, .. } = self;
        let of_row =
            |(row, example): (usize, &Example)| match (example.desirable, &example.rejected) {
                (None, Some(_)) => Ok([
                    reference_logp(path, golden, "chosen_logps", row)?,
                    reference_logp(path, golden, "rejected_logps", row)?,
                ]),
                _ => Ok([reference_logp(path, golden, "logps", row)?, 0.0]),
            };
        examples.iter().enumerate().map(of_row).collect()
    }

    /// Logits and token log-probs of every token, each sequence by itself, with 16-bit weights as
    /// the folder stores them.
    fn compare_logits(&self, gpu: &Rc<Gpu>) -> Result<Vec<Comparison>> {
        let capacity = self.capacity();
        let Self { config, weights, examples, tensors_path: path, .. } = self;
        let tensor = |name: &str| {
            let found = self.tensors.get(name);
            found.ok_or_else(|| Error::file(path, format!("has no tensor {name}")))
        };
        let want_logits = &tensor("logits")?.data;
        let want_logp = &tensor("token_logps")?.data;
        let [_, width, vocab] = tensor("logits")?.shape[..] else {
            return Err(Error::file(path, "logits must have the shape [rows, tokens, vocabulary]"));
        };
        let singles = each_alone(examples);
        if want_logits.len() < singles.len() * width * vocab
            || want_logp.len() < singles.len() * (width - 1)
            || vocab != config.vocab_size
        {
            return Err(Error::file(path, "logits or token_logps do not fit the batch"));
        }

        let longest = singles.iter().map(|e| e.chosen.ids.len()).max().unwrap_or(1);
        let objective = &*self.loss.objective;
        let evaluator = Evaluator::new(gpu, config, weights, capacity, objective)?;
        let mut g = evaluator.store().inference_graph();
        let inputs = BatchInputs::declare(&mut g, longest);
        let rows = HeadRows::declare(&mut g, longest, longest);
        let logits = config.decoder.forward(&mut g, &inputs, &rows).logits(&mut g);
        let program = Program::new(gpu, g, evaluator.store())?;
        let (mut of_logits, mut of_logp) = (Largest::default(), Largest::default());
        for single in &singles {
            let one = Capacity { tokens: longest, targets: longest, pairs: 1 };
            let stream = &pack(&[single], one)?[0];
            inputs.write(&program, stream);
            rows.write(&program, &(0..longest as u32).collect::<Vec<_>>());
            program.run();
            let got = logits.read(&program)?;
            let used = single.chosen.ids.len() * vocab;
            of_logits.add(&got[..used], &want_logits[single.row * width * vocab..]);

            let stream: &PackedBatch = &pack(&[single], capacity)?[0];
            let coefficients = objective.coefficients(&[stream], 1).remove(0);
            let results = evaluator.evaluate(stream, &coefficients)?;
            let logp = results.get(LOGP);
            let used = single.chosen.ids.len() - 1;
            of_logp.add(&logp[..used], &want_logp[single.row * (width - 1)..]);
        }
        Ok(vec![
            of_logits.comparison("logits", LOGITS_BAR),
            of_logp.comparison("token log-probs", LOGP_BAR),
        ])
    }
}

/// The rows with the answers of others, and what the reference model gives those.
fn mismatched_of(examples: &[Example], path: &Path, golden: &Value) -> Result<Dataset> {
    let most = match golden.get("max_length") {
        None => usize::MAX,
        Some(_) => count(path, golden, &["max_length"])?,
    };
    let examples = mismatched_rows(examples, most, path)?;
    let logp = |row| Ok([reference_logp(path, golden, "mismatched_logps", row)?, 0.0]);
    let reference = (0..examples.len()).map(logp).collect::<Result<Vec<_>>>()?;
    let mut rows = Dataset::of_examples(examples, "batch.json");
    rows.refer(&reference);
    Ok(rows)
}

/// Every sequence by itself, all of its tokens targets: those of rows 0..B chosen, B..2B rejected.
fn each_alone(examples: &[Example]) -> Vec<Example> {
    let alone = |row: usize, s: &Sequence| Example {
        row,
        chosen: Sequence { ids: s.ids.clone(), response_start: 1 },
        rejected: None,
        desirable: None,
    };
    let chosen = examples.iter().map(|e| alone(e.row, &e.chosen));
    let rejected =
        examples.iter().filter_map(|e| Some(alone(examples.len() + e.row, e.rejected.as_ref()?)));
    chosen.chain(rejected).collect()
}

/// The largest difference of many values.
#[derive(Default)]
struct Largest {
    difference: f64,
    values: usize,
}

impl Largest {
    /// Compares `got` with the first values of `want`.
    fn add(&mut self, got: &[f32], want: &[f64]) {
        for (&got, &want) in got.iter().zip(&want[..got.len()]) {
            self.difference = worse(self.difference, f64::from(got) - want);
        }
        self.values += got.len();
    }

    fn comparison(self, what: &str, bar: f64) -> Comparison {
        let Self { difference, values } = self;
        Comparison { what: what.into(), values, difference, bar, measure: "absolute" }
    }
}

/// The larger of two absolute differences, NaN winning.
pub(super) fn worse(so_far: f64, difference: f64) -> f64 {
    if difference.is_nan() { f64::NAN } else { so_far.max(difference.abs()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_with_depth_and_width_only() {
        assert_eq!(rounding_growth(2, 64), 1.0);
        assert_eq!(rounding_growth(1, 8), 1.0, "never below the golden folders' bars");
        assert_eq!(rounding_growth(8, 64), 2.0);
        assert_eq!(rounding_growth(2, 256), 2.0);
        // 30 layers, 576 wide: logits off by 1.2e-4 and the worst gradient by 7.6e-5 on llvmpipe;
        // PyTorch in single precision by 6.8e-5 and 1e-4.
        let growth = rounding_growth(30, 576);
        assert!(LOGITS_BAR * growth > 1.2e-4 && GRADIENT_BAR * growth > 1e-4);
        // A mistake is not rounding: the bars stay below a thousandth.
        assert!(LOGITS_BAR * growth < 1e-3 && GRADIENT_BAR * growth < 1e-3);
    }
}
