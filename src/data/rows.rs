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
//!
//! Without need of a rejected side (SFT) `{messages}`, `{conversations}` and an answer column
//! named `completion`, `response`, `output` or `answer` load too. Other columns are ignored; null
//! counts as absent. Whatever cannot be used is refused with file, line and reason.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

pub use super::files::Source;
use super::files::{self, Format};
use super::messages;
pub use super::messages::Message;
use crate::error::{Error, Problem, Result};

/// Plain text, or a conversation that a chat template will render.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Text taken as it is.
    Plain(String),
    /// Messages, rendered by the model's chat template.
    Messages(Vec<Message>),
}

impl Text {
    /// Whether there is nothing to learn in it: blank text, or a blank last message.
    pub fn is_blank(&self) -> bool {
        match self {
            Self::Plain(text) => text.trim().is_empty(),
            Self::Messages(list) => list.last().is_none_or(|m| m.content.trim().is_empty()),
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
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { map: BTreeMap::new(), skip_bad_rows: false, need_rejected: true }
    }
}

/// What was read.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The usable rows, file after file in the order given.
    pub rows: Vec<PreferenceRow>,
    /// The rows left out, with their reasons; empty unless `skip_bad_rows` is on.
    pub skipped: Vec<Problem>,
}

const MAPPED: [&str; 4] = ["prompt", "system", "chosen", "rejected"];
const PROMPTS: [&str; 5] = ["prompt", "conversations", "messages", "conversation", "question"];
const SFT_ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];

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
    for (path, format) in files::expand(paths, false)? {
        let mut each = |source: Source, record: files::JsonRow| {
            let read = record.and_then(|record| normalise(&record, options));
            match read {
                Ok((prompt, chosen, rejected)) => {
                    rows.push(PreferenceRow { source, prompt, chosen, rejected });
                }
                Err(reason) => bad.push(Problem::new(source.to_string(), reason)),
            }
        };
        broken.extend(files::read_records(&path, format, &mut each)?);
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
    Ok(Rows { rows, skipped: bad })
}

/// Reads plain documents for language modelling: `.txt` (one document per file), or rows with a
/// `text` column or with `messages` (or `conversations`) that a chat template renders.
///
/// Blank documents are passed over: corpora are full of them.
///
/// # Errors
/// A path that cannot be read; everything else that is not text, with file and line, all at once.
pub fn read_texts(paths: &[PathBuf]) -> Result<Vec<Document>> {
    read_usable_texts(paths, false).map(|(texts, _)| texts)
}

/// A document and where it stands.
pub type Document = (Source, Text);

/// As [`read_texts`], going on without the documents that cannot be used if `skip_bad_rows` says
/// so: these come second, with their reasons.
///
/// # Errors
/// As [`read_texts`].
pub fn read_usable_texts(
    paths: &[PathBuf],
    skip_bad_rows: bool,
) -> Result<(Vec<Document>, Vec<Problem>)> {
    let mut texts = Vec::new();
    let mut bad = Vec::new();
    for (path, format) in files::expand(paths, true)? {
        if format == Format::Text {
            let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
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
        let mut each = |source: Source, record: files::JsonRow| match record
            .and_then(|record| document(&record))
        {
            Ok(text) => texts.push((source, text)),
            Err(reason) => bad.push(Problem::new(source.to_string(), reason)),
        };
        let broken = files::read_records(&path, format, &mut each)?;
        bad.extend(broken);
    }
    if !bad.is_empty() && !skip_bad_rows {
        return Err(Error::input(format!("{} documents cannot be used", bad.len()), bad));
    }
    texts.retain(|(_, text)| !text.is_blank());
    if texts.is_empty() {
        return Err(Error::input(format!("there is no text in {}", names(paths)), bad));
    }
    Ok((texts, bad))
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn document(record: &Map<String, Value>) -> std::result::Result<Text, String> {
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
) -> std::result::Result<Triple, String> {
    let columns = Columns { record, options };
    let mut prompt = columns.prompt()?;
    let system = columns.system()?;
    let rejected = columns.rejected()?;
    let chosen = match columns.chosen()? {
        Some(side) => side,
        // A conversation alone: its last message is the answer.
        None => match prompt.take() {
            Some(Side::Turns(list)) if !options.need_rejected => Side::Turns(list),
            _ => return Err(columns.missing("chosen")),
        },
    };
    let triple = match (prompt, chosen, rejected) {
        (None, Side::Text(chosen), rejected) => split_texts(&columns, chosen, rejected)?,
        (Some(Side::Text(prompt)), Side::Text(chosen), rejected) => {
            let rejected = rejected.map(|side| text_only(side, "rejected")).transpose()?;
            match &system {
                None => (Text::Plain(prompt), Text::Plain(chosen), rejected.map(Text::Plain)),
                Some(_) => {
                    let answer = |text| Text::Messages(vec![Message::new("assistant", text)]);
                    let prompt = vec![Message::new("user", prompt)];
                    (with_system(prompt, &system), answer(chosen), rejected.map(answer))
                }
            }
        }
        (prompt, chosen, rejected) => {
            let chosen = turns(chosen);
            let rejected =
                rejected.map(|side| turns_only(side, "rejected", &prompt)).transpose()?;
            split_turns(prompt, chosen, rejected, &system)?
        }
    };
    judge(&triple)?;
    Ok(triple)
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
        Value::String(text) => Ok(Side::Text(text.clone())),
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
    let names: Vec<&str> =
        record.iter().filter(|(_, v)| !v.is_null()).map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        "the row has no columns".into()
    } else {
        format!("the row has {}", names.join(", "))
    }
}

/// The columns of a row under our names.
struct Columns<'a> {
    record: &'a Map<String, Value>,
    options: &'a ReadOptions,
}

impl Columns<'_> {
    /// The value of one of our columns: the mapped name alone if there is one, else the first of
    /// `names` that is there.
    fn find(&self, ours: &str, names: &[&str]) -> std::result::Result<Option<Side>, String> {
        if let Some(theirs) = self.options.map.get(ours) {
            return present(self.record, theirs).map(|value| side(value, theirs)).transpose();
        }
        let found = names.iter().find_map(|name| Some((name, present(self.record, name)?)));
        found.map(|(name, value)| side(value, name)).transpose()
    }

    fn prompt(&self) -> std::result::Result<Option<Side>, String> {
        if let Some(found) = self.find("prompt", &PROMPTS)? {
            return Ok(Some(found));
        }
        if self.options.map.contains_key("prompt") {
            return Err(self.missing("prompt"));
        }
        // Alpaca's pair: the input, where there is one, is what the instruction is about.
        let instruction = self.find("prompt", &["instruction"])?;
        let input = self.find("prompt", &["input"])?;
        Ok(match (instruction, input) {
            (Some(Side::Text(a)), Some(Side::Text(b))) if !b.trim().is_empty() => {
                Some(Side::Text(format!("{a}\n{b}")))
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
