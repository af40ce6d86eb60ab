//! How tokens are drawn, for the commands that generate.

use crate::data::form::Form;
use crate::error::{Error, Result};
use crate::model::sampling::Sampling;
use clap::Args;
use std::path::PathBuf;

/// Settings of [`Sampling`].
#[derive(Args)]
pub struct SamplingArgs {
    /// 0 takes the most probable token; above 0 tokens are drawn. Without it 0, or 1 where several answers
    /// to a prompt are compared.
    #[arg(long)]
    temperature: Option<f32>,
    /// Draw among the so many most probable tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw among the fewest most probable tokens that have this share of the probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Draw among tokens with at least this part of the largest probability.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that are in the text already less probable, as transformers does; 1 for not.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End an answer in front of this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

/// Answers to prompts that are compared.
#[derive(Args)]
pub struct AnswerArgs {
    /// The model that answers: a folder, a checkpoint, a LoRA adapter, or a GGUF file; without it the rows
    /// have answers. Its answers are kept beside the rows, in rows.answers.jsonl for rows.jsonl, and are
    /// not drawn again.
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<PathBuf>,
    /// Answers that are drawn to each prompt.
    #[arg(long, default_value_t = 2, requires = "model")]
    pub(super) answers: usize,
    /// How the prompts reach the model. Without it: as it was trained, if its folder says so; else
    /// by its chat template, if it has one.
    #[arg(long, value_enum)]
    pub(super) form: Option<Form>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 128)]
    pub(super) max_tokens: usize,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
}

impl AnswerArgs {
    /// The settings, and the texts that end an answer.
    pub(super) fn read(&self) -> Result<(Sampling, &[String])> {
        self.sampling.read_or(self.max_tokens, 1.0)
    }
}

impl SamplingArgs {
    /// Seed of the draws.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// The settings, and the texts that end an answer.
    pub(super) fn read(&self, max_tokens: usize) -> Result<(Sampling, &[String])> {
        self.read_or(max_tokens, 0.0)
    }

    /// As [`SamplingArgs::read`] with another temperature where none is given.
    fn read_or(&self, max_tokens: usize, temperature: f32) -> Result<(Sampling, &[String])> {
        let sampling = Sampling {
            max_tokens,
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        let mut problems = sampling.problems();
        if self.stop.iter().any(String::is_empty) {
            problems
                .push(crate::error::Problem::new("--stop", "is empty; write what ends an answer"));
        }
        if problems.is_empty() {
            return Ok((sampling, &self.stop));
        }
        Err(Error::input("nothing can be generated with these settings", problems))
    }
}
