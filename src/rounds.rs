//! Rounds of feedback: a model answers prompts, a judge compares its answers, the model is trained on
//! what was preferred, and answers held-out prompts beside the model of round 0. Then again, from the
//! model that came of it.
//!
//! ```text
//! output/recipe.toml          the recipe as it was given
//! output/rounds.json          what every round came to, and which is the best
//! output/round-0/heldout.answers.jsonl
//! output/round-1/answers.jsonl          drawn from the model of round 0
//! output/round-1/rows.jsonl             compared by the judge
//! output/round-1/run/model              trained on them
//! output/round-1/heldout.answers.jsonl  its answers to held-out prompts
//! output/round-1/heldout.jsonl          compared with those of round 0
//! ```
//!
//! Every file is written whole or only grows, so the same command goes on after a kill: what is there
//! is taken, and a training run goes on from its checkpoint.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::form::Form;
use crate::data::prompts::read_prompt_rows;
use crate::error::{Error, Problem, Result};
use crate::feedback::comparison::{Answered, Comparison, comparisons};
use crate::feedback::journal::Journal;
use crate::feedback::judge::settings::JudgeSettings;
use crate::feedback::judge::tally::Tally;
use crate::feedback::judge::{Cost, Judged, Judging, judge};
use crate::feedback::run::{AnswerOptions, JudgeEvent, draw};
use crate::files::{check_creatable, read_json, write_atomically};
use crate::gpu::Gpu;
use crate::model::sampling::Sampling;
use crate::train::evaluation::{Estimate, mean};
use crate::train::lock::RunLock;
use crate::train::objectives::RowKind;
use crate::train::prepare::{RECIPE, prepare};
use crate::train::proof::PROOF;
use crate::train::recipe::Recipe;
use crate::train::trainer::{self, MODEL, TrainEvent};

/// Name of the file that says what every round came to.
pub const RESULTS: &str = "rounds.json";
/// Draws of held-out prompts for an interval.
const RESAMPLES: usize = 2000;
/// What is added to the seed for answers to held-out prompts, so that they are other draws.
const HELD_OUT: u64 = 1 << 40;

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
        if self.train.lora.is_some() {
            wrong("lora", "an adapter is not trained further; leave the section out");
        }
        problems
    }

    fn sampling(&self, seed: u64) -> Sampling {
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

    fn answers(&self, model: &Path, count: usize, seed: u64) -> AnswerOptions {
        AnswerOptions {
            model: model.to_owned(),
            form: self.rounds.form,
            count,
            sampling: self.sampling(seed),
            stops: self.rounds.stop.clone(),
        }
    }
}

/// What a round came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundResult {
    /// The round, from 1.
    pub round: usize,
    /// Its model.
    pub model: PathBuf,
    /// Rows that it was trained on.
    pub rows: usize,
    /// Comparisons of its sampling that were ties.
    pub ties: usize,
    /// Held-out prompts on which its answer was better, as good, or worse than that of round 0.
    pub won: usize,
    /// See [`RoundResult::won`].
    pub tied: usize,
    /// See [`RoundResult::won`].
    pub lost: usize,
    /// Held-out prompts that could not be judged.
    pub unjudged: usize,
    /// Share of held-out prompts won, a tie as one half.
    pub win_rate: f64,
    /// Its 95 % interval, over draws of prompts.
    pub interval: [f64; 2],
    /// Calls of the judge in the process that ended the round.
    pub calls: u64,
}

/// What all rounds came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundResults {
    /// Each round.
    pub rounds: Vec<RoundResult>,
    /// The model of the highest win rate; that of round 0 if none is above one half.
    pub best: PathBuf,
    /// Its round.
    pub best_round: usize,
}

/// What happens in a round.
pub enum RoundEvent<'a> {
    /// Answers and judgement.
    Judge(JudgeEvent),
    /// Training.
    Train(TrainEvent<'a>),
    /// A part is over.
    Note(String),
    /// A round is over.
    Done(&'a RoundResult),
}

/// Runs all rounds, or goes on with those in the output folder. `on_event` hears each round by its
/// number.
///
/// # Errors
/// Everything that can be known beforehand; a folder of other rounds; a round without a row to learn
/// from; [`Error::Stopped`]; whatever can go wrong in a part.
pub fn rounds(
    recipe: &RoundsRecipe,
    gpu: &Rc<Gpu>,
    stop: &Arc<AtomicBool>,
    cache: Option<PathBuf>,
    on_event: &mut dyn FnMut(usize, RoundEvent),
) -> Result<RoundResults> {
    let output = &recipe.train.output;
    // What is wrong with files is found before the folder is made.
    recipe.rounds.judge.prepare(stop)?;
    read_prompt_rows(&recipe.rounds.prompts)?;
    read_prompt_rows(&recipe.rounds.heldout)?;
    let _lock = open_folder(recipe)?;
    let mut all = Rounds { recipe, gpu, stop, cache, on_event };
    let mut model = recipe.train.model.clone();
    let mut results = Vec::new();
    let base = all.held_out_answers(0, &model)?;
    for round in 1..=recipe.rounds.count {
        let path = all.folder(round).join("result.json");
        let result = match read_json(&path, 1 << 16)? {
            Some(value) => serde_json::from_value(value)
                .map_err(|e| Error::file(&path, format!("is no result of a round: {e}")))?,
            None => {
                let result = all.round(round, &model, &base)?;
                write_atomically(&path, &json_of(&result))?;
                result
            }
        };
        (all.on_event)(round, RoundEvent::Done(&result));
        model.clone_from(&result.model);
        results.push(result);
        let so_far = results_of(&results, &recipe.train.model);
        write_atomically(&output.join(RESULTS), &json_of(&so_far))?;
    }
    Ok(results_of(&results, &recipe.train.model))
}

fn json_of(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(value).expect("results are JSON");
    text.push('\n');
    text.into_bytes()
}

fn results_of(rounds: &[RoundResult], base: &Path) -> RoundResults {
    // Of equal ones the earlier.
    let best = rounds.iter().filter(|round| round.win_rate > 0.5).rev();
    let best = best.max_by(|a, b| a.win_rate.total_cmp(&b.win_rate));
    RoundResults {
        rounds: rounds.to_vec(),
        best: best.map_or(base, |round| &round.model).to_owned(),
        best_round: best.map_or(0, |round| round.round),
    }
}

/// Makes the folder of all rounds, or finds out whether it is of this recipe, and locks it.
fn open_folder(recipe: &RoundsRecipe) -> Result<RunLock> {
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
    let keys = before.keys().chain(now.keys()).collect::<std::collections::BTreeSet<_>>();
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

fn is_lock(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name() == crate::train::lock::LOCK)
}

/// Every setting by its dotted key, as TOML writes its value.
fn flat(table: &toml::Table) -> std::collections::BTreeMap<String, String> {
    let mut all = std::collections::BTreeMap::new();
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

/// The rounds on their way.
struct Rounds<'a> {
    recipe: &'a RoundsRecipe,
    gpu: &'a Rc<Gpu>,
    stop: &'a Arc<AtomicBool>,
    cache: Option<PathBuf>,
    on_event: &'a mut dyn FnMut(usize, RoundEvent),
}

/// What the sampling of a round came to, once it is over: rows do not change any more.
#[derive(Serialize, Deserialize)]
struct Sampled {
    decided: usize,
    ties: usize,
    calls: u64,
}

impl Rounds<'_> {
    fn folder(&self, round: usize) -> PathBuf {
        self.recipe.train.output.join(format!("round-{round}"))
    }

    fn note(&mut self, round: usize, text: String) {
        (self.on_event)(round, RoundEvent::Note(text));
    }

    fn round(&mut self, round: usize, model: &Path, base: &[Answered]) -> Result<RoundResult> {
        let sampled = self.sample(round, model)?;
        let trained = self.train(round, model)?;
        let own = self.held_out_answers(round, &trained)?;
        let (scores, judged) = self.compare(round, &own, base)?;
        let count = |score: f64| scores.iter().filter(|s| **s == score).count();
        let Estimate { value, interval } = mean(&scores, RESAMPLES, self.recipe.train.seed);
        Ok(RoundResult {
            round,
            model: trained,
            rows: sampled.decided,
            ties: sampled.ties,
            won: count(1.0),
            tied: count(0.5),
            lost: count(0.0),
            unjudged: own.len() - scores.len(),
            win_rate: value,
            interval,
            calls: sampled.calls + judged.calls,
        })
    }

    /// Draws answers and has them compared.
    fn sample(&mut self, round: usize, model: &Path) -> Result<Sampled> {
        let folder = self.folder(round);
        let done = folder.join("judged.json");
        if let Some(value) = read_json(&done, 1 << 16)? {
            return serde_json::from_value(value)
                .map_err(|e| Error::file(&done, format!("is no record of a judgement: {e}")));
        }
        let settings = &self.recipe.rounds;
        let options = self.recipe.answers(model, settings.answers, round as u64);
        let rows = read_prompt_rows(&settings.prompts)?;
        let answered = self.draw(round, &options, rows, &folder.join("answers.jsonl"))?;
        let (pairs, _) = comparisons(&answered, settings.pairs.unwrap_or(usize::MAX));
        let path = folder.join("rows.jsonl");
        let judged = self.judge(round, &pairs, &path, model, options.sampling.seed)?;
        for problem in judged.unjudged.iter().take(5) {
            self.note(round, format!("not judged: {}: {}", problem.place, problem.what));
        }
        if let Some(share) = judged.tally.bias() {
            self.note(
                round,
                format!(
                    "the judge leans to a place: the answer that stood first won {:.0} %",
                    100.0 * share
                ),
            );
        }
        let Tally { decided, ties, .. } = judged.tally;
        if decided == 0 {
            let summary =
                format!("round {round} has no row to learn from: no answer was preferred");
            return Err(Error::input(summary, judged.unjudged));
        }
        self.note(round, format!("{decided} rows, {ties} ties"));
        let sampled = Sampled { decided, ties, calls: judged.cost.calls };
        write_atomically(&done, &json_of(&sampled))?;
        Ok(sampled)
    }

    /// The model trained on the rows of this round.
    fn train(&mut self, round: usize, model: &Path) -> Result<PathBuf> {
        let folder = self.folder(round);
        let mut recipe = self.recipe.train.clone();
        recipe.model = model.to_owned();
        recipe.output = folder.join("run");
        recipe.data.train = vec![folder.join("rows.jsonl")];
        let trained = recipe.output.join(MODEL);
        if recipe.output.join(PROOF).exists() {
            return Ok(trained);
        }
        let resume = recipe.output.exists();
        let prepared =
            prepare(&recipe, resume)?.stop_when(self.stop.clone()).cache_in(self.cache.clone());
        let on_event = &mut *self.on_event;
        let mut hear = |event: TrainEvent| on_event(round, RoundEvent::Train(event));
        Ok(trainer::run(prepared, self.gpu, &mut hear).map_err(go_on)?.model)
    }

    fn draw(
        &mut self,
        round: usize,
        options: &AnswerOptions,
        rows: Vec<crate::data::prompts::PromptRow>,
        kept: &Path,
    ) -> Result<Vec<Answered>> {
        let (gpu, on_event) = (self.gpu.clone(), &mut *self.on_event);
        let mut hear = |event| on_event(round, RoundEvent::Judge(event));
        let mut open = || Ok(gpu.clone());
        let (answers, _) = draw(options, rows, kept, self.stop, &mut open, &mut hear)?;
        Ok(answers.answered)
    }

    /// One answer of a round's model to each held-out prompt.
    fn held_out_answers(&mut self, round: usize, model: &Path) -> Result<Vec<Answered>> {
        let options = self.recipe.answers(model, 1, HELD_OUT);
        let rows = read_prompt_rows(&self.recipe.rounds.heldout)?;
        self.draw(round, &options, rows, &self.folder(round).join("heldout.answers.jsonl"))
    }

    fn judge(
        &mut self,
        round: usize,
        pairs: &[Comparison],
        path: &Path,
        model: &Path,
        seed: u64,
    ) -> Result<Judged> {
        let settings = &self.recipe.rounds.judge;
        let mut tally = Tally::default();
        let mut journal = Journal::open(path, &mut |row| tally.add_row(row))?;
        for note in journal.take_notes() {
            (self.on_event)(round, RoundEvent::Note(note));
        }
        if pairs.iter().all(|pair| journal.knows(&pair.id)) {
            let known = pairs.len();
            let (unjudged, cost) = (Vec::new(), Cost::default());
            return Ok(Judged { known, new: 0, unjudged, tally, cost });
        }
        let gpu = self.gpu.clone();
        let prepared = settings.prepare(self.stop)?;
        let mut asked = settings.judge(prepared, pairs, &mut || Ok(gpu.clone()))?;
        let name = model.display().to_string();
        let judging = Judging {
            votes: settings.votes,
            one_way: settings.one_way,
            model: Some(&name),
            seed: Some(seed),
        };
        let (on_event, all) = (&mut *self.on_event, pairs.len());
        let mut hear = |done| on_event(round, RoundEvent::Judge(JudgeEvent::Judging(done, all)));
        judge(pairs, &mut *asked, &mut journal, &judging, tally, self.stop, &mut hear)
    }

    /// 1, 1/2 or 0 for each held-out prompt that could be judged: whether the answer of this round's
    /// model is better than that of round 0.
    fn compare(
        &mut self,
        round: usize,
        own: &[Answered],
        base: &[Answered],
    ) -> Result<(Vec<f64>, Cost)> {
        let both = own.iter().zip(base).map(|(own, base)| Answered {
            answers: [&own.answers[..], &base.answers[..]].concat(),
            ..own.clone()
        });
        let both: Vec<Answered> = both.collect();
        let pairs: Vec<Option<Comparison>> =
            both.iter().map(|one| comparisons(std::slice::from_ref(one), 1).0.pop()).collect();
        let asked: Vec<Comparison> = pairs.iter().flatten().cloned().collect();
        let path = self.folder(round).join("heldout.jsonl");
        let model = self.folder(round).join("run").join(MODEL);
        let cost = match asked.is_empty() {
            true => Cost::default(),
            false => {
                self.judge(round, &asked, &path, &model, self.recipe.sampling(HELD_OUT).seed)?.cost
            }
        };
        let mut choices = std::collections::HashMap::new();
        let mut hear = |row: &Map<String, Value>| {
            let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
            choices.extend(text("id").zip(text("choice")));
        };
        Journal::open(&path, &mut hear)?;
        let score = |pair: &Option<Comparison>, one: &Answered| match pair {
            Some(pair) => match choices.get(&pair.id).map(String::as_str) {
                Some("first") => Some(1.0),
                Some("second") => Some(0.0),
                Some("tie") => Some(0.5),
                _ => None,
            },
            // Equal, or nothing was said: then there was nothing to ask.
            None => Some(match (one.answers[0].is_blank(), one.answers[1].is_blank()) {
                (true, false) => 0.0,
                (false, true) => 1.0,
                _ => 0.5,
            }),
        };
        let scores: Vec<f64> =
            pairs.iter().zip(&both).filter_map(|(pair, one)| score(pair, one)).collect();
        if scores.is_empty() {
            let summary = format!("no held-out answer of round {round} could be judged");
            return Err(Error::input(summary, vec![]));
        }
        Ok((scores, cost))
    }
}

/// A run that stops says how it goes on; here it is not by itself.
fn go_on(error: Error) -> Error {
    match error {
        Error::Stopped(text) => {
            let done = text.split("; ").next().unwrap_or_default();
            Error::Stopped(format!("{done}; the same command goes on"))
        }
        other => other,
    }
}
