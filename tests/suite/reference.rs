//! Objectives with a reference model: its log-probs are computed once, kept, and taken from there.

use crate::place::{Place, copy_folder};
use crate::{golden, gpu};
use oddgrad::error::Error;
use oddgrad::gpu::Gpu;
use oddgrad::train::prepare::prepare;
use oddgrad::train::recipe::Recipe;
use oddgrad::train::trainer::{self, TrainEvent};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A run with a model and a cache of its own.
struct Runs {
    dir: tempfile::TempDir,
    gpu: Rc<Gpu>,
}

/// What a run did.
struct Done {
    notes: Vec<String>,
    /// Programs it ran.
    runs: u64,
    /// The first step's loss and margin.
    first: (f64, f64),
    result: Result<Vec<u8>, Error>,
}

impl Done {
    /// The notes about reference log-probs.
    fn told(&self) -> Vec<&str> {
        let notes = self.notes.iter().map(String::as_str);
        notes.filter(|note| note.contains("eference log-probs")).collect()
    }
}

impl Runs {
    fn new() -> Self {
        let runs = Self { dir: tempfile::tempdir().unwrap(), gpu: gpu() };
        copy_folder(&golden("llama_tied"), &runs.at("model"));
        runs
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn recipe(&self, output: &str, set: &[&str]) -> Recipe {
        let text = format!(
            "objective = \"dpo\"\nmodel = {:?}\noutput = {:?}\n\
             [data]\ntrain = {:?}\neval = {:?}\nmax_length = 64\n\
             [optim]\nlearning_rate = 3e-3\nschedule = \"constant\"\n\
             [batch]\nsize = 4\nstream_tokens = 160\n\
             [train]\nmax_steps = 4\neval_every = 4\nsave_every = 2\n",
            self.at("model"),
            self.at(output),
            golden("data/prefs_plain.jsonl"),
            golden("data/prefs_chat.jsonl"),
        );
        let set: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
        Recipe::parse("test", &text, &set).unwrap()
    }

    /// Runs a recipe; `stop` is asked at every event whether the run is to stop.
    fn run(
        &self,
        recipe: &Recipe,
        resume: bool,
        cache: Option<&str>,
        stop: impl Fn(&TrainEvent) -> bool,
    ) -> Done {
        let flag = Arc::new(AtomicBool::new(false));
        let prepared = prepare(recipe, resume).unwrap().stop_when(flag.clone());
        let prepared = prepared.cache_in(cache.map(|name| self.at(name)));
        let (mut notes, mut first) = (Vec::new(), None);
        let before = self.gpu.runs();
        let result = trainer::run(prepared, &self.gpu, &mut |event| {
            if stop(&event) {
                flag.store(true, Ordering::Relaxed);
            }
            match event {
                TrainEvent::Note(note) => notes.push(note),
                TrainEvent::Step(record) => {
                    let figures = ["loss", "rewards/margins"].map(|key| record.get(key).unwrap());
                    first.get_or_insert((figures[0], figures[1]));
                }
                _ => {}
            }
        });
        let model = |model: &Path| std::fs::read(model.join("model.safetensors")).unwrap();
        Done {
            notes,
            runs: self.gpu.runs() - before,
            first: first.unwrap_or((f64::NAN, f64::NAN)),
            result: result.map(|outcome| model(&outcome.model)),
        }
    }

    fn cached(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.at("cache")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn to_the_end(_: &TrainEvent) -> bool {
    false
}

/// Streams that the 30 rows and the held-out 30 take, each of them computed once.
fn streams(runs: &Runs, recipe: &Recipe) -> u64 {
    use oddgrad::data::rows::Split;
    use oddgrad::data::tokenize::Tokenizer;
    use oddgrad::train::{dataset::Dataset, prepare::capacity};
    let tokenizer = Tokenizer::from_folder(&runs.at("model")).unwrap();
    let shares = |paths: &[PathBuf]| {
        let kind = recipe.loss.objective.rows();
        let rows = Dataset::load(&recipe.data, kind, &tokenizer, paths, Split::Train).unwrap();
        rows.share_out(capacity(recipe)).unwrap().len() as u64
    };
    shares(&recipe.data.train) + shares(&recipe.data.eval)
}

#[test]
fn a_second_run_computes_no_reference_log_probs() {
    let runs = Runs::new();
    let recipe = runs.recipe("a", &[]);
    let first = runs.run(&recipe, false, Some("cache"), to_the_end);
    let told = first.told();
    assert!(told[0].starts_with("reference log-probs: ") && told[0].contains(" computed in "));
    assert!(told[1].starts_with("held-out reference log-probs: "), "{told:?}");
    assert_eq!((told.len(), runs.cached().len()), (2, 2));
    // The model is its own reference: nothing is preferred yet.
    assert!((first.first.0 - std::f64::consts::LN_2).abs() < 1e-6, "{:?}", first.first);
    assert!(first.first.1.abs() < 1e-6, "{:?}", first.first);

    let second = runs.run(&runs.recipe("b", &[]), false, Some("cache"), to_the_end);
    let told = second.told();
    assert!(told.iter().all(|note| note.contains("rows read from the cache (")), "{told:?}");
    assert_eq!(told.len(), 2);
    assert_eq!(first.runs - second.runs, streams(&runs, &recipe), "one forward pass each");
    let third = runs.run(&runs.recipe("c", &[]), false, None, to_the_end);
    assert_eq!(third.runs, first.runs, "without a folder they are computed every time");
    let model = first.result.unwrap();
    assert!(model == second.result.unwrap() && model == third.result.unwrap(), "other bits");
}

#[test]
fn a_run_that_goes_on_has_the_same_reference() {
    let runs = Runs::new();
    let whole = runs.run(&runs.recipe("whole", &[]), false, Some("cache"), to_the_end);
    let whole = whole.result.unwrap();
    let after_three =
        |event: &TrainEvent| matches!(event, TrainEvent::Step(record) if record.step == 3);
    for (output, remove) in [("kept", false), ("lost", true)] {
        let recipe = runs.recipe(output, &[]);
        let part = runs.run(&recipe, false, Some("cache"), after_three);
        assert!(matches!(part.result, Err(Error::Stopped(_))));
        if remove {
            std::fs::remove_dir_all(runs.at("cache")).unwrap();
        }
        let rest = runs.run(&recipe, true, Some("cache"), to_the_end);
        let told = rest.told();
        let computed = told.iter().filter(|note| note.contains(" computed in ")).count();
        assert_eq!((told.len(), computed), (2, if remove { 2 } else { 0 }), "{told:?}");
        assert!(rest.result.unwrap() == whole, "{output}: other bits");
    }
}

#[test]
fn a_reference_that_is_no_longer_there_is_not_replaced_by_another() {
    let runs = Runs::new();
    let recipe = runs.recipe("run", &[]);
    let after_two =
        |event: &TrainEvent| matches!(event, TrainEvent::Step(record) if record.step == 2);
    runs.run(&recipe, false, None, after_two);
    std::fs::copy(
        runs.at("run/checkpoint-00000002/model.safetensors"),
        runs.at("model/model.safetensors"),
    )
    .unwrap();
    let error = runs.run(&recipe, true, None, to_the_end).result.unwrap_err().to_string();
    assert!(error.contains("other weights than those the run began with"), "{error}");
}

#[test]
fn damaged_files_are_computed_again_and_other_rows_or_weights_have_their_own() {
    let runs = Runs::new();
    let steps = ["train.max_steps=1", "train.eval_every=0"];
    let with = |output: &str, more: &[&str]| runs.recipe(output, &[&steps, more].concat());
    let first = runs.run(&with("a", &[]), false, Some("cache"), to_the_end);
    for path in runs.cached() {
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let second = runs.run(&with("b", &[]), false, Some("cache"), to_the_end);
    let told = second.told();
    assert!(told[0].contains("is damaged") && told[0].contains("computed again"), "{told:?}");
    assert_eq!(first.runs, second.runs);
    assert!(first.result.unwrap() == second.result.unwrap());
    assert_eq!(runs.cached().len(), 2, "the damaged ones were written anew");

    for (output, more) in [("c", "data.max_length=50"), ("d", "batch.stream_tokens=200")] {
        let other = runs.run(&with(output, &[more]), false, Some("cache"), to_the_end);
        let told = other.told();
        assert!(told.iter().all(|note| note.contains(" computed in ")), "{more}: {told:?}");
    }
    copy_folder(&runs.at("a/model"), &runs.at("model"));
    let other = runs.run(&with("e", &[]), false, Some("cache"), to_the_end);
    assert!(other.told().iter().all(|note| note.contains(" computed in ")));
    // A setting of the loss changes nothing about the reference.
    let ipo = runs.run(&with("f", &["loss.type=ipo"]), false, Some("cache"), to_the_end);
    let told = ipo.told();
    assert!(told.iter().all(|note| note.contains("read from the cache")), "{told:?}");
    assert!((ipo.first.0 - 25.0).abs() < 1e-4, "(1 / (2 beta))²: {:?}", ipo.first);

    // A folder that cannot be is no reason not to train.
    let other = runs.run(&with("g", &[]), false, Some("model/config.json/below"), to_the_end);
    let told = other.told();
    assert!(told.iter().any(|note| note.contains("not kept for other runs")), "{told:?}");
    other.result.unwrap();
}

#[test]
fn a_run_stopped_before_its_reference_is_there_starts_anew() {
    let runs = Runs::new();
    let recipe = runs.recipe("run", &["train.max_steps=1", "train.eval_every=0"]);
    let at_once = |event: &TrainEvent| matches!(event, TrainEvent::Referring { .. });
    let stopped = runs.run(&recipe, false, Some("cache"), at_once);
    let error = stopped.result.unwrap_err();
    assert!(
        matches!(error, Error::Stopped(_)) && error.to_string().contains("--resume"),
        "{error}"
    );
    assert!(!runs.at("cache").exists());
    runs.run(&recipe, true, Some("cache"), to_the_end).result.unwrap();
}

#[test]
fn the_program_keeps_them_in_its_cache_folder() {
    let p = Place::new();
    let train = |output: &str, cache: &str| {
        let dpo = "objective=dpo";
        let args = ["train", "r.toml", "--set", dpo, "--set", &format!("output={output}")];
        let answer = p.command(
            Command::new(env!("CARGO_BIN_EXE_oddgrad"))
                .args(args)
                .env("ODDGRAD_CACHE", p.path(cache)),
        );
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        answer.err
    };
    assert!(train("a", "cache").contains("reference log-probs: 4 rows computed in "));
    assert!(train("b", "cache").contains("reference log-probs: 4 rows read from the cache ("));
}
