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

fn read(value: &Value) -> ModelConfig {
    ModelConfig::from_json("config.json", value).unwrap()
}

/// Everything a family read.
fn sizes(value: &Value) -> String {
    format!("{:?}", read(value).decoder)
}

#[test]
fn reads_both_generations() {
    let new = read(&llama());
    assert_eq!((new.vocab_size, new.layers, new.max_positions), (512, 2, 256));
    assert_eq!(new.eos_ids, [4]);
    assert_eq!(
        sizes(&llama()),
        "Llama { sizes: Sizes { vocab: 512, hidden: 64, intermediate: 172, layers: 2, heads: 4, \
         kv_heads: 2, head_dim: 16, max_positions: 256, eps: 1e-5, rotary: Rotary { theta: 20000.0, \
         width: 16, scaling: Plain }, tied: true, std: 0.08 } }"
    );

    let mut old = llama();
    let map = old.as_object_mut().unwrap();
    map.remove("rope_parameters");
    map.remove("dtype");
    map.insert("rope_theta".into(), json!(20000.0));
    map.insert("rope_scaling".into(), Value::Null);
    map.insert("torch_dtype".into(), json!("float32"));
    assert_eq!(sizes(&old), sizes(&llama()));
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
    let explicit = with(&[
        ("head_dim", json!(16)),
        ("num_key_value_heads", json!(4)),
        ("rope_parameters", json!({"rope_theta": 10_000.0, "rope_type": "default"})),
        ("tie_word_embeddings", json!(false)),
        ("rms_norm_eps", json!(1e-6)),
    ]);
    assert_eq!(sizes(&value), sizes(&explicit));
    assert_eq!(read(&value).eos_ids, [4, 7]);
}

#[test]
fn writing_back_keeps_everything() {
    let given = with(&[("eos_token_id", json!([4, 7])), ("unknown", json!("kept"))]);
    let written = read(&given).to_json();
    for (key, value) in given.as_object().unwrap() {
        assert_eq!(&written[key], value, "{key}");
    }
    assert_eq!(written["rope_theta"], json!(20000.0));
    assert_eq!(written["rope_scaling"], Value::Null);
    assert_eq!(written["torch_dtype"], json!("float32"));
    assert_eq!(sizes(&written), sizes(&given));
    assert_eq!(read(&written).to_json(), written);

    // What is saved is f32, whatever the folder held.
    let half = read(&with(&[("dtype", json!("bfloat16"))]));
    assert_eq!(half.to_json()["dtype"], json!("float32"));
    let old = read(&with(&[("rope_parameters", Value::Null), ("rope_theta", json!(5e5))]));
    assert_eq!(old.to_json()["rope_parameters"]["rope_theta"], json!(5e5));
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
        ("rope_parameters", json!({"rope_theta": 1e4, "rope_type": "longrope", "factor": 8.0})),
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
        (("model_type", json!("bloom")), "model_type"),
        (("rope_scaling", json!({"type": "su", "factor": 2.0})), "rope_scaling"),
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
        problems(&json!({"model_type": "bloom", "n_embd": 64})),
        [format!("config.json: model_type: is `bloom`; {} are supported", supported())]
    );
    assert!(problems(&json!({}))[0].contains("model_type: is missing"));
    let bare = problems(&json!({"model_type": "llama"}));
    assert!(bare.iter().any(|p| p.contains("hidden_size: is missing")), "{bare:?}");
}

#[test]
fn qwen2_has_biases_on_queries_keys_and_values() {
    let qwen = read(&with(&[
        ("model_type", json!("qwen2")),
        ("use_sliding_window", json!(false)),
        ("sliding_window", json!(128)),
    ]));
    let has = |name: &str| qwen.parameters().iter().any(|p| p.name == name);
    assert!(has("model.layers.1.self_attn.k_proj.bias"));
    assert!(!has("model.layers.1.self_attn.o_proj.bias"));
}

#[test]
fn windows_of_mistral() {
    let long = [("model_type", json!("mistral")), ("max_position_embeddings", json!(9000))];
    let mut mistral = with(&long);
    assert!(sizes(&mistral).ends_with("window: Some(4096) }"), "transformers' own default");
    mistral["sliding_window"] = Value::Null;
    assert!(sizes(&mistral).ends_with("window: None }"));
    mistral["sliding_window"] = json!(8999);
    assert!(sizes(&mistral).ends_with("window: Some(8999) }"));
    mistral["sliding_window"] = json!(9000);
    assert!(sizes(&mistral).ends_with("window: None }"), "it cuts nothing off");
    mistral["sliding_window"] = json!(0);
    mistral["layer_types"] = json!(["sliding_attention", "full_attention"]);
    assert_eq!(problems(&mistral).len(), 2);
    let mut silent = with(&long);
    silent["num_key_value_heads"] = Value::Null;
    assert_eq!(problems(&silent), ["config.json: num_key_value_heads: is missing"]);
}

#[test]
fn windows_of_qwen2_by_layer() {
    let mut qwen = with(&[
        ("model_type", json!("qwen2")),
        ("use_sliding_window", json!(true)),
        ("sliding_window", json!(100)),
        ("max_window_layers", json!(1)),
    ]);
    let ends = |value: &Value, windows: &str| {
        let found = sizes(value);
        assert!(found.ends_with(&format!("windows: [{windows}] }}")), "{found}");
    };
    ends(&qwen, "None, Some(100)");
    qwen["layer_types"] = json!(["sliding_attention", "full_attention"]);
    ends(&qwen, "Some(100), None");
    qwen["layer_types"] = json!(["sliding_attention"]);
    assert!(problems(&qwen)[0].contains("layer_types"));
    qwen["layer_types"] = json!(["sliding_attention", "full_attention"]);
    qwen["use_sliding_window"] = json!(false);
    assert!(problems(&qwen)[0].contains("layer_types"), "nothing says how long the window is");
    qwen["layer_types"] = Value::Null;
    ends(&qwen, "None, None");
}

fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": 512, "n_embd": 64, "n_head": 4, "n_layer": 2,
        "n_positions": 128, "n_inner": null, "activation_function": "gelu_new",
        "attn_pdrop": 0.1, "resid_pdrop": 0.0, "layer_norm_epsilon": 1e-5,
    })
}

#[test]
fn gpt2_has_its_own_names() {
    let c = read(&gpt2());
    assert_eq!((c.vocab_size, c.layers, c.max_positions), (512, 2, 128));
    assert_eq!(c.head(), "transformer.wte.weight");
    // Files name no dropout that is trained with here, so a run says so.
    assert_eq!(
        c.notes,
        ["config.json: attn_pdrop is 0.1, and this program trains without dropout"]
    );
    let mut wrong = gpt2();
    wrong["activation_function"] = json!("relu");
    wrong["n_head"] = json!(5);
    wrong["scale_attn_by_inverse_layer_idx"] = json!(true);
    let found = problems(&wrong);
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn parameters_of_a_small_model() {
    let c = read(&llama());
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
    let skipped: Vec<_> = list.iter().filter(|p| !p.decays()).map(|p| p.shape.len()).collect();
    assert_eq!(skipped, [1; 5]);
    let untied = read(&with(&[("tie_word_embeddings", json!(false))]));
    assert_eq!(untied.parameters().last().unwrap().name, "lm_head.weight");
    assert_eq!(untied.parameter_count() - c.parameter_count(), 512 * 64);
}

#[test]
fn families_read_their_own_keys() {
    let named = |family: &str, changes: &[(&str, Value)]| {
        with(&[&[("model_type", json!(family))], changes].concat())
    };
    let granite = named("granite", &[("residual_multiplier", json!(0.2))]);
    assert!(sizes(&granite).ends_with("attention: 1.0, residual: 0.2, logits: 1.0 }"));
    assert!(problems(&named("granite", &[("logits_scaling", json!(0))]))[0].contains("logits_"));
    let plain = [("residual_multiplier", json!(0.2))];
    assert!(problems(&named("llama", &plain))[0].contains("residual_multiplier"));

    let smol = |changes: &[(&str, Value)]| named("smollm3", changes);
    let four = ("num_hidden_layers", json!(4));
    assert!(sizes(&smol(&[four])).contains("turns: [true, true, true, false], windows: [None"));
    let mixed = smol(&[
        ("no_rope_layers", json!([0, 1])),
        ("use_sliding_window", json!(true)),
        ("sliding_window", json!(9)),
    ]);
    assert!(sizes(&mixed).contains("turns: [false, true], windows: [Some(9), None]"));
    for wrong in [json!([1]), json!([1, 2]), json!("1")] {
        let found = problems(&smol(&[("no_rope_layers", wrong)]));
        assert!(found.len() == 1 && found[0].contains("no_rope_layers"), "{found:?}");
    }

    let lm = |changes: &[(&str, Value)]| named("stablelm", changes);
    assert!(sizes(&lm(&[("head_dim", json!(16))])).contains("width: 4"), "a quarter turns");
    for (key, value) in [
        ("use_parallel_residual", json!(true)),
        ("qk_layernorm", json!(true)),
        ("head_dim", json!(32)),
    ] {
        let found = problems(&lm(&[(key, value)]));
        assert!(found.len() == 1 && found[0].contains(key), "{found:?}");
    }

    let longrope = json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]});
    let found = problems(&named("phi3", &[("rope_parameters", longrope)]));
    assert_eq!(
        found,
        ["config.json: rope_parameters: has rope_type \"longrope\", which is not supported here; \
          only \"default\" is"]
    );
    let half = named("phi3", &[("partial_rotary_factor", json!(0.5))]);
    assert!(sizes(&half).contains("Rotary { theta: 20000.0, width: 8, scaling: Plain }"));
    let written = read(&half).to_json();
    assert_eq!(written["rope_parameters"]["partial_rotary_factor"], json!(0.5));
    assert_eq!(sizes(&written), sizes(&half));
    for part in [0.0, 0.2, 1.5] {
        let found = problems(&named("phi3", &[("partial_rotary_factor", json!(part))]));
        assert!(found.len() == 1 && found[0].contains("partial_rotary_factor"), "{found:?}");
    }
}

#[test]
fn gemma_reads_its_own_keys() {
    let named = |family: &str, changes: &[(&str, Value)]| {
        let common = [
            ("model_type", json!(family)),
            ("hidden_act", json!("gelu_pytorch_tanh")),
            ("rope_parameters", Value::Null),
        ];
        with(&[&common[..], changes].concat())
    };
    // The defaults of transformers.
    let two = sizes(&named("gemma2", &[("max_position_embeddings", json!(9000))]));
    assert!(
        two.ends_with(
            "window: Some(4096), slides: [true, false], query_scalar: 256.0, score_cap: Some(50.0), \
             logit_cap: Some(30.0) }"
        ),
        "{two}"
    );
    let bare = [("attn_logit_softcapping", Value::Null), ("final_logit_softcapping", Value::Null)];
    assert!(sizes(&named("gemma2", &bare)).ends_with("score_cap: None, logit_cap: None }"));

    let layers = ("num_hidden_layers", json!(6));
    let three = named("gemma3_text", &[layers, ("rope_local_base_freq", json!(5e3))]);
    assert!(sizes(&three).contains("rotary: Rotary { theta: 1000000.0,"));
    assert!(sizes(&three).contains("local: Rotary { theta: 5000.0,"));
    assert!(sizes(&three).contains("slides: [true, true, true, true, true, false]"));
    // Version 4 scaled the layers that attend to everything.
    let scaled = named(
        "gemma3_text",
        &[("rope_theta", json!(1e5)), ("rope_scaling", json!({"type": "linear", "factor": 8.0}))],
    );
    assert!(sizes(&scaled).contains(
        "rotary: Rotary { theta: 100000.0, width: 16, scaling: Linear { factor: 8.0 } }"
    ));
    assert!(sizes(&scaled).contains("local: Rotary { theta: 10000.0, width: 16, scaling: Plain }"));
    for value in [&three, &scaled] {
        assert_eq!(sizes(&read(value).to_json()), sizes(value));
    }

    for (family, key, value) in [
        ("gemma3_text", "attn_logit_softcapping", json!(50)),
        ("gemma3_text", "final_logit_softcapping", json!(30)),
        ("gemma3_text", "use_bidirectional_attention", json!(true)),
        ("gemma3_text", "hidden_activation", json!("gelu")),
        ("gemma3_text", "sliding_window", Value::Null),
        ("gemma3_text", "query_pre_attn_scalar", json!(0)),
        ("gemma3_text", "rope_parameters", json!({"rope_theta": 1e4})),
        ("gemma2", "attn_logit_softcapping", json!(-1)),
        ("gemma2", "layer_types", json!(["full_attention", "chunked_attention"])),
    ] {
        let found = problems(&named(family, &[(key, value)]));
        assert!(found.len() == 1 && found[0].contains(&format!(": {key}")), "{found:?}");
    }
}

#[test]
fn scaled_rope_is_written_in_both_spellings() {
    let parameters = json!({
        "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64
    });
    let new = with(&[("rope_parameters", parameters.clone())]);
    let mut old = new.clone();
    let map = old.as_object_mut().unwrap();
    map.remove("rope_parameters");
    map.insert("rope_theta".into(), json!(5e5));
    let mut scaling = parameters.clone();
    scaling.as_object_mut().unwrap().remove("rope_theta");
    map.insert("rope_scaling".into(), scaling);
    assert!(sizes(&new).contains(
        "Rotary { theta: 500000.0, width: 16, scaling: Llama3 { factor: 8.0, low: 1.0, high: 4.0, \
         original: 64.0 } }"
    ));
    assert_eq!(sizes(&old), sizes(&new));
    for value in [new, old] {
        let written = read(&value).to_json();
        assert_eq!(written["rope_parameters"], parameters);
        assert_eq!(written["rope_scaling"], parameters);
        assert_eq!(written["rope_theta"], json!(5e5));
        assert_eq!(sizes(&written), sizes(&value));
        assert_eq!(read(&written).to_json(), written);
    }
    // Version 4's word for the type.
    let linear = with(&[
        ("rope_parameters", Value::Null),
        ("rope_scaling", json!({"type": "linear", "factor": 2})),
    ]);
    assert!(sizes(&linear).contains("scaling: Linear { factor: 2.0 }"));
    assert_eq!(sizes(&read(&linear).to_json()), sizes(&linear));
}

#[test]
fn rope_that_is_not_understood_is_refused_by_key() {
    let of = |parameters: Value| with(&[("rope_parameters", parameters)]);
    for (value, key) in [
        (of(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1})), "high_freq_factor"),
        (
            of(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                "high_freq_factor": 4})),
            "high_freq_factor",
        ),
        (of(json!({"rope_type": "linear"})), "factor"),
        (of(json!({"rope_type": "linear", "factor": 0.5})), "factor"),
        (of(json!({"rope_type": "linear", "factor": "2"})), "factor"),
        (of(json!({"rope_type": "linear", "factor": 2, "beta_fast": 3})), "beta_fast"),
        (of(json!({"rope_type": "yarn", "factor": 2, "truncate": 1})), "truncate"),
        (of(json!({"rope_type": "yarn", "factor": 2, "beta_slow": 0})), "beta_slow"),
        (of(json!({"rope_type": "yarn", "original_max_position_embeddings": 9})), "factor"),
        (of(json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5})), "partial_rotary_factor"),
        (of(json!({"rope_theta": 1e4, "mrope_section": [1, 2]})), "mrope_section"),
    ] {
        let found = problems(&value);
        let place = format!("config.json: rope_parameters.{key}: ");
        assert!(found.len() == 1 && found[0].starts_with(&place), "{key}: {found:#?}");
    }
    let flat = of(json!({"rope_type": "yarn", "factor": 4, "rope_theta": 1.0}));
    assert!(problems(&flat)[0].starts_with("config.json: rope_theta: is 1, which"));
    let both = with(&[
        ("rope_parameters", json!({"rope_type": "linear", "factor": 2})),
        ("rope_scaling", json!({"type": "linear", "factor": 4})),
    ]);
    assert!(problems(&both)[0].contains("rope_scaling: differs from rope_parameters"));
    let two = with(&[("rope_scaling", json!({"type": "linear", "rope_type": "yarn"}))]);
    assert!(problems(&two)[0].contains("has rope_type \"yarn\" and type \"linear\""));
}
