//! A judge that is one of our models, by its reply or by its log-odds of the letter A against B.

use serde_json::{Map, json};

use super::question::{letter, question};
use super::{Ballot, Cost, Failure, Judge};
use crate::error::{Error, Result, shown};
use crate::feedback::answers::Speaker;
use crate::feedback::comparison::Comparison;
use crate::model::generate::{Generator, Sampling, unwatched};

/// How it says which answer is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LocalBy {
    /// By the log-odds of A against B as the next token: log P(A) - log P(B). Of both orders the mean
    /// counts, in which a preference for a place cancels.
    Odds,
    /// By the letter it writes.
    Reply,
}

/// The judge.
pub struct Local {
    speaker: Speaker,
    generator: Generator,
    by: LocalBy,
    criteria: String,
    sampling: Sampling,
    cost: Cost,
}

impl Local {
    /// Makes room for the longest question about `comparisons` that the model can read.
    ///
    /// # Errors
    /// A tokenizer that does not tell A from B; a template that refuses a question; memory or limits
    /// that do not suffice.
    pub fn new(
        speaker: Speaker,
        comparisons: &[Comparison],
        by: LocalBy,
        criteria: String,
        sampling: Sampling,
    ) -> Result<Self> {
        let most = if by == LocalBy::Odds { 0 } else { sampling.max_tokens };
        let mut longest = 1;
        for comparison in comparisons {
            let asked = question(comparison, [0, 1], &criteria);
            longest = longest.max(speaker.files().letters(&asked)?.0.len());
        }
        // Turned round it may be a token longer.
        let longest =
            (longest + 8).min(speaker.files().max_positions().saturating_sub(most)).max(1);
        let generator = speaker.generator(1, longest, most)?;
        Ok(Self { speaker, generator, by, criteria, sampling, cost: Cost::default() })
    }
}

/// What does not fit is of one comparison; everything else is of all.
fn here(error: Error) -> Failure {
    match error {
        Error::Input { problems, .. } if problems.len() == 1 => {
            Failure::Here(format!("the question {}", problems[0].what))
        }
        other => Failure::Stop(other),
    }
}

impl Judge for Local {
    fn name(&self) -> String {
        let how = if self.by == LocalBy::Odds { "log-odds" } else { "replies" };
        format!("{}, {how}", self.speaker.name())
    }

    fn ask(
        &mut self,
        comparison: &Comparison,
        order: [usize; 2],
        vote: usize,
    ) -> std::result::Result<Ballot, Failure> {
        let asked = question(comparison, order, &self.criteria);
        let files = self.speaker.files();
        self.cost.calls += 1;
        if self.by == LocalBy::Odds {
            let (ids, letters) = files.letters(&asked)?;
            self.cost.tokens[0] += ids.len() as u64;
            let logits = self.generator.logits(&ids).map_err(here)?;
            let [a, b] = letters.map(|id| f64::from(logits[id as usize]));
            let odds = a - b;
            if !odds.is_finite() {
                let what =
                    "the judge gives A or B a logit that is not finite: its weights are damaged";
                return Err(Failure::Stop(Error::NonFinite(what.into())));
            }
            let better = match odds {
                0.0 => None,
                odds => Some(order[usize::from(odds < 0.0)]),
            };
            let raw = Map::from_iter([("log_odds".to_owned(), json!(odds))]);
            return Ok(Ballot { order: Some(order), better, raw });
        }
        let ids = files.question(&asked)?;
        self.cost.tokens[0] += ids.len() as u64;
        let start = comparison
            .id
            .bytes()
            .fold(vote as u64, |seed, b| seed.wrapping_mul(0x100_0000_01b3) ^ u64::from(b));
        let seed = self.sampling.seed ^ start ^ u64::from(order[0] == 1);
        let ends = files.ends();
        let new = self
            .generator
            .generate_each(&[ids], ends, &self.sampling, &[seed], &mut unwatched)
            .map_err(here)?
            .remove(0);
        self.cost.tokens[1] += new.len() as u64;
        let reply = files.decode(&new)?;
        let Some(place) = letter(&reply) else {
            let reply = shown(reply.trim(), 300);
            return Err(Failure::Here(format!("the judge named neither A nor B: \"{reply}\"")));
        };
        let raw = Map::from_iter([("reply".to_owned(), reply.into())]);
        Ok(Ballot { order: Some(order), better: Some(order[place]), raw })
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}
