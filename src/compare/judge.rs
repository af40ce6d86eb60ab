//! What the held-out rows and the models' own answers say of a comparison.

use std::path::Path;
use std::rc::Rc;

use crate::data::example::{Example, Sequence};
use crate::data::tokenize::Tokenizer;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::generate::{Generator, Room};
use crate::model::sampling::Sampling;
use crate::model::weights::FolderWeights;
use crate::page::report::Table;
use crate::program::Store;
use crate::train::dataset::Dataset;
use crate::train::evaluation::{Answer, Estimate, FIGURES, ScoredRows, estimates, score};

/// Draws of rows for the intervals.
const RESAMPLES: usize = 1000;
/// Prompts that are answered for the divergence and the length of answers.
const ANSWERED: usize = 64;
/// Sequences that are answered together.
const TOGETHER: usize = 16;

/// Hears what is being done.
type Working<'a> = dyn FnMut(String) + 'a;

/// The models of a comparison, the base model first.
pub(super) struct Judge<'a> {
    pub gpu: &'a Rc<Gpu>,
    pub models: Vec<&'a Path>,
    /// What the tables call them.
    pub names: Vec<String>,
    pub tokenizer: Tokenizer,
    /// Tokens of a stream.
    pub tokens: usize,
}

impl Judge<'_> {
    /// What each model gives the held-out rows.
    ///
    /// # Errors
    /// As [`score`].
    pub fn held_out(&self, rows: &Dataset, working: &mut Working) -> Result<Table> {
        let mut scored = Vec::new();
        for (model, name) in self.models.iter().zip(&self.names) {
            scored.push(self.scores(model, rows, &format!("{name}: held-out row"), working)?);
        }
        let found = estimates(&scored, RESAMPLES, 0);
        let rows = FIGURES.iter().zip(found).filter_map(|(figure, found)| {
            let cell = |e: &Estimate| {
                format!("{:.3} ({:.3} to {:.3})", e.value, e.interval[0], e.interval[1])
            };
            Some((figure.title.to_owned(), found?.models.iter().map(cell).collect()))
        });
        Ok(Table {
            title: "Held-out pairs".into(),
            note: format!("In brackets 95 % of {RESAMPLES} draws of the rows (bootstrap)."),
            columns: self.names.clone(),
            rows: rows.collect(),
        })
    }

    /// How far each model's own answers are from the base model, and how long they are.
    ///
    /// # Errors
    /// As [`Generator::generate`] and [`score`].
    pub fn answers(&self, rows: &Dataset, working: &mut Working) -> Result<Table> {
        let prompts: Vec<Vec<u32>> = rows
            .examples
            .iter()
            .take(ANSWERED)
            .map(|e| e.chosen.ids[..e.chosen.response_start].to_vec())
            .collect();
        let longest =
            |of: &dyn Fn(&Example) -> usize| rows.examples.iter().map(of).max().unwrap_or(1);
        let most = longest(&|e| e.chosen.ids.len() - e.chosen.response_start) + 8;
        let (mut divergence, mut lengths) = (Vec::new(), Vec::new());
        for (model, name) in self.models.iter().zip(&self.names) {
            let new = self.answer(model, name, &prompts, most, working)?;
            lengths.push(new.iter().map(Vec::len).sum::<usize>() as f64 / new.len().max(1) as f64);
            let examples =
                prompts.iter().zip(&new).enumerate().filter(|(_, (_, new))| !new.is_empty());
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
            let own = self.scores(model, &said, &format!("{name}: own answer"), working)?;
            let told = format!("{}: answer of {name}", self.names[0]);
            let before = self.scores(self.models[0], &said, &told, working)?;
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
            columns: self.names.clone(),
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

    /// A model's answers to `prompts`, of at most so many tokens.
    fn answer(
        &self,
        model: &Path,
        name: &str,
        prompts: &[Vec<u32>],
        most: usize,
        working: &mut Working,
    ) -> Result<Vec<Vec<u32>>> {
        working(format!("{name}: reading weights"));
        let config = ModelConfig::load(model)?;
        let store = Store::new(self.gpu);
        FolderWeights::open(model, &config)?.put(&store)?;
        let length = prompts.iter().map(Vec::len).max().unwrap_or(1) + most;
        let room = Room {
            sequences: prompts.len().clamp(1, TOGETHER),
            length: length.min(config.max_positions),
        };
        let generator = Generator::new(self.gpu, &store, &config, room)?;
        let sampling = Sampling { temperature: 1.0, ..Sampling::greedy(most) };
        let mut watch = |at: usize, new: &[u32]| {
            working(format!(
                "{name}: answering prompt {} of {}, token {}",
                at + 1,
                prompts.len(),
                new.len()
            ));
            Ok(true)
        };
        generator.generate(prompts, self.tokenizer.ends().0, &sampling, &mut watch)
    }

    fn scores(
        &self,
        model: &Path,
        rows: &Dataset,
        told: &str,
        working: &mut Working,
    ) -> Result<ScoredRows> {
        let all = rows.examples.len();
        let mut progress = |done: usize| working(format!("{told} {done} of {all}"));
        progress(0);
        let config = ModelConfig::load(model)?;
        let weights = FolderWeights::open(model, &config)?;
        score(self.gpu, &config, &weights, &self.tokenizer, rows, self.tokens, &mut progress)
    }
}
