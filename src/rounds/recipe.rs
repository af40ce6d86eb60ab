//! A recipe with a section `[rounds]`, and whether a folder holds rounds of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::data::form::Form;
use crate::error::{Error, Problem, Result};
use crate::feedback::judge::settings::JudgeSettings;
use crate::feedback::run::AnswerOptions;
use crate::files::{check_creatable, write_atomically};
use crate::model::sampling::Sampling;
use crate::train::lock::{LOCK, RunLock};
use crate::train::objectives::RowKind;
use crate::train::prepare::RECIPE;
use crate::train::recipe::Recipe;

/// The section `[rounds]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundSettings {
    /// File of prompts that are answered in every round.
    pub prompts: PathBuf,
    /// File of prompts that no round learns from.
    pub heldout: PathBuf,
    /// Rounds.
    #[serde(default = "three")]
    pub count: usize,
    /// Answers to a prompt.
    #[serde(default = "four")]
    pub answers: usize,
    /// Most comparisons of a prompt; without it every pair of its answers.
    pub pairs: Option<usize>,
    /// How prompts reach the model; without it as it was trained.
    pub form: Option<Form>,
    /// Most tokens of an answer.
    #[serde(default = "most_tokens")]
    pub max_tokens: usize,
    /// How answers are drawn, as in `oddgrad generate`.
    #[serde(default = "one")]
    pub temperature: f32,
    /// See [`Sampling::top_k`].
    #[serde(default)]
    pub top_k: usize,
    /// See [`Sampling::top_p`].
    #[serde(default = "one")]
    pub top_p: f32,
    /// See [`Sampling::min_p`].
    #[serde(default)]
    pub min_p: f32,
    /// See [`Sampling::repetition_penalty`].
    #[serde(default = "one")]
    pub repetition_penalty: f32,
    /// Texts that end an answer.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Who compares.
    pub judge: JudgeSettings,
}

fn three() -> usize {
    3
}

fn four() -> usize {
    4
}

fn most_tokens() -> usize {
    128
}

fn one() -> f32 {
    1.0
}

/// A recipe with its rounds.
#[derive(Debug)]
pub struct RoundsRecipe {
    /// How each round trains; its model is that of round 0, its output the folder of all rounds.
    pub train: Recipe,
    /// The section `[rounds]`.
    pub rounds: RoundSettings,
    /// All of it, to compare with that of a folder that is gone on in.
    table: toml::Table,
}

impl RoundsRecipe {
    /// Reads a recipe of training with a section `[rounds]` and without `data.train`.
    ///
    /// # Errors
    /// What is no recipe; every setting that cannot be used.
    pub fn parse(place: &str, text: &str) -> Result<Self> {
        let whole: toml::Table = toml::from_str(text).map_err(|e| {
            Error::file(place, format!("is not valid TOML: {}", e.to_string().trim_end()))
        })?;
        let mut table = whole.clone();
        let refuse = |key: &str, what: &str| {
            let problem = Problem::new(format!("{place}: {key}"), what);
            Err(Error::input("the recipe cannot be used", vec![problem]))
        };
        let Some(section) = table.remove("rounds") else {
            return refuse("rounds", "is missing; this section names prompts, heldout and judge");
        };
        let rounds: RoundSettings = section.try_into().map_err(|e: toml::de::Error| {
            let what = e.to_string().trim_end().replace('\n', " ");
            Error::input(
                "the recipe cannot be used",
                vec![Problem::new(format!("{place}: rounds"), what)],
            )
        })?;
        let data = table.entry("data").or_insert_with(|| toml::Table::new().into());
        if let Some(data) = data.as_table_mut() {
            if data.contains_key("train") {
                return refuse("data.train", "is made by the rounds themselves; leave it out");
            }
            // Each round has its own.
            data.insert("train".into(), "rows.jsonl".into());
        }
        let train = Recipe::parse(place, &table.to_string(), &[])?;
        let new = Self { train, rounds, table: whole };
        let problems = new.problems(place);
        if problems.is_empty() {
            return Ok(new);
        }
        Err(Error::input("the recipe cannot be used", problems))
    }

    fn problems(&self, place: &str) -> Vec<Problem> {
        let rounds = &self.rounds;
        let key = |name: &str| format!("{place}: rounds.{name}");
        let mut problems = rounds.judge.problems(&|name| key(&format!("judge.{name}")));
        for mut problem in self.sampling(0).problems() {
            problem.place = key(&problem.place.trim_start_matches("--").replace('-', "_"));
            problems.push(problem);
        }
        let mut wrong = |name: &str, what: &str| problems.push(Problem::new(key(name), what));
        if rounds.count == 0 {
            wrong("count", "is 0; it must be at least 1");
        }
        if rounds.answers < 2 {
            wrong("answers", "must be at least 2: answers are compared");
        }
        if rounds.pairs == Some(0) {
            wrong("pairs", "is 0; it must be at least 1");
        }
        if rounds.temperature == 0.0 {
            wrong("temperature", "is 0, at which all answers to a prompt are equal; raise it");
        }
        if rounds.stop.iter().any(String::is_empty) {
            wrong("stop", "holds an empty text; write what ends an answer");
        }
        let mut wrong = |name: &str, what: &str| {
            problems.push(Problem::new(format!("{place}: {name}"), what));
        };
        if self.train.loss.objective.rows() != RowKind::Pairs {
            wrong(
                "objective",
                "does not learn from preferred answers; take orpo, dpo, simpo or cpo",
            );
        }
        problems
    }

    pub(super) fn sampling(&self, seed: u64) -> Sampling {
        let rounds = &self.rounds;
        Sampling {
            max_tokens: rounds.max_tokens,
            temperature: rounds.temperature,
            top_k: rounds.top_k,
            top_p: rounds.top_p,
            min_p: rounds.min_p,
            repetition_penalty: rounds.repetition_penalty,
            seed: self.train.seed.wrapping_add(seed),
        }
    }

    pub(super) fn answers(&self, model: &Path, count: usize, seed: u64) -> AnswerOptions {
        AnswerOptions {
            model: model.to_owned(),
            form: self.rounds.form,
            count,
            sampling: self.sampling(seed),
            stops: self.rounds.stop.clone(),
        }
    }
}

/// Makes the folder of all rounds, or finds out whether it is of this recipe, and locks it.
pub(super) fn open_folder(recipe: &RoundsRecipe) -> Result<RunLock> {
    let output = &recipe.train.output;
    let path = output.join(RECIPE);
    if !output.exists() {
        check_creatable(output)?;
        let lock = RunLock::make(output)?;
        write_atomically(&path, recipe.table.to_string().as_bytes())?;
        return Ok(lock);
    }
    let lock = RunLock::take(output)?;
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // Killed before anything was done.
        Err(_) if std::fs::read_dir(output).is_ok_and(|mut all| all.all(|e| is_lock(&e))) => {
            write_atomically(&path, recipe.table.to_string().as_bytes())?;
            return Ok(lock);
        }
        Err(_) => {
            let what = "exists and holds no rounds; choose another `output`";
            return Err(Error::file(output, what));
        }
    };
    let before: toml::Table = toml::from_str(&before)
        .map_err(|e| Error::file(&path, format!("is not valid TOML: {}", e.message())))?;
    let (before, now) = (flat(&before), flat(&recipe.table));
    let keys = before.keys().chain(now.keys()).collect::<BTreeSet<_>>();
    let told = |value: Option<&String>| value.map_or("not set".to_owned(), String::clone);
    let changed = keys.into_iter().filter(|key| **key != "rounds.count");
    let changed = changed.filter(|key| before.get(*key) != now.get(*key));
    let problems: Vec<Problem> = changed
        .map(|key| {
            let what = format!("was {} and is {}", told(before.get(key)), told(now.get(key)));
            Problem::new(key, what)
        })
        .collect();
    if problems.is_empty() {
        return Ok(lock);
    }
    let summary = format!(
        "{} holds rounds of another recipe; choose another `output`, or put these settings back",
        output.display()
    );
    Err(Error::input(summary, problems))
}

fn is_lock(entry: &std::io::Result<DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name() == LOCK)
}

/// Every setting by its dotted key, as TOML writes its value.
fn flat(table: &toml::Table) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, value) in table {
        match value.as_table() {
            Some(inner) => {
                all.extend(flat(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v)));
            }
            None => drop(all.insert(key.clone(), value.to_string())),
        }
    }
    all
}
