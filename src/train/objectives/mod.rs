//! Objectives: what a run minimises, one file each.
//!
//! An objective sees the log-probability of every target of a stream ([`Scored`]) and says
//! everything else itself: which rows it needs, its keys under `[loss]`, the graph of its loss
//! (the derivative comes from the operations), the numbers that the collator gives every stream,
//! what is read back, and the figures made of that. The recipe, the learner, the trainer, the
//! metrics and `verify` only know the trait.
//!
//! The graph of an objective knows no batch sizes. What depends on them is an input: the collator
//! sees the whole optimizer step beforehand, so a target's weight is 1/N of that step, and k
//! micro-batches add up to the gradient of one large batch.
//!
//! # How to add one
//! 1. `objectives/<name>.rs`: a struct of its settings, `impl Objective` for it, and `read`, which
//!    takes the settings from a recipe. [`likelihood`] has the negative log-likelihood of the
//!    chosen side, [`preference`] the figures of two answers and [`pairwise`] what two answers differ by,
//!    all to be used as parts. Loss terms
//!    that no operation computes yet are an operation of their own (`ops/README.md`).
//! 2. `pub mod <name>;` and one line in `OBJECTIVES`.
//!
//! Mean log-probabilities of responses are [`Scored::mean`]; a sum is that times the length, which
//! the collator knows. What differs from sequence to sequence is one more input, `[2P]`. An objective
//! with a reference model says so ([`Objective::has_reference`]) and finds its log-probabilities in
//! every stream. Rows without a partner are sequences of a pair that
//! has only one side ([`Pair::rejected`](crate::data::pack::Pair::rejected) is None).

pub mod cpo;
pub mod dpo;
pub mod kto;
pub mod likelihood;
pub mod lm;
pub mod orpo;
pub mod pairwise;
pub mod preference;
pub mod sft;
pub mod simpo;

use crate::data::pack::{Capacity, PackedBatch};
use crate::data::rows::Needs;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::ops::segment_mean::segment_mean;
use crate::train::metrics::Sums;
use crate::train::reference::number;
use crate::train::settings::Settings;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

type Read = fn(&mut Settings) -> Arc<dyn Objective>;

/// Every objective by its name in a recipe.
static OBJECTIVES: &[(&str, Read)] = &[
    ("orpo", orpo::read), // the default
    ("sft", sft::read),
    ("lm", lm::read),
    ("simpo", simpo::read),
    ("dpo", dpo::read),
    ("cpo", cpo::read),
    ("kto", kto::read),
];

/// Something to minimise, with its settings.
pub trait Objective: fmt::Debug + Send + Sync {
    /// Its name in a recipe.
    fn name(&self) -> &'static str;

    /// The rows it trains on.
    fn rows(&self) -> RowKind;

    /// Whether it compares the model with the one that the run starts from: then every stream holds
    /// what that gives each answer ([`PackedBatch::reference`]), and its results hold
    /// [`MEAN_LOGP`](preference::MEAN_LOGP), of which that is made.
    fn has_reference(&self) -> bool {
        false
    }

    /// What a person should know of a training set with so many desirable and undesirable answers.
    ///
    /// # Errors
    /// Why nothing can be learnt from it.
    fn check_labels(
        &self,
        _desirable: usize,
        _undesirable: usize,
    ) -> std::result::Result<Option<String>, String> {
        Ok(None)
    }

    /// Its keys under `[loss]` with their values, in the order they are written.
    fn settings(&self) -> Vec<(&'static str, toml::Value)>;

    /// Appends the loss of a stream to the graph.
    fn declare(&self, g: &mut Graph, scored: &Scored) -> Terms;

    /// What goes into the inputs of [`Objective::declare`] for streams that form one mean, divided
    /// by `parts`: the loss of all streams is their sum.
    fn coefficients(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Coefficients>;

    /// Adds what one stream gave to the sums of an optimizer step or an evaluation.
    fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums);

    /// The figures of summed streams by TRL's names, `loss` first. They do not depend on how the
    /// rows were split into streams.
    fn figures(&self, sums: &Sums) -> Vec<(&'static str, f64)>;

    /// The figures that a person is shown, the most telling first.
    fn metrics(&self) -> &'static [Metric];

    /// Numbers of one stream that reference files hold too, for `verify`.
    fn compared(
        &self,
        _stream: &PackedBatch,
        _coefficients: &Coefficients,
        _results: &Results,
    ) -> Vec<Compared> {
        Vec::new()
    }
}

/// Which rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// Plain text: every token is predicted.
    Texts,
    /// A prompt and its answer; a rejected answer is read if it is there.
    Answers,
    /// The same, and a label is read if it is there: no objective's, but what models are judged by.
    Judged,
    /// A prompt with a chosen and a rejected answer.
    Pairs,
    /// A prompt, an answer and whether it is desirable; a pair is two such rows.
    Labelled {
        /// Whether the streams of a step know what the model gives the rows' mismatched answers
        /// ([`PackedBatch::divergence`]), for which there is one forward pass more.
        mismatched: bool,
    },
}

impl RowKind {
    /// What a row must have beside its prompt.
    pub(super) fn needs(self) -> Needs {
        match self {
            Self::Texts | Self::Answers => Needs::Answer,
            Self::Judged => Needs::Judgement,
            Self::Pairs => Needs::Pair,
            Self::Labelled { .. } => Needs::Label,
        }
    }
}

/// What the model says about a stream: the base of every objective.
pub struct Scored {
    /// Log-probability of every target `[N]`.
    pub logp: Var,
    /// Where the targets of each sequence's response start in `seq_target` `[2P + 1]`.
    pub seq_offset: Var,
    /// Targets, sequence after sequence `[2N]`.
    pub seq_target: Var,
    /// The sequences that hold each target `[N, 2]`.
    pub owner: Var,
    /// The static sizes of the stream.
    pub capacity: Capacity,
}

impl Scored {
    /// Mean log-probability of every sequence's response `[2P]`: those of pair p at the places that
    /// [`PackedBatch::pair`] names, 0 for a side that is not there.
    pub fn mean(&self, g: &mut Graph) -> Var {
        segment_mean(g, self.logp, self.seq_offset, self.seq_target, self.owner)
    }
}

/// The loss of a stream as a graph, with what goes in and what comes out by name.
pub struct Terms {
    /// The loss `[1]`, of which the derivative is taken.
    pub loss: Var,
    /// Inputs that [`Objective::coefficients`] fills.
    pub inputs: Vec<(&'static str, Var)>,
    /// Read after every stream, beside [`LOSS`] and [`LOGP`], for [`Objective::measure`].
    pub results: Vec<(&'static str, Var)>,
    /// Read only by `verify`, for [`Objective::compared`].
    pub details: Vec<(&'static str, Var)>,
}

/// The loss `[1]` in [`Results`].
pub const LOSS: &str = "loss";
/// The log-probability of every target `[N]` in [`Results`].
pub const LOGP: &str = "logp";

/// Arrays by name, one for each of [`Terms::inputs`].
pub type Coefficients = BTreeMap<&'static str, Vec<f32>>;

/// What one stream gave, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Results(BTreeMap<&'static str, Vec<f32>>);

impl Results {
    /// Results from their names and values.
    pub fn new(values: impl IntoIterator<Item = (&'static str, Vec<f32>)>) -> Self {
        Self(values.into_iter().collect())
    }

    /// The values under a name that the objective declared.
    ///
    /// # Panics
    /// When nothing of that name was read.
    #[track_caller]
    pub fn get(&self, name: &str) -> &[f32] {
        match self.0.get(name) {
            Some(values) => values,
            None => panic!("the objective has no result `{name}`, only {:?}", self.0.keys()),
        }
    }

    /// Whether the objective declared a result of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The stream's part of the step's loss.
    pub fn loss(&self) -> f32 {
        self.get(LOSS)[0]
    }
}

/// A figure that a person is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// TRL's name: the key in `metrics.jsonl`.
    pub key: &'static str,
    /// On the console; None where it would only fill the line.
    pub label: Option<&'static str>,
    /// On a page.
    pub title: &'static str,
    /// The chart that it is drawn in, with the others of that name; None where runs of different
    /// objectives cannot be laid side by side.
    pub chart: Option<&'static str>,
    /// How it is written.
    pub unit: Unit,
    /// Which way it should go.
    pub better: Better,
}

/// How a figure is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A plain number.
    Number,
    /// A share of 1.
    Share,
}

/// Which way a figure should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Up.
    Higher,
    /// Down.
    Lower,
}

/// A number that a reference file holds under `key`, for the whole batch or for one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// What it is, in words.
    pub what: &'static str,
    /// Its key in the file.
    pub key: &'static str,
    /// The row, where there is one number a row.
    pub row: Option<usize>,
    /// What this engine found.
    pub value: f64,
}

/// How micro-batches become one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accumulation {
    /// As one big batch would.
    Exact,
    /// The mean of micro-batch means, as TRL does, which changes the objective where they differ
    /// in length.
    Trl,
}

/// The section `[loss]` of a recipe: an objective and how micro-batches add up to it.
#[derive(Debug, Clone)]
pub struct Loss {
    /// What is minimised.
    pub objective: Arc<dyn Objective>,
    /// How micro-batches add up.
    pub accumulation: Accumulation,
}

impl Loss {
    /// An objective, added up exactly.
    pub fn new(objective: impl Objective + 'static) -> Self {
        Self { objective: Arc::new(objective), accumulation: Accumulation::Exact }
    }

    pub(super) fn read(s: &mut Settings) -> Self {
        let names: Vec<&str> = OBJECTIVES.iter().map(|(name, _)| *name).collect();
        let name = s.choice("objective", &names).unwrap_or(names[0]);
        let (_, read) =
            OBJECTIVES.iter().find(|(n, _)| *n == name).expect("a choice is one of all");
        let objective = read(s);
        use Accumulation::{Exact, Trl};
        let accumulation = s.choice("loss.accumulation", &[Exact, Trl]).unwrap_or(Exact);
        Self { objective, accumulation }
    }

    /// What goes into the objective's inputs for all streams of one optimizer step.
    pub fn coefficients(&self, streams: &[PackedBatch]) -> Vec<Coefficients> {
        match self.accumulation {
            Accumulation::Exact => self.of_one_mean(streams, 1),
            Accumulation::Trl => {
                let parts = streams.len();
                streams.iter().flat_map(|s| self.objective.coefficients(&[s], parts)).collect()
            }
        }
    }

    /// What goes into the objective's inputs for streams that form one mean, divided by `parts`:
    /// an evaluation, one of the micro-batches whose means are averaged.
    pub fn of_one_mean(&self, streams: &[PackedBatch], parts: usize) -> Vec<Coefficients> {
        self.objective.coefficients(&streams.iter().collect::<Vec<_>>(), parts)
    }

    /// Its keys and values as a recipe spells them, `accumulation` last.
    pub fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        let mut settings = self.objective.settings();
        settings.push(("accumulation", spelling(self.accumulation)));
        settings
    }
}

impl Default for Loss {
    /// The default objective with its default settings.
    fn default() -> Self {
        Self::new(orpo::Orpo::default())
    }
}

impl PartialEq for Loss {
    fn eq(&self, other: &Self) -> bool {
        self.objective.name() == other.objective.name() && self.settings() == other.settings()
    }
}

impl fmt::Display for Loss {
    /// The objective's name and the settings as a recipe spells them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings();
        let settings: Vec<String> =
            settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        write!(f, "{}: {}", self.objective.name(), settings.join(", "))
    }
}

impl Serialize for Loss {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let settings = self.settings();
        let mut map = serializer.serialize_map(Some(settings.len()))?;
        for (key, value) in &settings {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// A setting as a recipe spells it.
fn spelling(value: impl Serialize) -> toml::Value {
    toml::Value::try_from(value).expect("settings are TOML values")
}

/// The objective of a file of reference values: its `objective` and `loss` as a recipe has them, or
/// ORPO with the lambda that is TRL's argument `beta`, below the keys `at`.
pub(super) fn of_reference(path: &Path, file: &serde_json::Value, at: &[&str]) -> Result<Loss> {
    if file.get("objective").is_none() {
        let lambda = number(path, file, &[at, &["beta"]].concat())?;
        return Ok(Loss::new(orpo::Orpo { lambda, ..orpo::Orpo::default() }));
    }
    let keys = ["objective", "loss"].into_iter().filter_map(|key| Some((key, file.get(key)?)));
    let table = toml::Table::try_from(keys.collect::<BTreeMap<_, _>>())
        .map_err(|e| Error::file(path, format!("has no usable objective: {e}")))?;
    let mut settings = Settings::new(&path.display().to_string(), table, &[]);
    let loss = Loss::read(&mut settings);
    match settings.finish() {
        problems if problems.is_empty() => Ok(loss),
        problems => Err(Error::input("the reference values cannot be used", problems)),
    }
}

#[cfg(test)]
mod tests;
