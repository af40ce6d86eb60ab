//! Messages of a conversation: reading them from JSON, their order, and where two conversations
//! part.

use serde_json::{Map, Value};

use super::files::{FOREIGN, holds_foreign, kind};

/// One turn of a conversation, as the chat template sees it: who speaks, and what is said.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool` (which may be called `function`,
    /// `observation` or `ipython`).
    pub role: String,
    /// The text of the turn; None for a turn that only calls tools.
    pub content: Option<String>,
    /// Whatever else the message holds (`tool_calls`, `reasoning_content`, `name`, …), handed on
    /// to the template as it is.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// What a turn says beside its content. A template that does not name such a field would drop it.
pub(super) const SAYING: [&str; 8] = [
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "images",
    "audio",
    "videos",
];

impl Message {
    /// A message of `role` with nothing but text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), fields: Map::new() }
    }

    /// The text of the turn, empty where there is none.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    /// Whether it holds the answer of a tool.
    pub fn is_tool(&self) -> bool {
        !matches!(self.role.as_str(), "system" | "developer" | "user" | "assistant")
    }

    /// The fields that say something beside the content, by name.
    pub(super) fn saying(&self) -> impl Iterator<Item = &'static str> {
        SAYING.into_iter().filter(|name| self.fields.get(*name).is_some_and(says))
    }

    /// Whether there is nothing in it to learn.
    pub(super) fn is_blank(&self) -> bool {
        self.text().trim().is_empty() && self.saying().next().is_none()
    }
}

/// Whether a value holds anything.
pub(super) fn says(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Reads `{role, content}` or sharegpt's `{from, value}` messages with whatever else they hold.
/// Content may be a list of parts as long as all of them are text.
pub(super) fn from_values(values: &[Value]) -> Result<Vec<Message>, String> {
    values
        .iter()
        .enumerate()
        .map(|(i, value)| message(value).map_err(|e| format!("message {}: {e}", i + 1)))
        .collect()
}

fn message(value: &Value) -> Result<Message, String> {
    let Value::Object(map) = value else {
        return Err(format!("{} is no message; it needs \"role\" and \"content\"", kind(value)));
    };
    let first =
        |names: [&'static str; 2]| names.into_iter().find_map(|n| Some((n, present(map, n)?)));
    let role = match first(["role", "from"]) {
        Some((name, Value::String(role))) => known_role(role, name)?,
        Some((_, other)) => return Err(format!("its role is {}, not text", kind(other))),
        None => return Err("it has no \"role\" (or \"from\")".into()),
    };
    let mut message = Message { role, content: None, fields: Map::new() };
    let content = first(["content", "value"]);
    let role_name = first(["role", "from"]).map(|(name, _)| name);
    for (name, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        if Some(name.as_str()) == role_name || content.is_some_and(|(n, _)| n == name) {
            continue;
        }
        if holds_foreign(value) {
            return Err(format!("its {name} holds {FOREIGN}"));
        }
        // Masks of single messages: the odds ratio is taken over whole answers.
        if matches!(name.as_str(), "weight" | "train")
            && value.as_f64() != Some(1.0)
            && *value != true
        {
            return Err(format!(
                "it has \"{name}\": {value}; single messages cannot be left out of the loss, \
                 remove the field"
            ));
        }
        message.fields.insert(name.clone(), value.clone());
    }
    message.content = match content.map(|(_, value)| value) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => Some(
            parts
                .iter()
                .map(|part| part.get("text").and_then(Value::as_str))
                .collect::<Option<String>>()
                .ok_or("its content has parts that are not text")?,
        ),
        Some(other) => return Err(format!("its content is {}, not text", kind(other))),
        None if message.saying().next().is_some() => None,
        None => return Err("it has no \"content\" (or \"value\")".into()),
    };
    Ok(message)
}

fn present<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.get(name).filter(|value| !value.is_null())
}

/// The role under the name that templates know. What a tool says has several, and a file that
/// names roles as transformers does means the one it writes.
fn known_role(role: &str, column: &str) -> Result<String, String> {
    let lower = role.to_ascii_lowercase();
    Ok(match lower.as_str() {
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "model" | "bot" => "assistant",
        "system" => "system",
        "developer" => "developer",
        "tool" | "function" | "observation" | "ipython" if column == "role" => &lower,
        "tool" | "function" | "observation" | "ipython" => "tool",
        _ => {
            return Err(format!("role \"{role}\" is unknown (system, user, assistant, tool)"));
        }
    }
    .to_owned())
}

/// Whether roles come in order: system messages first, then user and assistant in turn; an
/// assistant's call may be followed by tool messages and the assistant again.
pub(super) fn check_order(list: &[Message]) -> Result<(), String> {
    let mut before = "system";
    for (i, message) in list.iter().enumerate() {
        let role = if message.is_tool() { "tool" } else { message.role.as_str() };
        let follows = match role {
            "system" | "developer" => matches!(before, "system" | "developer"),
            "user" => matches!(before, "system" | "developer" | "assistant"),
            "assistant" => matches!(before, "user" | "tool"),
            _ => matches!(before, "assistant" | "tool"),
        };
        if !follows {
            let place = if i == 0 { "at the start".into() } else { format!("after {before}") };
            return Err(format!("roles are out of order: message {} is {role} {place}", i + 1));
        }
        before = role;
    }
    Ok(())
}

/// Whether `answer` is an answer to `prompt`: begun and ended by the assistant.
pub(super) fn check_answer(prompt: &[Message], answer: &[Message]) -> Result<(), String> {
    let last = answer.last().or(prompt.last()).map_or("nothing", |m| m.role.as_str());
    if last != "assistant" {
        return Err(format!("the last message is {last}'s, it must be the assistant's"));
    }
    if prompt.is_empty() {
        return Err("there is no message in front of the answer".into());
    }
    match answer.first() {
        Some(first) if first.role == "assistant" => Ok(()),
        Some(first) => Err(format!("the answer begins with a message of {}", first.role)),
        None => Err("there is no answer".into()),
    }
}

/// Takes the common prefix off two conversations and returns it: the prompt. Each keeps at least
/// its last message. Conversations that part before the last answer are refused: what follows is
/// not one answer to one prompt. A conversation alone keeps its last message.
pub(super) fn split_common(
    chosen: &mut Vec<Message>,
    rejected: Option<&mut Vec<Message>>,
) -> Result<Vec<Message>, String> {
    let Some(rejected) = rejected else {
        let answer = chosen.split_off(chosen.len().saturating_sub(1));
        return Ok(std::mem::replace(chosen, answer));
    };
    for (name, list) in [("chosen", &*chosen), ("rejected", &*rejected)] {
        let last = list.last().map_or("nothing", |m| m.role.as_str());
        if last != "assistant" {
            return Err(format!(
                "{name}: the last message is {last}'s, it must be the assistant's"
            ));
        }
    }
    let most = chosen.len().min(rejected.len()) - 1;
    let common = chosen.iter().zip(&*rejected).take(most).take_while(|(a, b)| a == b).count();
    let asks =
        |list: &[Message]| list[common..].iter().any(|m| m.role != "assistant" && !m.is_tool());
    if asks(chosen) || asks(rejected) {
        return Err(format!(
            "the prompts differ: the two conversations part at message {}, before the last answer",
            common + 1
        ));
    }
    rejected.drain(..common);
    Ok(chosen.drain(..common).collect())
}

const ASSISTANT: &str = "\n\nAssistant:";
const HUMAN: &str = "\n\nHuman:";

/// Whether a prompt is a transcript up to where the assistant answers.
pub(super) fn is_transcript(prompt: &str) -> bool {
    prompt.ends_with(ASSISTANT)
}

/// Splits `\n\nHuman: … \n\nAssistant: …` transcripts behind the last `\n\nAssistant:` that both
/// have in common. An empty reason means that the text is no transcript at all.
pub(super) fn split_transcripts(
    chosen: &str,
    rejected: Option<&str>,
) -> Result<(String, String, Option<String>), String> {
    if !chosen.contains(ASSISTANT) {
        return Err(String::new());
    }
    // The marker is ASCII: found within the common bytes it ends on a character boundary of both.
    let common = match rejected {
        Some(rejected) => chosen.bytes().zip(rejected.bytes()).take_while(|(a, b)| a == b).count(),
        None => chosen.len(),
    };
    let within = &chosen.as_bytes()[..common];
    let found = within.windows(ASSISTANT.len()).rposition(|window| window == ASSISTANT.as_bytes());
    let cut = match found {
        Some(start) => start + ASSISTANT.len(),
        None => {
            return Err("the prompts differ: the transcripts part before an answer begins".into());
        }
    };
    for (name, text) in [("chosen", Some(chosen)), ("rejected", rejected)] {
        if text.is_some_and(|text| text[cut..].contains(HUMAN) || text[cut..].contains(ASSISTANT)) {
            return Err(format!(
                "the prompts differ: {name} has further turns after the two transcripts part"
            ));
        }
    }
    let rest = |text: &str| text[cut..].to_owned();
    Ok((chosen[..cut].to_owned(), rest(chosen), rejected.map(rest)))
}
