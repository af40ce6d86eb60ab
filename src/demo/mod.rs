//! The demo: ORPO on real preference pairs, a control beside it, and a report about both.
//!
//! Two runs start from the same model and see the same rows in the same order. One minimises the
//! objective of ORPO, the other (lambda = 0) only imitates the right sentences; its wrong ones are
//! measured and not trained on. What the report shows of the difference is lambda's work.

mod judged;
pub mod pairs;
mod rows;
mod scale;
pub mod smollm2;

use crate::error::{Error, Result};
use crate::files::check_creatable;
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::weight_files::check_weights_there;
use crate::page::report::{self, ReportPage, Sample, write_report};
use crate::train::metrics::{METRICS, MetricsRecord, Split, read_metrics, step_seconds};
use crate::train::prepare::prepare;
use crate::train::recipe::Recipe;
use crate::train::trainer;
pub use judged::Judged;
use judged::{correct, got_better, judge, pick, table_of, verdict_of};
use pairs::{GrammarPairs, fetch_pairs};
use rows::{every, read_rows, spread, write_heldout};
use scale::Scale;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

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

/// What a demo starts from and where it goes.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Hugging Face folder of the model that both runs start from. A large one gets LoRA.
    pub model: PathBuf,
    /// What the model is called on the page.
    pub name: String,
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

/// What happens during a demo, for a display.
pub enum Event<'a> {
    /// Something worth a line.
    Note(String),
    /// What is going on, again and again.
    Working(String),
    /// Something happened in one of the two runs.
    Run {
        /// Which one: "ORPO" or "control".
        name: &'static str,
        /// What it is.
        event: trainer::TrainEvent<'a>,
    },
}

/// What a demo leaves.
#[derive(Debug)]
pub struct DemoOutcome {
    /// Path of the page.
    pub report: PathBuf,
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
        self.check_output()?;
        if !self.model.join("config.json").is_file() {
            return Err(Error::file(
                &self.model,
                "is not a model folder (it has no config.json). Start the demo in the project's own \
                 folder, or name nano, smollm2, a Hugging Face folder or a GGUF file with --model.",
            ));
        }
        check_weights_there(&self.model)?;
        // The kind of adapter changes values, not keys.
        self.recipe(&self.scale(true)?, ORPO, Path::new(""), Path::new("")).map(|_| ())
    }

    /// Finds out whether the output folder can be what it is to be.
    ///
    /// # Errors
    /// One that exists, unless resuming, or that cannot be created.
    pub fn check_output(&self) -> Result<()> {
        if !self.resume && std::fs::symlink_metadata(&self.output).is_ok() {
            return Err(Error::file(
                &self.output,
                "exists already. Choose another --output, remove it, or go on with it by --resume.",
            ));
        }
        check_creatable(&self.output)
    }

    fn scale(&self, software: bool) -> Result<Scale> {
        let config = ModelConfig::load(&self.model)?;
        Ok(Scale::of(config.parameter_count(), software, self.quick))
    }

    /// The recipe of the run in `folder`, [`ORPO`] or [`CONTROL`]. They differ in the objective, in
    /// lambda and in the folder.
    fn recipe(&self, scale: &Scale, folder: &str, train: &Path, heldout: &Path) -> Result<Recipe> {
        let objective: &[&str] = match folder {
            CONTROL => &["objective=sft", "loss.lambda=0"],
            _ => &["objective=orpo"],
        };
        let objective = objective.iter().map(|s| s.to_string());
        let mut recipe = scale.recipe(self.set.iter().cloned().chain(objective))?;
        recipe.model = self.model.clone();
        recipe.data.train = vec![train.to_owned()];
        recipe.data.eval = vec![heldout.to_owned()];
        // The curves are about what changed since before the first step.
        recipe.train.eval_at_start = true;
        recipe.output = self.output.join(folder);
        Ok(recipe)
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
    let scale = options.scale(gpu.is_software())?;
    let known = every(read_rows(&pairs.known)?, scale.known);
    let unknown = spread(read_rows(&pairs.heldout)?, scale.per_rule);
    let [known_file, unknown_file] = [KNOWN, HELDOUT].map(|name| options.output.join(name));
    write_heldout(&known_file, &known)?;
    write_heldout(&unknown_file, &unknown)?;

    let mut runs = Vec::new();
    for (name, folder) in [("ORPO", ORPO), ("control", CONTROL)] {
        let recipe = options.recipe(&scale, folder, &pairs.train, &known_file)?;
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
        let corrected = every(rows.clone(), scale.corrected);
        on_event(Event::Note(format!(
            "{} held-out sentences {kind} are judged by the base model and both trained ones, which correct {} of them",
            rows.len(),
            corrected.len()
        )));
        let mut working = |what: String| on_event(Event::Working(what));
        let corrections = correct(gpu, models, &corrected, &mut working)?;
        judged.push(judge(gpu, models, kind, file, orpo, &corrections, &mut working)?);
        samples.extend(pick(&corrected, corrections, scale.shown / 2));
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
    Ok(DemoOutcome { report: path, judged, verdict, samples, seconds })
}

/// A run that came to its end.
struct Finished {
    name: &'static str,
    recipe: Recipe,
    model: PathBuf,
    records: Vec<MetricsRecord>,
}

impl Finished {
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
    let (_, trained) = recipe.resolve()?;
    let added = match trained.parameter_count() - config.parameter_count() {
        0 => String::new(),
        added => format!("; {added} more train instead of them"),
    };
    let since = if options.resume { " since it was resumed" } else { "" };
    let facts = [
        ("Adapter", format!("{}: {kind}", info.name)),
        ("Driver", format!("{} {} ({:?})", info.driver, info.driver_info, info.backend)),
        ("Model", options.name.clone()),
        (
            "Parameters",
            format!(
                "{}: {} layers, vocabulary {}{added}",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::tests::tiny;

    #[test]
    fn demo_recipes_differ_in_lambda_and_folder_alone() {
        let options = DemoOptions {
            model: "m".into(),
            name: "m".into(),
            output: "o".into(),
            cache: "c".into(),
            quick: true,
            resume: false,
            set: vec!["optim.learning_rate=0.125".into()],
            command: String::new(),
            stop: Arc::default(),
        };
        let scale = Scale::of(1_000_000, true, true);
        let [train, heldout] = ["t.jsonl", "h.jsonl"].map(Path::new);
        let recipe = |folder| options.recipe(&scale, folder, train, heldout).unwrap();
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
            name: "model".into(),
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
        let config = tiny(true).to_json().to_string();
        std::fs::write(options.model.join("config.json"), config).unwrap();
        assert!(error(&options).contains("holds no file of weights"));
        std::fs::write(options.model.join("model.safetensors"), "").unwrap();
        options.check_start().unwrap();
        options.set = vec!["optim.lerning_rate=1".into()];
        assert!(error(&options).contains("learning_rate"));
        assert!(!options.cache.exists() && !options.output.exists());
    }

    #[test]
    fn demo_says_durations_as_people_do() {
        assert_eq!(duration(3.25), "3.2 s");
        assert_eq!(duration(61.0), "1 min 1 s");
        assert_eq!(duration(599.6), "10 min 0 s");
    }
}
