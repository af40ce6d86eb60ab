//! Objectives side by side: the same model, rows, order and seed, one run for each, or two in a row
//! (`sft+dpo`), and one page about what they come to and what they cost.

use crate::data::example::{Example, Sequence};
use crate::data::rows::Split;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::files::check_creatable;
use crate::gpu::Gpu;
use crate::model::adapter::tokenizer_folder;
use crate::model::config::ModelConfig;
use crate::model::generate::{Generator, Room, unwatched};
use crate::model::sampling::Sampling;
use crate::model::weights::FolderWeights;
use crate::page::report::{ReportPage, RunCurves, Table, write_report};
use crate::program::Store;
use crate::train::dataset::Dataset;
use crate::train::evaluation::{Answer, FIGURES, ScoredRows, estimates, score};
use crate::train::forecast::forecast;
use crate::train::metrics::{METRICS, MetricsRecord, read_metrics, step_seconds};
use crate::train::objectives::RowKind;
use crate::train::objectives::preference::COMMON;
use crate::train::prepare::{REPORT, prepare};
use crate::train::recipe::Recipe;
use crate::train::trainer::{self, TrainEvent};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Draws of rows for the intervals.
const RESAMPLES: usize = 1000;
/// Prompts that are answered for the divergence and the length of answers.
const ANSWERED: usize = 64;
/// Sequences that are answered together.
const TOGETHER: usize = 16;

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
/// `on_event` hears each run by its name; `open` is called once it is known that there is something to do.
///
/// # Errors
/// Settings, rows or models that cannot be used, before anything is computed; whatever can go wrong in
/// a run.
pub fn compare(
    open: &dyn Fn() -> Result<Rc<Gpu>>,
    options: &CompareOptions,
    on_event: &mut dyn FnMut(&str, TrainEvent),
) -> Result<(PathBuf, Vec<Table>)> {
    let entries = entries(options)?;
    let gpu = &open()?;
    let first = &entries[0].stages[0].recipe;
    let (base, data, tokens) = (first.model.clone(), first.data.clone(), first.batch.stream_tokens);
    let mut finished = Vec::new();
    for Entry { name, stages } in entries {
        let mut model = base.clone();
        let (mut records, mut recipes) = (Vec::new(), Vec::new());
        for Stage { objective, mut recipe } in stages {
            let told =
                if recipes.is_empty() { name.clone() } else { format!("{name}: {objective}") };
            recipe.model = model;
            let resume = options.resume && recipe.output.exists();
            let prepared = prepare(&recipe, resume)?
                .stop_when(options.stop.clone())
                .cache_in(options.cache.clone());
            let outcome = trainer::run(prepared, gpu, &mut |event| on_event(&told, event))?;
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
    let mut scored = Vec::new();
    for model in &models {
        scored.push(scores(gpu, model, &tokenizer, &rows, tokens)?);
    }
    let tables = vec![
        judgement(&finished, &scored),
        answers(gpu, &finished, &models, &tokenizer, &rows, tokens)?,
        cost(gpu, &finished)?,
    ];
    let mut facts: Vec<(String, String)> = vec![
        ("Adapter".into(), gpu.describe()),
        ("Rows".into(), format!("{} held-out pairs", scored[0].len())),
    ];
    for run in &finished {
        for recipe in &run.recipes {
            facts.push((recipe.output.display().to_string(), recipe.to_toml()));
        }
    }
    let names: Vec<&str> = finished.iter().map(|run| run.name.as_str()).collect();
    let page = ReportPage {
        title: format!("Objectives compared: {}", names.join(", ")),
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

fn scores(
    gpu: &Rc<Gpu>,
    model: &Path,
    tokenizer: &Tokenizer,
    rows: &Dataset,
    tokens: usize,
) -> Result<ScoredRows> {
    let config = ModelConfig::load(model)?;
    let weights = FolderWeights::open(model, &config)?;
    score(gpu, &config, &weights, tokenizer, rows, tokens, &mut |_| ())
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

fn columns(finished: &[Finished], base: bool) -> Vec<String> {
    let first = base.then(|| "before".to_owned());
    first.into_iter().chain(finished.iter().map(|run| run.name.clone())).collect()
}

/// What the held-out rows say.
fn judgement(finished: &[Finished], scored: &[ScoredRows]) -> Table {
    let found = estimates(scored, RESAMPLES, 0);
    let rows = FIGURES.iter().zip(found).filter_map(|(figure, found)| {
        let cell = |e: &crate::train::evaluation::Estimate| {
            format!("{:.3} ({:.3} to {:.3})", e.value, e.interval[0], e.interval[1])
        };
        Some((figure.title.to_owned(), found?.models.iter().map(cell).collect()))
    });
    Table {
        title: "Held-out pairs".into(),
        note: format!("In brackets 95 % of {RESAMPLES} draws of the rows (bootstrap)."),
        columns: columns(finished, true),
        rows: rows.collect(),
    }
}

/// How far each model's own answers are from the base model, and how long they are.
fn answers(
    gpu: &Rc<Gpu>,
    finished: &[Finished],
    models: &[&Path],
    tokenizer: &Tokenizer,
    rows: &Dataset,
    tokens: usize,
) -> Result<Table> {
    let prompts: Vec<Vec<u32>> = rows
        .examples
        .iter()
        .take(ANSWERED)
        .map(|e| e.chosen.ids[..e.chosen.response_start].to_vec())
        .collect();
    let longest = |of: &dyn Fn(&Example) -> usize| rows.examples.iter().map(of).max().unwrap_or(1);
    let most = longest(&|e| e.chosen.ids.len() - e.chosen.response_start) + 8;
    let (mut divergence, mut lengths) = (Vec::new(), Vec::new());
    for model in models {
        let config = ModelConfig::load(model)?;
        let store = Store::new(gpu);
        FolderWeights::open(model, &config)?.put(&store)?;
        let length = prompts.iter().map(Vec::len).max().unwrap_or(1) + most;
        let room = Room {
            sequences: prompts.len().clamp(1, TOGETHER),
            length: length.min(config.max_positions),
        };
        let generator = Generator::new(gpu, &store, &config, room)?;
        let sampling = Sampling { temperature: 1.0, ..Sampling::greedy(most) };
        let new = generator.generate(&prompts, tokenizer.ends().0, &sampling, &mut unwatched)?;
        drop(generator);
        lengths.push(new.iter().map(Vec::len).sum::<usize>() as f64 / new.len().max(1) as f64);
        let examples = prompts.iter().zip(&new).enumerate().filter(|(_, (_, new))| !new.is_empty());
        let examples = examples.map(|(row, (prompt, new))| Example {
            row,
            chosen: Sequence {
                ids: [&prompt[..], new].concat(),
                response_start: prompt.len().max(1),
            },
            rejected: None,
            desirable: None,
        });
        let said = Dataset::of_examples(examples.collect(), "a sampled answer");
        if said.examples.is_empty() {
            divergence.push(None);
            continue;
        }
        let own = scores(gpu, model, tokenizer, &said, tokens)?;
        let before = scores(gpu, models[0], tokenizer, &said, tokens)?;
        let sum = |rows: &ScoredRows, of: fn(&Answer) -> f64| -> f64 {
            rows.values().flat_map(|row| &row.chosen).map(of).sum()
        };
        let count = sum(&own, |answer| answer.tokens as f64);
        divergence.push(Some((sum(&own, Answer::sum) - sum(&before, Answer::sum)) / count));
    }
    let number = |value: &Option<f64>| value.map_or("–".to_owned(), |x| format!("{x:.4}"));
    Ok(Table {
        title: "Own answers".into(),
        note: format!(
            "One answer to each of {} held-out prompts, drawn at temperature 1, at most {most} tokens.",
            prompts.len()
        ),
        columns: columns(finished, true),
        rows: vec![
            (
                "KL divergence from the base model, nats per token".into(),
                divergence.iter().map(number).collect(),
            ),
            (
                "tokens of an answer".into(),
                lengths.iter().map(|length| format!("{length:.1}")).collect(),
            ),
        ],
    })
}

/// What each entry took.
fn cost(gpu: &Rc<Gpu>, finished: &[Finished]) -> Result<Table> {
    let target = gpu.target();
    let mut rows: Vec<(String, Vec<String>)> = [
        "runs in a row",
        "optimizer steps",
        "tokens, forward and backward",
        "tokens of the reference model, forward, once",
        "seconds in optimizer steps",
        "memory planned, the largest run, MiB",
        "files, MiB",
    ]
    .map(|name| (name.to_owned(), Vec::new()))
    .into();
    for run in finished {
        let last = |records: &[MetricsRecord], name: &str| {
            records.iter().rev().find_map(|record| record.get(name)).unwrap_or(0.0)
        };
        let steps: u64 = run.records.iter().filter_map(|r| r.last()).map(|r| r.step).sum();
        let tokens: f64 = run.records.iter().map(|r| last(r, "num_tokens")).sum();
        let seconds: f64 = run.records.iter().map(|r| step_seconds(r)).sum();
        let (mut memory, mut bytes, mut referred) = (0, 0, 0);
        for recipe in &run.recipes {
            memory = memory.max(forecast(recipe, target)?.memory.total());
            bytes += size_of(&recipe.output)?;
            if recipe.loss.objective.has_reference() {
                let tokenizer = Tokenizer::from_folder(&tokenizer_folder(&recipe.model)?)?;
                for paths in [&recipe.data.train, &recipe.data.eval] {
                    let kind = recipe.loss.objective.rows();
                    let rows = Dataset::load(&recipe.data, kind, &tokenizer, paths, Split::Train)?;
                    let footprint = |e| crate::data::pack::footprint(e).tokens;
                    let mismatched = rows.mismatched.iter().flat_map(|rows| &rows.examples);
                    referred +=
                        rows.examples.iter().chain(mismatched).map(footprint).sum::<usize>();
                }
            }
        }
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / 1048576.0);
        let cells = [
            run.recipes.len().to_string(),
            steps.to_string(),
            format!("{tokens:.0}"),
            referred.to_string(),
            format!("{seconds:.1}"),
            mib(memory),
            mib(bytes),
        ];
        rows.iter_mut().zip(cells).for_each(|(row, cell)| row.1.push(cell));
    }
    Ok(Table {
        title: "Cost".into(),
        note: "Tokens of packed streams; the memory is that of the plan; files with their checkpoints."
            .into(),
        columns: columns(finished, false),
        rows,
    })
}

/// Bytes of the files below a folder.
fn size_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
        let entry = entry.map_err(|e| Error::io("read", folder, e))?;
        let meta = entry.metadata().map_err(|e| Error::io("read", entry.path(), e))?;
        bytes += if meta.is_dir() { size_of(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}
