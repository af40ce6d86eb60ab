//! Training a byte-level BPE tokenizer and writing it as a folder that transformers loads.

use std::collections::HashSet;
use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper};
use tokenizers::{PreTokenizerWrapper, TokenizerImpl};

use crate::error::{Error, Problem, Result};

/// The special tokens of a tokenizer of our own, in the order of their ids.
pub const CHAT_TOKENS: [&str; 4] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"];

/// More tokens than any tokenizer has; the trainer makes room for all of them at once.
const LARGEST_VOCAB: usize = 1 << 20;

/// The chat template of a tokenizer of our own: ChatML.
pub const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

type Model = TokenizerImpl<
    BPE,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// A byte-level BPE tokenizer fresh from training.
#[derive(Debug)]
pub struct TrainedBpe {
    inner: Model,
}

/// Trains a byte-level BPE of `vocab` tokens: the special ones first, then the 256 bytes, then the
/// merges in the order they were found. Same texts, same tokenizer.
///
/// # Errors
/// `vocab` has no room for special tokens and bytes; the texts do not yield enough merges.
pub fn train_bpe(
    texts: impl Iterator<Item = String> + Send,
    vocab: usize,
    special: &[&str],
) -> Result<TrainedBpe> {
    let refuse = |what: String| {
        Error::input("the tokenizer cannot be trained", vec![Problem::new("vocab", what)])
    };
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let least = special.len() + alphabet.len();
    if !(least..=LARGEST_VOCAB).contains(&vocab) {
        return Err(refuse(format!(
            "{vocab} tokens; special tokens and bytes alone are {least}, and more than {LARGEST_VOCAB} are not made"
        )));
    }
    let mut inner = Model::new(BPE::default());
    // No blank is put in front of a text: what is encoded is the text, and decoding gives it back.
    let bytes = ByteLevel::new(false, true, true);
    inner.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(alphabet)
        .special_tokens(special.iter().map(|token| AddedToken::from(*token, true)).collect())
        .build();
    inner.train(&mut trainer, texts).map_err(|e| refuse(e.to_string()))?;
    let size = inner.get_vocab_size(true);
    if size < vocab {
        return Err(refuse(format!(
            "the texts yield only {size} tokens of {vocab}; give more text or ask for fewer"
        )));
    }
    Ok(TrainedBpe { inner })
}

impl TrainedBpe {
    /// Writes `tokenizer.json` and `tokenizer_config.json` with the chat template inside. EOS is
    /// `<|im_end|>`, pad `<|pad|>`; there is no BOS.
    ///
    /// # Errors
    /// When training was not given both of these tokens, or the folder cannot be written.
    pub fn write_tokenizer_folder(&self, folder: &Path, template: &str) -> Result<()> {
        for token in ["<|im_end|>", "<|pad|>"] {
            if self.inner.token_to_id(token).is_none() {
                let what = format!("the tokenizer was trained without {token}");
                return Err(Error::file(folder, what));
            }
        }
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let config = json!({
            "add_bos_token": false,
            "add_prefix_space": false,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": null,
            "chat_template": template,
            "clean_up_tokenization_spaces": false,
            "eos_token": "<|im_end|>",
            "model_max_length": 1024,
            "pad_token": "<|pad|>",
            "padding_side": "right",
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        let tokenizer =
            self.inner.to_string(true).map_err(|e| Error::file(folder, e.to_string()))?;
        for (name, text) in
            [("tokenizer.json", tokenizer), ("tokenizer_config.json", format!("{config:#}\n"))]
        {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
        }
        Ok(())
    }
}
