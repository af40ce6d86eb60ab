//! The demo: ORPO on real preference pairs, a control beside it, and a report about both.
//!
//! Two runs start from the same model and see the same rows in the same order. One minimises the
//! objective of ORPO, the other (lambda = 0) only imitates the right sentences; its wrong ones are
//! measured and not trained on. What the report shows of the difference is lambda's work.

pub mod pairs;

use crate::data::form::Form;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::files::{check_creatable, write_atomically};
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::generate::Sampling;
use crate::model::weight_files::check_weights_there;
use crate::model::weights::{FolderWeights, ParameterValues};
use crate::page::report::{self, ReportPage, Sample, Table, write_report};
use crate::program::Store;
use crate::train::dataset::Dataset;
use crate::train::evaluation::{Estimate, FIGURES, estimates, score};
use crate::train::metrics::{METRICS, MetricsRecord, Split, read_metrics, step_seconds};
use crate::train::objectives::RowKind;
use crate::train::prepare::prepare;
use crate::train::recipe::Recipe;
use crate::train::sampler::Sampler;
use crate::train::trainer;
use pairs::{GrammarPairs, fetch_pairs};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// The recipe of both runs; the folders in it are replaced by those of [`DemoOptions`].
const RECIPE: &str = include_str!("../../models/nano/demo.toml");
/// Name of [`RECIPE`] in messages.
const RECIPE_NAME: &str = "models/nano/demo.toml";
/// What `--quick` changes in it.
const QUICK: [&str; 3] = ["train.max_steps=32", "train.eval_every=8", "train.save_every=16"];

/// Name of the page in the output folder.
pub const REPORT: &str = "report.html";
/// Name of the file of held-out rows of rules that are trained on, in the output folder.
pub const KNOWN: &str = "known.jsonl";
/// Name of the file of rows of rules that are held out, in the output folder.
pub const HELDOUT: &str = "heldout.jsonl";
/// Folder of the ORPO run in the output folder.
pub const ORPO: &str = "orpo";
/// Folder of the control in the output folder.
pub const CONTROL: &str = "control";

/// Longest sentence in characters that the page shows corrections of.
const SHOWN_CHARS: usize = 72;
/// Tokens a correction may have beyond the longest right one.
const SPARE_TOKENS: usize = 4;

/// What a demo starts from and where it goes.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Hugging Face folder of the model that both runs start from.
    pub model: PathBuf,
    /// Folder for both runs and the report; must not exist, except to resume.
    pub output: PathBuf,
    /// Folder of the fetched pairs.
    pub cache: PathBuf,
    /// Fewer steps, fewer held-out rows, fewer corrections.
    pub quick: bool,
    /// Go on with what is in the output folder.
    pub resume: bool,
    /// `dotted.key=value` that win over the demo's recipe, in both runs.
    pub set: Vec<String>,
    /// How the demo was called, for the report.
    pub command: String,
    /// Set when the demo is to stop; it goes on with `resume`.
    pub stop: Arc<AtomicBool>,
}

/// Held-out rows of one kind, and what the base model and both trained ones make of them.
#[derive(Debug, Clone)]
pub struct Judged {
    /// What the rows have in common, behind "sentences".
    pub kind: &'static str,
    /// How many rows there are.
    pub rows: usize,
    /// Of the base model, the control and ORPO: how often the right sentence is preferred.
    pub preferred: [Estimate; 3],
    /// Their log odds ratios.
    pub log_odds: [Estimate; 3],
    /// How many of [`Judged::corrected`] greedy corrections are exactly right.
    pub exact: [usize; 3],
    /// Sentences that each of them corrected.
    pub corrected: usize,
}

/// What happens during a demo, for a display.
pub enum Event<'a> {
    /// Something worth a line.
    Note(String),
    /// Something happened in one of the two runs.
    Run {
        /// Which one: "ORPO" or "control".
        name: &'static str,
        /// What it is.
        event: trainer::TrainEvent<'a>,
    },
}

/// The held-out rows before and after a run.
#[derive(Debug, Clone)]
pub struct Ends {
    /// "ORPO" or "control".
    pub name: &'static str,
    /// Evaluation before the first step.
    pub before: MetricsRecord,
    /// Evaluation after the last step.
    pub after: MetricsRecord,
}

/// What a demo leaves.
#[derive(Debug)]
pub struct DemoOutcome {
    /// Path of the page.
    pub report: PathBuf,
    /// The held-out rows before and after: the control, then ORPO.
    pub ends: [Ends; 2],
    /// The held-out rows of rules that were trained on, and those of rules that were not.
    pub judged: [Judged; 2],
    /// What that comes to, in words.
    pub verdict: Vec<String>,
    /// Corrections of held-out sentences by the base model and both trained ones; first those that ORPO
    /// gets right and the base model does not.
    pub samples: Vec<Sample>,
    /// Seconds from start to report.
    pub seconds: f64,
}

impl DemoOptions {
    /// Finds out, before anything is fetched or computed, whether the demo can start.
    ///
    /// # Errors
    /// An output folder that exists (unless resuming), a model that is missing or has no weights,
    /// settings that are none.
    pub fn check_start(&self) -> Result<()> {
        if !self.resume && std::fs::symlink_metadata(&self.output).is_ok() {
            return Err(Error::file(
                &self.output,
                "exists already. Choose another --output, remove it, or go on with it by --resume.",
            ));
        }
        check_creatable(&self.output)?;
        if !self.model.join("config.json").is_file() {
            return Err(Error::file(
                &self.model,
                "is not a model folder (it has no config.json). Start the demo in the project's own \
                 folder, or name a Hugging Face folder with --model.",
            ));
        }
        check_weights_there(&self.model)?;
        self.recipe(ORPO, Path::new(""), Path::new("")).map(|_| ())
    }

    /// The recipe of the run in `folder`, [`ORPO`] or [`CONTROL`]. They differ in the objective, in
    /// lambda and in the folder.
    fn recipe(&self, folder: &str, train: &Path, heldout: &Path) -> Result<Recipe> {
        let quick = QUICK.iter().filter(|_| self.quick).map(|s| s.to_string());
        let objective: &[&str] = match folder {
            CONTROL => &["objective=sft", "loss.lambda=0"],
            _ => &["objective=orpo"],
        };
        let objective = objective.iter().map(|s| s.to_string());
        let set: Vec<String> = quick.chain(self.set.iter().cloned()).chain(objective).collect();
        let mut recipe = Recipe::parse(RECIPE_NAME, RECIPE, &set)?;
        recipe.model = self.model.clone();
        recipe.data.train = vec![train.to_owned()];
        recipe.data.eval = vec![heldout.to_owned()];
        // The report is about what changed since before the first step.
        recipe.train.eval_at_start = true;
        recipe.output = self.output.join(folder);
        Ok(recipe)
    }

    /// Held-out rows of one rule file that are evaluated at most. One file has half of them all.
    fn rows_per_rule(&self) -> usize {
        if self.quick { 3 } else { 8 }
    }

    /// Held-out rows of rules that are trained on which are evaluated at most.
    fn known_rows(&self) -> usize {
        if self.quick { 48 } else { 1000 }
    }

    /// Held-out sentences that the page shows corrections of.
    fn shown(&self) -> usize {
        if self.quick { 8 } else { 24 }
    }
}

/// Fetches the pairs if need be, trains ORPO and the control, lets the base model and both trained
/// ones correct held-out sentences and writes the report.
///
/// # Errors
/// See [`DemoOptions::check_start`], [`fetch_pairs`] and [`run`](crate::train::trainer::run). A stopped demo goes on from its last
/// checkpoint with `resume`.
pub fn run(
    gpu: &Rc<Gpu>,
    options: &DemoOptions,
    on_event: &mut dyn FnMut(Event),
) -> Result<DemoOutcome> {
    options.check_start()?;
    let pairs = fetch_pairs(&options.cache)?;
    on_event(Event::Note(format!(
        "pairs      {} to train on, {} held out of the same rules and {} of other rules, in {} (from harper-core's tests)",
        pairs.train_rows,
        pairs.known_rows,
        pairs.heldout_rows,
        options.cache.display()
    )));
    run_on(gpu, options, &pairs, on_event)
}

/// [`run`] on pairs that are there already, in the layout of [`fetch_pairs`].
///
/// # Errors
/// As [`run`]; and rows in another layout.
pub fn run_on(
    gpu: &Rc<Gpu>,
    options: &DemoOptions,
    pairs: &GrammarPairs,
    on_event: &mut dyn FnMut(Event),
) -> Result<DemoOutcome> {
    let start = Instant::now();
    options.check_start()?;
    let known = every(read_rows(&pairs.known)?, options.known_rows());
    let unknown = spread(read_rows(&pairs.heldout)?, options.rows_per_rule());
    let [known_file, unknown_file] = [KNOWN, HELDOUT].map(|name| options.output.join(name));
    write_heldout(&known_file, &known)?;
    write_heldout(&unknown_file, &unknown)?;

    let mut runs = Vec::new();
    for (name, folder) in [("ORPO", ORPO), ("control", CONTROL)] {
        let recipe = options.recipe(folder, &pairs.train, &known_file)?;
        let prepared = prepare(&recipe, options.resume)?.stop_when(options.stop.clone());
        let outcome =
            trainer::run(prepared, gpu, &mut |event| on_event(Event::Run { name, event }))?;
        let records = read_metrics(&recipe.output.join(METRICS))?;
        runs.push(Finished { name, recipe, model: outcome.model, records });
    }
    let [orpo, control] = &runs[..] else { unreachable!("two runs were made") };

    let models = [&options.model, &control.model, &orpo.model];
    let mut judged = Vec::new();
    let mut samples = Vec::new();
    for (kind, rows, file) in [
        ("of rules that were trained on", &known, &known_file),
        ("of rules that were not", &unknown, &unknown_file),
    ] {
        on_event(Event::Note(format!(
            "{} held-out sentences {kind} are judged and corrected by the base model and both trained ones",
            rows.len()
        )));
        let corrections = correct(gpu, models, rows)?;
        judged.push(judge(gpu, models, kind, file, orpo, &corrections)?);
        samples.extend(pick(rows, corrections, options.shown() / 2));
    }
    let judged: [Judged; 2] = judged.try_into().expect("two kinds were judged");
    let verdict = judged.iter().map(verdict_of).collect::<Vec<_>>();
    // ORPO's column comes first on the page, as its run does.
    let ordered = |sample: Sample| {
        let [base, control, orpo] =
            <[String; 3]>::try_from(sample.outputs).expect("of three models");
        Sample { outputs: vec![base, orpo, control], ..sample }
    };
    let mut samples: Vec<Sample> = samples.into_iter().map(ordered).collect();
    samples.sort_by_key(|sample| !got_better(sample));
    let seconds = start.elapsed().as_secs_f64();
    let ends = [control.ends()?, orpo.ends()?];
    let report = ReportPage {
        title: "oddgrad: ORPO beside imitation alone".into(),
        runs: [orpo, control].map(|run| report::RunCurves::new(run.name, &run.records)).into(),
        metrics: orpo.recipe.loss.objective.metrics(),
        verdict: verdict.clone(),
        tables: vec![table_of(&judged)],
        samples: samples.clone(),
        facts: facts(gpu, options, pairs, [known.len(), unknown.len()], orpo, control, seconds)?,
        ..ReportPage::default()
    };
    let path = options.output.join(REPORT);
    write_report(&path, &report)?;
    Ok(DemoOutcome { report: path, ends, judged, verdict, samples, seconds })
}

/// A run that came to its end.
struct Finished {
    name: &'static str,
    recipe: Recipe,
    model: PathBuf,
    records: Vec<MetricsRecord>,
}

impl Finished {
    fn ends(&self) -> Result<Ends> {
        let mut evals = self.records.iter().filter(|r| r.split == Split::Eval);
        let before = evals.next();
        match (before, evals.next_back().or(before)) {
            (Some(before), Some(after)) => {
                Ok(Ends { name: self.name, before: before.clone(), after: after.clone() })
            }
            _ => Err(Error::file(
                self.recipe.output.join(METRICS),
                "has no evaluation. Start the demo anew in another --output.",
            )),
        }
    }

    /// The last value that training recorded under `name`.
    fn last(&self, name: &str) -> Option<f64> {
        self.records.iter().rev().filter(|r| r.split == Split::Train).find_map(|r| r.get(name))
    }
}

fn facts(
    gpu: &Gpu,
    options: &DemoOptions,
    pairs: &GrammarPairs,
    [known, unknown]: [usize; 2],
    orpo: &Finished,
    control: &Finished,
    seconds: f64,
) -> Result<Vec<(String, String)>> {
    let config = ModelConfig::load(&options.model)?;
    let info = gpu.info();
    let kind =
        if gpu.is_software() { "a software adapter, the CPU does the work" } else { "a GPU" };
    let recipe = &orpo.recipe;
    let steps = orpo.records.iter().map(|r| r.step).max().unwrap_or(0);
    let tokens = |run: &Finished| run.last("num_tokens").unwrap_or(0.0);
    let since = if options.resume { " since it was resumed" } else { "" };
    let facts = [
        ("Adapter", format!("{}: {kind}", info.name)),
        ("Driver", format!("{} {} ({:?})", info.driver, info.driver_info, info.backend)),
        ("Model", options.model.display().to_string()),
        (
            "Parameters",
            format!(
                "{}: {} layers, vocabulary {}",
                config.parameter_count(),
                config.layers,
                config.vocab_size
            ),
        ),
        (
            "Rows",
            format!(
                "{} pairs of {} rule files to train on; {known} of {} held-out pairs of the same rule \
                 files, and {unknown} of {} pairs of {} rule files that training does not see, spread \
                 over all of them. No sentence is in two of the three.",
                pairs.train_rows,
                pairs.train_rules,
                pairs.known_rows,
                pairs.heldout_rows,
                pairs.heldout_rules
            ),
        ),
        ("Steps", format!("{steps} of {} rows each, in both runs", recipe.batch.size)),
        ("Objective", format!("{} (control: {})", recipe.loss, control.recipe.loss)),
        ("Learning rate", format!("{} at its peak", recipe.optim.learning_rate)),
        ("Tokens", format!("{} of the packed stream (control: {})", tokens(orpo), tokens(control))),
        (
            "Time",
            format!(
                "{} for everything{since}; optimizer steps: {} (control: {})",
                duration(seconds),
                duration(step_seconds(&orpo.records)),
                duration(step_seconds(&control.records))
            ),
        ),
        ("Command", options.command.clone()),
        ("Recipe", recipe.to_toml()),
    ];
    Ok(facts.map(|(name, value)| (name.to_owned(), value)).into())
}

/// Seconds as a person says them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        _ => format!("{} min {} s", whole / 60, whole % 60),
    }
}

/// A held-out row in the layout of [`fetch_pairs`].
#[derive(Debug, Clone)]
struct HeldOutRow {
    line: String,
    source: String,
    prompt: String,
    right: String,
    wrong: String,
}

fn read_rows(path: &Path) -> Result<Vec<HeldOutRow>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match row(line) {
            Some(row) => rows.push(row),
            None => problems.push(Problem::new(
                format!("{}:{}", path.display(), number + 1),
                "is not a row of the demo: prompt, chosen and rejected of one message, and source",
            )),
        }
    }
    match problems.is_empty() {
        true if rows.is_empty() => Err(Error::file(path, "has no rows")),
        true => Ok(rows),
        false => Err(Error::input("the held-out rows cannot be used", problems)),
    }
}

fn row(line: &str) -> Option<HeldOutRow> {
    let value: Value = serde_json::from_str(line).ok()?;
    let content = |side: &str| Some(value[side][0]["content"].as_str()?.to_owned());
    Some(HeldOutRow {
        line: line.to_owned(),
        source: value["source"].as_str()?.to_owned(),
        prompt: content("prompt")?,
        right: content("chosen")?,
        wrong: content("rejected")?,
    })
}

/// At most `per_rule` rows of every rule file, evenly spaced within it, rule file after rule file.
fn spread(rows: Vec<HeldOutRow>, per_rule: usize) -> Vec<HeldOutRow> {
    let mut by_rule: BTreeMap<String, Vec<HeldOutRow>> = BTreeMap::new();
    for row in rows {
        by_rule.entry(row.source.clone()).or_default().push(row);
    }
    let even = |rows: Vec<HeldOutRow>| -> Vec<HeldOutRow> {
        let count = rows.len().min(per_rule);
        (0..count).map(|at| rows[at * rows.len() / count].clone()).collect()
    };
    by_rule.into_values().flat_map(even).collect()
}

/// At most `count` rows, evenly spaced.
fn every(rows: Vec<HeldOutRow>, count: usize) -> Vec<HeldOutRow> {
    let count = rows.len().min(count);
    (0..count).map(|at| rows[at * rows.len() / count].clone()).collect()
}

/// `count` corrections short enough for a table: those that got better, then one of every rule file,
/// then a second one, and so on.
fn pick(rows: &[HeldOutRow], corrections: Vec<Sample>, count: usize) -> Vec<Sample> {
    let mut better = Vec::new();
    let mut by_rule: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
    for (row, sample) in rows.iter().zip(corrections) {
        if row.right.chars().count().max(row.wrong.chars().count()) > SHOWN_CHARS {
            continue;
        }
        match sample.outputs.last().map(String::as_str) {
            Some(orpo) if is_right(orpo, &sample) && !is_right(&sample.outputs[0], &sample) => {
                better.push(sample);
            }
            _ => by_rule.entry(&row.source).or_default().push(sample),
        }
    }
    // Half of the room at most, so that what did not get better is seen too.
    better.truncate(count.div_ceil(2));
    let rounds = by_rule.values().map(Vec::len).max().unwrap_or(0);
    let others = (0..rounds)
        .flat_map(|round| by_rule.values().filter_map(move |rows| rows.get(round)).cloned());
    let left = count - better.len();
    better.extend(others.take(left).collect::<Vec<_>>());
    better
}

fn is_right(text: &str, sample: &Sample) -> bool {
    text.trim() == sample.right.trim()
}

/// Whether ORPO's correction, the second, is right and that of the base model, the first, is not.
fn got_better(sample: &Sample) -> bool {
    match &sample.outputs[..] {
        [base, orpo, ..] => is_right(orpo, sample) && !is_right(base, sample),
        _ => false,
    }
}

/// What the base model, the control and ORPO make of the rows in a file.
fn judge(
    gpu: &Rc<Gpu>,
    models: [&PathBuf; 3],
    kind: &'static str,
    file: &Path,
    orpo: &Finished,
    corrections: &[Sample],
) -> Result<Judged> {
    let config = ModelConfig::load(models[0])?;
    let tokenizer = Tokenizer::from_folder(models[0])?;
    let paths = [file.to_owned()];
    let (data, tokens) = (&orpo.recipe.data, orpo.recipe.batch.stream_tokens);
    let rows =
        Dataset::load(data, RowKind::Pairs, &tokenizer, &paths, crate::data::rows::Split::Train)?;
    let mut scored = Vec::new();
    for model in models {
        let weights = FolderWeights::open(model, &config)?;
        scored.push(score(gpu, &config, &weights, &tokenizer, &rows, tokens, &mut |_| ())?);
    }
    let found = estimates(&scored, RESAMPLES, 0);
    let of = |key: &str| -> [Estimate; 3] {
        let at = FIGURES.iter().position(|figure| figure.key == key).expect("it is a figure");
        let found = found[at].as_ref().expect("every row has both answers");
        [0, 1, 2].map(|model| found.models[model])
    };
    let exact = [0, 1, 2].map(|model| {
        corrections.iter().filter(|sample| is_right(&sample.outputs[model], sample)).count()
    });
    Ok(Judged {
        kind,
        rows: scored[0].len(),
        preferred: of("rewards/accuracies"),
        log_odds: of("log_odds_chosen"),
        exact,
        corrected: corrections.len(),
    })
}

/// Draws of rows for the intervals.
const RESAMPLES: usize = 1000;

/// A sentence about rows of one kind. Whether something is a difference is told by the intervals.
fn verdict_of(judged: &Judged) -> String {
    let Judged { kind, rows, preferred: [base, control, orpo], exact, corrected, .. } = judged;
    let share = |e: &Estimate| format!("{:.1} %", 100.0 * e.value);
    let apart =
        |a: &Estimate, b: &Estimate| a.interval[1] < b.interval[0] || b.interval[1] < a.interval[0];
    let change = match (apart(base, orpo), orpo.value > base.value) {
        (false, _) => "that is no change that so few rows could show",
        (true, true) if apart(control, orpo) && orpo.value > control.value => {
            "more than before, and more than imitation alone brings"
        }
        (true, true) => "more than before",
        (true, false) => "less than before",
    };
    format!(
        "On {rows} new sentences {kind}, ORPO prefers the right one in {} of the pairs, the base model in {} and imitation alone in {}: {change}. Exactly right corrections, of {corrected}: ORPO {}, base model {}, imitation {}.",
        share(orpo),
        share(base),
        share(control),
        exact[2],
        exact[0],
        exact[1]
    )
}

/// Both kinds of rows as a table.
fn table_of(judged: &[Judged; 2]) -> Table {
    let share = |e: &Estimate| {
        let [low, high] = e.interval.map(|x| 100.0 * x);
        format!("{:.1} % ({low:.1} to {high:.1})", 100.0 * e.value)
    };
    let number =
        |e: &Estimate| format!("{:.2} ({:.2} to {:.2})", e.value, e.interval[0], e.interval[1]);
    let mut rows = Vec::new();
    for j in judged {
        let Judged { kind, rows: count, preferred, log_odds, exact, corrected } = j;
        rows.push((
            format!("Right sentence preferred, {count} sentences {kind}"),
            preferred.iter().map(share).collect(),
        ));
        rows.push((
            format!("Log odds ratio, sentences {kind}"),
            log_odds.iter().map(number).collect(),
        ));
        let exact = exact.iter().map(|n| format!("{n} of {corrected}")).collect();
        rows.push((format!("Exactly right corrections, sentences {kind}"), exact));
    }
    Table {
        title: "Sentences that no run has seen".into(),
        note: "In brackets 95 % of 1,000 draws of the rows (bootstrap).".into(),
        columns: ["base model", "imitation alone", "ORPO"].map(str::to_owned).into(),
        rows,
    }
}

/// Writes the rows that both runs are evaluated on. Where they are already, they must be the same:
/// a resumed demo with other settings would compare what cannot be compared.
fn write_heldout(path: &Path, rows: &[HeldOutRow]) -> Result<()> {
    let text: String = rows.iter().map(|row| format!("{}\n", row.line)).collect();
    if path.exists() {
        let found = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        return match found == text.as_bytes() {
            true => Ok(()),
            false => Err(Error::file(
                path,
                "belongs to a demo with other settings. Resume with the settings it was started \
                 with, or choose another --output.",
            )),
        };
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    }
    write_atomically(path, text.as_bytes())
}

/// Greedy corrections by the base model, the control and ORPO: one program, in which the weights are
/// exchanged.
fn correct(gpu: &Rc<Gpu>, models: [&PathBuf; 3], rows: &[HeldOutRow]) -> Result<Vec<Sample>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let config = ModelConfig::load(models[0])?;
    let tokenizer = Tokenizer::from_folder(models[0])?;
    let lengths = rows.iter().map(|row| Ok(tokenizer.encode(&row.right)?.len()));
    let longest = lengths.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
    let max_tokens = longest + SPARE_TOKENS;
    let store = Store::new(gpu);
    let put = |model: &Path| -> Result<()> {
        FolderWeights::open(model, &config)?
            .each(&mut |name, shape, values| store.write(name, shape, values))
    };
    put(models[0])?;
    let prompts: Vec<String> = rows.iter().map(|row| row.prompt.clone()).collect();
    let prompts = (&prompts[..], Form::of_template(tokenizer.has_template()));
    let sampler = Sampler::new(gpu, &store, &config, tokenizer, prompts, max_tokens)?;
    let greedy = Sampling::greedy(max_tokens);
    let mut texts = Vec::new();
    for model in models {
        put(model)?;
        texts.push(sampler.run(&greedy, &[], &mut |_, _| ())?.into_iter());
    }
    let mut next = |model: usize| texts[model].next().expect("one text a prompt");
    let sample = |row: &HeldOutRow| Sample {
        wrong: row.wrong.clone(),
        outputs: (0..3).map(&mut next).collect(),
        right: row.right.clone(),
    };
    Ok(rows.iter().map(sample).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(counts: &[(&str, usize)]) -> Vec<HeldOutRow> {
        let one = |source: &str, n: usize| {
            let text = format!("sentence {n} of {source}");
            HeldOutRow {
                line: format!("{source} {n}"),
                source: source.into(),
                prompt: text.clone(),
                right: text.clone(),
                wrong: text,
            }
        };
        counts.iter().flat_map(|&(source, count)| (0..count).map(move |n| one(source, n))).collect()
    }

    #[test]
    fn demo_evaluates_every_rule_file_and_none_too_often() {
        let chosen = spread(rows(&[("b", 249), ("a", 2), ("c", 5)]), 4);
        let lines: Vec<_> = chosen.iter().map(|row| row.line.as_str()).collect();
        assert_eq!(
            lines,
            ["a 0", "a 1", "b 0", "b 62", "b 124", "b 186", "c 0", "c 1", "c 2", "c 3"]
        );
    }

    /// Corrections of which ORPO's is right where `better` says so.
    fn corrections(rows: &[HeldOutRow], better: &[usize]) -> Vec<Sample> {
        let sample = |(at, row): (usize, &HeldOutRow)| {
            let orpo = if better.contains(&at) { row.right.clone() } else { "no".into() };
            let outputs = vec!["no".into(), "no".into(), orpo];
            Sample { wrong: row.wrong.clone(), outputs, right: row.right.clone() }
        };
        rows.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn demo_shows_what_got_better_then_different_rules_and_no_long_ones() {
        let mut rows = rows(&[("a", 3), ("b", 1), ("c", 2)]);
        rows[0].wrong = "x".repeat(SHOWN_CHARS + 1);
        let shown = |better: &[usize], count| -> Vec<String> {
            let picked = pick(&rows, corrections(&rows, better), count);
            picked
                .into_iter()
                .map(|s| s.right.replace("sentence ", "").replace("of ", ""))
                .collect()
        };
        assert_eq!(shown(&[], 4), ["1 a", "0 b", "0 c", "2 a"]);
        assert_eq!(shown(&[5, 2, 3], 4), ["2 a", "0 b", "1 a", "0 c"]);
        assert_eq!(shown(&[], 99).len(), 5);
    }

    #[test]
    fn demo_verdicts_go_by_the_intervals() {
        let estimate = |value: f64, by: f64| Estimate { value, interval: [value - by, value + by] };
        let judged = |shares: [f64; 3], by| Judged {
            kind: "of rules",
            rows: 160,
            preferred: shares.map(|share| estimate(share, by)),
            log_odds: [estimate(0.0, 1.0); 3],
            exact: [1, 2, 30],
            corrected: 160,
        };
        let verdict = |shares, by| verdict_of(&judged(shares, by));
        let clear = verdict([0.01, 0.05, 0.55], 0.04);
        assert!(clear.contains("55.0 %") && clear.contains("more than imitation alone"), "{clear}");
        assert!(clear.contains("ORPO 30, base model 1, imitation 2"), "{clear}");
        assert!(verdict([0.01, 0.5, 0.55], 0.04).contains("more than before."));
        assert!(verdict([0.5, 0.5, 0.55], 0.04).contains("no change"));
        assert!(verdict([0.6, 0.5, 0.5], 0.04).contains("less than before"));
        let table = table_of(&[judged([0.01, 0.05, 0.55], 0.01), judged([0.0, 0.0, 0.0], 0.0)]);
        assert_eq!((table.rows.len(), table.rows[0].1[2].as_str()), (6, "55.0 % (54.0 to 56.0)"));
    }

    #[test]
    fn demo_recipes_differ_in_lambda_and_folder_alone() {
        let options = DemoOptions {
            model: "m".into(),
            output: "o".into(),
            cache: "c".into(),
            quick: true,
            resume: false,
            set: vec!["optim.learning_rate=0.125".into()],
            command: String::new(),
            stop: Arc::default(),
        };
        let recipe =
            |folder| options.recipe(folder, Path::new("t.jsonl"), Path::new("h.jsonl")).unwrap();
        let (orpo, mut control) = (recipe(ORPO), recipe(CONTROL));
        let lambda = |recipe: &Recipe| recipe.loss.objective.settings()[0].clone();
        assert_eq!(lambda(&orpo), ("lambda", 1.0.into()));
        assert_eq!(lambda(&control), ("lambda", 0.0.into()));
        assert_eq!(orpo.optim.learning_rate, 0.125);
        assert_eq!(orpo.train.max_steps, Some(32));
        assert_ne!(orpo.output, control.output);
        // What is saved beside the control is a recipe that can be read again.
        Recipe::parse("saved", &control.to_toml(), &[]).unwrap();
        let rest = |recipe: &Recipe| recipe.loss.settings()[1..].to_vec();
        assert_eq!(rest(&orpo), rest(&control));
        control.loss = orpo.loss.clone();
        control.output = orpo.output.clone();
        assert_eq!(orpo, control);
    }

    #[test]
    fn demo_refuses_what_cannot_work_before_it_starts() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = DemoOptions {
            model: folder.path().join("model"),
            output: folder.path().to_owned(),
            cache: folder.path().join("cache"),
            quick: false,
            resume: false,
            set: Vec::new(),
            command: String::new(),
            stop: Arc::default(),
        };
        let error = |options: &DemoOptions| options.check_start().unwrap_err().to_string();
        assert!(error(&options).contains("exists already"));
        options.output = folder.path().join("new");
        assert!(error(&options).contains("no config.json"));
        std::fs::create_dir(&options.model).unwrap();
        std::fs::write(options.model.join("config.json"), "{}").unwrap();
        assert!(error(&options).contains("holds no file of weights"));
        std::fs::write(options.model.join("model.safetensors"), "").unwrap();
        options.check_start().unwrap();
        options.set = vec!["optim.lerning_rate=1".into()];
        assert!(error(&options).contains("learning_rate"));
        assert!(!options.cache.exists() && !options.output.exists());
    }

    #[test]
    fn demo_resumes_on_the_same_held_out_rows_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/heldout.jsonl");
        let few = rows(&[("a", 2)]);
        write_heldout(&path, &few).unwrap();
        write_heldout(&path, &few).unwrap();
        let error = write_heldout(&path, &rows(&[("a", 3)])).unwrap_err().to_string();
        assert!(error.contains("other settings"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a 0\na 1\n");
    }

    #[test]
    fn demo_says_durations_as_people_do() {
        assert_eq!(duration(3.25), "3.2 s");
        assert_eq!(duration(61.0), "1 min 1 s");
        assert_eq!(duration(599.6), "10 min 0 s");
    }
}
