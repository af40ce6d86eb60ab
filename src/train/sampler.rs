//! Fixed prompts, continued during training to see what the model has learnt.

use crate::data::form::Form;
use crate::data::messages::Message;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::generate::{Generator, Room, Sampling, check_prompts};
use crate::program::Store;
use crate::train::recipe::SampleSettings;
use std::rc::Rc;

/// Prompts continued together at most.
const TOGETHER: usize = 16;

/// Prompts ready to be continued.
pub struct Sampler {
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Vec<Vec<u32>>,
    stop: Vec<u32>,
}

impl Sampler {
    /// Brings `prompts` into `form` and makes the program that continues them by up to
    /// `max_tokens`.
    ///
    /// # Errors
    /// As [`encode_prompts`]; memory or limits that do not suffice.
    pub fn new(
        gpu: &Rc<Gpu>,
        store: &Store,
        config: &ModelConfig,
        tokenizer: Tokenizer,
        (prompts, form): (&[String], Form),
        max_tokens: usize,
    ) -> Result<Self> {
        let prompts = encode_prompts(&tokenizer, config, (prompts, form), max_tokens)?;
        let generator = Generator::new(gpu, store, config, room_of(&prompts, max_tokens))?;
        let stop = tokenizer.ends().0.to_vec();
        Ok(Self { generator, tokenizer, prompts, stop })
    }

    /// Continues every prompt; one text each.
    ///
    /// # Errors
    /// Prompts too long for the model; a lost device.
    pub fn run(&self, sampling: &Sampling) -> Result<Vec<String>> {
        let new = self.generator.generate(&self.prompts, &self.stop, sampling)?;
        let text = |ids: &Vec<u32>| Ok(self.tokenizer.decode(ids, true)?.trim().to_owned());
        new.iter().map(text).collect()
    }
}

/// The room of a recipe's prompts in this form; None if it has none to continue.
///
/// # Errors
/// As [`encode_prompts`].
pub fn room(
    tokenizer: &Tokenizer,
    config: &ModelConfig,
    sample: &SampleSettings,
    form: Form,
) -> Result<Option<Room>> {
    if sample.every == 0 {
        return Ok(None);
    }
    let prompts = encode_prompts(tokenizer, config, (&sample.prompts, form), sample.max_tokens)?;
    Ok(Some(room_of(&prompts, sample.max_tokens)))
}

/// The room that `prompts` and `max_tokens` behind each take.
pub fn room_of(prompts: &[Vec<u32>], max_tokens: usize) -> Room {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    Room { sequences: prompts.len().clamp(1, TOGETHER), length: longest + max_tokens }
}

/// Prompts as the model expects them in this form, with room for `max_tokens` more behind each.
///
/// # Errors
/// Every prompt that is empty or too long, at once; a template that refuses one.
pub fn encode_prompts(
    tokenizer: &Tokenizer,
    config: &ModelConfig,
    (prompts, form): (&[String], Form),
    max_tokens: usize,
) -> Result<Vec<Vec<u32>>> {
    // A template would hide that nothing was asked.
    let empty = prompts.iter().enumerate().filter(|(_, p)| p.trim().is_empty());
    let empty: Vec<Problem> = empty
        .map(|(i, _)| {
            Problem::new(format!("prompt {}", i + 1), "is empty; write what is to be continued")
        })
        .collect();
    if !empty.is_empty() {
        return Err(Error::input("these prompts cannot be continued", empty));
    }
    let ids: Vec<Vec<u32>> =
        prompts.iter().map(|p| encode_prompt(tokenizer, p, form)).collect::<Result<_>>()?;
    check_prompts(&ids, max_tokens, config.max_positions, config.vocab_size)?;
    Ok(ids)
}

/// A prompt as the model expects it: as it is, or rendered by the chat template; with the
/// beginning-of-sequence token if the tokenizer has one and it is not there already.
///
/// # Errors
/// When there is no template for a chat or it refuses the prompt; when the tokenizer cannot express
/// it.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str, form: Form) -> Result<Vec<u32>> {
    let text = match form {
        Form::Chat => tokenizer.render_prompt(&[Message::new("user", prompt)])?,
        Form::Plain => prompt.to_owned(),
    };
    let mut ids = tokenizer.encode(&text)?;
    if let Some(bos) = tokenizer.bos()
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    Ok(ids)
}
