//! A model's own chat template (Jinja), rendered the way transformers renders it.
//!
//! Templates come with models, so they are untrusted input: they run with a budget of steps, see
//! nothing but the conversation and the special tokens, and what goes wrong in them is an error
//! with the template's own sentence.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};

use super::messages::Message;
use crate::error::{Error, Result};

/// Steps a template may take for one conversation; a thousand turns take a small part of it.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat_template";

/// A compiled chat template with the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: BTreeMap<String, String>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("special", &self.special).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template. `special` holds what it may call `bos_token`, `eos_token`, …; a token
    /// the tokenizer does not have is left out and renders as nothing.
    ///
    /// # Errors
    /// The source is no template; the sentence names the line.
    pub fn new(
        source: &str,
        special: BTreeMap<String, String>,
    ) -> std::result::Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| explain(&e))?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| explain(&e))?;
        Ok(Self { environment, special })
    }

    /// The template of a model folder: `chat_template.jinja`, or `chat_template` in
    /// `tokenizer_config.json` (a string, or a list of named ones of which "default" is taken).
    /// None if the model has no template.
    ///
    /// # Errors
    /// A file that cannot be read, a template that is none, a list of them without "default".
    pub fn from_folder(
        folder: &Path,
        tokenizer_config: &serde_json::Value,
        special: BTreeMap<String, String>,
    ) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        let (path, source) = match std::fs::read_to_string(&path) {
            Ok(source) => (path, source),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let path = folder.join("tokenizer_config.json");
                match in_config(tokenizer_config).map_err(|e| Error::file(&path, e))? {
                    Some(source) => (path, source),
                    None => return Ok(None),
                }
            }
            Err(e) => return Err(Error::io("read", path, e)),
        };
        Self::new(&source, special)
            .map(Some)
            .map_err(|e| Error::file(path, format!("the chat template cannot be used: {e}")))
    }

    /// Renders a conversation; with `generation_prompt` it ends where the assistant would begin.
    ///
    /// # Errors
    /// What the template refuses (`raise_exception`) or cannot do, in its own words.
    pub fn render(
        &self,
        messages: &[Message],
        generation_prompt: bool,
    ) -> std::result::Result<String, String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect();
        let mut values: BTreeMap<String, Value> =
            self.special.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        values.insert("messages".into(), Value::from(messages));
        values.insert("add_generation_prompt".into(), Value::from(generation_prompt));
        values.insert("tools".into(), Value::from(()));
        values.insert("documents".into(), Value::from(()));
        let template = self.environment.get_template(NAME).map_err(|e| explain(&e))?;
        template.render(Value::from(values)).map_err(|e| explain(&e))
    }
}

fn in_config(config: &serde_json::Value) -> std::result::Result<Option<String>, String> {
    use serde_json::Value as Json;
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(source)) => Ok(Some(source.clone())),
        Some(Json::Array(list)) => {
            let text = |entry: &Json, key: &str| entry.get(key)?.as_str().map(str::to_owned);
            list.iter()
                .find(|entry| text(entry, "name").as_deref() == Some("default"))
                .and_then(|entry| text(entry, "template"))
                .map(Some)
                .ok_or_else(|| "chat_template lists no template named \"default\"".into())
        }
        Some(_) => Err("chat_template must be text or a list of named templates".into()),
    }
}

/// The engine's sentence with the line, and what the template itself said.
fn explain(error: &minijinja::Error) -> String {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too many steps (does it loop for ever?)".to_owned(),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    match error.line() {
        Some(line) => format!("{what} (template line {line})"),
        None => what,
    }
}

/// `{% generation %}` marks the assistant's words for transformers' masks and renders nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start..start + length + 2];
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+', ' ', '\n', '\t']);
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length + 2..];
    }
    out + rest
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// `json.dumps` as transformers calls it: no ASCII escapes, nothing made safe for HTML.
fn to_json(
    value: &Value,
    indent: Option<Value>,
    args: Kwargs,
) -> std::result::Result<String, minijinja::Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => args.get::<Option<Value>>("indent")?,
    };
    let no_arguments: Kwargs = std::iter::empty::<(String, Value)>().collect();
    let safe = minijinja::filters::tojson(value, indent, no_arguments)?;
    Ok(without_html_escapes(&safe.to_string()))
}

/// Takes back the four escapes that make JSON safe inside HTML.
fn without_html_escapes(json: &str) -> String {
    const ESCAPES: [(&str, char); 4] =
        [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some((escape, plain)) = ESCAPES.iter().find(|(escape, _)| rest.starts_with(escape)) {
            out.push(*plain);
            rest = &rest[escape.len()..];
        } else {
            // A backslash and what it escapes belong together: `\\u003c` is no escape of `<`.
            let end = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out + rest
}

/// Today's date for templates that tell the model; in UTC, so that it does not depend on the
/// machine's time zone.
fn strftime_now(format: String) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(seconds, &format)
}

fn strftime(seconds: u64, format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let first_of_year =
        days - (0..month - 1).map(|m| month_length(year, m)).sum::<u64>() - (day - 1);
    let weekday = DAYS[(days % 7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('j') => out += &format!("{:03}", days - first_of_year + 1),
            Some('H') => out += &format!("{:02}", clock / 3600),
            Some('M') => out += &format!("{:02}", clock / 60 % 60),
            Some('S') => out += &format!("{:02}", clock % 60),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

fn month_length(year: u64, month: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    [31, 28 + u64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month as usize]
}

/// Year, month (1-12) and day (1-31) of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    loop {
        let length: u64 = (0..12).map(|m| month_length(year, m)).sum();
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let mut month = 0;
    while days >= month_length(year, month) {
        days -= month_length(year, month);
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(
        source: &str,
        messages: &[Message],
        prompt: bool,
    ) -> std::result::Result<String, String> {
        let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        ChatTemplate::new(source, special)?.render(messages, prompt)
    }

    fn talk() -> Vec<Message> {
        vec![Message::new("user", " 1 < 2 & \"so\" "), Message::new("assistant", "Yes")]
    }

    #[test]
    fn whitespace_is_trimmed_as_transformers_does() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n    {% if m['role'] == 'user' %}\n\
                      U:{{ m.content.strip() }}\n    {%- else %}\nA:{{ m['content'] }}\n    {% endif %}\n\
                      {% endfor %}\n{{ eos_token }}.";
        let text = render(source, &talk(), false).unwrap();
        assert_eq!(text, "<s>\nU:1 < 2 & \"so\"A:Yes\n.");
    }

    #[test]
    fn functions_and_tags_of_transformers_work() {
        let source = "{% for m in messages[1:] %}{% generation %}{{ m.content | tojson }}\
                      {% endgeneration %}{% endfor %}{{ messages[0].content|tojson }}\
                      {% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
                      {% if loop.first %}{% continue %}{% endif %}{{ ns.n }}{% endfor %}\
                      {% if add_generation_prompt and tools is none %}!{% endif %}";
        assert_eq!(render(source, &talk(), true).unwrap(), r#""Yes"" 1 < 2 & \"so\" "2!"#);
        let refusal =
            render("{{ raise_exception('only user turns') }}", &talk(), true).unwrap_err();
        assert!(refusal.contains("only user turns"), "{refusal}");
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let source =
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
        let refusal = render(source, &talk(), false).unwrap_err();
        assert!(refusal.contains("too many steps"), "{refusal}");
        assert!(render("{% for x in %}", &talk(), false).unwrap_err().contains("line 1"));
    }

    #[test]
    fn a_named_template_is_found_in_the_configuration() {
        let config = serde_json::json!({"chat_template": [
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]});
        assert_eq!(in_config(&config).unwrap().as_deref(), Some("yes"));
        assert_eq!(in_config(&serde_json::json!({"chat_template": null})).unwrap(), None);
        assert!(in_config(&serde_json::json!({"chat_template": []})).is_err());
        assert!(in_config(&serde_json::json!({"chat_template": 3})).is_err());
    }

    #[test]
    fn html_escapes_are_taken_back_and_nothing_else() {
        assert_eq!(
            without_html_escapes(r#""\u003cb\u003e \\u003c \u00e9 \"""#),
            r#""<b> \\u003c \u00e9 \"""#
        );
    }

    #[test]
    fn dates_are_right() {
        let format = "%Y-%m-%d %d %b %B %a %A %j %H:%M:%S %y %% %Q";
        assert_eq!(
            strftime(951_827_696, format),
            "2000-02-29 29 Feb February Tue Tuesday 060 12:34:56 00 % %Q"
        );
        assert!(
            strftime(0, format).starts_with("1970-01-01 01 Jan January Thu Thursday 001 00:00:00")
        );
        assert!(
            strftime(1_798_761_599, format)
                .starts_with("2026-12-31 31 Dec December Thu Thursday 365")
        );
    }
}
