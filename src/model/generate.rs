//! Sampling: several prompts in one packed stream, continued a token at a time.
//!
//! Each prompt owns a fixed region of the stream; every step runs the whole stream and looks at
//! one row per prompt. There is no key/value cache: for the sample sizes of training runs, many
//! prompts in one stream keep the device busy instead.

use crate::data::pack::{Capacity, Stream};
use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::graph::{Graph, Var};
use crate::model::config::ModelConfig;
use crate::model::stream::{HeadRows, StreamInputs};
use crate::step::{Step, Store};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::rc::Rc;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// Most new tokens per prompt.
    pub max_tokens: usize,
    /// 0 takes the most probable token; above, logits are divided by it and sampled.
    pub temperature: f32,
    /// Seed for temperatures above 0.
    pub seed: u64,
}

impl Sampling {
    /// What is wrong with these settings, by the names of the command line.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.max_tokens == 0 {
            problems.push(Problem::new("--max-tokens", "is 0; it must be at least 1"));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let what = format!("is {}; it must be 0 or a positive number", self.temperature);
            problems.push(Problem::new("--temperature", what));
        }
        problems
    }
}

/// Compares prompts and what is to follow them with the `room` in positions there is.
///
/// # Errors
/// Every prompt that is empty, has ids beyond the vocabulary, or does not fit, at once.
pub fn check_prompts(
    prompts: &[Vec<u32>],
    max_tokens: usize,
    room: usize,
    vocab: usize,
) -> Result<()> {
    let mut problems = Vec::new();
    for (i, p) in prompts.iter().enumerate() {
        let place = format!("prompt {}", i + 1);
        if p.is_empty() {
            problems.push(Problem::new(&place, "is empty; write what is to be continued"));
        }
        if p.len().saturating_add(max_tokens) > room {
            let advice = match room.saturating_sub(p.len()) {
                0 => "shorten the prompt".to_owned(),
                left => format!("shorten the prompt, or ask for {left} new tokens at most"),
            };
            problems.push(Problem::new(
                &place,
                format!(
                    "{} tokens and {max_tokens} new ones do not fit {room} positions; {advice}",
                    p.len()
                ),
            ));
        }
        if let Some(id) = p.iter().find(|&&id| id as usize >= vocab) {
            let what = format!(
                "token id {id} is beyond the model's vocabulary of {vocab}; take the tokenizer the model was trained with"
            );
            problems.push(Problem::new(&place, what));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input("these prompts cannot be continued", problems))
}

/// A program that continues up to `rows` prompts at a time.
pub struct Generator {
    step: Step,
    inputs: StreamInputs,
    head: HeadRows,
    logits: Var,
    tokens: usize,
    rows: usize,
    vocab: usize,
    max_positions: usize,
}

impl Generator {
    /// Makes the program over the parameters in `store`.
    ///
    /// # Errors
    /// When memory or the adapter's limits do not suffice.
    pub fn new(
        gpu: &Rc<Gpu>,
        store: &Store,
        config: &ModelConfig,
        tokens: usize,
        rows: usize,
    ) -> Result<Self> {
        let mut g = Graph::new(gpu.target());
        let inputs = StreamInputs::declare(&mut g, tokens);
        let head = HeadRows::declare(&mut g, rows, tokens);
        let logits = config.decoder.forward(&mut g, &inputs, &head).logits(&mut g);
        g.output(logits);
        Ok(Self {
            step: Step::new(gpu, g, store)?,
            inputs,
            head,
            logits,
            tokens,
            rows,
            vocab: config.vocab_size,
            max_positions: config.max_positions,
        })
    }

    /// Continues every prompt until a token of `stop` or the limit; returns the new tokens,
    /// the stop token apart.
    ///
    /// # Errors
    /// A prompt that is empty, has ids beyond the vocabulary, or does not fit with its
    /// continuation; a lost device.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        stop: &[u32],
        sampling: &Sampling,
    ) -> Result<Vec<Vec<u32>>> {
        let room = self.tokens.min(self.max_positions);
        check_prompts(prompts, sampling.max_tokens, room, self.vocab)?;
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        let mut out = Vec::with_capacity(prompts.len());
        let mut rest = prompts;
        while !rest.is_empty() {
            let mut used = 0;
            let fits = rest.iter().take(self.rows).take_while(|p| {
                used += p.len() + sampling.max_tokens;
                used <= self.tokens
            });
            let (now, later) = rest.split_at(fits.count());
            out.extend(self.continue_together(now, stop, sampling, &mut rng)?);
            rest = later;
        }
        Ok(out)
    }

    fn continue_together(
        &self,
        prompts: &[Vec<u32>],
        stop: &[u32],
        sampling: &Sampling,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Vec<u32>>> {
        let mut sequences = prompts.to_vec();
        let mut done = vec![sampling.max_tokens == 0; prompts.len()];
        while done.iter().any(|d| !d) {
            let (stream, rows) = self.layout(&sequences);
            self.inputs.write(&self.step, &stream);
            self.head.write(&self.step, &rows);
            self.step.run();
            let logits = self.step.read(self.logits)?;
            for (i, sequence) in sequences.iter_mut().enumerate() {
                if done[i] {
                    continue;
                }
                let token = choose(
                    &logits[i * self.vocab..(i + 1) * self.vocab],
                    sampling.temperature,
                    rng,
                );
                if stop.contains(&token) {
                    done[i] = true;
                    continue;
                }
                sequence.push(token);
                done[i] = sequence.len() == prompts[i].len() + sampling.max_tokens;
            }
        }
        Ok(sequences.iter().zip(prompts).map(|(s, p)| s[p.len()..].to_vec()).collect())
    }

    /// Sequences one behind the other, and the last row of each.
    fn layout(&self, sequences: &[Vec<u32>]) -> (Stream, Vec<u32>) {
        let mut stream = Stream::empty(Capacity { tokens: self.tokens, targets: 0, pairs: 0 });
        let mut rows = vec![0; self.rows];
        let mut at = 0;
        for (i, sequence) in sequences.iter().enumerate() {
            let end = at + sequence.len();
            for (position, &token) in sequence.iter().enumerate() {
                let t = at + position;
                stream.tokens[t] = token;
                stream.position[t] = position as u32;
                stream.spans[4 * t..4 * t + 4].copy_from_slice(&[0, 0, at as u32, end as u32]);
            }
            rows[i] = end as u32 - 1;
            at = end;
        }
        (stream, rows)
    }
}

/// The next token: the most probable, or a sample at a temperature.
fn choose(logits: &[f32], temperature: f32, rng: &mut ChaCha8Rng) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
    if temperature <= 0.0 {
        return best as u32;
    }
    let weight = |l: f32| f64::from((l - logits[best]) / temperature).exp();
    let mut left = rng.random::<f64>() * logits.iter().map(|&l| weight(l)).sum::<f64>();
    for (i, &l) in logits.iter().enumerate() {
        left -= weight(l);
        if left <= 0.0 {
            return i as u32;
        }
    }
    best as u32
}
