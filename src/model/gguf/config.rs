//! A model's sizes: keys of GGUF's metadata and of `config.json`.

use serde_json::{Map, Value as Json, json};

use super::architecture::Architecture;
use super::file::GgufFile;
use super::metadata::{Reading, Value};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::keys::Keys;
use crate::model::rotary::{self, Asked, Rotary};

/// The tensor whose rows are the vocabulary.
const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// Keys of an architecture that are read below.
const READ: [&str; 12] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
];
/// The base of rotary positions where none is named.
const THETA: f64 = 10_000.0;

/// The `config.json` that a file's metadata says, and its architecture.
///
/// # Errors
/// Architectures that are not read; keys that are missing, that contradict the tensors, or that would
/// change the output of the model and that it does not have: all at once.
pub(super) fn config_json(file: &GgufFile, dtype: DType) -> Result<(&'static Architecture, Json)> {
    const SUMMARY: &str = "the model in this GGUF file cannot be used";
    let mut read = Reading::of(&file.metadata);
    let architecture = match read.text("general.architecture") {
        Some(name) => match Architecture::named(name) {
            Some(found) => Ok(found),
            None => Err(format!("is {name:?}; {} are read", Architecture::names())),
        },
        None => Err("is missing".into()),
    };
    let architecture = architecture.map_err(|what: String| {
        read.problem("general.architecture", what);
        Error::input(SUMMARY, std::mem::take(&mut read.problems))
    })?;
    let name = architecture.name;
    refuse_others(&mut read, name, file);
    let mut json = match name {
        "gpt2" => gpt2(&mut read, file),
        _ => llama(&mut read, name, file),
    };
    let rows = file.tensors().get(EMBEDDING).and_then(|t| t.shape.first()).copied();
    if rows.is_none() {
        read.problem(EMBEDDING, "is missing; without it there is no model");
    }
    let named = read.whole(&format!("{name}.vocab_size"));
    if let (Some(named), Some(rows)) = (named, rows)
        && named != rows as u64
    {
        let what = format!("is {named}, but {EMBEDDING} has {rows} rows");
        read.problem(&format!("{name}.vocab_size"), what);
    }
    json.insert("vocab_size".into(), rows.into());
    json.insert("tie_word_embeddings".into(), (!file.tensors().contains_key(HEAD)).into());
    for (key, token) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        let id = read.whole(&format!("tokenizer.ggml.{token}_token_id"));
        let id = id.filter(|&id| rows.is_some_and(|rows| id < rows as u64));
        json.insert(format!("{key}_token_id"), id.into());
    }
    json.insert("architectures".into(), json!([architecture.class]));
    json.insert("model_type".into(), architecture.model_types[0].into());
    let dtype = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    for key in ["dtype", "torch_dtype"] {
        json.insert(key.into(), dtype.into());
    }
    if read.problems.is_empty() {
        return Ok((architecture, Json::Object(json)));
    }
    Err(Error::input(SUMMARY, read.problems))
}

/// Whether a key of an architecture is read, or changes nothing with this value. What is passed over
/// must not be another model.
fn is_fine(key: &str, value: &Value) -> bool {
    match key {
        "vocab_size" => true,
        "attention.causal" | "use_parallel_residual" => *value == Value::Bool(true),
        "expert_count" | "expert_used_count" | "attention.sliding_window" => {
            value.as_u64() == Some(0)
        }
        "rope.scale_linear" => value.as_f64() == Some(1.0),
        "rope.scaling.type" => matches!(value, Value::Text(kind) if kind == "none"),
        "rope.scaling.factor" => matches!(value.as_f64(), Some(0.0 | 1.0)),
        "rope.scaling.finetuned" => *value == Value::Bool(false),
        _ => READ.contains(&key),
    }
}

fn refuse_others(read: &mut Reading, architecture: &str, file: &GgufFile) {
    for (key, value) in read.metadata.iter() {
        let short = key.strip_prefix(architecture).and_then(|key| key.strip_prefix('.'));
        if short.is_some_and(|short| !is_fine(short, value)) {
            read.problem(key, format!("is {value}, which is not supported"));
        }
    }
    if file.tensors().keys().any(|name| name.starts_with("rope_f")) {
        let what = "are in the file: rotary positions that are scaled (Llama 3.1 and later) are not read from GGUF; take the Hugging Face folder";
        read.problem("rope_freqs.weight", what);
    }
}

/// Number of layers, of which each has tensors.
fn layers(read: &mut Reading, key: &str, file: &GgufFile) -> u64 {
    let layers = read.needed(key);
    let tensors = file.tensors().len() as u64;
    if layers > tensors {
        read.problem(key, format!("is {layers}, but there are only {tensors} tensors"));
        return 0;
    }
    layers
}

/// The keys of Llama and of what came after it, by `config.json`'s names.
fn llama(read: &mut Reading, name: &str, file: &GgufFile) -> Map<String, Json> {
    let at = |key: &str| format!("{name}.{key}");
    let hidden = read.needed(&at("embedding_length"));
    let heads = read.needed(&at("attention.head_count"));
    let head_dim = read.whole(&at("attention.key_length"));
    let head_dim = head_dim.or(hidden.checked_div(heads)).unwrap_or(0);
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = read.whole(&at(key)).filter(|&n| n != head_dim) {
            read.problem(
                &at(key),
                format!("is {other}; only the head's width {head_dim} is supported"),
            );
        }
    }
    let eps = at("attention.layer_norm_rms_epsilon");
    if read.metadata.get(&eps).is_none() {
        read.problem(&eps, "is missing");
    }
    let theta = read.number(&at("rope.freq_base")).unwrap_or(THETA);
    let json = json!({
        "attention_bias": false,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": read.needed(&at("feed_forward_length")),
        "max_position_embeddings": read.needed(&at("context_length")),
        "mlp_bias": false,
        "num_attention_heads": heads,
        "num_hidden_layers": layers(read, &at("block_count"), file),
        "num_key_value_heads": read.whole(&at("attention.head_count_kv")).unwrap_or(heads),
        "rms_norm_eps": read.number(&eps),
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "rope_scaling": null,
        "rope_theta": theta,
        "use_cache": true,
    });
    let Json::Object(mut json) = json else { unreachable!("it is written as one") };
    if name != "llama" {
        // Where no layer has a window.
        json.remove("mlp_bias");
        json.insert("use_sliding_window".into(), false.into());
        json.insert("sliding_window".into(), Json::Null);
    }
    json
}

fn gpt2(read: &mut Reading, file: &GgufFile) -> Map<String, Json> {
    let json = json!({
        "activation_function": "gelu_new",
        "layer_norm_epsilon": read.number("gpt2.attention.layer_norm_epsilon").unwrap_or(1e-5),
        "n_embd": read.needed("gpt2.embedding_length"),
        "n_head": read.needed("gpt2.attention.head_count"),
        "n_inner": read.needed("gpt2.feed_forward_length"),
        "n_layer": layers(read, "gpt2.block_count", file),
        "n_positions": read.needed("gpt2.context_length"),
        // transformers' own rates would drop out while training.
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "use_cache": true,
    });
    let Json::Object(json) = json else { unreachable!("it is written as one") };
    json
}

/// What a model's keys are in GGUF, and what of it is said otherwise there.
pub(super) struct Described {
    pub architecture: &'static Architecture,
    pub keys: Vec<(String, Value)>,
    /// Elements of a head.
    pub head_dim: usize,
    /// Lines for the user.
    pub notes: Vec<String>,
}

/// The metadata of a model.
///
/// # Errors
/// Families that are not written; what llama.cpp could not do as the configuration says.
pub(super) fn described(config: &ModelConfig) -> Result<Described> {
    const SUMMARY: &str = "this model cannot be written as GGUF";
    let Json::Object(map) = config.to_json() else { unreachable!("a configuration is an object") };
    let mut read = Keys::new("config.json", &map);
    let model_type = read.get("model_type").and_then(Json::as_str).unwrap_or_default();
    let Some(architecture) = Architecture::of_model(model_type) else {
        let what = format!("is `{model_type}`; {} are written", Architecture::model_types());
        read.problem("model_type", what);
        return Err(Error::input(SUMMARY, read.problems));
    };
    let outline = config.decoder.outline();
    let (hidden, gpt2) = (outline.hidden_size, architecture.name == "gpt2");
    let heads = read.size(if gpt2 { "n_head" } else { "num_attention_heads" });
    let head_dim = match read.get("head_dim").is_some() && !gpt2 {
        true => read.size("head_dim"),
        false => hidden.checked_div(heads).unwrap_or(0),
    };
    let whole = |n: usize| Value::Unsigned(n as u64);
    let mut keys = vec![
        ("embedding_length", whole(hidden)),
        ("block_count", whole(outline.layers)),
        ("attention.head_count", whole(heads)),
        ("vocab_size", whole(outline.vocab_size)),
    ];
    let mut notes = Vec::new();
    let mut context = outline.max_positions;
    if gpt2 {
        let inner = read.size_or("n_inner", 4 * hidden);
        keys.push(("feed_forward_length", whole(inner)));
        let eps = read.positive("layer_norm_epsilon", 1e-5);
        keys.push(("attention.layer_norm_epsilon", Value::Float(eps)));
    } else {
        for holder in ["rope_parameters", "rope_scaling"] {
            let kind = read.get(holder).and_then(|r| r.get("rope_type").or(r.get("type")));
            if let Some(kind) = kind.filter(|kind| *kind != "default") {
                let what = format!("has rope_type {kind}; only \"default\" is written as GGUF");
                read.problem(holder, what);
            }
        }
        if let Some(window) = window(&mut read, model_type).filter(|&w| w < context) {
            notes.push(format!(
                "context_length is the sliding window, {window} tokens: llama.cpp has none for \
                 {model_type}, and beyond it would compute something else"
            ));
            context = window;
        }
        let asked = Asked { head_dim, theta: THETA, types: rotary::ALL, partial: None };
        let rope = Rotary::read(&mut read, asked);
        keys.push(("feed_forward_length", whole(read.size("intermediate_size"))));
        keys.push((
            "attention.head_count_kv",
            whole(outline.kv_width.checked_div(head_dim).unwrap_or(0)),
        ));
        keys.push(("attention.key_length", whole(head_dim)));
        keys.push(("attention.value_length", whole(head_dim)));
        keys.push(("rope.dimension_count", whole(head_dim)));
        keys.push(("rope.freq_base", Value::Float(rope.theta)));
        let eps = read.positive("rms_norm_eps", 1e-6);
        keys.push(("attention.layer_norm_rms_epsilon", Value::Float(eps)));
    }
    keys.push(("context_length", whole(context)));
    if !read.problems.is_empty() {
        return Err(Error::input(SUMMARY, read.problems));
    }
    let name = architecture.name;
    let keys = keys.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)).collect();
    Ok(Described { architecture, keys, head_dim, notes })
}

/// The sliding window of some or all layers.
fn window(read: &mut Keys, model_type: &str) -> Option<usize> {
    let slides = match model_type {
        "mistral" => !read.named("sliding_window") || read.get("sliding_window").is_some(),
        "qwen2" | "qwen3" => read.flag("use_sliding_window", false),
        _ => false,
    };
    slides.then(|| read.size_or("sliding_window", 4096))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
