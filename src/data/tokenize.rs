//! From rows to token ids: templates, special tokens, where the answer starts, over-length rows.
//!
//! The rules, for a row whose rendered prompt is `p` and whose rendered answer is `a`:
//!
//! 1. `full = encode(p + a)`, never `encode(p) + encode(a)`: the model must see the tokens that
//!    the text really has.
//! 2. The answer starts where `full` first leaves `encode(p)`. If a token merges across the
//!    prompt's end, that token is the answer's first: the split moves one token to the left.
//! 3. BOS in front if the tokenizer has one and it is not there; EOS behind by [`EosRule`].
//! 4. Rows longer than `max_length` by [`OverLength`].
//!
//! With [`EosRule::Trl`] and [`OverLength::TruncateResponse`] the ids and labels are TRL's, but
//! for rows whose prompt alone fills `max_length`: TRL keeps them without any answer, here they
//! are dropped and counted.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, ModelWrapper};

pub use super::bpe::{TrainedBpe, train_bpe};
use super::example::{Example, Sequence};
use super::growth::{Growth, Rewriting};
use super::length::Cut;
pub use super::length::{Counts, OverLength};
use super::messages::{Message, SAYING};
use super::rows::{PreferenceRow, Source, Text};
use super::special::{self, Special};
use super::template::ChatTemplate;
use super::vocabulary::splits_bytes;
use crate::error::{Error, Problem, Result};
use crate::files::read_file;
use crate::guard::{caught, on_own_stack};

/// Largest `tokenizer.json` in bytes; the largest known has a third of it.
const LARGEST: usize = 128 << 20;
/// Largest of the small files beside it.
pub(super) const LARGEST_JSON: usize = 32 << 20;

/// A model's tokenizer with its special tokens and chat template.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    growth: Growth,
    special: Special,
    vocab_size: usize,
    template: Option<ChatTemplate>,
    /// Texts may be cut at blanks: see [`Tokenizer::cut`].
    cuts: bool,
}

/// When an end-of-sequence token is appended to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum EosRule {
    /// Unless the answer ends with it already; white space that a template writes behind it is
    /// cut, so the sequence ends with its EOS.
    #[default]
    Once,
    /// As TRL does: unless the very last token is EOS. Templates that end with a line break get a
    /// second EOS behind it.
    Trl,
}

/// How rows become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// Longest sequence in tokens, prompt and answer together, BOS and EOS included.
    pub max_length: usize,
    /// What happens to longer ones.
    pub over_length: OverLength,
    /// When EOS is appended.
    pub eos: EosRule,
}

impl Default for TokenizeOptions {
    fn default() -> Self {
        Self { max_length: 1024, over_length: OverLength::Drop, eos: EosRule::Once }
    }
}

/// The examples of a set of rows, with what was left out.
#[derive(Debug, Clone)]
pub struct Examples {
    /// In the order of the rows; `Example::row` is the row's index.
    pub examples: Vec<Example>,
    /// What was cut or dropped for its length.
    pub counts: Counts,
    /// Rows refused for another reason; empty unless bad rows are skipped.
    pub skipped: Vec<Problem>,
    /// Keys of messages that the chat template does not name, so that they reach no model.
    pub unused: BTreeSet<String>,
}

/// The tokens of a row before anything is cut.
pub(super) struct Untrimmed {
    /// Chosen, and rejected if there is one.
    pub sides: Vec<Sequence>,
    /// Tokens at the prompt's end that open the answer.
    pub opening: usize,
    /// Whether the text of each side ends the sequence by itself.
    pub ended: Vec<bool>,
}

/// The two sides of a row as text.
struct Rendered {
    prompt: String,
    chosen: String,
    rejected: Option<String>,
    /// The text that opens the answer, at the prompt's end.
    opening: String,
}

impl Tokenizer {
    /// Loads `tokenizer.json` and, if there, `tokenizer_config.json` and `chat_template.jinja`.
    ///
    /// Special tokens are named in `tokenizer_config.json` (as text or as an added-token object);
    /// older folders name them in `special_tokens_map.json`. Those that `tokenizer.json` knows but
    /// does not hold for added tokens become added ones, as in transformers. Ids that end a
    /// generation are those of `generation_config.json`, else of `config.json`, and the
    /// tokenizer's own. Stored padding, truncation and BPE dropout are switched off: lengths are
    /// our business, and a text has the same tokens each time.
    ///
    /// # Errors
    /// Files that cannot be read or are not what they should be, by name; special tokens that the
    /// tokenizer does not have.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = read_file(&path, LARGEST)?.ok_or_else(|| {
            Error::file(
                folder,
                "has no tokenizer.json. Copy the one the model was trained with, or make one with `oddgrad tokenizer`.",
            )
        })?;
        let refuse = |e: String| {
            let what = format!("is not a tokenizer of the tokenizers library: {e}; copy it again");
            Error::file(&path, what)
        };
        let rewriting: Rewriting =
            serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        let growth = Growth::of(&rewriting).map_err(refuse)?;
        // The library's constructors descend with the file, and panic at some.
        let failed = |e: String| refuse(format!("the library failed: {e}"));
        let loaded = on_own_stack(|| load(&bytes).map_err(|e| e.to_string()));
        let mut inner = loaded.map_err(failed)?.map_err(refuse)?;
        let special = caught(|| special::read(folder, &mut inner)).map_err(failed)??;
        let largest = inner.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        let template = ChatTemplate::from_folder(folder, &special.config, special.names.clone())?;
        let Rewriting { pre_tokenizer, normalizer, .. } = &rewriting;
        // No token may reach across a blank, or take one with it.
        let plain = |token: &AddedToken| {
            !(token.lstrip || token.rstrip || token.content.contains(char::is_whitespace))
        };
        let cuts = splits_bytes(pre_tokenizer, normalizer)
            && inner.get_added_tokens_decoder().values().all(plain);
        Ok(Self { inner, growth, special, vocab_size, template, cuts })
    }

    /// Token ids of a text. Nothing is added; special tokens written in the text are recognised.
    ///
    /// # Errors
    /// A text that the tokenizer cannot express (a word-level one without an unknown token), or
    /// that it fails on.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.try_encode(text).map_err(|e| {
            Error::input("a text cannot be encoded", vec![Problem::new("tokenizer.json", e)])
        })
    }

    fn try_encode(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
        Growth::allows(self.growth.normalizer, text.len())?;
        let encoding = caught(|| {
            let encoding = self.inner.encode_fast(text, false);
            encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|e| e.to_string())
        });
        encoding
            .map_err(|e| format!("tokenizer.json makes the tokenizers library fail: {e}"))?
            .map_err(|e| format!("the tokenizer cannot express the text: {e}"))
    }

    /// Where a text may be cut, the later the better, so that the tokens of both parts are those of the
    /// whole, whatever follows; 0 if it is not known to be cut anywhere.
    ///
    /// The known pre-tokenizers of byte-level BPE make words of runs of letters, digits, signs or white
    /// space. A blank between a sign and a letter begins a word in all of them: no match of their
    /// expressions reaches across, and none before it looks further. What is behind the last one and
    /// what follows are split together.
    pub(super) fn cut(&self, text: &str) -> usize {
        let is_cut = |window: &[u8]| {
            window[0].is_ascii_graphic() && window[1] == b' ' && window[2].is_ascii_alphabetic()
        };
        let last = text.as_bytes().windows(3).rposition(is_cut).filter(|_| self.cuts);
        last.map_or(0, |at| at + 1)
    }

    /// The text of token ids; unknown ids are passed over.
    ///
    /// # Errors
    /// A decoder that fails on these ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.try_decode(ids, skip_special).map_err(|e| {
            Error::input("tokens cannot be decoded", vec![Problem::new("tokenizer.json", e)])
        })
    }

    fn try_decode(&self, ids: &[u32], skip_special: bool) -> std::result::Result<String, String> {
        let length: usize =
            ids.iter().filter_map(|&id| self.inner.id_to_token(id)).map(|t| t.len()).sum();
        Growth::allows(self.growth.decoder, length)?;
        caught(|| self.inner.decode(ids, skip_special).map_err(|e| e.to_string()))
            .map_err(|e| format!("tokenizer.json makes the tokenizers library fail: {e}"))?
    }

    /// Largest id + 1: what an embedding must have rows for.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Beginning-of-sequence token, if the tokenizer has one.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// End-of-sequence token: what is appended to answers.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The token that fills up short sequences.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// The library's tokenizer.
    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The source of the chat template.
    pub fn template_source(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// The tokens any of which ends a generation, and the file that names them.
    pub fn ends(&self) -> (&[u32], &'static str) {
        (&self.special.ends, self.special.ends_from)
    }

    /// What the folder says of its tokens that does not hold or is missing, for the user.
    pub fn notes(&self) -> &[String] {
        &self.special.notes
    }

    /// The token of an id, as `tokenizer.json` writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The time that the chat template wrote into conversations, in seconds since 1970: the same rows
    /// are other tokens tomorrow. None if it has written none.
    pub fn date(&self) -> Option<i64> {
        self.template.as_ref().and_then(ChatTemplate::date)
    }

    /// Sets the time that the chat template writes.
    pub fn set_date(&self, seconds: i64) {
        if let Some(template) = &self.template {
            template.set_date(seconds);
        }
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Renders a conversation up to where the assistant would begin.
    ///
    /// # Errors
    /// When there is no template or it refuses the conversation.
    pub fn render_prompt(&self, messages: &[Message]) -> Result<String> {
        self.render_prompt_with(messages, &Map::new())
    }

    /// As [`Tokenizer::render_prompt`], with variables of the template beside the messages.
    ///
    /// # Errors
    /// As [`Tokenizer::render_prompt`]; tools or documents that the template does not use.
    pub fn render_prompt_with(
        &self,
        messages: &[Message],
        given: &Map<String, Value>,
    ) -> Result<String> {
        self.render(messages, given, true).map_err(|e| {
            Error::input(
                "the conversation cannot be rendered",
                vec![Problem::new("chat template", e)],
            )
        })
    }

    fn render(
        &self,
        messages: &[Message],
        given: &Map<String, Value>,
        prompt: bool,
    ) -> std::result::Result<String, String> {
        let template = self.template.as_ref().ok_or(
            "the row is a conversation and the model has no chat template; add \
             chat_template.jinja to the model folder, or use rows of plain text",
        )?;
        let lost = |name: &str, place: String| {
            format!(
                "{place} {name}, which the chat template does not use: it would not reach the model"
            )
        };
        for (i, message) in messages.iter().enumerate() {
            if let Some(name) = message.saying().find(|name| !template.names(name)) {
                return Err(lost(name, format!("message {} ({}) has", i + 1, message.role)));
            }
        }
        // Settings of a template (`chat_template_kwargs`) are for those that know them.
        if let Some(name) =
            ["tools", "documents"].iter().find(|n| given.contains_key(**n) && !template.names(n))
        {
            return Err(lost(name, "the row has".into()));
        }
        template.render(messages, given, prompt)
    }

    /// The example of one row; None if `over_length` drops it.
    ///
    /// # Errors
    /// What makes the row unusable, with its file and line.
    pub fn example(
        &self,
        row_index: usize,
        row: &PreferenceRow,
        options: &TokenizeOptions,
    ) -> std::result::Result<Option<Example>, Problem> {
        self.counted(row_index, row, options, &mut Counts::default())
    }

    /// The examples of all rows with the counts of what was cut or dropped.
    ///
    /// # Errors
    /// Every row that cannot be used, all at once, unless `skip_bad_rows`; no row left.
    pub fn examples(
        &self,
        rows: &[PreferenceRow],
        options: &TokenizeOptions,
        skip_bad_rows: bool,
    ) -> Result<Examples> {
        let mut counts = Counts::default();
        let mut examples = Vec::with_capacity(rows.len());
        let mut skipped = Vec::new();
        on_own_stack(|| {
            for (index, row) in rows.iter().enumerate() {
                match self.counted(index, row, options, &mut counts) {
                    Ok(example) => examples.extend(example),
                    Err(problem) => skipped.push(problem),
                }
            }
        })
        .map_err(|e| Error::input(format!("the rows cannot be tokenized: {e}"), vec![]))?;
        if !skipped.is_empty() && !skip_bad_rows {
            let summary = format!(
                "{} of {} rows cannot be used (mend them, or go on without them: --skip-bad-rows)",
                skipped.len(),
                rows.len()
            );
            return Err(Error::input(summary, skipped));
        }
        if examples.is_empty() {
            let summary = format!("no row is left ({counts}); raise data.max_length");
            return Err(Error::input(summary, skipped));
        }
        let unused = self.unused_keys(rows);
        Ok(Examples { examples, counts, skipped, unused })
    }

    /// Keys of messages that the template does not name.
    fn unused_keys(&self, rows: &[PreferenceRow]) -> BTreeSet<String> {
        let turns = |text: &'_ Text| match text {
            Text::Messages(list) => list.clone(),
            Text::Plain(_) => Vec::new(),
        };
        let named = |key: &str| self.template.as_ref().is_some_and(|t| t.names(key));
        let mut unused = BTreeSet::new();
        for text in rows.iter().flat_map(|r| [&r.prompt, &r.chosen].into_iter().chain(&r.rejected))
        {
            for key in turns(text).iter().flat_map(|m| m.fields.keys()) {
                if !SAYING.contains(&key.as_str()) && unused.len() < 1_000 && !named(key) {
                    unused.insert(key.clone());
                }
            }
        }
        unused
    }

    /// [`Tokenizer::example`] that adds to `counts`.
    fn counted(
        &self,
        row_index: usize,
        row: &PreferenceRow,
        options: &TokenizeOptions,
        counts: &mut Counts,
    ) -> std::result::Result<Option<Example>, Problem> {
        let problem = |what: String| Problem::new(row.source.to_string(), what);
        let Untrimmed { mut sides, opening, .. } = self.untrimmed(row, options.eos)?;
        let cut = Cut {
            max_length: options.max_length,
            over_length: options.over_length,
            bos: self.special.bos,
            opening,
        };
        let fits = cut.apply(&mut sides, counts).map_err(problem)?;
        if !fits {
            return Ok(None);
        }
        counts.kept += 1;
        let mut sides = sides.into_iter();
        let Some(chosen) = sides.next() else {
            return Ok(None);
        };
        let (rejected, desirable) = (sides.next(), row.desirable);
        Ok(Some(Example { row: row_index, chosen, rejected, desirable }))
    }

    /// The tokens of a row, however long.
    ///
    /// # Errors
    /// What makes the row unusable, with its file and line.
    pub(super) fn untrimmed(
        &self,
        row: &PreferenceRow,
        eos: EosRule,
    ) -> std::result::Result<Untrimmed, Problem> {
        let problem = |what: String| Problem::new(row.source.to_string(), what);
        let text = self.rendered(row).map_err(problem)?;
        // What both sides begin with becomes tokens once.
        let (head, tail) = text.prompt.split_at(self.cut(&text.prompt));
        let head = match head {
            "" => Vec::new(),
            head => self.try_encode(head).map_err(problem)?,
        };
        let prompt = [&head[..], &self.try_encode(tail).map_err(problem)?].concat();
        let (mut sides, mut ended) = (Vec::with_capacity(2), Vec::with_capacity(2));
        for answer in std::iter::once(&text.chosen).chain(&text.rejected) {
            let all = self.try_encode(&format!("{tail}{answer}")).map_err(problem)?;
            let all = [&head[..], &all].concat();
            let (side, end) = self.sequence(&prompt, all, eos).map_err(problem)?;
            sides.push(side);
            ended.push(end);
        }
        for (side, name) in sides.iter().zip(["chosen", "rejected"]) {
            if side.ids.len() <= side.response_start.max(1) {
                return Err(problem(format!("{name} has no token that could be learnt")));
            }
        }
        if sides.len() == 2 && sides[0].ids == sides[1].ids {
            return Err(problem("chosen and rejected are the same tokens".into()));
        }
        let opening = match text.opening.as_str() {
            "" => 0,
            opening => self.try_encode(opening).map_err(problem)?.len(),
        };
        Ok(Untrimmed { sides, opening, ended })
    }

    /// The texts of a row, by the chat template if it is a conversation.
    fn rendered(&self, row: &PreferenceRow) -> std::result::Result<Rendered, String> {
        let given = &row.given;
        let conversation = |prompt: &[Message], answer: &Text| match answer {
            Text::Messages(list) => {
                let all: Vec<Message> = prompt.iter().chain(list).cloned().collect();
                self.render(&all, given, false)
            }
            Text::Plain(_) => Err("the prompt is a conversation, an answer is plain text".into()),
        };
        let plain = |answer: &Text| match answer {
            Text::Plain(text) => Ok(text.clone()),
            Text::Messages(_) => {
                Err("the prompt is plain text, an answer a conversation".to_owned())
            }
        };
        let (mut text, whole) = match &row.prompt {
            Text::Plain(prompt) => {
                let chosen = plain(&row.chosen)?;
                let rejected = row.rejected.as_ref().map(plain).transpose()?;
                (
                    Rendered { prompt: prompt.clone(), chosen, rejected, opening: String::new() },
                    None,
                )
            }
            Text::Messages(prompt) => {
                let chosen = conversation(prompt, &row.chosen)?;
                let rejected =
                    row.rejected.as_ref().map(|r| conversation(prompt, r)).transpose()?;
                let rendered = self.render(prompt, given, true)?;
                let without = self.render(prompt, given, false)?;
                let opening = rendered.strip_prefix(&without).unwrap_or_default().to_owned();
                let text = Rendered { prompt: rendered, chosen, rejected, opening };
                (text, prompt.last())
            }
        };
        if let Some(last) = whole {
            text.split_whole(last)?;
        }
        for (name, side) in [("chosen", Some(&text.chosen)), ("rejected", text.rejected.as_ref())] {
            if side.is_some_and(|side| side.trim().is_empty()) {
                return Err(format!("{name} is empty after the chat template"));
            }
        }
        Ok(text)
    }

    /// The `ids` of prompt and answer with BOS and EOS, and where the answer starts; whether the answer
    /// ends with EOS by itself.
    fn sequence(
        &self,
        prompt: &[u32],
        mut ids: Vec<u32>,
        eos: EosRule,
    ) -> std::result::Result<(Sequence, bool), String> {
        let mut response_start = ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        if let Some(bos) = self.special.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
            response_start += 1;
        }
        let ended = self.end(&mut ids, response_start, eos)?;
        Ok((Sequence { ids, response_start }, ended))
    }

    /// Appends EOS unless `ids[start..]` ends with it already, and says whether it does.
    fn end(
        &self,
        ids: &mut Vec<u32>,
        start: usize,
        rule: EosRule,
    ) -> std::result::Result<bool, String> {
        let Some(eos) = self.special.eos else { return Ok(false) };
        if rule == EosRule::Once {
            let start = start.min(ids.len());
            let mut end = ids.len();
            while end > start && ids[end - 1] != eos {
                let text = self.try_decode(&ids[end - 1..end], false)?;
                if text.is_empty() || !text.trim().is_empty() {
                    break;
                }
                end -= 1;
            }
            if end > start && ids[end - 1] == eos {
                ids.truncate(end);
                return Ok(true);
            }
        }
        let ended = ids.len() > start && ids.last() == Some(&eos);
        if !ended {
            ids.push(eos);
        }
        Ok(ended)
    }

    /// A document for language modelling as examples of at most `max_length` tokens, each token
    /// but the first predicted exactly once: the last token of a piece begins the next. EOS ends
    /// the document. Conversations are rendered by the chat template.
    ///
    /// # Errors
    /// What makes the document unusable, with its file and line.
    pub fn document(
        &self,
        row_index: usize,
        source: &Source,
        text: &Text,
        options: &TokenizeOptions,
    ) -> std::result::Result<Vec<Example>, Problem> {
        let problem = |what: String| Problem::new(source.to_string(), what);
        let text = match text {
            Text::Plain(text) => text.clone(),
            Text::Messages(list) => self.render(list, &Map::new(), false).map_err(problem)?,
        };
        let mut ids = self.try_encode(&text).map_err(problem)?;
        if ids.is_empty() {
            return Err(problem("the document is empty".into()));
        }
        if let Some(bos) = self.special.bos
            && ids[0] != bos
        {
            ids.insert(0, bos);
        }
        self.end(&mut ids, 0, options.eos).map_err(problem)?;
        if options.max_length < 2 {
            return Err(problem("max_length must be at least 2".into()));
        }
        let step = options.max_length - 1;
        let starts = (0..ids.len().saturating_sub(1)).step_by(step);
        Ok(starts
            .map(|start| {
                let piece = ids[start..ids.len().min(start + options.max_length)].to_vec();
                let chosen = Sequence { ids: piece, response_start: 1 };
                Example { row: row_index, chosen, rejected: None, desirable: None }
            })
            .collect())
    }
}

impl Rendered {
    /// Takes the prompt off the two rendered conversations. A template may open the answer in
    /// another way than its generation prompt says, so the prompt is what all three share.
    fn split_whole(&mut self, last: &Message) -> std::result::Result<(), String> {
        let mut common = shared(&self.prompt, &self.chosen);
        if let Some(rejected) = &self.rejected {
            common = common.min(shared(&self.prompt, rejected));
        }
        // The answer must not reach back into the question.
        let asked = last.text().trim();
        let question = &self.prompt[..self.prompt.len() - self.opening.len()];
        let end = match question.rfind(asked) {
            Some(start) if !asked.is_empty() => start + asked.len(),
            _ => 0,
        };
        if common < end {
            return Err(
                "the chat template renders the prompt differently once an answer follows, \
                        so it cannot be told where the answer starts"
                    .into(),
            );
        }
        let kept = self.opening.len().saturating_sub(self.prompt.len() - common);
        self.opening.truncate(kept);
        self.prompt.truncate(common);
        self.chosen.drain(..common);
        if let Some(rejected) = &mut self.rejected {
            rejected.drain(..common);
        }
        Ok(())
    }
}

/// Length in bytes of the common prefix of two texts, at a character boundary.
fn shared(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

/// The library's tokenizer without what would make tokens depend on chance or cut them.
fn load(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
    inner.with_padding(None);
    inner.with_truncation(None)?;
    if let ModelWrapper::BPE(bpe) = inner.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        inner.with_model(ModelWrapper::BPE(bpe));
    }
    Ok(inner)
}

#[cfg(test)]
#[path = "tokenize_tests.rs"]
mod tests;
