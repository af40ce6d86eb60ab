//! A model's `config.json` as GGUF's metadata.

use serde_json::Value as Json;

use super::architecture::Architecture;
use super::metadata::Value;
use super::rope;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::families::Outline;
use crate::model::keys::Keys;
use crate::model::rotary::{self, Asked, Rotary};

/// What a model's keys are in GGUF, and what of it is said otherwise there.
pub(super) struct Described {
    pub architecture: &'static Architecture,
    pub keys: Vec<(String, Value)>,
    /// Elements of a head.
    pub head_dim: usize,
    /// Divisors of the rotary frequencies, for a tensor of their own.
    pub divisors: Option<Vec<f32>>,
    /// Lines for the user.
    pub notes: Vec<String>,
}

/// Keys without the architecture's name.
type Short = Vec<(&'static str, Value)>;

fn whole(n: usize) -> Value {
    Value::Unsigned(n as u64)
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
    let mut keys = vec![
        ("embedding_length", whole(hidden)),
        ("block_count", whole(outline.layers)),
        ("attention.head_count", whole(heads)),
        ("vocab_size", whole(outline.vocab_size)),
    ];
    let mut notes = Vec::new();
    let mut context = outline.max_positions;
    let mut divisors = None;
    if gpt2 {
        let inner = read.size_or("n_inner", 4 * hidden);
        keys.push(("feed_forward_length", whole(inner)));
        let eps = read.positive("layer_norm_epsilon", 1e-5);
        keys.push(("attention.layer_norm_epsilon", Value::Float(eps)));
    } else {
        if let Some(window) = window(&mut read, model_type).filter(|&w| w < context) {
            notes.push(format!(
                "context_length is the sliding window, {window} tokens: llama.cpp has none for \
                 {model_type}, and beyond it would compute something else"
            ));
            context = window;
        }
        keys.push(("feed_forward_length", whole(read.size("intermediate_size"))));
        keys.push((
            "attention.head_count_kv",
            whole(outline.kv_width.checked_div(head_dim).unwrap_or(0)),
        ));
        keys.push(("attention.key_length", whole(head_dim)));
        keys.push(("attention.value_length", whole(head_dim)));
        let rotary = rotary_of(&mut read, model_type, head_dim);
        keys.push(("rope.dimension_count", whole(rotary.width)));
        keys.push(("rope.freq_base", Value::Float(rotary.theta)));
        let kind = |holder: &str| Some(read.get(holder)?.get("rope_type")?.as_str()? == "dynamic");
        if ["rope_parameters", "rope_scaling"].iter().any(|holder| kind(holder) == Some(true)) {
            notes.push(
                "rope_type \"dynamic\" is left out: it changes positions beyond the context alone"
                    .into(),
            );
        }
        let scaled = rope::written(&mut read, architecture, &rotary);
        keys.extend(scaled.keys);
        divisors = scaled.divisors;
        keys.push(epsilon(&mut read, model_type));
        let sizes = Sizes { head_dim, heads, outline: &outline };
        keys.extend(of_family(&mut read, model_type, &sizes));
    }
    keys.push(("context_length", whole(context)));
    if !read.problems.is_empty() {
        return Err(Error::input(SUMMARY, read.problems));
    }
    let name = architecture.name;
    let keys = keys.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)).collect();
    Ok(Described { architecture, keys, head_dim, divisors, notes })
}

/// Rotary positions of all layers, or of those without a window, as the family reads them.
fn rotary_of(read: &mut Keys, model_type: &str, head_dim: usize) -> Rotary {
    let (theta, partial) = match model_type {
        "gemma3_text" => (1_000_000.0, None),
        "phi3" => (10_000.0, Some(1.0)),
        "smollm3" => (2_000_000.0, None),
        "stablelm" => (10_000.0, Some(0.25)),
        _ => (10_000.0, None),
    };
    let asked = Asked { head_dim, theta, types: rotary::ALL, partial };
    match model_type {
        "gemma3_text" => Rotary::read_of(read, asked, "full_attention", true, "rope_theta"),
        _ => Rotary::read(read, asked),
    }
}

fn epsilon(read: &mut Keys, model_type: &str) -> (&'static str, Value) {
    let (key, default) = match model_type {
        "stablelm" => ("layer_norm_eps", 1e-5),
        "olmo2" | "phi3" => ("rms_norm_eps", 1e-5),
        _ => ("rms_norm_eps", 1e-6),
    };
    let name = match model_type {
        "stablelm" => "attention.layer_norm_epsilon",
        _ => "attention.layer_norm_rms_epsilon",
    };
    (name, Value::Float(read.positive(key, default)))
}

struct Sizes<'a> {
    head_dim: usize,
    heads: usize,
    outline: &'a Outline,
}

/// What a family says besides, and problems for what llama.cpp has no key for.
fn of_family(read: &mut Keys, model_type: &str, sizes: &Sizes) -> Short {
    let Outline { hidden_size, layers, .. } = *sizes.outline;
    let plain = hidden_size.checked_div(sizes.heads).unwrap_or(0);
    if ["olmo2", "phi3", "stablelm", "granite"].contains(&model_type) && sizes.head_dim != plain {
        let what = format!(
            "is {}; llama.cpp takes hidden_size / num_attention_heads, {plain}",
            sizes.head_dim
        );
        read.problem("head_dim", what);
    }
    if ["olmo2", "stablelm"].contains(&model_type) && read.flag("tie_word_embeddings", false) {
        let what = "is true, and llama.cpp asks for a head of its own of this family";
        read.problem("tie_word_embeddings", what);
    }
    match model_type {
        "gemma2" | "gemma3_text" => gemma(read, model_type, sizes),
        "granite" => [
            ("attention_multiplier", "attention.scale"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
        ]
        .map(|(key, name)| (name, Value::Float(read.positive(key, 1.0))))
        .into(),
        "smollm3" => {
            let every = |turns: u64, layer: usize| u64::from(!layer.is_multiple_of(4)) == turns;
            let fits = match read.get("no_rope_layers").and_then(Json::as_array) {
                Some(list) => list.iter().take(layers).enumerate().all(|(i, turns)| {
                    let turns = turns.as_u64().or(turns.as_bool().map(u64::from));
                    turns.is_some_and(|turns| every(turns, i + 1))
                }),
                None => read.size_or("no_rope_layer_interval", 4) == 4,
            };
            if !fits {
                let what =
                    "are others than every fourth, which llama.cpp takes whatever a file says";
                read.problem("no_rope_layers", what);
            }
            Vec::new()
        }
        _ => Vec::new(),
    }
}

fn gemma(read: &mut Keys, model_type: &str, sizes: &Sizes) -> Short {
    let Outline { hidden_size, layers, .. } = *sizes.outline;
    let second = model_type == "gemma2";
    let mut keys = Vec::new();
    let largest = layers == if second { 46 } else { 62 };
    let wanted = if largest { hidden_size / sizes.heads.max(1) } else { sizes.head_dim };
    let scalar = read.positive("query_pre_attn_scalar", 256.0);
    if scalar != wanted as f64 {
        let what = format!("is {scalar}; llama.cpp takes {wanted}, whatever a file says");
        read.problem("query_pre_attn_scalar", what);
    }
    let types = read.layer_types(layers, &["full_attention", "sliding_attention"]);
    let default = if second { 2 } else { 6 };
    let every = read.size_or("sliding_window_pattern", default).max(1);
    let slides: Vec<bool> = match types {
        Some(types) => types.iter().map(|kind| *kind == "sliding_attention").collect(),
        None => (1..=layers).map(|layer| !layer.is_multiple_of(every)).collect(),
    };
    if second || slides.contains(&true) {
        keys.push(("attention.sliding_window", whole(read.size_or("sliding_window", 4096))));
        if slides.iter().enumerate().any(|(i, &s)| s == (i + 1).is_multiple_of(default)) {
            let list = slides.iter().map(|&slides| Value::Bool(slides)).collect();
            keys.push(("attention.sliding_window_pattern", Value::List(list)));
        }
    }
    if !second {
        let asked =
            Asked { head_dim: sizes.head_dim, theta: 10_000.0, types: rotary::ALL, partial: None };
        let local =
            Rotary::read_of(read, asked, "sliding_attention", false, "rope_local_base_freq");
        keys.push(("rope.freq_base_swa", Value::Float(local.theta)));
        return keys;
    }
    if !read.flag("tie_word_embeddings", true) {
        let what = "is false, and llama.cpp takes the embedding for the head of this family";
        read.problem("tie_word_embeddings", what);
    }
    for (key, default) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        if read.named(key) && read.get(key).is_none() {
            let what = "is null, and llama.cpp bounds these values of this family always";
            read.problem(key, what);
        }
        keys.push((key, Value::Float(read.positive(key, default))));
    }
    keys
}

/// The sliding window of some or all layers, of families that llama.cpp gives none.
fn window(read: &mut Keys, model_type: &str) -> Option<usize> {
    let set = read.get("sliding_window").is_some();
    let slides = match model_type {
        "mistral" => !read.named("sliding_window") || set,
        "phi3" => set,
        "qwen2" | "qwen3" => read.flag("use_sliding_window", false),
        "smollm3" => read.flag("use_sliding_window", false) && set,
        _ => false,
    };
    slides.then(|| read.size_or("sliding_window", 4096))
}
