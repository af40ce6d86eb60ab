//! Fixed prompts, continued during training to see what the model has learnt.

use crate::data::form::Form;
use crate::data::messages::Message;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::generate::{Generator, Room, Sampling, check_prompts};
use crate::model::speech::{Speech, whole};
use crate::program::Store;
use crate::train::recipe::SampleSettings;
use serde_json::{Map, Value};
use std::rc::Rc;

/// Prompts continued together at most.
const TOGETHER: usize = 16;

/// Prompts ready to be continued.
pub struct Sampler {
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Vec<Vec<u32>>,
    /// New tokens of each prompt at most; empty where the settings of a run alone limit them.
    limits: Vec<usize>,
    stop: Vec<u32>,
}

impl Sampler {
    /// The program that continues `prompts`, tokens as the model expects them, by up to `max_tokens`.
    ///
    /// # Errors
    /// Memory or limits that do not suffice.
    pub fn new(
        gpu: &Rc<Gpu>,
        store: &Store,
        config: &ModelConfig,
        tokenizer: Tokenizer,
        prompts: Vec<Vec<u32>>,
        max_tokens: usize,
    ) -> Result<Self> {
        let generator = Generator::new(gpu, store, config, room_of(&prompts, max_tokens))?;
        let stop = tokenizer.ends().0.to_vec();
        Ok(Self { generator, tokenizer, prompts, limits: Vec::new(), stop })
    }

    /// Continues each prompt by so many tokens at most. Prompts that are near each other are continued
    /// together for as long as one of them needs.
    ///
    /// # Panics
    /// If there are not as many limits as prompts.
    #[must_use]
    pub fn limited(self, limits: Vec<usize>) -> Self {
        assert_eq!(limits.len(), self.prompts.len(), "a limit for each prompt");
        Self { limits, ..self }
    }

    /// Continues every prompt up to the first of the texts `stops`; one text each, without the white
    /// space around it. `hear` is told the pieces of each, by the number of its prompt, as they come.
    ///
    /// # Errors
    /// Prompts too long for the model; a lost device.
    pub fn run(
        &self,
        sampling: &Sampling,
        stops: &[String],
        hear: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<String>> {
        let text = |ids: &[u32]| self.tokenizer.decode(ids, true);
        let mut speeches: Vec<Speech> = self.prompts.iter().map(|_| Speech::default()).collect();
        let mut watch = |i: usize, new: &[u32]| {
            let text = text(new)?;
            let (piece, goes_on) = speeches[i].next(&text, stops);
            hear(i, piece);
            Ok(goes_on && self.limits.get(i).is_none_or(|&limit| new.len() < limit))
        };
        let new = self.generator.generate(&self.prompts, &self.stop, sampling, &mut watch)?;
        let mut whole_of = |(i, ids): (usize, &Vec<u32>)| {
            let text = text(ids)?;
            hear(i, speeches[i].rest(&text, stops));
            Ok(whole(&text, stops).to_owned())
        };
        new.iter().enumerate().map(&mut whole_of).collect()
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
    match form {
        Form::Chat => encode_conversation(tokenizer, &[Message::new("user", prompt)], &Map::new()),
        Form::Plain => encode_beginning(tokenizer, prompt),
    }
}

/// A conversation as the model expects it, up to where the assistant begins, with variables of its
/// chat template.
///
/// # Errors
/// As [`encode_prompt`].
pub fn encode_conversation(
    tokenizer: &Tokenizer,
    messages: &[Message],
    given: &Map<String, Value>,
) -> Result<Vec<u32>> {
    encode_beginning(tokenizer, &tokenizer.render_prompt_with(messages, given)?)
}

/// Text with the beginning-of-sequence token, if the tokenizer has one and it is not there already.
///
/// # Errors
/// What the tokenizer cannot express.
pub fn encode_beginning(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text)?;
    if let Some(bos) = tokenizer.bos()
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    Ok(ids)
}
