//! A tokenizer as GGUF files hold it: tokens by id, and either merges with the name of a
//! pre-tokenizer (byte-level BPE) or scores (SentencePiece). Made into a `tokenizer.json`, and found
//! in one.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use serde_json::{Value, json};

use super::tokenize::Tokenizer;
use crate::guard::on_own_stack;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// What stands for text that no token can express.
    Unknown,
    /// Begins and ends sequences and turns; never text.
    Control,
    /// A text that is one token wherever it stands.
    UserDefined,
    /// A row of the embedding without a token.
    Unused,
    /// One byte.
    Byte,
}

/// How texts become tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Splitting {
    /// Byte-level BPE. Words are what the pre-tokenizer of this name makes; merges are pairs with a
    /// blank between, the first first.
    ByteLevel {
        /// The name, as llama.cpp has it.
        pre: String,
        /// The merges.
        merges: Vec<String>,
    },
    /// SentencePiece's BPE: pairs merge to the token of the highest score; characters without a token
    /// become bytes.
    SentencePiece {
        /// One of each token.
        scores: Vec<f32>,
        /// A text gets a blank in front.
        blank_in_front: bool,
    },
}

/// A tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// By id.
    pub tokens: Vec<(String, TokenKind)>,
    /// How texts become tokens.
    pub splitting: Splitting,
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends one.
    pub eos: Option<u32>,
    /// Fills up short ones.
    pub pad: Option<u32>,
    /// What stands for text that no token can express.
    pub unknown: Option<u32>,
    /// Texts begin with `bos`.
    pub add_bos: bool,
}

/// A pre-tokenizer of byte-level BPE.
struct Pre {
    /// llama.cpp's names; written as the first.
    names: &'static [&'static str],
    /// Splits of a text, each of the pieces of the one before, and each with its matches by
    /// themselves; before GPT-2's own, if that is used.
    splits: &'static [&'static str],
    /// Each digit by itself, before GPT-2's own.
    digits: bool,
    gpt2: bool,
    /// Unicode's composed form.
    composed: bool,
    /// A word that is a token needs no merges.
    whole_words: bool,
}

const PRE: [Pre; 5] = [
    Pre { names: &["gpt-2", "phi-2"], splits: &[], digits: false, gpt2: true, ..LEAST },
    Pre {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        splits: &[],
        digits: true,
        gpt2: true,
        ..LEAST
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole_words: true,
        ..LEAST
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen"],
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        composed: true,
        ..LEAST
    },
    // What llama.cpp falls back to where a file names none.
    Pre {
        names: &["default"],
        splits: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"\p{N}+",
            "[0-9][0-9][0-9]",
        ],
        ..LEAST
    },
];

const LEAST: Pre = Pre {
    names: &[],
    splits: &[],
    digits: false,
    gpt2: false,
    composed: false,
    whole_words: false,
};

/// SentencePiece's mark for a blank.
const BLANK: &str = "\u{2581}";
/// Longest piece of SentencePiece in characters: the work to find its merges grows with the square.
const LONGEST_PIECE: usize = 256;

impl Pre {
    fn of(name: &str) -> Option<&'static Self> {
        PRE.iter().find(|pre| pre.names.contains(&name))
    }

    /// As `tokenizer.json` has it.
    fn json(&self) -> Value {
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": self.gpt2,
        });
        let split = |regex: &&str| {
            json!({
                "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false,
            })
        };
        let mut all: Vec<Value> = self.splits.iter().map(split).collect();
        if self.digits {
            all.push(json!({"type": "Digits", "individual_digits": true}));
        }
        if all.is_empty() {
            return bytes;
        }
        all.push(bytes);
        json!({"type": "Sequence", "pretokenizers": all})
    }

    fn normalizer(&self) -> Value {
        if self.composed { json!({"type": "NFC"}) } else { Value::Null }
    }
}

/// Every name of a pre-tokenizer that is known, in words.
fn known() -> String {
    PRE.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ")
}

/// The name of an id that has no token, as GGUF files fill them up.
fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

fn sentence_piece_normalizer(blank_in_front: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK});
    let prepend = json!({"type": "Prepend", "prepend": BLANK});
    let all = if blank_in_front { vec![prepend, replace] } else { vec![replace] };
    json!({"type": "Sequence", "normalizers": all})
}

fn sentence_piece_decoder(blank_in_front: bool) -> Value {
    let mut all = vec![
        json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if blank_in_front {
        all.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": all})
}

impl Vocabulary {
    /// The `tokenizer.json` of it.
    ///
    /// # Errors
    /// A pre-tokenizer that is not known, tokens that are there twice, merges of what is no token.
    pub fn to_tokenizer_json(&self) -> Result<String, String> {
        let mut ids: HashMap<&str, usize> = HashMap::new();
        for (id, (token, kind)) in self.tokens.iter().enumerate() {
            if *kind == TokenKind::Unused && *token == filler(id) {
                continue;
            }
            if let Some(other) = ids.insert(token, id) {
                return Err(format!("tokens {other} and {id} are both {token:?}"));
            }
        }
        let (pre, normalizer, decoder, merges, options) = match &self.splitting {
            Splitting::ByteLevel { pre: name, merges } => {
                let pre = Pre::of(name).ok_or_else(|| {
                    format!("the pre-tokenizer is {name:?}; {} are known", known())
                })?;
                let pairs = merges.iter().map(|merge| match merge.split_once(' ') {
                    Some((a, b)) if !b.contains(' ') => Ok([a.to_owned(), b.to_owned()]),
                    _ => Err(format!("the merge {merge:?} is not two tokens with a blank between")),
                });
                let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
                (pre.json(), pre.normalizer(), byte_level(), pairs, (false, pre.whole_words))
            }
            Splitting::SentencePiece { scores, blank_in_front: blank } => (
                Value::Null,
                sentence_piece_normalizer(*blank),
                sentence_piece_decoder(*blank),
                merges_of(&self.tokens, scores, &ids)?,
                (true, false),
            ),
        };
        let text = |id: u32| Some(self.tokens.get(id as usize)?.0.as_str());
        let (fallback, whole_words) = options;
        let named: Vec<u32> = [self.bos, self.eos, self.pad].into_iter().flatten().collect();
        let added = |(id, (token, kind)): (usize, &(String, TokenKind))| {
            let special = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                _ if named.contains(&(id as u32)) => true,
                _ => return None,
            };
            (!token.is_empty()).then(|| json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        };
        let added: Vec<Value> = self.tokens.iter().enumerate().filter_map(added).collect();
        let vocab: BTreeMap<&str, usize> = ids.into_iter().collect();
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre,
            "post_processor": self.bos.filter(|_| self.add_bos).and_then(|bos| Some(begins_with(text(bos)?, bos))),
            "decoder": decoder,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": self.unknown.and_then(text).filter(|_| fallback),
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": fallback,
                "byte_fallback": fallback,
                "ignore_merges": whole_words,
                "vocab": vocab,
                "merges": merges,
            },
        });
        // The library says whether it can use it, and writes it as it always does.
        let file = file.to_string();
        let written = on_own_stack(|| {
            let tokenizer = tokenizers::Tokenizer::from_str(&file).map_err(|e| e.to_string())?;
            tokenizer.to_string(true).map_err(|e| e.to_string())
        });
        written
            .map_err(|e| format!("the tokenizers library fails at it: {e}"))?
            .map_err(|e| format!("the tokenizers library refuses it: {e}"))
    }

    /// What a tokenizer is as a vocabulary of `rows` tokens, those that it lacks among them.
    ///
    /// # Errors
    /// What it does that GGUF has no name for; more tokens than `rows`.
    pub fn of(tokenizer: &Tokenizer, rows: usize) -> Result<Self, String> {
        let inner = tokenizer.inner();
        let text = inner.to_string(false).map_err(|e| e.to_string())?;
        let file: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let model = &file["model"];
        if model["type"] != "BPE" {
            return Err(format!("its model is {}; only BPE is written", model["type"]));
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if !model[key].is_null() && model[key] != "" {
                return Err(format!("its {key} is {}, which GGUF does not have", model[key]));
            }
        }
        if tokenizer.vocab_size() > rows {
            return Err(format!(
                "it has {} tokens, but the model's embedding only {rows} rows",
                tokenizer.vocab_size()
            ));
        }
        let added = inner.get_added_tokens_decoder();
        let fallback = model["byte_fallback"] == true;
        let mut tokens: Vec<(String, TokenKind)> =
            (0..rows).map(|id| (filler(id), TokenKind::Unused)).collect();
        for (token, id) in inner.get_vocab(true) {
            let kind = match added.get(&id) {
                Some(_) if fallback && model["unk_token"] == token => TokenKind::Unknown,
                Some(added) if added.special => TokenKind::Control,
                Some(_) => TokenKind::UserDefined,
                None if fallback && is_byte(&token) => TokenKind::Byte,
                None => TokenKind::Normal,
            };
            tokens[id as usize] = (token, kind);
        }
        let merges = pairs_of(&model["merges"])?;
        let splitting = match fallback {
            true => scored(&file, &tokens, &merges)?,
            false => Splitting::ByteLevel {
                pre: pre_of(&file)?.to_owned(),
                merges: merges.iter().map(|[a, b]| format!("{a} {b}")).collect(),
            },
        };
        let unknown = model["unk_token"].as_str().and_then(|token| inner.token_to_id(token));
        Ok(Self {
            tokens,
            splitting,
            bos: tokenizer.bos(),
            eos: tokenizer.eos(),
            pad: tokenizer.pad(),
            unknown,
            // As here: a token that is named is put in front of every text.
            add_bos: tokenizer.bos().is_some(),
        })
    }
}

/// A post-processor that puts a token in front of each text.
fn begins_with(token: &str, id: u32) -> Value {
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), {"SpecialToken": {"id": token, "type_id": 1}}, text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && u8::from_str_radix(d, 16).is_ok())
}

/// Merges that give each piece of its parts, the highest score first, as SentencePiece chooses.
fn merges_of(
    tokens: &[(String, TokenKind)],
    scores: &[f32],
    ids: &HashMap<&str, usize>,
) -> Result<Vec<[String; 2]>, String> {
    if scores.len() != tokens.len() {
        return Err(format!("{} scores for {} tokens", scores.len(), tokens.len()));
    }
    let mut found: Vec<(f32, [usize; 3], [&str; 2])> = Vec::new();
    for (id, (token, kind)) in tokens.iter().enumerate() {
        if *kind != TokenKind::Normal {
            continue;
        }
        if token.chars().nth(LONGEST_PIECE).is_some() {
            return Err(format!("token {id} is longer than {LONGEST_PIECE} characters"));
        }
        for (at, _) in token.char_indices().skip(1) {
            let parts = token.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(parts.0), ids.get(parts.1)) {
                found.push((scores[id], [id, left, right], [parts.0, parts.1]));
            }
        }
    }
    // Where scores are equal, what was learnt first; the merges of a token stay together.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    Ok(found.into_iter().map(|(_, _, parts)| parts.map(str::to_owned)).collect())
}

fn pairs_of(merges: &Value) -> Result<Vec<[String; 2]>, String> {
    let pair = |merge: &Value| {
        let [Some(a), Some(b)] = [0, 1].map(|i| merge[i].as_str()) else {
            return Err(format!("the merge {merge} is not two tokens"));
        };
        if a.contains(' ') || b.contains(' ') {
            return Err(format!("the merge {merge} has a blank, which GGUF has between its parts"));
        }
        Ok([a.to_owned(), b.to_owned()])
    };
    merges.as_array().into_iter().flatten().map(pair).collect()
}

/// The pre-tokenizers that split as these parts of a `tokenizer.json`.
fn splitting_as(pre: &Value, normalizer: &Value) -> impl Iterator<Item = &'static Pre> {
    let mut pre = pre.clone();
    without_offsets(&mut pre);
    let normalizer = normalizer.clone();
    PRE.iter().filter(move |known| {
        let mut json = known.json();
        without_offsets(&mut json);
        json == pre && known.normalizer() == normalizer
    })
}

/// Whether texts are split as one of the known pre-tokenizers of byte-level BPE does.
pub(super) fn splits_bytes(pre: &Value, normalizer: &Value) -> bool {
    splitting_as(pre, normalizer).next().is_some()
}

/// The name of the pre-tokenizer that splits as this `tokenizer.json`.
fn pre_of(file: &Value) -> Result<&'static str, String> {
    let whole_words = file["model"]["ignore_merges"] == true;
    let found = splitting_as(&file["pre_tokenizer"], &file["normalizer"])
        .find(|known| known.whole_words == whole_words);
    found.map(|pre| pre.names[0]).ok_or_else(|| {
        let written: Vec<&str> = PRE.iter().map(|pre| pre.names[0]).collect();
        format!(
            "it splits texts as none of the pre-tokenizers that are written ({}): pre_tokenizer {}, normalizer {}, ignore_merges {}",
            written.join(", "),
            file["pre_tokenizer"],
            file["normalizer"],
            file["model"]["ignore_merges"]
        )
    })
}

/// Offsets are no matter of tokens.
fn without_offsets(pre: &mut Value) {
    if let Value::Object(map) = pre {
        map.remove("trim_offsets");
        map.values_mut().for_each(without_offsets);
    } else if let Value::Array(list) = pre {
        list.iter_mut().for_each(without_offsets);
    }
}

/// Scores in the order of the merges.
fn scored(
    file: &Value,
    tokens: &[(String, TokenKind)],
    merges: &[[String; 2]],
) -> Result<Splitting, String> {
    let blank_in_front = [true, false].into_iter().find(|&blank| {
        file["normalizer"] == sentence_piece_normalizer(blank) && file["pre_tokenizer"].is_null()
    });
    let Some(blank_in_front) = blank_in_front else {
        return Err(format!(
            "it falls back to bytes, but has not SentencePiece's normalizer: normalizer {}, pre_tokenizer {}",
            file["normalizer"], file["pre_tokenizer"]
        ));
    };
    let mut rank: HashMap<String, usize> = HashMap::new();
    let mut last = String::new();
    for (i, [a, b]) in merges.iter().enumerate() {
        let token = format!("{a}{b}");
        if token != last && rank.contains_key(&token) {
            return Err(format!("{token:?} has merges of two ranks, which one score cannot say"));
        }
        rank.entry(token.clone()).or_insert(i);
        last = token;
    }
    let scores = tokens.iter().map(|(token, _)| rank.get(token).map_or(0.0, |&i| -(i as f32)));
    Ok(Splitting::SentencePiece { scores: scores.collect(), blank_in_front })
}

#[cfg(test)]
#[path = "vocabulary_tests.rs"]
mod tests;
