//! A conversation with a model, turn by turn.

use crate::data::messages::Message;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::generate::{Generator, Room, Sampling};
use crate::model::speech::{Speech, whole};
use crate::program::Store;
use crate::train::sampler::encode_conversation;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Map;
use std::rc::Rc;

/// What was said, and the model that goes on with it. Keys and values of earlier turns are kept: a turn
/// computes its own tokens, as far as the chat template renders what was said as before.
pub struct Conversation {
    generator: Generator,
    tokenizer: Tokenizer,
    system: Option<String>,
    messages: Vec<Message>,
    /// The tokens whose keys and values are there.
    known: Vec<u32>,
    /// Most tokens of the whole.
    context: usize,
    rng: ChaCha8Rng,
}

impl Conversation {
    /// An empty one, but for a `system` message, of at most `context` tokens or those the model was made
    /// for.
    ///
    /// # Errors
    /// Memory or limits that do not suffice for the keys and values of so many tokens.
    pub fn new(
        gpu: &Rc<Gpu>,
        store: &Store,
        config: &ModelConfig,
        tokenizer: Tokenizer,
        system: Option<String>,
        context: usize,
    ) -> Result<Self> {
        let context = context.clamp(1, config.max_positions);
        let room = Room { sequences: 1, length: context };
        let generator = Generator::new(gpu, store, config, room)?;
        let rng = ChaCha8Rng::seed_from_u64(0);
        let mut new =
            Self { generator, tokenizer, system, messages: vec![], known: vec![], context, rng };
        new.reset();
        Ok(new)
    }

    /// Begins the draws at `seed`.
    pub fn set_seed(&mut self, seed: u64) {
        self.rng = ChaCha8Rng::seed_from_u64(seed);
    }

    /// Forgets all but the system message.
    pub fn reset(&mut self) {
        self.messages = self.system.iter().map(|text| Message::new("system", text)).collect();
    }

    /// What was said so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Says `message` and tells `hear` the pieces of the answer as they come, up to the first of the
    /// texts `stops`.
    ///
    /// # Errors
    /// [`Error::Input`] if the template refuses the message or there is no room for it; then it was
    /// not said. A lost device; logits that are not finite.
    pub fn say(
        &mut self,
        message: Message,
        sampling: &Sampling,
        stops: &[String],
        hear: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let mut all = self.messages.clone();
        all.push(message);
        let ids = encode_conversation(&self.tokenizer, &all, &Map::new())?;
        let left = self.context.saturating_sub(ids.len());
        if left == 0 {
            let what = format!(
                "has {} tokens with this message, and there is room for {}; begin anew (/reset) or give it more (--context)",
                ids.len(),
                self.context
            );
            let problem = Problem::new("the conversation", what);
            return Err(Error::input("there is no room for an answer", vec![problem]));
        }
        let sampling = Sampling { max_tokens: sampling.max_tokens.min(left), ..*sampling };
        let known = ids.iter().zip(&self.known).take_while(|(a, b)| a == b).count();
        let mut speech = Speech::default();
        let mut watch = |_: usize, new: &[u32]| {
            let text = self.tokenizer.decode(new, true)?;
            let (piece, goes_on) = speech.next(&text, stops);
            hear(piece);
            Ok(goes_on)
        };
        // Until it is over nothing is sure to be there.
        self.known.clear();
        let ends = self.tokenizer.ends().0;
        let new = self.generator.go_on(&ids, known, ends, &sampling, &mut self.rng, &mut watch)?;
        let text = self.tokenizer.decode(&new, true)?;
        hear(speech.rest(&text, stops));
        self.known = ids;
        // The last token was chosen, and nothing was computed of it yet.
        self.known.extend(&new[..new.len().saturating_sub(1)]);
        all.push(Message::new("assistant", whole(&text, stops)));
        self.messages = all;
        Ok(())
    }
}
