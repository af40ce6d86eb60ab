//! Messages of a conversation: reading them from JSON, their order, and where two conversations
//! part.

use serde_json::Value;

use super::files::kind;

/// One turn of a conversation: who speaks, and what is said.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Reads `{role, content}` or sharegpt's `{from, value}` messages. Content may be a list of parts
/// as long as all of them are text.
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
    let first = |names: [&str; 2]| names.iter().find_map(|n| map.get(*n).filter(|v| !v.is_null()));
    let role = match first(["role", "from"]) {
        Some(Value::String(role)) => known_role(role)?,
        Some(other) => return Err(format!("its role is {}, not text", kind(other))),
        None => return Err("it has no \"role\" (or \"from\")".into()),
    };
    match first(["content", "value"]) {
        Some(Value::String(text)) => Ok(Message::new(role, text.clone())),
        Some(Value::Array(parts)) => {
            let text: Option<String> =
                parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect();
            text.map(|text| Message::new(role, text))
                .ok_or_else(|| "its content has parts that are not text".into())
        }
        Some(other) => Err(format!("its content is {}, not text", kind(other))),
        None => Err("it has no \"content\" (or \"value\")".into()),
    }
}

fn known_role(role: &str) -> Result<&'static str, String> {
    Ok(match role.to_ascii_lowercase().as_str() {
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "model" | "bot" => "assistant",
        "system" => "system",
        "developer" => "developer",
        "tool" | "function" | "observation" | "ipython" => "tool",
        _ => {
            return Err(format!("role \"{role}\" is unknown (system, user, assistant, tool)"));
        }
    })
}

/// Whether roles come in order: system messages first, then user and assistant in turn; an
/// assistant's call may be followed by tool messages and the assistant again.
pub(super) fn check_order(list: &[Message]) -> Result<(), String> {
    let mut before = "system";
    for (i, message) in list.iter().enumerate() {
        let role = message.role.as_str();
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
        |list: &[Message]| list[common..].iter().any(|m| m.role != "assistant" && m.role != "tool");
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
