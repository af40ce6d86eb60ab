//! Objectives side by side: the same model, rows, order and seed, one run for each, or two in a row
//! (`sft+dpo`), and one page about what they come to and what they cost.

mod cost;
mod judge;

use crate::data::rows::Split;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::files::check_creatable;
use crate::gpu::Gpu;
use crate::model::adapter::tokenizer_folder;
use crate::page::report::{ReportPage, RunCurves, Table, write_report};
use crate::train::dataset::Dataset;
use crate::train::metrics::{METRICS, MetricsRecord, read_metrics};
use crate::train::objectives::RowKind;
use crate::train::objectives::preference::COMMON;
use crate::train::prepare::{REPORT, prepare};
use crate::train::recipe::Recipe;
use crate::train::trainer::{self, TrainEvent};
use cost::cost;
use judge::Judge;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What is compared, and where it goes.
pub struct CompareOptions {
    /// The recipe's text.
    pub text: String,
    /// What messages call it.
    pub place: String,
    /// `sft`, `dpo`, `sft+dpo`, …
    pub objectives: Vec<String>,
    /// `KEY=VALUE` for all, `OBJECTIVE:KEY=VALUE` for one.
    pub set: Vec<String>,
    /// Folder for the runs and the page.
    pub output: PathBuf,
    /// Where reference log-probs are kept.
    pub cache: Option<PathBuf>,
    /// Go on with what is there.
    pub resume: bool,
    /// Set when it is to stop.
    pub stop: Arc<AtomicBool>,
}

/// What is heard of a comparison.
pub enum CompareEvent<'a> {
    /// Of a run, by its name.
    Run(&'a str, TrainEvent<'a>),
    /// What is being done between the runs and after them.
    Working(String),
}

/// One run of an objective.
struct Stage {
    objective: String,
    recipe: Recipe,
}

/// An entry of the list: its runs in a row.
struct Entry {
    name: String,
    stages: Vec<Stage>,
}

/// What became of an entry.
struct Finished {
    name: String,
    model: PathBuf,
    records: Vec<Vec<MetricsRecord>>,
    recipes: Vec<Recipe>,
}

/// Trains every objective of the list and writes the page; returns its path and the tables on it.
/// `open` is called once it is known that there is something to do.
///
/// # Errors
/// Settings, rows or models that cannot be used, before anything is computed; whatever can go wrong in
/// a run.
pub fn compare(
    open: &dyn Fn() -> Result<Rc<Gpu>>,
    options: &CompareOptions,
    on_event: &mut dyn FnMut(CompareEvent),
) -> Result<(PathBuf, Vec<Table>)> {
    let entries = entries(options)?;
    let gpu = &open()?;
    let first = &entries[0].stages[0].recipe;
    let (base, data, tokens) = (first.model.clone(), first.data.clone(), first.batch.stream_tokens);
    let mut finished: Vec<Finished> = Vec::new();
    for Entry { name, stages } in entries {
        let mut model = base.clone();
        let (mut records, mut recipes) = (Vec::new(), Vec::new());
        for Stage { objective, mut recipe } in stages {
            // The first of two runs in a row may be one that is there: it would have the same bits.
            let before = finished.iter().find(|run| recipes.is_empty() && run.name == objective);
            if let Some(run) = before {
                model = run.model.clone();
                records.extend(run.records.iter().cloned());
                recipes.extend(run.recipes.iter().cloned());
                continue;
            }
            let told =
                if recipes.is_empty() { name.clone() } else { format!("{name}: {objective}") };
            recipe.model = model;
            let resume = options.resume && recipe.output.exists();
            let prepared = prepare(&recipe, resume)?
                .stop_when(options.stop.clone())
                .cache_in(options.cache.clone());
            let outcome = trainer::run(prepared, gpu, &mut |event| {
                on_event(CompareEvent::Run(&told, event));
            })?;
            records.push(read_metrics(&recipe.output.join(METRICS))?);
            model = outcome.model;
            recipes.push(recipe);
        }
        finished.push(Finished { name, model, records, recipes });
    }
    let tokenizer = Tokenizer::from_folder(&tokenizer_folder(&base)?)?;
    let rows = Dataset::load(&data, RowKind::Pairs, &tokenizer, &data.eval, Split::Validation)?;
    let models: Vec<&Path> =
        std::iter::once(base.as_path()).chain(finished.iter().map(|f| f.model.as_path())).collect();
    let names: Vec<String> = names_of(&finished);
    let title = format!("Objectives compared: {}", names.join(", "));
    let names = std::iter::once("before".to_owned()).chain(names).collect();
    let judge = Judge { gpu, models, names, tokenizer, tokens };
    let mut working = |what: String| on_event(CompareEvent::Working(what));
    let tables = vec![
        judge.held_out(&rows, &mut working)?,
        judge.answers(&rows, &mut working)?,
        cost(gpu, &finished)?,
    ];
    let mut facts: Vec<(String, String)> = vec![
        ("Adapter".into(), gpu.describe()),
        ("Rows".into(), format!("{} held-out pairs", rows.examples.len())),
    ];
    for run in &finished {
        for recipe in &run.recipes {
            facts.push((recipe.output.display().to_string(), recipe.to_toml()));
        }
    }
    let page = ReportPage {
        title,
        runs: finished.iter().map(curves).collect(),
        metrics: &COMMON,
        tables: tables.clone(),
        facts,
        ..ReportPage::default()
    };
    let path = options.output.join(REPORT);
    write_report(&path, &page)?;
    Ok((path, tables))
}

/// The recipes of all runs.
///
/// # Errors
/// All of it at once: names that are no objective or stand there twice, settings of none of them, rows
/// to be judged by that are missing, a folder that is there already.
fn entries(options: &CompareOptions) -> Result<Vec<Entry>> {
    let mut problems = Vec::new();
    let mut entries: Vec<Entry> = Vec::new();
    let known: Vec<&str> = options.objectives.iter().flat_map(|name| name.split('+')).collect();
    for set in &options.set {
        if let Some((name, _)) = objective_of(set).filter(|(name, _)| !known.contains(name)) {
            problems.push(Problem::new(format!("--set {set}"), format!("{name} is not compared")));
        }
    }
    if !options.resume && std::fs::symlink_metadata(&options.output).is_ok() {
        let what =
            "exists already; choose another --output, remove it, or go on with it by --resume";
        problems.push(Problem::new(options.output.display().to_string(), what));
    }
    for name in &options.objectives {
        if entries.iter().any(|entry| entry.name == *name) {
            problems.push(Problem::new(name, "stands in the list twice"));
            continue;
        }
        let mut stages = Vec::new();
        for (number, objective) in name.split('+').enumerate() {
            match recipe(options, objective) {
                Ok(mut recipe) => {
                    let stage = if number == 0 { name.clone() } else { format!("{name}.{number}") };
                    recipe.output = options.output.join(stage);
                    if recipe.data.eval.is_empty()
                        && problems.iter().all(|p| p.place != "data.eval")
                    {
                        let what =
                            "is empty, and the comparison is made on held-out rows; name some";
                        problems.push(Problem::new("data.eval", what));
                    }
                    stages.push(Stage { objective: objective.to_owned(), recipe });
                }
                Err(Error::Input { problems: more, .. }) => problems.extend(
                    // That the objective is set, nobody wrote.
                    more.into_iter().map(|p| {
                        let place = p.place.trim_start_matches("--set: ");
                        Problem::new(format!("{name}: {place}"), p.what)
                    }),
                ),
                Err(error) => return Err(error),
            }
        }
        entries.push(Entry { name: name.clone(), stages });
    }
    if entries.is_empty() {
        problems.push(Problem::new("--objectives", "is empty; name some, as in sft,dpo,orpo"));
    }
    if problems.is_empty() {
        check_creatable(&options.output)?;
        return Ok(entries);
    }
    Err(Error::input("these objectives cannot be compared", problems))
}

/// `dpo` and `loss.beta=0.5` of `dpo:loss.beta=0.5`; None for a setting of all.
fn objective_of(set: &str) -> Option<(&str, &str)> {
    let (name, setting) = set.split_once(':')?;
    name.bytes().all(|b| b.is_ascii_alphanumeric()).then_some((name, setting))
}

/// The recipe under another objective. Its own `[loss]` is of its own objective alone.
fn recipe(options: &CompareOptions, objective: &str) -> Result<Recipe> {
    let mut text = options.text.clone();
    if let Ok(mut table) = toml::from_str::<toml::Table>(&text) {
        let own = table.get("objective").and_then(toml::Value::as_str).unwrap_or("orpo");
        if own != objective {
            table.remove("loss");
            text = table.to_string();
        }
    }
    let settings = options.set.iter().filter_map(|set| match objective_of(set) {
        None => Some(set.clone()),
        Some((name, setting)) => (name == objective).then(|| setting.to_owned()),
    });
    let set: Vec<String> = settings.chain([format!("objective={objective}")]).collect();
    let recipe = Recipe::parse(&options.place, &text, &set)?;
    match recipe.loss.objective.rows() {
        RowKind::Texts => {
            let problem = Problem::new(objective, "trains on text, not on answers");
            Err(Error::input("the recipe cannot be used", vec![problem]))
        }
        _ => Ok(recipe),
    }
}

/// The curves of an entry: runs in a row are one, the second behind the first.
fn curves(run: &Finished) -> RunCurves {
    let mut all = Vec::new();
    let mut before = 0;
    for records in &run.records {
        let moved =
            |record: &MetricsRecord| MetricsRecord { step: before + record.step, ..record.clone() };
        all.extend(records.iter().map(moved));
        before += records.iter().map(|record| record.step).max().unwrap_or(0);
    }
    RunCurves::new(&run.name, &all)
}

/// What the tables call the entries.
fn names_of(finished: &[Finished]) -> Vec<String> {
    finished.iter().map(|run| run.name.clone()).collect()
}
