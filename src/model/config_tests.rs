use super::*;

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 3, "dtype": "float32", "eos_token_id": 4, "head_dim": 16,
        "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.08,
        "intermediate_size": 172, "max_position_embeddings": 256, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "pad_token_id": 5, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"},
        "tie_word_embeddings": true, "transformers_version": "5.23.0", "use_cache": false,
        "vocab_size": 512
    })
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut value = llama();
    for (key, v) in changes {
        value[*key] = v.clone();
    }
    value
}

fn problems(value: &Value) -> Vec<String> {
    match ModelConfig::from_json("config.json", value) {
        Err(Error::Input { problems, .. }) => {
            problems.into_iter().map(|p| format!("{}: {}", p.place, p.what)).collect()
        }
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn reads_both_generations() {
    let new = ModelConfig::from_json("config.json", &llama()).unwrap();
    assert_eq!((new.vocab_size, new.hidden_size, new.intermediate_size), (512, 64, 172));
    assert_eq!((new.layers, new.heads, new.kv_heads, new.head_dim), (2, 4, 2, 16));
    assert_eq!((new.max_positions, new.rms_norm_eps, new.rope_theta), (256, 1e-5, 20000.0));
    assert_eq!((new.bos_id, new.eos_ids.as_slice(), new.pad_id), (Some(3), &[4][..], Some(5)));
    assert!(new.tied && !new.qkv_bias);

    let mut old = llama();
    let map = old.as_object_mut().unwrap();
    map.remove("rope_parameters");
    map.remove("dtype");
    map.insert("rope_theta".into(), json!(20000.0));
    map.insert("rope_scaling".into(), Value::Null);
    map.insert("torch_dtype".into(), json!("float32"));
    let old = ModelConfig::from_json("config.json", &old).unwrap();
    assert_eq!(ModelConfig { extra: Map::new(), ..old }, ModelConfig { extra: Map::new(), ..new });
}

#[test]
fn defaults_are_those_of_transformers() {
    let mut value = llama();
    let map = value.as_object_mut().unwrap();
    for key in [
        "head_dim",
        "num_key_value_heads",
        "rope_parameters",
        "tie_word_embeddings",
        "rms_norm_eps",
    ] {
        map.remove(key);
    }
    map.insert("eos_token_id".into(), json!([4, 7]));
    map.insert("bos_token_id".into(), Value::Null);
    map.insert("pad_token_id".into(), json!(-1));
    let c = ModelConfig::from_json("config.json", &value).unwrap();
    assert_eq!((c.head_dim, c.kv_heads, c.rope_theta, c.tied), (16, 4, 10_000.0, false));
    assert_eq!((c.rms_norm_eps, c.bos_id, c.pad_id), (1e-6, None, None));
    assert_eq!(c.eos_ids, [4, 7]);
}

#[test]
fn writing_back_keeps_everything() {
    let first =
        ModelConfig::from_json("config.json", &with(&[("eos_token_id", json!([4, 7]))])).unwrap();
    let written = first.to_json();
    assert_eq!(written["use_cache"], json!(false));
    assert_eq!(written["transformers_version"], json!("5.23.0"));
    assert_eq!(written["rope_theta"], json!(20000.0));
    assert_eq!(written["rope_parameters"]["rope_theta"], json!(20000.0));
    assert_eq!(written["dtype"], written["torch_dtype"]);
    let mut second = ModelConfig::from_json("config.json", &written).unwrap();
    second.extra.remove("torch_dtype");
    let sorted = |m: &Map<String, Value>| {
        m.clone().into_iter().collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(sorted(&first.extra), sorted(&second.extra));
    assert_eq!(
        ModelConfig { extra: Map::new(), ..first },
        ModelConfig { extra: Map::new(), ..second }
    );

    let half =
        ModelConfig::from_json("config.json", &with(&[("dtype", json!("bfloat16"))])).unwrap();
    assert_eq!(half.to_json()["torch_dtype"], json!("bfloat16"));
}

#[test]
fn all_problems_at_once() {
    let found = problems(&with(&[
        ("vocab_size", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(15)),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("attention_dropout", json!(0.1)),
        ("rope_parameters", json!({"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0})),
        ("partial_rotary_factor", json!(0.5)),
        ("sliding_window", json!(128)),
        ("rms_norm_eps", json!("small")),
    ]));
    for key in [
        "vocab_size",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "attention_bias",
        "attention_dropout",
        "rope_parameters",
        "partial_rotary_factor",
        "sliding_window",
        "rms_norm_eps",
    ] {
        assert_eq!(
            found.iter().filter(|p| p.starts_with(&format!("config.json: {key}: "))).count(),
            1,
            "{key} once in {found:#?}"
        );
    }
    assert_eq!(found.len(), 10, "{found:#?}");
}

#[test]
fn one_problem_each() {
    for (change, key) in [
        (("model_type", json!("gpt2")), "model_type"),
        (("rope_scaling", json!({"type": "linear", "factor": 2.0})), "rope_scaling"),
        (("rope_theta", json!(5.0)), "rope_theta"),
        (("num_hidden_layers", json!(1u64 << 40)), "num_hidden_layers"),
        (("num_hidden_layers", json!(5000)), "num_hidden_layers"),
        (("hidden_size", json!(-64)), "hidden_size"),
        (("hidden_size", json!(64.5)), "hidden_size"),
        (("eos_token_id", json!(512)), "eos_token_id"),
        (("mlp_bias", json!(true)), "mlp_bias"),
        (("layer_types", json!(["full_attention", "sliding_attention"])), "layer_types"),
        (("quantization_config", json!({"bits": 4})), "quantization_config"),
    ] {
        let found = problems(&with(std::slice::from_ref(&change)));
        assert_eq!(found.len(), 1, "{change:?}: {found:#?}");
        assert!(found[0].starts_with(&format!("config.json: {key}: ")), "{found:?}");
    }
    assert_eq!(problems(&json!([1])).len(), 1);
    assert_eq!(
        problems(&json!({"model_type": "gpt2", "n_embd": 64})),
        ["config.json: model_type: is `gpt2`; llama, mistral and qwen2 are supported"]
    );
    assert!(problems(&json!({})).iter().any(|p| p.contains("hidden_size: is missing")));
}

#[test]
fn other_families() {
    let qwen = ModelConfig::from_json(
        "config.json",
        &with(&[
            ("model_type", json!("qwen2")),
            ("use_sliding_window", json!(false)),
            ("sliding_window", json!(128)),
        ]),
    )
    .unwrap();
    assert!(qwen.qkv_bias);
    let names: Vec<_> = qwen.parameters().into_iter().map(|p| p.name).collect();
    assert!(names.contains(&"model.layers.1.self_attn.k_proj.bias".to_string()));
    assert!(!names.contains(&"model.layers.1.self_attn.o_proj.bias".to_string()));

    let mistral = with(&[("model_type", json!("mistral")), ("sliding_window", json!(4096))]);
    assert!(ModelConfig::from_json("config.json", &mistral).is_ok());
    let mut short = mistral.clone();
    short["sliding_window"] = json!(255);
    assert_eq!(problems(&short).len(), 1);
    let mut silent = mistral;
    silent["num_key_value_heads"] = Value::Null;
    assert_eq!(problems(&silent), ["config.json: num_key_value_heads: is missing"]);
}

#[test]
fn parameters_of_a_small_model() {
    let mut c = ModelConfig::from_json("config.json", &llama()).unwrap();
    let list = c.parameters();
    assert_eq!(list.len(), 1 + 2 * 9 + 1);
    assert_eq!(list[0].name, "model.embed_tokens.weight");
    assert_eq!(
        (list[2].name.as_str(), list[2].shape.as_slice()),
        ("model.layers.0.self_attn.k_proj.weight", &[32, 64][..])
    );
    assert_eq!(
        (list[7].name.as_str(), list[7].shape.as_slice()),
        ("model.layers.0.mlp.down_proj.weight", &[64, 172][..])
    );
    assert_eq!(list.last().unwrap().name, "model.norm.weight");
    let skipped: Vec<_> = list.iter().filter(|p| !decays(p.kind)).map(|p| p.shape.len()).collect();
    assert_eq!(skipped, [1; 5]);
    let tied = c.parameter_count();
    c.tied = false;
    assert_eq!(c.parameters().last().unwrap().name, "lm_head.weight");
    assert_eq!(c.parameter_count() - tied, 512 * 64);
}
