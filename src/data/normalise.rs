//! One record of a file brought to the form of a row: which columns are meant, how sides of different
//! kinds come together, and what is refused.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::files::{self, FOREIGN};
use super::messages::{self, Message, says};
use super::rows::{Needs, ReadOptions, Text};
use crate::error::shown;

const PROMPTS: [&str; 5] = ["prompt", "conversations", "messages", "conversation", "question"];
const SFT_ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];
/// Variables of the chat template.
pub(super) const GIVEN: [&str; 2] = ["tools", "documents"];
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
const BESIDE_MESSAGES: &str = "column \"history\" stands beside messages; put its turns there";
/// Names from a file, as many and as long as a line can bear.
pub(super) fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    const SHOWN: usize = 20;
    let more = names.len().saturating_sub(SHOWN);
    let mut text: Vec<String> = names.take(SHOWN).map(|name| shown(name, 60)).collect();
    if more > 0 {
        text.push(format!("{more} more"));
    }
    text.join(", ")
}

/// Adds the columns that hold something and are not used.
pub(super) fn note_unused(
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

/// Prompt, chosen, rejected.
type Triple = (Text, Text, Option<Text>);

/// A record in the form of a row.
pub(super) struct Normal {
    /// Prompt, chosen, rejected.
    pub triple: Triple,
    /// What its label says, where one was asked for.
    pub desirable: Option<bool>,
    /// Variables of the chat template.
    pub given: Map<String, Value>,
}

/// One side of a row before both are brought to one form.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Side {
    Text(String),
    Turns(Vec<Message>),
}

pub(super) fn normalise(
    record: &Map<String, Value>,
    options: &ReadOptions,
    unused: &mut BTreeSet<String>,
) -> std::result::Result<Normal, String> {
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
            Some(Side::Turns(list)) if options.needs != Needs::Pair => Side::Turns(list),
            _ => return Err(columns.missing_answer()),
        },
    };
    let desirable = columns.desirable(rejected.is_some())?;
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
                return Err(BESIDE_MESSAGES.into());
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
    Ok(Normal { triple, desirable, given })
}

/// What a record asks, and the variables of the chat template. The answer at the end of a conversation is
/// not part of it.
pub(super) fn asked(
    record: &Map<String, Value>,
    options: &ReadOptions,
) -> std::result::Result<(Text, Map<String, Value>), String> {
    let columns = Columns { record, options, used: RefCell::default() };
    let prompt = columns.prompt()?;
    let prompt = prompt.ok_or_else(|| format!("column \"prompt\" is missing; {}", has(record)))?;
    let system = columns.system()?;
    let history = columns.history()?;
    let given = columns.given()?;
    columns.all_said()?;
    let mut turns = match prompt {
        Side::Text(text) if system.is_none() && history.is_empty() && given.is_empty() => {
            return Ok((Text::Plain(text), given));
        }
        Side::Text(text) => history.into_iter().chain([Message::new("user", text)]).collect(),
        Side::Turns(_) if !history.is_empty() => return Err(BESIDE_MESSAGES.into()),
        Side::Turns(list) => list,
    };
    let end = turns.iter().rposition(|m| m.role == "user" || m.is_tool()).map_or(0, |at| at + 1);
    turns.truncate(end);
    if turns.is_empty() {
        return Err("no message in it is the user's: there is nothing to answer".into());
    }
    messages::check_order(&turns)?;
    Ok((with_system(turns, &system), given))
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
pub(super) fn side(value: &Value, name: &str) -> std::result::Result<Side, String> {
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

pub(super) fn present<'a>(record: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    record.get(name).filter(|value| !value.is_null())
}

pub(super) fn has(record: &Map<String, Value>) -> String {
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
            let alone = self.options.needs != Needs::Pair
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
            && self.options.needs != Needs::Pair
            && !self.options.map.contains_key("chosen")
        {
            return self.find("chosen", &SFT_ANSWERS);
        }
        Ok(found)
    }

    fn rejected(&self) -> std::result::Result<Option<Side>, String> {
        let found = self.find("rejected", &["rejected"])?;
        if found.is_none() && self.options.needs == Needs::Pair {
            return Err(self.missing("rejected"));
        }
        Ok(found)
    }

    /// What the label says; a pair has none.
    fn desirable(&self, paired: bool) -> std::result::Result<Option<bool>, String> {
        let needs = self.options.needs;
        if paired || !matches!(needs, Needs::Label | Needs::Judgement) {
            return Ok(None);
        }
        let name = self.options.map.get("label").map_or("label", String::as_str);
        let value = present(self.record, name);
        match value.map(desirable) {
            Some(Some(desirable)) => {
                self.take(name);
                Ok(Some(desirable))
            }
            // Of rows that need none it may say anything.
            _ if needs == Needs::Judgement => Ok(None),
            None => Err(self.missing("label")),
            Some(None) => Err(format!(
                "column \"{name}\" is {}, not true or false (or 1 and 0, \"yes\" and \"no\", \"desirable\" and \"undesirable\")",
                value.map_or_else(String::new, |value| shown(&value.to_string(), 60))
            )),
        }
    }

    fn missing_answer(&self) -> String {
        match self.options.needs {
            Needs::Label if !self.options.map.contains_key("chosen") => format!(
                "column \"completion\" is missing, and there is no pair of \"chosen\" and \"rejected\"; {} (set data.map.chosen to the answer's name if it has another name)",
                has(self.record)
            ),
            _ => self.missing("chosen"),
        }
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

/// A label's meaning, by the spellings that files have.
fn desirable(label: &Value) -> Option<bool> {
    match label {
        Value::Bool(label) => Some(*label),
        Value::Number(number) => match number.as_f64() {
            Some(1.0) => Some(true),
            Some(0.0 | -1.0) => Some(false),
            _ => None,
        },
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "desirable" | "chosen" | "good" => Some(true),
            "false" | "0" | "no" | "undesirable" | "rejected" | "bad" => Some(false),
            _ => None,
        },
        _ => None,
    }
}
