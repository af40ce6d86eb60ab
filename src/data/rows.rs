//! Rows as they occur in the wild, read and brought to one form: prompt, chosen, rejected.
//!
//! | layout | becomes |
//! |---|---|
//! | `{prompt, chosen, rejected}`, all strings | plain text, taken as it is |
//! | the same, all message lists | messages |
//! | string prompt, full message lists | the lists' common prefix is the prompt |
//! | string prompt, assistant messages only | one user message, then the answer |
//! | `{chosen, rejected}`, message lists | the common prefix is the prompt |
//! | `{chosen, rejected}`, `\n\nHuman: … \n\nAssistant: …` transcripts | plain text, split behind the last common `\n\nAssistant:` |
//! | `{question` or `instruction` or `input, chosen, rejected}` | like `prompt`; instruction and input joined by a line break |
//! | a `system` column beside a string prompt | messages, the system message first if it is not blank |
//! | `{conversations, chosen, rejected}` with `from`/`value` | messages |
//! | a `history` of pairs beside a string prompt (LLaMA-Factory's alpaca) | messages, the earlier turns first |
//! | `{instruction, context, …}` (dolly) | the context is joined to the instruction as an input is |
//! | `tools`, `documents`, `chat_template_kwargs` beside messages | variables of the chat template |
//!
//! Without need of a rejected side (SFT) `{messages}`, `{conversations}` and an answer column
//! named `completion`, `response`, `output` or `answer` load too. Null counts as absent. Columns
//! that say something and have no place are refused; all others are ignored and named, once for
//! each file. A file has one form: if any row of it is a conversation, rows of plain prompts and
//! answers become conversations too. Whatever cannot be used is refused with file, line and reason.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::{self, FOREIGN, Format};
pub use super::files::{Source, Split};
use super::form::Form;
use super::messages;
pub use super::messages::Message;
use super::messages::says;
use crate::error::{Error, Problem, Result, shown};
use crate::files::read_file;

/// Largest document of a file of its own, in bytes.
const LARGEST_TEXT: usize = 1 << 30;

/// Plain text, or a conversation that a chat template will render.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Text taken as it is.
    Plain(String),
    /// Messages, rendered by the model's chat template.
    Messages(Vec<Message>),
}

impl Text {
    /// Plain text, or a conversation.
    pub fn form(&self) -> Form {
        match self {
            Self::Plain(_) => Form::Plain,
            Self::Messages(_) => Form::Chat,
        }
    }

    /// Whether there is nothing to learn in it: blank text, or a blank last message.
    pub fn is_blank(&self) -> bool {
        match self {
            Self::Plain(text) => text.trim().is_empty(),
            Self::Messages(list) => list.last().is_none_or(Message::is_blank),
        }
    }
}

/// One row: prompt and answers are of the same kind, and the answers hold only what follows the
/// prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceRow {
    /// File and line.
    pub source: Source,
    /// What both answers answer.
    pub prompt: Text,
    /// The preferred answer.
    pub chosen: Text,
    /// The other one; absent only where [`ReadOptions::need_rejected`] is off.
    pub rejected: Option<Text>,
    /// Variables of the chat template beside the messages: `tools`, `documents` and what
    /// `chat_template_kwargs` holds.
    pub given: Map<String, Value>,
}

/// How rows are read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Our column name to the file's: `chosen` to `good`. Keys: `prompt`, `system`, `chosen`,
    /// `rejected`.
    pub map: BTreeMap<String, String>,
    /// Go on without the rows that cannot be used.
    pub skip_bad_rows: bool,
    /// Whether every row must have a rejected side (preference training) or not (SFT).
    pub need_rejected: bool,
    /// Which files of a folder are meant, if their names say.
    pub split: Split,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            map: BTreeMap::new(),
            skip_bad_rows: false,
            need_rejected: true,
            split: Split::Train,
        }
    }
}

/// What was read.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The usable rows, file after file in the order given.
    pub rows: Vec<PreferenceRow>,
    /// The rows left out, with their reasons; empty unless `skip_bad_rows` is on.
    pub skipped: Vec<Problem>,
    /// Lines for the user: each file with its rows, their form and the columns not used; files of
    /// a folder that are left out.
    pub notes: Vec<String>,
}

const MAPPED: [&str; 4] = ["prompt", "system", "chosen", "rejected"];
const PROMPTS: [&str; 5] = ["prompt", "conversations", "messages", "conversation", "question"];
const SFT_ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];
/// Variables of the chat template.
const GIVEN: [&str; 2] = ["tools", "documents"];
/// Columns that say something and have no place in a row.
const HOMELESS: [&str; 9] = [
    "history",
    "context",
    "tool_calls",
    "reasoning_content",
    "thinking",
    "image",
    "images",
    "audio",
    "videos",
];
/// Rows that cannot be used before the reading stops: the reasons take memory.
const MOST_BAD: usize = 10_000;
/// The same where such rows are skipped.
const MOST_SKIPPED: usize = 1_000_000;

/// Reads preference rows from files or folders.
///
/// # Errors
/// A path that cannot be read, a file that breaks off, and, unless `skip_bad_rows` is on,
/// every row that cannot be used, all at once.
pub fn read_preferences(paths: &[PathBuf], options: &ReadOptions) -> Result<Rows> {
    if let Some(key) = options.map.keys().find(|key| !MAPPED.contains(&key.as_str())) {
        let what = format!("is no column to map; {} can be mapped", MAPPED.join(", "));
        let place = format!("data.map.{key}");
        return Err(Error::input("the columns cannot be mapped", vec![Problem::new(place, what)]));
    }
    let mut rows = Vec::new();
    let mut bad = Vec::new();
    let mut broken = Vec::new();
    let found = files::expand(paths, false, options.split)?;
    let mut notes = found.notes;
    let most = if options.skip_bad_rows { MOST_SKIPPED } else { MOST_BAD };
    for (path, format) in found.files {
        let before = rows.len();
        let mut unused = BTreeSet::new();
        let mut each = |source: Source, record: files::JsonRow| {
            match record.and_then(|record| normalise(&record, options, &mut unused)) {
                Ok((triple, given)) => {
                    let (prompt, chosen, rejected) = triple;
                    rows.push(PreferenceRow { source, prompt, chosen, rejected, given });
                }
                Err(reason) => bad.push(Problem::new(source.to_string(), reason)),
            }
            bad.len() < most
        };
        broken.extend(files::read_records(&path, format, &mut each)?);
        let form = one_form(&mut rows, before, &mut bad);
        notes.push(file_note(&path, rows.len() - before, form, &unused));
        if bad.len() >= most {
            let summary =
                format!("{most} rows cannot be used; reading stopped at {}", path.display());
            return Err(Error::input(summary, bad));
        }
    }
    if !broken.is_empty() {
        broken.append(&mut bad);
        return Err(Error::input("the data cannot be read to its end", broken));
    }
    if !bad.is_empty() && !options.skip_bad_rows {
        let summary = format!(
            "{} of {} rows cannot be used (mend them, or go on without them: --skip-bad-rows)",
            bad.len(),
            bad.len() + rows.len()
        );
        return Err(Error::input(summary, bad));
    }
    if rows.is_empty() {
        return Err(Error::input(format!("there is no usable row in {}", names(paths)), bad));
    }
    Ok(Rows { rows, skipped: bad, notes })
}

/// Gives the rows from `start` on one form and says which: conversations, if any of them is one.
/// Transcripts, which are plain text for good, are problems then.
fn one_form(rows: &mut Vec<PreferenceRow>, start: usize, bad: &mut Vec<Problem>) -> &'static str {
    let chat = |row: &PreferenceRow| matches!(row.prompt, Text::Messages(_));
    if !rows[start..].iter().any(chat) {
        return "plain text, no chat template";
    }
    let plain = rows[start..].iter().any(|row| !chat(row));
    for row in rows.split_off(start) {
        let PreferenceRow { source, prompt, chosen, rejected, given } = row;
        let (Text::Plain(text), Text::Plain(answer)) = (&prompt, &chosen) else {
            rows.push(PreferenceRow { source, prompt, chosen, rejected, given });
            continue;
        };
        if messages::is_transcript(text) {
            let what = "is a transcript, but other rows of the file are conversations; \
                        put them in a file of their own";
            bad.push(Problem::new(source.to_string(), what));
            continue;
        }
        let turn = |role: &str, text: &str| Text::Messages(vec![Message::new(role, text)]);
        let rejected = rejected.map(|side| match side {
            Text::Plain(text) => turn("assistant", &text),
            side => side,
        });
        let (prompt, chosen) = (turn("user", text), turn("assistant", answer));
        rows.push(PreferenceRow { source, prompt, chosen, rejected, given });
    }
    if plain {
        "conversations (plain rows among them too), rendered by the chat template"
    } else {
        "conversations, rendered by the chat template"
    }
}

/// The line about a file that was read.
fn file_note(path: &Path, rows: usize, form: &str, unused: &BTreeSet<String>) -> String {
    let mut note = format!("{}: {rows} rows, {form}", path.display());
    if !unused.is_empty() {
        note += &format!("; columns not used: {}", some_of(unused.iter()));
    }
    note
}

/// Names from a file, as many and as long as a line can bear.
fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    const SHOWN: usize = 20;
    let more = names.len().saturating_sub(SHOWN);
    let mut text: Vec<String> = names.take(SHOWN).map(|name| shown(name, 60)).collect();
    if more > 0 {
        text.push(format!("{more} more"));
    }
    text.join(", ")
}

/// Reads plain documents for language modelling: `.txt` (one document per file), or rows with a
/// `text` column or with `messages` (or `conversations`) that a chat template renders.
///
/// Blank documents are passed over: corpora are full of them.
///
/// # Errors
/// A path that cannot be read; everything else that is not text, with file and line, all at once.
pub fn read_texts(paths: &[PathBuf]) -> Result<Vec<Document>> {
    read_usable_texts(paths, false, Split::Train).map(|texts| texts.documents)
}

/// A document and where it stands.
pub type Document = (Source, Text);

/// Documents with what was left out of them.
#[derive(Debug, Clone)]
pub struct Texts {
    /// Documents and where they stand.
    pub documents: Vec<Document>,
    /// Those that cannot be used, with their reasons.
    pub skipped: Vec<Problem>,
    /// Lines for the user, as [`Rows::notes`].
    pub notes: Vec<String>,
}

/// As [`read_texts`], going on without the documents that cannot be used if `skip_bad_rows` says
/// so. Of a folder whose files name splits, those of `split` are read.
///
/// # Errors
/// As [`read_texts`].
pub fn read_usable_texts(paths: &[PathBuf], skip_bad_rows: bool, split: Split) -> Result<Texts> {
    let mut texts = Vec::new();
    let mut bad = Vec::new();
    let found = files::expand(paths, true, split)?;
    let mut notes = found.notes;
    let most = if skip_bad_rows { MOST_SKIPPED } else { MOST_BAD };
    for (path, format) in found.files {
        let before = texts.len();
        if format == Format::Text {
            let bytes = read_file(&path, LARGEST_TEXT)?.unwrap_or_default();
            notes.push(format!("{}: a document", path.display()));
            let source = Source { file: path, line: 1 };
            match std::str::from_utf8(files::without_bom(&bytes)) {
                Ok(text) => texts.push((source, Text::Plain(text.to_owned()))),
                Err(e) => {
                    let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
                    let place = Source { line, ..source }.to_string();
                    bad.push(Problem::new(place, "not UTF-8; save the file as UTF-8"));
                }
            }
            continue;
        }
        let mut unused = BTreeSet::new();
        let mut each = |source: Source, record: files::JsonRow| {
            match record.and_then(|record| document(&record, &mut unused)) {
                Ok(text) => texts.push((source, text)),
                Err(reason) => bad.push(Problem::new(source.to_string(), reason)),
            }
            bad.len() < most
        };
        let broken = files::read_records(&path, format, &mut each)?;
        bad.extend(broken);
        notes.push(file_note(&path, texts.len() - before, "documents", &unused));
        if bad.len() >= most {
            let summary =
                format!("{most} documents cannot be used; reading stopped at {}", path.display());
            return Err(Error::input(summary, bad));
        }
    }
    if !bad.is_empty() && !skip_bad_rows {
        return Err(Error::input(format!("{} documents cannot be used", bad.len()), bad));
    }
    texts.retain(|(_, text)| !text.is_blank());
    if texts.is_empty() {
        return Err(Error::input(format!("there is no text in {}", names(paths)), bad));
    }
    Ok(Texts { documents: texts, skipped: bad, notes })
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn document(
    record: &Map<String, Value>,
    unused: &mut BTreeSet<String>,
) -> std::result::Result<Text, String> {
    const TEXTS: [&str; 4] = ["text", "messages", "conversations", "conversation"];
    let taken = TEXTS.into_iter().find(|name| present(record, name).is_some());
    note_unused(record, |name| Some(name) == taken, unused);
    if let Some(name) = GIVEN.into_iter().find(|name| record.get(*name).is_some_and(says)) {
        return Err(format!("column \"{name}\" has no place in a document; remove it"));
    }
    match present(record, "text") {
        Some(Value::String(text)) => return Ok(Text::Plain(text.clone())),
        Some(other) => {
            return Err(format!("column \"text\" is {}, not text", files::kind(other)));
        }
        None => {}
    }
    for name in ["messages", "conversations", "conversation"] {
        if let Some(value) = present(record, name) {
            return match side(value, name)? {
                Side::Turns(list) if list.is_empty() => Ok(Text::Messages(list)),
                Side::Turns(list) => {
                    messages::check_order(&list)?;
                    Ok(Text::Messages(list))
                }
                Side::Text(_) => Err(format!("column \"{name}\" is text, not a list of messages")),
            };
        }
    }
    Err(format!("neither column \"text\" nor \"messages\" is there; {}", has(record)))
}

/// Adds the columns that hold something and are not used.
fn note_unused(
    record: &Map<String, Value>,
    used: impl Fn(&str) -> bool,
    unused: &mut BTreeSet<String>,
) {
    for (name, _) in record.iter().filter(|(name, value)| !value.is_null() && !used(name)) {
        if unused.len() < 1_000 && !unused.contains(name) {
            unused.insert(name.clone());
        }
    }
}

type Triple = (Text, Text, Option<Text>);

/// One side of a row before both are brought to one form.
#[derive(Debug, Clone, PartialEq)]
enum Side {
    Text(String),
    Turns(Vec<Message>),
}

fn normalise(
    record: &Map<String, Value>,
    options: &ReadOptions,
    unused: &mut BTreeSet<String>,
) -> std::result::Result<(Triple, Map<String, Value>), String> {
    let columns = Columns { record, options, used: RefCell::default() };
    let mut prompt = columns.prompt()?;
    let system = columns.system()?;
    let history = columns.history()?;
    let given = columns.given()?;
    let rejected = columns.rejected()?;
    let chosen = match columns.chosen()? {
        Some(side) => side,
        // A conversation alone: its last message is the answer.
        None => match prompt.take() {
            Some(Side::Turns(list)) if !options.need_rejected => Side::Turns(list),
            _ => return Err(columns.missing("chosen")),
        },
    };
    columns.all_said()?;
    let triple = match (prompt, chosen, rejected) {
        (None, Side::Text(chosen), rejected) => split_texts(&columns, chosen, rejected)?,
        (Some(Side::Text(prompt)), Side::Text(chosen), rejected) => {
            let rejected = rejected.map(|side| text_only(side, "rejected")).transpose()?;
            if system.is_none() && history.is_empty() && given.is_empty() {
                (Text::Plain(prompt), Text::Plain(chosen), rejected.map(Text::Plain))
            } else {
                let answer = |text| Text::Messages(vec![Message::new("assistant", text)]);
                let turns = history.into_iter().chain([Message::new("user", prompt)]).collect();
                (with_system(turns, &system), answer(chosen), rejected.map(answer))
            }
        }
        (prompt, chosen, rejected) => {
            if !history.is_empty() {
                return Err("column \"history\" stands beside messages; put its turns there".into());
            }
            let chosen = turns(chosen);
            let rejected =
                rejected.map(|side| turns_only(side, "rejected", &prompt)).transpose()?;
            split_turns(prompt, chosen, rejected, &system)?
        }
    };
    if !given.is_empty() && matches!(triple.0, Text::Plain(_)) {
        let names: Vec<&str> = given.keys().map(String::as_str).collect();
        return Err(format!(
            "column \"{}\" is for a chat template, and the row is plain text",
            names.join("\", \"")
        ));
    }
    judge(&triple)?;
    let used = columns.used.borrow();
    note_unused(record, |name| used.contains(name), unused);
    Ok((triple, given))
}

/// What is wrong with a row whose form is right.
fn judge((prompt, chosen, rejected): &Triple) -> std::result::Result<(), String> {
    for (name, answer) in [("chosen", Some(chosen)), ("rejected", rejected.as_ref())] {
        let Some(answer) = answer else { continue };
        if let (Text::Messages(prompt), Text::Messages(answer)) = (prompt, answer) {
            let all: Vec<Message> = prompt.iter().chain(answer).cloned().collect();
            messages::check_order(&all).map_err(|e| format!("{name}: {e}"))?;
            messages::check_answer(prompt, answer).map_err(|e| format!("{name}: {e}"))?;
        }
        if answer.is_blank() {
            return Err(format!("{name} is empty: there is nothing to learn from it"));
        }
    }
    if rejected.as_ref() == Some(chosen) {
        return Err("chosen and rejected are identical: they express no preference".into());
    }
    Ok(())
}

fn split_texts(
    columns: &Columns<'_>,
    chosen: String,
    rejected: Option<Side>,
) -> std::result::Result<Triple, String> {
    let rejected = rejected.map(|side| text_only(side, "rejected")).transpose()?;
    let (prompt, chosen, rejected) = messages::split_transcripts(&chosen, rejected.as_deref())
        .map_err(|e| if e.is_empty() { columns.missing("prompt") } else { e })?;
    Ok((Text::Plain(prompt), Text::Plain(chosen), rejected.map(Text::Plain)))
}

fn split_turns(
    prompt: Option<Side>,
    mut chosen: Vec<Message>,
    mut rejected: Option<Vec<Message>>,
    system: &Option<String>,
) -> std::result::Result<Triple, String> {
    let full = |list: &[Message]| list.first().is_some_and(|m| m.role != "assistant");
    let given = match prompt {
        // The lists hold the conversation already; they say more than a bare string.
        Some(Side::Text(_)) | None if full(&chosen) => None,
        Some(Side::Text(text)) => Some(vec![Message::new("user", text)]),
        // A `messages` column beside full lists is the chosen conversation once more.
        Some(Side::Turns(list)) if list == chosen => None,
        Some(Side::Turns(list)) => Some(list),
        None => None,
    };
    let prompt = match given {
        Some(prompt) => {
            // Some files repeat the prompt's messages in front of each answer.
            for (name, list) in [("chosen", Some(&mut chosen)), ("rejected", rejected.as_mut())] {
                let Some(list) = list.filter(|list| list.len() > 1 && full(list)) else {
                    continue;
                };
                if !(list.len() > prompt.len() && list.starts_with(&prompt)) {
                    return Err(format!(
                        "the prompts differ: {name} does not begin with the prompt's messages"
                    ));
                }
                list.drain(..prompt.len());
            }
            prompt
        }
        None => messages::split_common(&mut chosen, rejected.as_mut())?,
    };
    let answers = (Text::Messages(chosen), rejected.map(Text::Messages));
    Ok((with_system(prompt, system), answers.0, answers.1))
}

fn with_system(mut prompt: Vec<Message>, system: &Option<String>) -> Text {
    if let Some(system) = system.as_ref().filter(|s| !s.trim().is_empty())
        && prompt.first().is_none_or(|m| m.role != "system")
    {
        prompt.insert(0, Message::new("system", system.clone()));
    }
    Text::Messages(prompt)
}

fn turns(side: Side) -> Vec<Message> {
    match side {
        Side::Text(text) => vec![Message::new("assistant", text)],
        Side::Turns(list) => list,
    }
}

fn turns_only(
    side: Side,
    name: &str,
    prompt: &Option<Side>,
) -> std::result::Result<Vec<Message>, String> {
    match (&side, prompt) {
        (Side::Text(_), None) => Err(format!("{name} is text while chosen is a list of messages")),
        _ => Ok(turns(side)),
    }
}

fn text_only(side: Side, name: &str) -> std::result::Result<String, String> {
    match side {
        Side::Text(text) => Ok(text),
        Side::Turns(_) => Err(format!("{name} is a list of messages while chosen is text")),
    }
}

/// A column as text or messages; `name` is for the reason.
fn side(value: &Value, name: &str) -> std::result::Result<Side, String> {
    match value {
        Value::String(text) if text != FOREIGN => Ok(Side::Text(text.clone())),
        Value::Array(list) => messages::from_values(list)
            .map(Side::Turns)
            .map_err(|e| format!("column \"{name}\": {e}")),
        Value::Object(_) => messages::from_values(std::slice::from_ref(value))
            .map(Side::Turns)
            .map_err(|e| format!("column \"{name}\": {e}")),
        other => Err(format!(
            "column \"{name}\" is {}, not text or a list of messages",
            files::kind(other)
        )),
    }
}

fn present<'a>(record: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    record.get(name).filter(|value| !value.is_null())
}

fn has(record: &Map<String, Value>) -> String {
    let names: Vec<&String> =
        record.iter().filter(|(_, v)| !v.is_null()).map(|(name, _)| name).collect();
    if names.is_empty() {
        "the row has no columns".into()
    } else {
        format!("the row has {}", some_of(names.into_iter()))
    }
}

/// The columns of a row under our names.
struct Columns<'a> {
    record: &'a Map<String, Value>,
    options: &'a ReadOptions,
    /// Those that went into the row.
    used: RefCell<BTreeSet<String>>,
}

impl Columns<'_> {
    /// The value of one of our columns: the mapped name alone if there is one, else the first of
    /// `names` that is there.
    fn find(&self, ours: &str, names: &[&str]) -> std::result::Result<Option<Side>, String> {
        if let Some(theirs) = self.options.map.get(ours) {
            return self.take(theirs).map(|value| side(value, theirs)).transpose();
        }
        let found = names.iter().find_map(|name| Some((name, self.take(name)?)));
        found.map(|(name, value)| side(value, name)).transpose()
    }

    /// A column that holds something; it counts as used.
    fn take(&self, name: &str) -> Option<&Value> {
        let value = present(self.record, name)?;
        self.used.borrow_mut().insert(name.to_owned());
        Some(value)
    }

    fn prompt(&self) -> std::result::Result<Option<Side>, String> {
        if let Some(found) = self.find("prompt", &PROMPTS)? {
            // A conversation that stands there in full says more than its first question
            // (ultrachat's `prompt` beside `messages`).
            let whole = PROMPTS[1..]
                .iter()
                .find(|name| present(self.record, name).is_some_and(|value| value.is_array()));
            let alone = !self.options.need_rejected
                && !self.options.map.contains_key("prompt")
                && !self.has_answer();
            if let (Side::Text(_), Some(whole), true) = (&found, whole, alone) {
                self.used.borrow_mut().clear();
                return self.find("conversation", &[whole]);
            }
            return Ok(Some(found));
        }
        if self.options.map.contains_key("prompt") {
            return Err(self.missing("prompt"));
        }
        // Alpaca's pair: the input, where there is one, is what the instruction is about.
        let instruction = self.find("prompt", &["instruction"])?;
        let inputs: &[&str] =
            if instruction.is_some() { &["input", "context"] } else { &["input"] };
        let mut input = None;
        for name in inputs {
            match self.find("prompt", &[name])? {
                Some(Side::Text(text)) if text.trim().is_empty() => {}
                None => {}
                found if input.is_none() => input = found,
                _ => return Err("columns \"input\" and \"context\" both hold something".into()),
            }
        }
        Ok(match (instruction, input) {
            (Some(Side::Text(a)), Some(Side::Text(b))) => Some(Side::Text(format!("{a}\n{b}"))),
            (Some(_), Some(_)) => {
                return Err("an instruction and its input are not both text".into());
            }
            (Some(instruction), _) => Some(instruction),
            (None, input) => input,
        })
    }

    fn system(&self) -> std::result::Result<Option<String>, String> {
        match self.find("system", &["system"])? {
            None => Ok(None),
            Some(Side::Text(text)) => Ok(Some(text)),
            Some(Side::Turns(_)) => Err("the system column is a list, not text".into()),
        }
    }

    /// Earlier turns: pairs of a question and its answer, or messages.
    fn history(&self) -> std::result::Result<Vec<Message>, String> {
        let Some(value) = self.take("history").filter(|value| says(value)) else {
            return Ok(Vec::new());
        };
        let pair = |value: &Value| match value.as_array().map(Vec::as_slice) {
            Some([Value::String(asked), Value::String(said)]) => {
                Some([Message::new("user", asked), Message::new("assistant", said)])
            }
            _ => None,
        };
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        match list.iter().map(pair).collect::<Option<Vec<_>>>() {
            Some(pairs) if !pairs.is_empty() => Ok(pairs.into_iter().flatten().collect()),
            _ => match side(value, "history")? {
                Side::Turns(list) => Ok(list),
                Side::Text(_) => Err("column \"history\" is text, not a list of turns".into()),
            },
        }
    }

    /// Variables for the chat template. Tools may be written as JSON text, as files do that would
    /// otherwise have a structure of a thousand fields.
    fn given(&self) -> std::result::Result<Map<String, Value>, String> {
        let mut given = Map::new();
        for name in GIVEN {
            let Some(value) = self.take(name).filter(|value| says(value)) else { continue };
            let value = match value {
                Value::String(text) => serde_json::from_str(text)
                    .map_err(|e| format!("column \"{name}\" is text that is no JSON: {e}"))?,
                value => value.clone(),
            };
            if !value.is_array() {
                return Err(format!("column \"{name}\" is {}, not a list", files::kind(&value)));
            }
            given.insert(name.to_owned(), value);
        }
        match self.take("chat_template_kwargs") {
            None => {}
            Some(Value::Object(more)) => given.extend(more.clone()),
            Some(other) => {
                let kind = files::kind(other);
                return Err(format!("column \"chat_template_kwargs\" is {kind}, not an object"));
            }
        }
        given.retain(|_, value| !value.is_null());
        match given.iter().find(|(_, value)| files::holds_foreign(value)) {
            Some((name, _)) => Err(format!("\"{}\" holds {FOREIGN}", shown(name, 60))),
            None => Ok(given),
        }
    }

    /// Whether the answer has a column of its own.
    fn has_answer(&self) -> bool {
        let mapped = self.options.map.get("chosen").map(String::as_str);
        let names: &[&str] = &["chosen"];
        let names = mapped.as_ref().map_or(names, std::slice::from_ref);
        names.iter().chain(&SFT_ANSWERS).any(|name| present(self.record, name).is_some())
    }

    /// Refuses a row with a column that says something and went nowhere.
    fn all_said(&self) -> std::result::Result<(), String> {
        let used = self.used.borrow();
        let lost = HOMELESS
            .iter()
            .find(|name| !used.contains(**name) && self.record.get(**name).is_some_and(says));
        match lost {
            None => Ok(()),
            Some(name) => Err(format!(
                "column \"{name}\" says something that would not reach the model; put it into the \
                 prompt or the messages, or remove it"
            )),
        }
    }

    fn chosen(&self) -> std::result::Result<Option<Side>, String> {
        let found = self.find("chosen", &["chosen"])?;
        if found.is_none()
            && !self.options.need_rejected
            && !self.options.map.contains_key("chosen")
        {
            return self.find("chosen", &SFT_ANSWERS);
        }
        Ok(found)
    }

    fn rejected(&self) -> std::result::Result<Option<Side>, String> {
        let found = self.find("rejected", &["rejected"])?;
        if found.is_none() && self.options.need_rejected {
            return Err(self.missing("rejected"));
        }
        Ok(found)
    }

    fn missing(&self, ours: &str) -> String {
        let has = has(self.record);
        match self.options.map.get(ours) {
            Some(theirs) => format!("column \"{theirs}\" (mapped to {ours}) is missing; {has}"),
            None => format!(
                "column \"{ours}\" is missing; {has} (set data.map.{ours} to its name if it has another name)"
            ),
        }
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
