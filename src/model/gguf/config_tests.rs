use super::*;
use crate::model::gguf::blocks::BlockType;
use crate::model::gguf::writer::{Unwritten, write};

type Keys = Vec<(String, Value)>;

/// The keys of a small Llama.
fn keys() -> Keys {
    let whole = |n: u64| Value::Unsigned(n);
    let keys = [
        ("general.architecture", Value::Text("llama".into())),
        ("llama.embedding_length", whole(32)),
        ("llama.block_count", whole(1)),
        ("llama.feed_forward_length", whole(48)),
        ("llama.context_length", whole(64)),
        ("llama.attention.head_count", whole(4)),
        ("llama.attention.head_count_kv", whole(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
        ("llama.rope.freq_base", Value::Float(5e5)),
        ("tokenizer.ggml.eos_token_id", whole(7)),
    ];
    keys.map(|(key, value)| (key.to_owned(), value)).to_vec()
}

/// The `config.json` of a file with these keys and tensors.
fn read(keys: &Keys, tensors: &[&str]) -> Result<Json> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let tensor = |name: &&str| Unwritten {
        name: (*name).to_owned(),
        shape: vec![10, 32],
        kind: BlockType::F32,
        values: Box::new(|| Ok(vec![0.0; 320])),
    };
    let tensors: Vec<Unwritten> = tensors.iter().map(tensor).collect();
    write(&path, keys, &tensors).unwrap();
    config_json(&GgufFile::open(&path).unwrap(), DType::F32).map(|(_, json)| json)
}

#[test]
fn keys_become_those_of_a_folder() {
    let json = read(&keys(), &[EMBEDDING]).unwrap();
    for (key, want) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(32)),
        ("head_dim", json!(8)),
        ("num_key_value_heads", json!(2)),
        ("vocab_size", json!(10)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(5e5)),
        ("tie_word_embeddings", json!(true)),
        ("eos_token_id", json!(7)),
        ("dtype", json!("float32")),
    ] {
        assert_eq!(json[key], want, "{key}");
    }
    let untied = read(&keys(), &[EMBEDDING, HEAD]).unwrap();
    assert_eq!(untied["tie_word_embeddings"], false);
}

#[test]
fn what_would_be_another_model_is_refused() {
    let text = |text: &str| Value::Text(text.into());
    let whole = Value::Unsigned;
    for (key, value, phrase) in [
        ("llama.expert_count", whole(8), "llama.expert_count: is 8, which is not supported"),
        (
            "llama.rope.scaling.type",
            text("longrope"),
            "is \"longrope\", which is not supported; none",
        ),
        (
            "llama.rope.scaling.attn_factor",
            Value::Float(2.0),
            "is 2, which is not supported; only 1",
        ),
        ("llama.rope.scaling.alpha", Value::Float(2.0), "is 2, which is not supported"),
        ("llama.attention.sliding_window", whole(16), "is 16, which is not supported"),
        ("llama.attention.causal", Value::Bool(false), "is false, which is not supported"),
        ("llama.attention.value_length", whole(16), "only the head's width 8"),
        ("llama.rope.dimension_count", whole(4), "is 4; only the head's width 8"),
        ("llama.block_count", whole(1 << 31), "there are only 1 tensors"),
        ("llama.vocab_size", whole(11), "is 11, but token_embd.weight has 10 rows"),
        ("llama.embedding_length", text("32"), "is \"32\", a text; a whole number is expected"),
        ("llama.attention.head_count", Value::List(vec![whole(4); 2]), "is an array of 2"),
        ("llama.novel", Value::Bool(true), "llama.novel: is true, which is not supported"),
        ("general.architecture", text("mamba"), "is \"mamba\"; llama, qwen2, qwen3, phi3"),
    ] {
        let mut keys = keys();
        keys.retain(|(k, _)| k != key);
        keys.push((key.to_owned(), value));
        let error = read(&keys, &[EMBEDDING]).unwrap_err().to_string();
        assert!(error.contains(phrase), "`{phrase}` is missing: {error}");
    }
    for (key, value) in [
        ("llama.expert_count", whole(0)),
        ("llama.rope.scaling.type", text("none")),
        ("llama.rope.scaling.finetuned", Value::Bool(true)),
        ("llama.attention.key_length", whole(8)),
    ] {
        let mut keys = keys();
        keys.push((key.to_owned(), value));
        read(&keys, &[EMBEDDING]).unwrap();
    }
    let error = read(&keys(), &[EMBEDDING, "rope_freqs.weight"]).unwrap_err().to_string();
    assert!(error.contains("are no divisors that Llama 3's scaling"), "{error}");
    let error = read(&keys(), &[EMBEDDING, "rope_factors_long.weight"]).unwrap_err().to_string();
    assert!(error.contains("scaled by LongRoPE are not supported"), "{error}");
    let error = read(&keys(), &["x"]).unwrap_err().to_string();
    assert!(error.contains("token_embd.weight: is missing"), "{error}");
}

#[test]
fn every_missing_key_is_named_at_once() {
    let only = vec![keys().remove(0)];
    let error = read(&only, &[EMBEDDING]).unwrap_err().to_string();
    for key in ["embedding_length", "block_count", "head_count", "layer_norm_rms_epsilon"] {
        assert!(error.contains(key), "{key}: {error}");
    }
}

#[test]
fn scaled_positions_are_read_as_llama_cpp_does() {
    let (whole, float) = (Value::Unsigned, Value::Float);
    let text = |text: &str| Value::Text(text.into());
    let scaling = |more: &[(&str, Value)]| {
        let mut keys = keys();
        let more = more.iter().map(|(key, value)| (format!("llama.rope.{key}"), value.clone()));
        keys.extend(more);
        read(&keys, &[EMBEDDING]).map(|json| json["rope_parameters"].clone())
    };
    // Without a type a factor is that of linear positions; an older name for it; none of them.
    for (more, factor) in [
        (vec![("scaling.factor", float(4.0))], Some(4.0)),
        (vec![("scale_linear", float(2.0))], Some(2.0)),
        (vec![("scaling.factor", float(0.0)), ("scale_linear", float(1.0))], None),
        (vec![("scaling.type", text("none")), ("scaling.factor", float(4.0))], None),
    ] {
        let found = scaling(&more).unwrap();
        assert_eq!(found["factor"].as_f64(), factor, "{more:?}: {found}");
        let kind = if factor.is_some() { "linear" } else { "default" };
        assert_eq!(found["rope_type"], kind, "{more:?}");
    }
    let yarn = vec![
        ("scaling.type", text("yarn")),
        ("scaling.factor", float(4.0)),
        ("scaling.original_context_length", whole(16)),
        ("scaling.attn_factor", float(0.5)),
    ];
    let found = scaling(&yarn).unwrap();
    assert_eq!(found["original_max_position_embeddings"], 16);
    let amplitude = found["attention_factor"].as_f64().unwrap();
    assert!((amplitude - 0.5 * (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12, "{found}");
    let mut other = yarn;
    other.push(("scaling.yarn_beta_fast", float(16.0)));
    let error = scaling(&other).unwrap_err().to_string();
    assert!(error.contains("yarn_beta_fast: is 16, which is not supported; only 32"), "{error}");
}
