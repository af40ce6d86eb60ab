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

mod recipe;

pub use recipe::{RoundSettings, RoundsRecipe};

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::recipe::open_folder;
use crate::data::prompts::{PromptRow, read_prompt_rows};
use crate::error::{Error, Result};
use crate::feedback::comparison::{Answered, Comparison, comparisons};
use crate::feedback::journal::Journal;
use crate::feedback::judge::tally::Tally;
use crate::feedback::judge::{Cost, Judged, Judging};
use crate::feedback::run::{AnswerOptions, JudgeEvent, Place, draw, judge_into};
use crate::files::{read_json, write_atomically};
use crate::gpu::Gpu;
use crate::train::evaluation::{Estimate, mean};
use crate::train::prepare::prepare;
use crate::train::proof::PROOF;
use crate::train::trainer::{self, MODEL, TrainEvent};

/// Name of the file that says what every round came to.
pub const RESULTS: &str = "rounds.json";
/// Draws of held-out prompts for an interval.
const RESAMPLES: usize = 2000;
/// What is added to the seed for answers to held-out prompts, so that they are other draws.
const HELD_OUT: u64 = 1 << 40;

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
        let (answered, name) = self.draw(round, &options, rows, &folder.join("answers.jsonl"))?;
        let (pairs, _) = comparisons(&answered, settings.pairs.unwrap_or(usize::MAX));
        let path = folder.join("rows.jsonl");
        let judged = self.judge(round, &pairs, &path, &name, options.sampling.seed)?;
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
        rows: Vec<PromptRow>,
        kept: &Path,
    ) -> Result<(Vec<Answered>, String)> {
        let (gpu, on_event) = (self.gpu.clone(), &mut *self.on_event);
        let mut hear = |event| on_event(round, RoundEvent::Judge(event));
        let mut open = || Ok(gpu.clone());
        let (answers, name) = draw(options, rows, kept, self.stop, &mut open, &mut hear)?;
        Ok((answers.answered, name))
    }

    /// One answer of a round's model to each held-out prompt.
    fn held_out_answers(&mut self, round: usize, model: &Path) -> Result<Vec<Answered>> {
        let options = self.recipe.answers(model, 1, HELD_OUT);
        let rows = read_prompt_rows(&self.recipe.rounds.heldout)?;
        let kept = self.folder(round).join("heldout.answers.jsonl");
        Ok(self.draw(round, &options, rows, &kept)?.0)
    }

    fn judge(
        &mut self,
        round: usize,
        pairs: &[Comparison],
        out: &Path,
        model: &str,
        seed: u64,
    ) -> Result<Judged> {
        let settings = &self.recipe.rounds.judge;
        let judging = Judging {
            votes: settings.votes,
            one_way: settings.one_way,
            parallel: settings.parallel,
            model: Some(model),
            seed: Some(seed),
        };
        let (gpu, on_event) = (self.gpu.clone(), &mut *self.on_event);
        let mut hear = |event| on_event(round, RoundEvent::Judge(event));
        let place = Place { out, stop: self.stop };
        judge_into(&place, settings, pairs, &judging, &mut || Ok(gpu.clone()), &mut hear)
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
        let model = format!("round {round} and round 0");
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
