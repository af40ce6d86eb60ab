//! A model's own chat template (Jinja), rendered the way transformers renders it.
//!
//! Templates come with models, so they are untrusted input: their source is looked at before it is
//! compiled, they run with a budget of steps and bytes on a stack of their own, see nothing but the
//! conversation and the special tokens, and what goes wrong in them is an error with the template's
//! own sentence.

mod python;
mod source;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::Map;

use super::messages::Message;
use crate::error::{Error, Result};
use crate::files::read_file;
use crate::guard::on_own_stack;

/// Steps a template may take for one conversation; 64 bytes that it makes are a step too. A
/// thousand turns take a small part of it.
const FUEL: u64 = 4_000_000;
/// Largest template file in bytes.
const LARGEST: usize = 4 << 20;
const NAME: &str = "chat_template";

/// A compiled chat template with the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: BTreeMap<String, String>,
    source: String,
    clock: Arc<Clock>,
}

/// The time that templates are told: one for the whole life of a template, so that a run does not
/// depend on when a row is rendered.
struct Clock {
    /// Seconds since 1970, in UTC, so that it does not depend on the machine's time zone.
    now: AtomicI64,
    asked: AtomicBool,
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
    /// The source is no template, or longer or deeper than a template is; the sentence names the
    /// line.
    pub fn new(
        source: &str,
        special: BTreeMap<String, String>,
    ) -> std::result::Result<Self, String> {
        let now = AtomicI64::new(DateTime::<Utc>::from(SystemTime::now()).timestamp());
        let clock = Arc::new(Clock { now, asked: AtomicBool::new(false) });
        let compiled = on_own_stack(|| environment(source, &clock));
        let environment =
            compiled.map_err(|e| format!("the template library failed: {e}")).flatten()?;
        Ok(Self { environment, special, source: source.to_owned(), clock })
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
        let (path, source) = match read_file(&path, LARGEST)? {
            Some(bytes) => {
                let source = String::from_utf8(bytes)
                    .map_err(|_| Error::file(&path, "not UTF-8; save the file as UTF-8"))?;
                (path, source)
            }
            None => {
                let path = folder.join("tokenizer_config.json");
                match in_config(tokenizer_config).map_err(|e| Error::file(&path, e))? {
                    Some(source) => (path, source),
                    None => return Ok(None),
                }
            }
        };
        Self::new(&source, special)
            .map(Some)
            .map_err(|e| Error::file(path, format!("the chat template cannot be used: {e}")))
    }

    /// The template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation; with `generation_prompt` it ends where the assistant would begin.
    /// `given` are further variables of the template (`tools`, `documents`).
    ///
    /// # Errors
    /// What the template refuses (`raise_exception`) or cannot do, in its own words.
    pub fn render(
        &self,
        messages: &[Message],
        given: &Map<String, serde_json::Value>,
        generation_prompt: bool,
    ) -> std::result::Result<String, String> {
        let rendered = on_own_stack(|| {
            let mut values: BTreeMap<String, Value> =
                self.special.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
            values.insert("tools".into(), Value::from(()));
            values.insert("documents".into(), Value::from(()));
            values.extend(given.iter().map(|(k, v)| (k.clone(), Value::from(Serde(v)))));
            let messages = messages.iter().map(|m| Value::from(Serde(m))).collect();
            values.insert("messages".into(), messages);
            values.insert("add_generation_prompt".into(), Value::from(generation_prompt));
            let template = self.environment.get_template(NAME).map_err(|e| explain(&e))?;
            template.render(Value::from(values)).map_err(|e| explain(&e))
        });
        rendered
            .map_err(|e| format!("the chat template made the template library fail: {e}"))
            .flatten()
    }

    /// Whether the template names `word` anywhere: a key of a message that it does not name cannot
    /// reach the model.
    pub fn names(&self, word: &str) -> bool {
        self.source.contains(word)
    }

    /// The time that renderings were told, in seconds since 1970; None if none has asked.
    pub fn date(&self) -> Option<i64> {
        let asked = self.clock.asked.load(Ordering::Relaxed);
        asked.then(|| self.clock.now.load(Ordering::Relaxed))
    }

    /// Sets the time that renderings are told.
    pub fn set_date(&self, seconds: i64) {
        self.clock.now.store(seconds, Ordering::Relaxed);
    }
}

/// The engine with one template in it.
fn environment(
    source: &str,
    clock: &Arc<Clock>,
) -> std::result::Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|e| explain(&e))?;
    let source = source::prepare(source, &syntax)?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.add_function("raise_exception", python::raise_exception);
    let clock = Arc::clone(clock);
    environment.add_function("strftime_now", move |format: String| {
        clock.asked.store(true, Ordering::Relaxed);
        let seconds = clock.now.load(Ordering::Relaxed);
        let now = DateTime::from_timestamp(seconds, 0).ok_or_else(|| {
            minijinja::Error::new(ErrorKind::InvalidOperation, format!("{seconds} s is no date"))
        })?;
        python::strftime(now, &format)
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e))
    });
    environment.add_filter("tojson", python::to_json);
    environment.add_filter(source::KEPT, python::kept);
    environment.add_template_owned(NAME, source).map_err(|e| explain(&e))?;
    Ok(environment)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn render(
        source: &str,
        messages: &[Message],
        prompt: bool,
    ) -> std::result::Result<String, String> {
        let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        ChatTemplate::new(source, special)?.render(messages, &Map::new(), prompt)
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
    fn values_are_written_as_json_dumps_writes_them() {
        let given = serde_json::json!({"tools": [
            {"name": "f", "parameters": {"z": 1, "a": [true, null, 0.5, "<é&'\"\n"], "e": {}}}]});
        let show = |source: &str| {
            let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
            template.render(&talk(), given.as_object().unwrap(), false)
        };
        assert_eq!(
            show("{{ tools | tojson }}").unwrap(),
            r#"[{"name": "f", "parameters": {"z": 1, "a": [true, null, 0.5, "<é&'\"\n"], "e": {}}}]"#
        );
        assert_eq!(
            show("{{ tools[0].parameters.a[:2] | tojson(indent=2) }}").unwrap(),
            "[\n  true,\n  null\n]"
        );
        assert_eq!(
            show("{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}").unwrap(),
            r#"{"a":"\u00e9","b":1}"#
        );
        assert!(show("{{ tools | tojson(indent=1000000000) }}").unwrap_err().contains("indent"));
        assert!(show("{{ nothing | tojson }}").unwrap_err().contains("undefined"));
    }

    /// None of these may end the process, and none may take long.
    #[test]
    fn hostile_templates_are_errors() {
        let chain = |unit: &str, n: usize| format!("{{{{ {}1 }}}}", unit.repeat(n));
        let deep = "{% set ns = namespace(a=[]) %}{% for i in range(90000) %}\
                    {% set ns.a = [ns.a] %}{% endfor %}";
        let sources = [
            chain("not ", 100_000),
            chain("-", 100_000),
            chain("1+", 100_000),
            chain("1 if x else ", 100_000),
            chain("a or ", 100_000),
            format!("{{{{ a{} }}}}", ".a".repeat(100_000)),
            format!("{{{{ a{} }}}}", "|trim".repeat(100_000)),
            format!("{{{{ a{} }}}}", "[0]".repeat(100_000)),
            format!("{{{{ {}1{} }}}}", "[".repeat(1_000), "]".repeat(1_000)),
            format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}c".repeat(100_000)),
            format!("{}{}", "{% if 1 %}".repeat(1_000), "{% endif %}".repeat(1_000)),
            "{{ '{:99999999999}'.format(1) }}".into(),
            "{{ '{:1000000000}'.format(1) }}".into(),
            "{{ '{0:.99999999999}'.format(1.5) }}".into(),
            "{{ '%99999999999d' | format(1) }}".into(),
            "{{ 'x' * 99999999999 }}".into(),
            "{{ messages | tojson(indent=1000000000) }}".into(),
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}".into(),
            "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}".into(),
            "{% set ns = namespace() %}{% set ns.a, ns.b = ns, 1 %}{{ ns ~ '' }}".into(),
            format!("{deep}{{{{ ns.a }}}}"),
            format!("{deep}{{{{ ns.a == ns.a }}}}"),
            "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}".into(),
            "{% set ns = namespace(a='xxxxxxxx') %}{% for i in range(60) %}\
             {% set ns.a = ns.a ~ ns.a %}{% endfor %}"
                .into(),
            "{% include 'chat_template' %}".into(),
        ];
        for source in sources {
            let start = std::time::Instant::now();
            let shown: String = source.chars().take(60).collect();
            let text = render(&source, &talk(), false).expect_err(&shown);
            assert!(text.len() < 1_000, "{shown}: {text}");
            assert!(start.elapsed().as_secs() < 20, "{shown} takes {:?}", start.elapsed());
        }
    }

    /// The longest chains that are let through have room on the stack.
    #[test]
    fn chains_within_the_bounds_are_compiled() {
        for unit in ["not ", "-", "1+", "1 if x else ", "1 or ", "x.a|", "x."] {
            let count = 3_990 / unit.split_inclusive(['.', '|', '+', '-', ' ']).count();
            let source = format!("{{{{ {}x }}}}", unit.repeat(count));
            let _ = render(&source, &talk(), false);
        }
        let elif = format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}c".repeat(1_000));
        assert_eq!(render(&elif, &talk(), false).unwrap(), "");
        let nested = format!("{}{}", "{% if 1 %}".repeat(100), "{% endif %}".repeat(100));
        render(&nested, &talk(), false).unwrap();
    }

    #[test]
    fn a_template_with_line_ends_of_windows_renders_as_with_others() {
        let source = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}\n{% endfor %}\n";
        let windows = source.replace('\n', "\r\n");
        assert_eq!(render(&windows, &talk(), false), render(source, &talk(), false));
    }

    #[test]
    fn the_date_is_one_and_known_to_be_asked_for() {
        let template = ChatTemplate::new(
            "{% if add_generation_prompt %}{{ strftime_now('%Y %f') }}{% endif %}",
            BTreeMap::new(),
        )
        .unwrap();
        template.render(&talk(), &Map::new(), false).unwrap();
        assert_eq!(template.date(), None);
        let first = template.render(&talk(), &Map::new(), true).unwrap();
        assert!(template.date().is_some());
        assert_eq!(first, template.render(&talk(), &Map::new(), true).unwrap());
        template.set_date(86_400);
        assert_eq!(template.render(&talk(), &Map::new(), true).unwrap(), "1970 000000");
        assert_eq!(template.date(), Some(86_400));
        template.set_date(i64::MAX);
        assert!(template.render(&talk(), &Map::new(), true).unwrap_err().contains("is no date"));
        let unknown = render("{{ strftime_now('%Q') }}", &talk(), false).unwrap_err();
        assert!(unknown.contains("%Q"), "{unknown}");
    }

    #[test]
    fn keys_of_messages_reach_the_template() {
        let mut call = Message::new("assistant", "");
        call.content = None;
        call.fields.insert("tool_calls".into(), serde_json::json!([{"z": 1, "a": 2}]));
        let source = "{% for m in messages %}{{ m.content is none }} {{ m.tool_calls | tojson }} \
                      {{ m.name is defined }}{% endfor %}";
        assert_eq!(render(source, &[call], false).unwrap(), r#"True [{"z": 1, "a": 2}] False"#);
    }
}
