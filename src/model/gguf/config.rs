//! A model's sizes: the `config.json` of GGUF's metadata.

use serde_json::{Map, Value as Json, json};

use super::architecture::Architecture;
use super::file::GgufFile;
use super::metadata::{Reading, Value};
use super::rope;
use crate::dtype::DType;
use crate::error::{Error, Result};

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
const WINDOW: &str = "attention.sliding_window";
const PATTERN: &str = "attention.sliding_window_pattern";

/// Keys of one architecture that are read below.
fn own(name: &str) -> &'static [&'static str] {
    match name {
        "gemma2" => &[WINDOW, PATTERN, "attn_logit_softcapping", "final_logit_softcapping"],
        "gemma3" => &[WINDOW, PATTERN, "rope.freq_base_swa"],
        "granite" => &["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
        "phi3" => &[WINDOW],
        _ => &[],
    }
}

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
    refuse_others(&mut read, name);
    let mut json = match name {
        "gpt2" => gpt2(&mut read, file),
        _ => llama(&mut read, architecture, file)?,
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
fn is_fine(name: &str, key: &str, value: &Value) -> bool {
    if READ.contains(&key) || rope::READ.contains(&key) || own(name).contains(&key) {
        return true;
    }
    match key {
        "vocab_size" => true,
        "attention.causal" => *value == Value::Bool(true),
        // Of StableLM the norms tell whether its blocks are parallel.
        "use_parallel_residual" => name == "stablelm" || *value == Value::Bool(true),
        "expert_count" | "expert_used_count" | WINDOW => value.as_u64() == Some(0),
        "final_logit_softcapping" => value.as_f64() == Some(0.0),
        // Granite's word for layers that turn at all.
        "rope.scaling.finetuned" => name != "granite" || *value == Value::Bool(true),
        _ => false,
    }
}

fn refuse_others(read: &mut Reading, architecture: &str) {
    for (key, value) in read.metadata.iter() {
        let short = key.strip_prefix(architecture).and_then(|key| key.strip_prefix('.'));
        if short.is_some_and(|short| !is_fine(architecture, short, value)) {
            read.problem(key, format!("is {value}, which is not supported"));
        }
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
fn llama(
    read: &mut Reading,
    architecture: &Architecture,
    file: &GgufFile,
) -> Result<Map<String, Json>> {
    let name = architecture.name;
    let at = |key: &str| format!("{name}.{key}");
    let hidden = read.needed(&at("embedding_length"));
    let heads = read.needed(&at("attention.head_count"));
    let head_dim = read.whole(&at("attention.key_length"));
    let head_dim = head_dim.or(hidden.checked_div(heads)).unwrap_or(0);
    let turning = read.whole(&at("rope.dimension_count")).unwrap_or(head_dim);
    let partial = ["phi3", "stablelm"].contains(&name);
    let widths = [
        ("attention.value_length", read.whole(&at("attention.value_length")).unwrap_or(head_dim)),
        ("rope.dimension_count", if partial { head_dim } else { turning }),
    ];
    for (key, other) in widths.into_iter().filter(|(_, n)| *n != head_dim) {
        let what = format!("is {other}; only the head's width {head_dim} is supported");
        read.problem(&at(key), what);
    }
    let context = read.needed(&at("context_length"));
    let theta = read.number(&at("rope.freq_base")).unwrap_or(THETA);
    let rope = rope::parameters(read, architecture, file, theta, turning, context)?;
    let layers = layers(read, &at("block_count"), file);
    let scaled = rope["rope_type"] != "default";
    let json = json!({
        "attention_bias": false,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": read.needed(&at("feed_forward_length")),
        "max_position_embeddings": context,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": read.whole(&at("attention.head_count_kv")).unwrap_or(heads),
        "rope_scaling": if scaled { Json::Object(rope.clone()) } else { Json::Null },
        "rope_parameters": rope,
        "rope_theta": theta,
        "use_cache": true,
    });
    let Json::Object(mut json) = json else { unreachable!("it is written as one") };
    let (eps, eps_key) = match name {
        "stablelm" => ("layer_norm_eps", "attention.layer_norm_epsilon"),
        _ => ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    };
    if read.metadata.get(&at(eps_key)).is_none() {
        read.problem(&at(eps_key), "is missing");
    }
    json.insert(eps.into(), read.number(&at(eps_key)).into());
    if partial {
        json.insert("partial_rotary_factor".into(), (turning as f64 / head_dim as f64).into());
    }
    let more = match name {
        "llama" => json!({"mlp_bias": false}),
        // Where no layer has a window.
        "qwen2" | "qwen3" => json!({"use_sliding_window": false, "sliding_window": null}),
        "phi3" => json!({
            "embd_pdrop": 0.0,
            "original_max_position_embeddings":
                read.whole(&at(rope::ORIGINAL)).unwrap_or(context),
            "resid_pdrop": 0.0,
            "sliding_window": read.whole(&at(WINDOW)).filter(|&window| window > 0),
        }),
        "gemma2" | "gemma3" => gemma(read, name, &json, layers),
        "granite" => json!({
            "attention_multiplier":
                scale(read, &at("attention.scale")).unwrap_or((head_dim as f64).sqrt().recip()),
            "embedding_multiplier": scale(read, &at("embedding_scale")).unwrap_or(1.0),
            "logits_scaling": scale(read, &at("logit_scale")).unwrap_or(1.0),
            "mlp_bias": false,
            "residual_multiplier": scale(read, &at("residual_scale")).unwrap_or(1.0),
        }),
        "smollm3" => json!({
            "mlp_bias": false,
            "no_rope_layer_interval": 4,
            "no_rope_layers":
                (1..=layers).map(|layer| u8::from(!u64::is_multiple_of(layer, 4))).collect::<Vec<_>>(),
            "sliding_window": null,
            "use_sliding_window": false,
        }),
        "stablelm" => json!({
            "hidden_dropout": 0.0,
            "qk_layernorm": false,
            "use_parallel_residual": false,
            "use_qkv_bias": file.tensors().contains_key("blk.0.attn_q.bias"),
        }),
        _ => json!({}),
    };
    let Json::Object(more) = more else { unreachable!("it is written as one") };
    json.extend(more);
    Ok(json)
}

/// A multiplier; 0 is how a file says none.
fn scale(read: &mut Reading, key: &str) -> Option<f64> {
    read.number(key).filter(|&scale| scale != 0.0)
}

/// What Gemma 2 and 3 have besides.
fn gemma(read: &mut Reading, name: &str, json: &Map<String, Json>, layers: u64) -> Json {
    let at = |key: &str| format!("{name}.{key}");
    let size = |key: &str| json[key].as_u64().unwrap_or(0);
    // What llama.cpp takes for the largest models, which no key says.
    let largest = layers == if name == "gemma2" { 46 } else { 62 };
    let scalar = match largest {
        true => size("hidden_size").checked_div(size("num_attention_heads")).unwrap_or(0),
        false => size("head_dim"),
    };
    let window = match (read.whole(&at(WINDOW)).filter(|&window| window > 0), name) {
        (None, "gemma2") => Some(4096),
        (window, _) => window,
    };
    let slides = pattern(read, &at(PATTERN), if name == "gemma2" { 2 } else { 6 }, layers);
    let kinds = slides.iter().map(|&slides| match slides && window.is_some() {
        true => "sliding_attention",
        false => "full_attention",
    });
    let mut more = json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "layer_types": kinds.collect::<Vec<_>>(),
        "query_pre_attn_scalar": scalar,
        "sliding_window": window.unwrap_or(4096),
    });
    if name == "gemma2" {
        let cap =
            |read: &mut Reading, key: &str, default: f64| read.number(&at(key)).unwrap_or(default);
        more["attn_logit_softcapping"] = cap(read, "attn_logit_softcapping", 50.0).into();
        more["final_logit_softcapping"] = cap(read, "final_logit_softcapping", 30.0).into();
    } else {
        let local = read.number(&at("rope.freq_base_swa")).unwrap_or(THETA);
        more["rope_local_base_freq"] = local.into();
        more["rope_parameters"] = json!({
            "full_attention": json["rope_parameters"],
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        });
    }
    more
}

/// The layers that have a window: a list, or all but every so many.
fn pattern(read: &mut Reading, key: &str, default: u64, layers: u64) -> Vec<bool> {
    let every = match read.metadata.get(key) {
        Some(Value::List(_)) => {
            let flag = |value: &Value| match value {
                Value::Bool(slides) => Some(*slides),
                other => other.as_u64().map(|n| n != 0),
            };
            let list = read.list(key, "an array of true and false", flag).unwrap_or_default();
            if list.len() as u64 != layers {
                let what = format!("has {} values for {layers} layers", list.len());
                read.problem(key, what);
            }
            return list;
        }
        Some(_) => read.whole(key).unwrap_or(default),
        None => default,
    };
    (1..=layers).map(|layer| every == 0 || !u64::is_multiple_of(layer, every)).collect()
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

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
