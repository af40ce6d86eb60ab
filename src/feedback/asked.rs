//! A model that is to answer or to judge, as far as it is known without a device, and prompts in its
//! form.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::form::Form;
use crate::data::messages::Message;
use crate::data::prompts::PromptRow;
use crate::data::rows::Text;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::model::adapter::tokenizer_folder;
use crate::model::config::ModelConfig;
use crate::model::folder::recorded_form;
use crate::model::generate::check_prompts;
use crate::model::weights::FolderWeights;
use crate::train::sampler::{encode_beginning, encode_conversation};

/// Sequences that are continued together, where a prompt has not more answers.
pub(super) const TOGETHER: usize = 16;

/// A model's folder, read and found usable; nothing is on a device yet.
pub struct ModelFiles {
    pub(super) folder: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) form: Form,
    pub(crate) weights: FolderWeights,
}

impl ModelFiles {
    /// Reads a model folder. Prompts reach the model in `form`, or as it was trained, or by its
    /// chat template if it has one.
    ///
    /// # Errors
    /// Files that are missing, cannot be read or do not fit each other.
    pub fn open(folder: &Path, form: Option<Form>) -> Result<Self> {
        let config = ModelConfig::load(folder)?;
        let tokenizer = Tokenizer::from_folder(&tokenizer_folder(folder)?)?;
        let form = match form {
            Some(form) => form,
            None => recorded_form(folder)?.unwrap_or(Form::of_template(tokenizer.has_template())),
        };
        let weights = FolderWeights::open(folder, &config)?;
        Ok(Self { folder: folder.to_owned(), config, tokenizer, form, weights })
    }

    /// The form in which prompts reach the model.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Prompts as this model is asked them, each once, with their tokens.
    ///
    /// # Errors
    /// All at once: conversations for a model of plain text; prompts that its template refuses, that
    /// have no tokens or do not fit with `max_tokens` behind them.
    pub fn asked(&self, rows: Vec<PromptRow>, max_tokens: usize) -> Result<Asked> {
        let mut asked = Asked { rows: Vec::new(), ids: Vec::new(), repeated: 0 };
        let mut problems = Vec::new();
        let mut known = HashSet::new();
        for mut row in rows {
            let place = row.source.to_string();
            match self.prompt(&mut row, max_tokens) {
                Ok(ids) if !known.insert(ids.clone()) => asked.repeated += 1,
                Ok(ids) => {
                    asked.ids.push(ids);
                    asked.rows.push(row);
                }
                Err(what) => problems.push(Problem::new(place, what)),
            }
        }
        if problems.is_empty() {
            return Ok(asked);
        }
        Err(Error::input("these prompts cannot be asked", problems))
    }

    /// Brings a prompt into the model's form; its tokens, with room for `max_tokens` more behind them.
    ///
    /// # Errors
    /// What is wrong with it: a conversation for a model of plain text; what its template refuses; no
    /// tokens, or too many.
    pub fn prompt(
        &self,
        row: &mut PromptRow,
        max_tokens: usize,
    ) -> std::result::Result<Vec<u32>, String> {
        in_form(&mut row.prompt, self.form)?;
        let ids = self.encode(&row.prompt, &row.given).map_err(reason)?;
        let (room, vocabulary) = (self.config.max_positions, self.config.vocab_size);
        check_prompts(std::slice::from_ref(&ids), max_tokens, room, vocabulary).map_err(reason)?;
        Ok(ids)
    }

    /// The tokens of a prompt, up to where the answer begins.
    ///
    /// # Errors
    /// A chat template that refuses it; what the tokenizer cannot express.
    pub fn encode(&self, prompt: &Text, given: &Map<String, Value>) -> Result<Vec<u32>> {
        match prompt {
            Text::Plain(text) => encode_beginning(&self.tokenizer, text),
            Text::Messages(list) => encode_conversation(&self.tokenizer, list, given),
        }
    }

    /// The tokens of a judge's question, up to where the reply begins.
    ///
    /// # Errors
    /// As [`ModelFiles::encode`].
    pub fn question(&self, asked: &Message) -> Result<Vec<u32>> {
        encode_beginning(&self.tokenizer, &self.questioned(asked)?.0)
    }

    /// The same up to where the letters A and B part as replies, and their tokens there.
    ///
    /// # Errors
    /// As [`ModelFiles::encode`]; letters that are the same tokens.
    pub fn letters(&self, asked: &Message) -> Result<(Vec<u32>, [u32; 2])> {
        let (text, space) = self.questioned(asked)?;
        let reply =
            |letter: &str| encode_beginning(&self.tokenizer, &format!("{text}{space}{letter}"));
        let (mut a, b) = (reply("A")?, reply("B")?);
        let common = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        match (a.get(common), b.get(common)) {
            (Some(&first), Some(&second)) if common > 0 => {
                a.truncate(common);
                Ok((a, [first, second]))
            }
            _ => {
                let what = "does not tell A from B, so this model cannot judge";
                Err(Error::file(self.folder.join("tokenizer.json"), what))
            }
        }
    }

    /// A question as text, and what stands between it and the letter.
    fn questioned(&self, asked: &Message) -> Result<(String, &'static str)> {
        Ok(match self.form {
            Form::Chat => (self.tokenizer.render_prompt(std::slice::from_ref(asked))?, ""),
            Form::Plain => (format!("{}\nThe better answer is", asked.text()), " "),
        })
    }

    /// Positions that the model was made for.
    pub fn max_positions(&self) -> usize {
        self.config.max_positions
    }

    /// The tokens that end an answer.
    pub fn ends(&self) -> &[u32] {
        self.tokenizer.ends().0
    }

    /// Tokens as text, without special ones.
    ///
    /// # Errors
    /// Ids beyond the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true)
    }
}

/// What a single problem of an error says.
fn reason(error: Error) -> String {
    match error {
        Error::Input { problems, .. } if problems.len() == 1 => problems[0].what.clone(),
        other => other.to_string(),
    }
}

/// Brings a prompt into a form.
fn in_form(prompt: &mut Text, form: Form) -> std::result::Result<(), String> {
    match (form, &*prompt) {
        (Form::Chat, Text::Plain(text)) => {
            *prompt = Text::Messages(vec![Message::new("user", text)]);
        }
        (Form::Plain, Text::Messages(_)) => {
            return Err(
                "is a conversation, and the model continues plain text; give it text, or ask \
                        by the chat template (--form chat)"
                    .into(),
            );
        }
        _ => {}
    }
    Ok(())
}

/// Prompts in a model's form.
pub struct Asked {
    /// Each prompt once.
    pub rows: Vec<PromptRow>,
    /// Its tokens.
    pub(super) ids: Vec<Vec<u32>>,
    /// Rows that ask what an earlier one does.
    pub repeated: usize,
}

impl Asked {
    /// The prompts that are answered together, where each gets `count` answers.
    pub fn groups(self, count: usize) -> Vec<Self> {
        let size = (TOGETHER / count.max(1)).max(1);
        let mut left = self.rows.into_iter().zip(self.ids).peekable();
        let mut groups = Vec::new();
        while left.peek().is_some() {
            let (rows, ids) = left.by_ref().take(size).unzip();
            groups.push(Self { rows, ids, repeated: 0 });
        }
        groups
    }
}
