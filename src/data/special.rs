//! What a model folder says of its tokens outside `tokenizer.json`, compared with what was loaded.
//!
//! transformers makes every token that `tokenizer_config.json` names special an added token of the
//! tokenizer, and takes the ids that end a generation from `generation_config.json` before
//! `config.json`. Both happen here, and whatever the files claim that does not hold is refused or
//! said.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use super::tokenize::LARGEST_JSON;
use crate::error::{Error, Problem, Result};
use crate::files::read_json;

/// Special tokens by the names that transformers has for them.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Those that training or generation uses: without them nothing is right.
const NEEDED: [&str; 3] = ["bos_token", "eos_token", "pad_token"];
/// Lists of further ones.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// The special tokens of a model folder.
#[derive(Debug, Clone, Default)]
pub(super) struct Special {
    /// By name; what a chat template may call them.
    pub names: BTreeMap<String, String>,
    pub bos: Option<u32>,
    /// What is appended to answers.
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    /// Any of these ends a generation.
    pub ends: Vec<u32>,
    /// Where `ends` come from.
    pub ends_from: &'static str,
    /// Lines for the user.
    pub notes: Vec<String>,
    /// `tokenizer_config.json`, for whoever else needs it.
    pub config: Value,
}

/// Reads what the files of `folder` say of special tokens and adds to `tokenizer` those it lacks.
///
/// # Errors
/// Files that are not JSON; tokens and ids that `tokenizer.json` does not have, all at once.
pub(super) fn read(folder: &Path, tokenizer: &mut tokenizers::Tokenizer) -> Result<Special> {
    let path = folder.join("tokenizer_config.json");
    let file = |name: &str| {
        read_json(&folder.join(name), LARGEST_JSON).map(|json| json.unwrap_or(Value::Null))
    };
    let config = file("tokenizer_config.json")?;
    let map = file("special_tokens_map.json")?;
    let mut special = Special::default();
    let mut problems = Vec::new();
    let mut refuse = |what: String| problems.push(Problem::new(path.display().to_string(), what));

    let named: Vec<(&str, &Value)> = NAMES
        .into_iter()
        .filter_map(|name| Some((name, config.get(name).or_else(|| map.get(name))?)))
        .collect();
    let listed = LISTS.into_iter().filter_map(|name| {
        let value = config.get(name).or_else(|| map.get(name))?;
        let values: Vec<&Value> = match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        };
        Some(values.into_iter().map(move |value| (name, value)))
    });
    let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
    for (id, value) in decoder.into_iter().flatten() {
        let Some(token) = added(value, false) else { continue };
        let text = token.content.clone();
        add(tokenizer, token);
        if tokenizer.token_to_id(&text).map(|found| found.to_string()).as_deref() != Some(id) {
            refuse(format!(
                "added_tokens_decoder gives {text:?} the id {id}, tokenizer.json another"
            ));
        }
    }
    let listed: Vec<(&str, &Value)> = listed.flatten().collect();
    for (name, value) in named.iter().copied().chain(listed) {
        let Some(token) = added(value, true) else { continue };
        let text = token.content.clone();
        if tokenizer.token_to_id(&text).is_none() {
            let what = format!("{name} is {text:?}, which tokenizer.json does not know");
            match name {
                name if NEEDED.contains(&name) => refuse(what),
                // Many a folder names an unknown token that its vocabulary has no use for.
                "unk_token" => {}
                _ => special.notes.push(format!("{}: {what}: it stays plain text", path.display())),
            }
        } else if name != "unk_token" {
            add(tokenizer, token);
        }
        if NAMES.contains(&name) {
            special.names.insert(name.to_owned(), text);
        }
    }
    for (name, text) in special.names.iter().filter(|(name, _)| NEEDED.contains(&name.as_str())) {
        let id = tokenizer.token_to_id(text);
        let ids = tokenizer.encode_fast(text.as_str(), false);
        let ids = ids.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default();
        if id.is_some() && ids != id.into_iter().collect::<Vec<_>>() {
            refuse(format!("{name} is {text:?}, but written in a text it becomes the ids {ids:?}"));
        }
    }
    if !problems.is_empty() {
        return Err(Error::input("the special tokens do not fit the tokenizer", problems));
    }
    special.config = config;
    special.ids(folder, tokenizer, &file("config.json")?, &file("generation_config.json")?)?;
    Ok(special)
}

impl Special {
    /// Finds the ids that begin and end sequences.
    fn ids(
        &mut self,
        folder: &Path,
        tokenizer: &tokenizers::Tokenizer,
        model: &Value,
        generation: &Value,
    ) -> Result<()> {
        let ids_of = |file: &str, json: &Value, key: &str| -> Result<Vec<u32>> {
            let ids = ids(json, key).map_err(|e| Error::file(folder.join(file), e))?;
            match ids.iter().find(|id| tokenizer.id_to_token(**id).is_none()) {
                Some(id) if key == "eos_token_id" => {
                    let what = format!("{key} is {id}, which tokenizer.json does not have");
                    Err(Error::file(folder.join(file), what))
                }
                _ => Ok(ids),
            }
        };
        let in_generation = ids_of("generation_config.json", generation, "eos_token_id")?;
        let in_model = ids_of("config.json", model, "eos_token_id")?;
        let nothing_named =
            !self.names.contains_key("bos_token") && !self.names.contains_key("eos_token");
        let id = |name: &str| tokenizer.token_to_id(self.names.get(name)?);
        (self.bos, self.eos, self.pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        // Older folders name their tokens by id only.
        if nothing_named {
            self.bos = ids_of("config.json", model, "bos_token_id")?.first().copied();
            let token = self.bos.and_then(|id| tokenizer.id_to_token(id));
            self.bos = self.bos.filter(|_| token.is_some());
            self.names.extend(token.map(|token| ("bos_token".to_owned(), token)));
        }
        let (file, first) = match (in_generation.first(), in_model.first()) {
            (Some(&id), _) => ("generation_config.json", Some(id)),
            (None, Some(&id)) => ("config.json", Some(id)),
            (None, None) => ("tokenizer_config.json", self.eos),
        };
        self.ends_from = file;
        self.ends = if in_generation.is_empty() { in_model } else { in_generation };
        match (self.eos, first) {
            (Some(eos), _) if !self.ends.contains(&eos) => self.ends.push(eos),
            (None, Some(id)) => {
                self.eos = Some(id);
                let token = tokenizer.id_to_token(id).unwrap_or_default();
                self.notes.push(format!(
                    "{}: tokenizer_config.json names no end-of-sequence token; answers end with {token:?} ({id}) of {file}",
                    folder.display()
                ));
                self.names.insert("eos_token".to_owned(), token);
            }
            (None, None) => self.notes.push(format!(
                "{}: neither tokenizer_config.json nor generation_config.json nor config.json names an end-of-sequence token: \
                 answers get none, so the model does not learn to stop",
                folder.display()
            )),
            _ => {}
        }
        Ok(())
    }
}

/// Ids under `key`: one, a list, or none.
fn ids(json: &Value, key: &str) -> std::result::Result<Vec<u32>, String> {
    let wrong = |value: &Value| format!("{key} is {value}, not a token id or a list of them");
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(value))
    };
    match json.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

/// A token as the files write it: text, or an object with how it is matched. `special` where the
/// object does not say.
fn added(value: &Value, special: bool) -> Option<AddedToken> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    let flag = |key: &str, otherwise| value.get(key).and_then(Value::as_bool).unwrap_or(otherwise);
    let special = flag("special", special);
    Some(
        AddedToken::from(text.to_owned(), special)
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .single_word(flag("single_word", false))
            .normalized(flag("normalized", !special)),
    )
}

/// Adds a token that the tokenizer does not know as an added one.
fn add(tokenizer: &mut tokenizers::Tokenizer, token: AddedToken) {
    let known = tokenizer.get_added_tokens_decoder().values().any(|t| t.content == token.content);
    if known || token.content.is_empty() {
        return;
    }
    if token.special {
        let _ = tokenizer.add_special_tokens([token]);
    } else {
        let _ = tokenizer.add_tokens([token]);
    }
}
