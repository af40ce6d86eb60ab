//! The tokenizer in GGUF's metadata.

use serde_json::{Value as Json, json};

use super::metadata::{Metadata, Reading, Value};
use crate::data::vocabulary::{Splitting, TokenKind, Vocabulary};
use crate::error::{Error, Problem, Result};

/// Kinds of tokens by their numbers in a file, from 1.
const KINDS: [TokenKind; 6] = [
    TokenKind::Normal,
    TokenKind::Unknown,
    TokenKind::Control,
    TokenKind::UserDefined,
    TokenKind::Unused,
    TokenKind::Byte,
];

const SUMMARY: &str = "the tokenizer in this GGUF file cannot be used";

/// What a file says of its tokenizer beside the vocabulary.
pub(super) struct Found {
    pub vocabulary: Vocabulary,
    /// `tokenizer_config.json`.
    pub config: Json,
    /// Further ids that end a generation.
    pub ends: Vec<u32>,
    /// Lines for the user.
    pub notes: Vec<String>,
}

fn at(key: &str) -> String {
    format!("tokenizer.ggml.{key}")
}

/// Reads the tokenizer of a model whose embedding has `rows` rows.
///
/// # Errors
/// Kinds of tokenizers that are not read, by name; lists and ids that do not fit each other, all at
/// once.
pub(super) fn read(metadata: &Metadata, rows: usize) -> Result<Found> {
    let mut read = Reading::of(metadata);
    let model = read.text(&at("model")).unwrap_or_default();
    if !["gpt2", "llama"].contains(&model) {
        let what = match metadata.get(&at("model")) {
            None => "is missing; without a tokenizer the model cannot be used".to_owned(),
            Some(model) => {
                format!("is {model}; gpt2 (byte-level BPE) and llama (SentencePiece) are read")
            }
        };
        read.problem(&at("model"), what);
        return Err(Error::input(SUMMARY, read.problems));
    }
    let sentence_piece = model == "llama";
    let texts = needed_texts(&mut read, "tokens");
    if texts.len() > rows {
        let what = format!("has {} tokens, but token_embd.weight only {rows} rows", texts.len());
        read.problem(&at("tokens"), what);
    }
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok()?.checked_sub(1);
    let kinds = read
        .list(&at("token_type"), "an array of 1 to 6", |value| KINDS.get(number(value)?).copied());
    let kinds = kinds.unwrap_or_else(|| vec![TokenKind::Normal; texts.len()]);
    if kinds.len() != texts.len() {
        let what = format!("has {} values for {} tokens", kinds.len(), texts.len());
        read.problem(&at("token_type"), what);
    }
    let mut notes = Vec::new();
    let splitting = if sentence_piece {
        let number = |value: &Value| value.as_f64().map(|x| x as f32);
        let scores = read.list(&at("scores"), "an array of numbers", number);
        if scores.is_none() && metadata.get(&at("scores")).is_none() {
            read.problem(&at("scores"), "is missing");
        }
        let blank_in_front = read.flag(&at("add_space_prefix")).unwrap_or(true);
        Splitting::SentencePiece { scores: scores.unwrap_or_default(), blank_in_front }
    } else {
        let pre = read.text(&at("pre")).unwrap_or_else(|| {
            notes.push(
                "the file names no pre-tokenizer (tokenizer.ggml.pre): texts are split as llama.cpp's default does, which is seldom how the model was trained".to_owned(),
            );
            "default"
        });
        Splitting::ByteLevel { pre: pre.to_owned(), merges: needed_texts(&mut read, "merges") }
    };
    let count = texts.len() as u64;
    let mut id = |name: &str| {
        let key = at(&format!("{name}_token_id"));
        let id = read.whole(&key)?;
        if id < count {
            return Some(id as u32);
        }
        // Some files say none in this way.
        if id != u64::from(u32::MAX) {
            read.problem(&key, format!("is {id}, but there are {count} tokens"));
        }
        None
    };
    let [mut bos, mut eos, pad, mut unknown, eot, eom] =
        ["bos", "eos", "padding", "unknown", "eot", "eom"].map(&mut id);
    if sentence_piece {
        // llama.cpp's own defaults.
        let default = |id: u32| Some(id).filter(|&id| u64::from(id) < count);
        (unknown, bos, eos) = (unknown.or(default(0)), bos.or(default(1)), eos.or(default(2)));
    }
    let add_bos = read.flag(&at("add_bos_token"));
    let llama_3 =
        matches!(&splitting, Splitting::ByteLevel { pre, .. } if pre.starts_with("llama"));
    let template = read.text("tokenizer.chat_template");
    if !read.problems.is_empty() {
        return Err(Error::input(SUMMARY, read.problems));
    }
    let add_bos = add_bos.unwrap_or(sentence_piece || llama_3);
    let names_bos = template.is_some_and(|text| text.contains("bos_token"));
    let tokens = texts.into_iter().zip(kinds).collect();
    // A token that is named is put in front of every text.
    let named = bos.filter(|_| add_bos || names_bos);
    let vocabulary = Vocabulary { tokens, splitting, bos: named, eos, pad, unknown, add_bos };
    let text = |id: Option<u32>| id.map(|id| vocabulary.tokens[id as usize].0.clone());
    let mut config = json!({
        "add_bos_token": add_bos,
        "add_prefix_space": false,
        "bos_token": text(named),
        "clean_up_tokenization_spaces": false,
        "eos_token": text(eos),
        "pad_token": text(pad),
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    for (key, value) in [("unk_token", text(unknown)), ("chat_template", template.map(Into::into))]
    {
        if let Some(value) = value {
            config[key] = value.into();
        }
    }
    let ends = [eot, eom].into_iter().flatten().filter(|&id| Some(id) != eos).collect();
    Ok(Found { vocabulary, config, ends, notes })
}

/// An array of texts that must be there.
fn needed_texts(read: &mut Reading, key: &str) -> Vec<String> {
    if read.metadata.get(&at(key)).is_none() {
        read.problem(&at(key), "is missing");
    }
    let text = |value: &Value| match value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    read.list(&at(key), "an array of texts", text).unwrap_or_default()
}

impl Found {
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// What the vocabulary refuses.
    pub fn tokenizer_json(&self, place: &str) -> Result<String> {
        let json = self.vocabulary.to_tokenizer_json();
        json.map_err(|what| Error::input(SUMMARY, vec![Problem::new(place, what)]))
    }
}

/// The keys of a tokenizer.
pub(super) fn keys(vocabulary: &Vocabulary, template: Option<&str>) -> Vec<(String, Value)> {
    let kind = |kind: TokenKind| {
        let index = KINDS.iter().position(|k| *k == kind).expect("every kind has a number");
        Value::Signed(index as i64 + 1)
    };
    let tokens = vocabulary.tokens.iter();
    let mut keys = match &vocabulary.splitting {
        Splitting::ByteLevel { pre, merges } => vec![
            (at("model"), Value::Text("gpt2".into())),
            (at("pre"), Value::Text(pre.clone())),
            (at("merges"), Value::texts(merges.iter().cloned())),
        ],
        Splitting::SentencePiece { scores, blank_in_front } => vec![
            (at("model"), Value::Text("llama".into())),
            (at("pre"), Value::Text("default".into())),
            (at("scores"), Value::List(scores.iter().map(|&s| Value::Float(s.into())).collect())),
            (at("add_space_prefix"), Value::Bool(*blank_in_front)),
        ],
    };
    keys.push((at("tokens"), Value::texts(tokens.clone().map(|(token, _)| token.clone()))));
    keys.push((at("token_type"), Value::List(tokens.map(|(_, k)| kind(*k)).collect())));
    keys.push((at("add_bos_token"), Value::Bool(vocabulary.add_bos)));
    let ids = [
        ("bos", vocabulary.bos),
        ("eos", vocabulary.eos),
        ("padding", vocabulary.pad),
        ("unknown", vocabulary.unknown),
    ];
    for (name, id) in ids {
        keys.extend(id.map(|id| (at(&format!("{name}_token_id")), Value::Unsigned(id.into()))));
    }
    keys.extend(template.map(|t| ("tokenizer.chat_template".into(), Value::Text(t.into()))));
    keys
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    /// Four tokens of byte-level BPE, of which three are control tokens, with what `change` does.
    fn metadata(change: impl Fn(&mut BTreeMap<String, Value>)) -> Metadata {
        let texts = |texts: &[&str]| Value::texts(texts.iter().map(|t| (*t).to_owned()));
        let mut keys = BTreeMap::from([
            (at("model"), Value::Text("gpt2".into())),
            (at("pre"), Value::Text("gpt-2".into())),
            (at("tokens"), texts(&["<s>", "</s>", "<eot>", "a"])),
            (at("token_type"), Value::List([3, 3, 3, 1].map(Value::Signed).to_vec())),
            (at("merges"), texts(&[])),
            (at("bos_token_id"), Value::Unsigned(0)),
            (at("eos_token_id"), Value::Unsigned(1)),
        ]);
        change(&mut keys);
        Metadata::new(Path::new("m.gguf"), keys)
    }

    fn set(key: &'static str, value: Value) -> impl Fn(&mut BTreeMap<String, Value>) {
        move |keys| drop(keys.insert(at(key), value.clone()))
    }

    #[test]
    fn tokens_of_the_file_are_named() {
        let found = read(&metadata(set("eot_token_id", Value::Unsigned(2))), 4).unwrap();
        assert_eq!(found.config["eos_token"], "</s>");
        assert_eq!(found.ends, [2], "the other end of a generation");
        assert!(found.notes.is_empty());
        let none =
            read(&metadata(set("eos_token_id", Value::Unsigned(u32::MAX.into()))), 4).unwrap();
        assert!(none.config["eos_token"].is_null() && none.vocabulary.eos.is_none());
    }

    #[test]
    fn a_first_token_is_named_where_texts_begin_with_it() {
        let bos = |change: &dyn Fn(&mut BTreeMap<String, Value>)| {
            let found = read(&metadata(change), 4).unwrap();
            assert_eq!(found.vocabulary.bos.is_some(), !found.config["bos_token"].is_null());
            found.vocabulary.bos
        };
        assert_eq!(bos(&|_| ()), None);
        assert_eq!(bos(&set("add_bos_token", Value::Bool(true))), Some(0));
        assert_eq!(bos(&set("pre", Value::Text("llama-bpe".into()))), Some(0));
        let template = |keys: &mut BTreeMap<String, Value>| {
            let text = Value::Text("{{ bos_token }}{{ messages }}".into());
            keys.insert("tokenizer.chat_template".into(), text);
        };
        assert_eq!(bos(&template), Some(0));
    }

    #[test]
    fn sentence_piece_has_tokens_of_its_own_where_none_are_named() {
        let found = read(
            &metadata(|keys| {
                set("model", Value::Text("llama".into()))(keys);
                set("scores", Value::List(vec![Value::Float(0.0); 4]))(keys);
                for key in ["bos_token_id", "eos_token_id", "merges", "pre"] {
                    keys.remove(&at(key));
                }
            }),
            4,
        )
        .unwrap();
        let v = found.vocabulary;
        assert_eq!((v.unknown, v.bos, v.eos, v.add_bos), (Some(0), Some(1), Some(2), true));
    }

    #[test]
    fn a_file_without_a_pre_tokenizer_is_told_of() {
        let found = read(&metadata(|keys| drop(keys.remove(&at("pre")))), 4).unwrap();
        assert!(found.notes[0].contains("names no pre-tokenizer"), "{:?}", found.notes);
    }

    #[test]
    fn lists_and_ids_that_do_not_fit_are_refused() {
        let refused = |key: &'static str, value: Value, rows: usize, phrase: &str| {
            let error = read(&metadata(set(key, value)), rows).err().unwrap().to_string();
            assert!(error.contains(phrase), "`{phrase}` is missing: {error}");
        };
        let one = Value::Unsigned(1);
        refused("model", Value::Text("t5".into()), 4, "model: is \"t5\"; gpt2");
        refused("tokens", one.clone(), 4, "tokens: is 1, an integer; an array of texts");
        refused("tokens", Value::List(vec![one.clone()]), 4, "an array of texts is expected");
        refused("token_type", Value::List(vec![one.clone()]), 4, "has 1 values for 4 tokens");
        refused("token_type", Value::List(vec![Value::Signed(9); 4]), 4, "an array of 1 to 6");
        refused("token_type", Value::List(vec![Value::Signed(-1); 4]), 4, "an array of 1 to 6");
        refused("eos_token_id", Value::Unsigned(4), 4, "is 4, but there are 4 tokens");
        refused("add_bos_token", one, 4, "true or false is expected");
        refused(
            "pre",
            Value::Text("gpt-2".into()),
            3,
            "has 4 tokens, but token_embd.weight only 3",
        );
        refused("merges", Value::Bool(true), 4, "an array of texts is expected");
    }
}
