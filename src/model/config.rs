//! The shape of a decoder, read from and written to a Hugging Face `config.json`.
//!
//! Every setting is either handled, known to change nothing, or refused by name. An unknown
//! key is kept, so that writing the configuration back loses nothing.
//!
//! transformers 5 writes `rope_parameters {rope_theta, rope_type}` and `dtype`; transformers 4
//! wrote `rope_theta`, `rope_scaling` and `torch_dtype`. Both load, and what is written holds
//! both spellings, so that either version reads it.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Problem, Result};

/// Which Hugging Face architecture the folder claims. All share one decoder; they differ in
/// defaults and in whether q, k and v have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `model_type: llama`.
    Llama,
    /// `model_type: mistral`, without a sliding window shorter than the context.
    Mistral,
    /// `model_type: qwen2`: Llama with a bias on q, k and v.
    Qwen2,
}

const SUMMARY: &str = "the model configuration cannot be used";

impl Family {
    const ALL: [Self; 3] = [Self::Llama, Self::Mistral, Self::Qwen2];

    /// The value of `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
        }
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
        }
    }
}

/// What a decoder is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The Hugging Face architecture.
    pub family: Family,
    /// V: rows of the embedding and of the head.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the gated MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// H: query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even, for the rotary pairs.
    pub head_dim: usize,
    /// Longest position the model was made for, in tokens.
    pub max_positions: usize,
    /// Added to the mean square inside every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The head is the embedding itself and has no tensor of its own.
    pub tied: bool,
    /// q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// Standard deviation of freshly initialised weights.
    pub initializer_range: f64,
    /// Beginning-of-sequence id, if the model names one.
    pub bos_id: Option<u32>,
    /// End-of-sequence ids; the first is the one written after a response. May be empty.
    pub eos_ids: Vec<u32>,
    /// Padding id, if the model names one. Nothing here pads; it is kept for whoever does.
    pub pad_id: Option<u32>,
    /// Keys of `config.json` that change nothing here, kept for writing back.
    pub extra: Map<String, Value>,
}

/// What a parameter is, which decides its initial values and its weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// Token embedding `[V, D]`.
    Embedding,
    /// A matrix `[out, in]`, applied as `x Wᵀ`; the untied head is one too.
    Linear,
    /// The gain of an RMSNorm, `[D]`.
    Norm,
    /// A bias, `[out]`.
    Bias,
}

/// Weight decay skips norms and biases, not embeddings (as TRL and transformers have it).
pub fn decays(kind: ParameterKind) -> bool {
    matches!(kind, ParameterKind::Embedding | ParameterKind::Linear)
}

/// One tensor of a model: its Hugging Face name, shape and kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Hugging Face name, for example `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: ParameterKind,
}

impl ParameterSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if a dimension is zero, which [`ModelConfig::load`] refuses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Larger sizes are mistakes in the file, not models; the bound also keeps products in range.
const LARGEST_SIZE: usize = 1 << 24;
const MOST_LAYERS: usize = 4096;
const LARGEST_WIDTH: usize = 1 << 20;

impl ModelConfig {
    /// Reads `config.json` in a model folder. All problems are reported at once.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.is_file() {
            return Err(Error::file(
                folder,
                "is not a model folder: it has no config.json. Name a folder that transformers' save_pretrained wrote, or a checkpoint of oddgrad.",
            ));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::file(&path, format!("is not JSON ({e}); a model folder needs the config.json that transformers writes")))?;
        Self::from_json(&path.display().to_string(), &value)
    }

    /// Reads the parsed `config.json`; `place` names it in messages.
    pub fn from_json(place: &str, value: &Value) -> Result<Self> {
        let Value::Object(map) = value else {
            return Err(Error::input(SUMMARY, vec![Problem::new(place, "is not a JSON object")]));
        };
        let mut keys = Keys { place, map: map.clone(), problems: Vec::new() };
        // Another family's file uses other names: listing those as missing would not help.
        if let Some(Value::String(other)) = map.get("model_type")
            && !Family::ALL.iter().any(|f| f.model_type() == other)
        {
            keys.problem(
                "model_type",
                format!("is `{other}`; llama, mistral and qwen2 are supported"),
            );
            return Err(Error::input(SUMMARY, keys.problems));
        }
        let config = read(&mut keys);
        if keys.problems.is_empty() {
            Ok(config)
        } else {
            Err(Error::input(SUMMARY, keys.problems))
        }
    }

    /// The `config.json` of this model, readable by transformers 4 and 5.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        out.insert("architectures".into(), json!([self.family.architecture()]));
        out.insert("model_type".into(), json!(self.family.model_type()));
        let eos = match self.eos_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        for (key, value) in [
            ("vocab_size", json!(self.vocab_size)),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("num_hidden_layers", json!(self.layers)),
            ("num_attention_heads", json!(self.heads)),
            ("num_key_value_heads", json!(self.kv_heads)),
            ("head_dim", json!(self.head_dim)),
            ("max_position_embeddings", json!(self.max_positions)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("hidden_act", json!("silu")),
            ("rope_theta", json!(self.rope_theta)),
            ("rope_scaling", Value::Null),
            ("rope_parameters", json!({"rope_theta": self.rope_theta, "rope_type": "default"})),
            ("tie_word_embeddings", json!(self.tied)),
            ("initializer_range", json!(self.initializer_range)),
            ("bos_token_id", json!(self.bos_id)),
            ("eos_token_id", eos),
            ("pad_token_id", json!(self.pad_id)),
            ("dtype", json!("float32")),
            ("torch_dtype", json!("float32")),
        ] {
            out.insert(key.into(), value);
        }
        for (key, value) in &self.extra {
            out.insert(key.clone(), value.clone());
        }
        // One of the two spellings may have come with the folder; both must say the same.
        let dtype = self
            .extra
            .get("dtype")
            .or_else(|| self.extra.get("torch_dtype"))
            .filter(|d| !d.is_null());
        if let Some(dtype) = dtype {
            out.insert("dtype".into(), dtype.clone());
            out.insert("torch_dtype".into(), dtype.clone());
        }
        Value::Object(out)
    }

    /// Every tensor of the model, in the order of the Hugging Face state dictionary.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let mut list = Vec::new();
        let mut add = |name: String, shape: &[usize], kind| {
            list.push(ParameterSpec { name, shape: shape.to_vec(), kind });
        };
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        add("model.embed_tokens.weight".into(), &[self.vocab_size, d], ParameterKind::Embedding);
        for layer in 0..self.layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            for (name, out) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(at(&format!("self_attn.{name}.weight")), &[out, d], ParameterKind::Linear);
                if self.qkv_bias {
                    add(at(&format!("self_attn.{name}.bias")), &[out], ParameterKind::Bias);
                }
            }
            add(at("self_attn.o_proj.weight"), &[d, q], ParameterKind::Linear);
            add(at("mlp.gate_proj.weight"), &[f, d], ParameterKind::Linear);
            add(at("mlp.up_proj.weight"), &[f, d], ParameterKind::Linear);
            add(at("mlp.down_proj.weight"), &[d, f], ParameterKind::Linear);
            add(at("input_layernorm.weight"), &[d], ParameterKind::Norm);
            add(at("post_attention_layernorm.weight"), &[d], ParameterKind::Norm);
        }
        add("model.norm.weight".into(), &[d], ParameterKind::Norm);
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocab_size, d], ParameterKind::Linear);
        }
        list
    }

    /// Number of trained values: a tied head counts once.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(ParameterSpec::len).sum()
    }
}

fn read(keys: &mut Keys) -> ModelConfig {
    let model_type = keys.take("model_type");
    let model_type = model_type.as_ref().and_then(Value::as_str);
    let family = Family::ALL.into_iter().find(|f| Some(f.model_type()) == model_type);
    let family = family.unwrap_or_else(|| {
        keys.problem("model_type", "is missing; llama, mistral and qwen2 are supported");
        Family::Llama
    });
    let vocab_size = keys.size("vocab_size");
    let hidden_size = keys.size("hidden_size");
    let intermediate_size = keys.size("intermediate_size");
    let layers = keys.size("num_hidden_layers");
    if layers > MOST_LAYERS {
        keys.problem(
            "num_hidden_layers",
            format!("is {layers}; more than {MOST_LAYERS} is not a model"),
        );
    }
    let heads = keys.size("num_attention_heads");
    let max_positions = keys.size("max_position_embeddings");
    // transformers fills a missing count with the number of heads for Llama only; the others have
    // a default of their own that would silently be somebody else's model.
    let kv_heads = if keys.present("num_key_value_heads") || family != Family::Llama {
        keys.size("num_key_value_heads")
    } else {
        keys.take("num_key_value_heads");
        heads
    };
    let head_dim = if keys.present("head_dim") {
        keys.size("head_dim")
    } else {
        keys.take("head_dim");
        if heads > 0 && !hidden_size.is_multiple_of(heads) {
            keys.problem(
                "hidden_size",
                format!("is {hidden_size}, which num_attention_heads {heads} does not divide; set head_dim if that is meant"),
            );
        }
        hidden_size.checked_div(heads).unwrap_or(0)
    };
    if kv_heads > 0 && !heads.is_multiple_of(kv_heads) {
        keys.problem(
            "num_key_value_heads",
            format!("is {kv_heads}, which does not divide num_attention_heads {heads}"),
        );
    }
    if !head_dim.is_multiple_of(2) {
        keys.problem("head_dim", format!("is {head_dim}; rotary positions need an even one"));
    }
    for (key, width) in [
        ("hidden_size", hidden_size),
        ("intermediate_size", intermediate_size),
        ("num_attention_heads", heads.saturating_mul(head_dim)),
    ] {
        if width > LARGEST_WIDTH {
            keys.problem(
                key,
                format!("asks for a width of {width}; more than {LARGEST_WIDTH} is not a model"),
            );
        }
    }
    let rms_norm_eps = keys.positive("rms_norm_eps", 1e-6);
    let initializer_range = keys.positive("initializer_range", 0.02);
    let rope_theta = read_rope(keys);
    let tied = keys.flag("tie_word_embeddings", false);
    refuse_unhandled(keys, family, max_positions);

    let bos_id = keys.ids("bos_token_id", vocab_size).first().copied();
    let eos_ids = keys.ids("eos_token_id", vocab_size);
    let pad_id =
        keys.take("pad_token_id").and_then(|v| v.as_u64()).and_then(|v| u32::try_from(v).ok());
    ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        max_positions,
        rms_norm_eps,
        rope_theta,
        tied,
        qkv_bias: family == Family::Qwen2,
        initializer_range,
        bos_id,
        eos_ids,
        pad_id,
        extra: std::mem::take(&mut keys.map),
    }
}

/// The rotary base from whichever of the three places names it.
fn read_rope(keys: &mut Keys) -> f64 {
    let mut found: Vec<(String, f64)> = Vec::new();
    for holder in ["rope_parameters", "rope_scaling"] {
        match keys.take(holder) {
            None | Some(Value::Null) => {}
            Some(Value::Object(inner)) => {
                let kind = inner.get("rope_type").or_else(|| inner.get("type"));
                match kind {
                    None | Some(Value::Null) => {}
                    Some(Value::String(s)) if s == "default" => {}
                    Some(other) => keys.problem(
                        holder,
                        format!("has rope_type {other}; only plain rotary positions (\"default\") are supported"),
                    ),
                }
                for (key, value) in &inner {
                    let at = format!("{holder}.{key}");
                    match key.as_str() {
                        "rope_type" | "type" => {}
                        "rope_theta" => match value.as_f64() {
                            Some(theta) => found.push((at, theta)),
                            None => keys.problem(&at, format!("is {value}, not a number")),
                        },
                        "partial_rotary_factor"
                            if value.as_f64() == Some(1.0) || value.is_null() => {}
                        // Those of a scaled type are covered by the message about the type.
                        _ if kind.is_some_and(|k| k != "default") => {}
                        _ => keys.problem(&at, format!("is {value}, which is not supported")),
                    }
                }
            }
            Some(other) => keys.problem(holder, format!("is {other}, not an object")),
        }
    }
    match keys.take("rope_theta") {
        None | Some(Value::Null) => {}
        Some(value) => match value.as_f64() {
            Some(theta) => found.push(("rope_theta".into(), theta)),
            None => keys.problem("rope_theta", format!("is {value}, not a number")),
        },
    }
    let Some((first, theta)) = found.first().cloned() else {
        return 10_000.0;
    };
    for (place, other) in &found[1..] {
        if *other != theta {
            keys.problem(place, format!("is {other} but {first} is {theta}; remove one of them"));
        }
    }
    if !(theta > 0.0 && theta.is_finite()) {
        keys.problem(&first, format!("is {theta}; it must be positive"));
    }
    theta
}

/// Settings that would change the model's output and that this decoder does not have.
fn refuse_unhandled(keys: &mut Keys, family: Family, max_positions: usize) {
    if let Some(value) = keys.take("hidden_act")
        && value != "silu"
        && value != "swish"
    {
        keys.problem("hidden_act", format!("is {value}; only \"silu\" is supported"));
    }
    for (key, harmless) in [
        ("attention_bias", json!(false)),
        ("mlp_bias", json!(false)),
        ("attention_dropout", json!(0)),
        ("hidden_dropout", json!(0)),
        ("resid_pdrop", json!(0)),
        ("embd_pdrop", json!(0)),
        ("partial_rotary_factor", json!(1)),
        ("residual_multiplier", json!(1)),
        ("embedding_multiplier", json!(1)),
        ("logits_scaling", json!(1)),
        ("attn_logit_softcapping", Value::Null),
        ("final_logit_softcapping", Value::Null),
        ("quantization_config", Value::Null),
        ("is_encoder_decoder", json!(false)),
        ("add_cross_attention", json!(false)),
        ("no_rope_layers", Value::Null),
    ] {
        let Some(value) = keys.map.get(key).filter(|v| !v.is_null()) else {
            continue;
        };
        let same = match (value.as_f64(), harmless.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => *value == harmless,
        };
        if !same {
            let meant = if harmless.is_null() { "null".into() } else { harmless.to_string() };
            keys.problem(key, format!("is {value}, which is not supported; only {meant} is"));
        }
    }
    if let Some(Value::Array(types)) = keys.map.get("layer_types")
        && let Some(other) = types.iter().find(|t| *t != "full_attention")
    {
        keys.problem("layer_types", format!("has {other}; only \"full_attention\" is supported"));
    }
    // A window no shorter than the context never cuts anything off; Qwen2 names one and then
    // switches it off.
    let window = keys.map.get("sliding_window").and_then(Value::as_f64);
    let switched = match family {
        Family::Qwen2 => {
            keys.map.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(false)
        }
        _ => true,
    };
    if let Some(window) = window
        && switched
        && window < max_positions as f64
    {
        keys.problem(
            "sliding_window",
            format!("is {window}, shorter than max_position_embeddings {max_positions}; sliding windows are not supported"),
        );
    }
}

/// The keys still unread, and what was wrong with those read.
struct Keys<'a> {
    place: &'a str,
    map: Map<String, Value>,
    problems: Vec<Problem>,
}

impl Keys<'_> {
    fn problem(&mut self, key: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(format!("{}: {key}", self.place), what));
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key)
    }

    fn present(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|v| !v.is_null())
    }

    /// A whole number from 1 to [`LARGEST_SIZE`].
    fn size(&mut self, key: &str) -> usize {
        let value = self.take(key);
        let problem = match &value {
            None | Some(Value::Null) => "is missing".to_string(),
            Some(v) => match v.as_u64() {
                Some(n) if (1..=LARGEST_SIZE as u64).contains(&n) => return n as usize,
                _ => format!("is {v}; it must be a whole number from 1 to {LARGEST_SIZE}"),
            },
        };
        self.problem(key, problem);
        // Any harmless value: the configuration is refused anyway, and later checks must not
        // repeat this problem in other words.
        0
    }

    fn positive(&mut self, key: &str, default: f64) -> f64 {
        match self.take(key) {
            None | Some(Value::Null) => default,
            Some(value) => match value.as_f64() {
                Some(v) if v > 0.0 && v.is_finite() => v,
                _ => {
                    self.problem(key, format!("is {value}; it must be a positive number"));
                    default
                }
            },
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.take(key) {
            None | Some(Value::Null) => default,
            Some(Value::Bool(b)) => b,
            Some(value) => {
                self.problem(key, format!("is {value}; it must be true or false"));
                default
            }
        }
    }

    /// A token id or a list of them; -1 is how some folders say "none".
    fn ids(&mut self, key: &str, vocab_size: usize) -> Vec<u32> {
        let values = match self.take(key) {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        let mut ids = Vec::new();
        for value in values {
            match value.as_i64() {
                Some(-1) => {}
                Some(id) if id >= 0 && (vocab_size == 0 || (id as u64) < vocab_size as u64) => {
                    ids.push(id as u32);
                }
                _ => self.problem(
                    key,
                    format!("is {value}; it must be a token id below vocab_size {vocab_size}"),
                ),
            }
        }
        ids
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
