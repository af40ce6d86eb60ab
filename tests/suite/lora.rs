//! LoRA from a recipe to a merged model.

use crate::families::pairs;
use crate::place::{Place, contents};
use crate::{golden, gpu};
use oddgrad::data::pack::{Capacity, pack};
use oddgrad::graph::{DType, GRAD};
use oddgrad::model::config::ModelConfig;
use oddgrad::model::lora::{Base, Lora, Targets, is_factor};
use oddgrad::model::source::read_safetensors_f64;
use oddgrad::model::weights::{
    FolderWeights, ParameterValues, Storage, Tensor, collect, init_weights,
};
use oddgrad::train::learner::{Learner, LearnerOptions, memory_plan};
use oddgrad::train::objectives::Loss;
use oddgrad::train::prepare::capacity;
use oddgrad::train::program::Placement;
use oddgrad::train::recipe::{self, OptimSettings};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

const TRAIN: &str = "train r.toml --set lora.rank=4 --set optim.learning_rate=1e-2";

fn factors(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_trains_the_factors_alone_and_leaves_an_adapter() {
    let p = Place::new();
    let model = contents(&p.path("model"));
    let done = p.run(TRAIN);
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.err.contains("LoRA of rank 4") || done.out.contains("LoRA of rank 4"));
    assert_eq!(contents(&p.path("model")), model, "the base is read only");
    for folder in ["run/model", "run/checkpoint-00000004"] {
        assert!(!p.path(folder).join("model.safetensors").exists());
        assert!(!p.path(folder).join("config.json").exists());
        let tensors =
            read_safetensors_f64(&p.path(folder).join("adapter_model.safetensors")).unwrap();
        // Two layers of seven kinds.
        assert_eq!(tensors.len(), 2 * 7 * 2);
        for (name, tensor) in &tensors {
            assert!(name.starts_with("base_model.model.model.layers."), "{name}");
            assert!(is_factor(name) && tensor.data.iter().any(|&x| x != 0.0), "{name}");
        }
    }
    let proof: serde_json::Value =
        serde_json::from_slice(&std::fs::read(p.path("run/proof.json")).unwrap()).unwrap();
    let changed = proof["parameters"].as_array().unwrap();
    for parameter in changed {
        let name = parameter["name"].as_str().unwrap();
        assert_eq!(parameter["trained"], is_factor(name), "{name}");
        assert_eq!(parameter["changed_values"] != 0, is_factor(name), "{name}");
    }

    // A run that was cut short and went on has the same bits.
    let cut = p.run(&format!(
        "{TRAIN} --set output=cut --set train.max_steps=2 --set optim.schedule=constant"
    ));
    assert_eq!(cut.code, Some(0), "{}", cut.err);
    let rest = p.run(&format!("{TRAIN} --set output=cut --set optim.schedule=constant --resume"));
    assert_eq!(rest.code, Some(0), "{}", rest.err);
    let whole = p.run(&format!("{TRAIN} --set output=whole --set optim.schedule=constant"));
    assert_eq!(whole.code, Some(0), "{}", whole.err);
    assert!(factors(&p.path("cut/model")) == factors(&p.path("whole/model")), "other bits");
    assert!(factors(&p.path("whole/model")) != factors(&p.path("run/model")));

    // The adapter continues prompts as the model that it is merged into.
    let merged = p.run("merge run/model --output merged");
    assert_eq!(merged.code, Some(0), "{}", merged.err);
    let say = |model: &str| p.run(&format!("generate {model} --prompt Say --max-tokens 24"));
    let (adapted, merged, base) = (say("run/model"), say("merged"), say("model"));
    assert_eq!(adapted.code, Some(0), "{}", adapted.err);
    assert_eq!(adapted.out, merged.out);
    assert!(adapted.out != base.out, "{}", base.out);
    assert!(p.path("merged/tokenizer.json").is_file());

    // Over a base of fewer bits.
    let few = p.run(&format!("{TRAIN} --set output=few --set lora.base=q4_0"));
    assert_eq!(few.code, Some(0), "{}", few.err);
    assert!(factors(&p.path("few/model")) != factors(&p.path("run/model")));

    // With a reference model, which is the one without additions.
    let dpo = "--set objective=dpo --set loss.beta=0.5 --set data.eval=rows.jsonl";
    let dpo = p.run(&format!("{TRAIN} --set output=dpo {dpo} --set train.eval_at_start=true"));
    assert_eq!(dpo.code, Some(0), "{}", dpo.err);
    let metrics = std::fs::read_to_string(p.path("dpo/metrics.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!(first["step"], 0, "{first}");
    assert!((first["eval_loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{first}");

    let whole = p.run("merge model --output twice");
    assert!(whole.err.contains("holds no adapter"), "{}", whole.err);
}

/// A merged weight is W + scale B A.
#[test]
fn merging_adds_the_product_of_the_factors() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (golden("lora_llama_untied"), dir.path().join("merged"));
    oddgrad::model::merge::merge(&folder, &out).unwrap();
    let read = |path: &Path| read_safetensors_f64(path).unwrap();
    let base = read(&golden("llama_untied").join("model.safetensors"));
    let adapter = read(&folder.join("adapter_model.safetensors"));
    let merged = read(&out.join("model.safetensors"));
    assert_eq!(base.keys().collect::<Vec<_>>(), merged.keys().collect::<Vec<_>>());
    let mut added = 0;
    for (name, w) in &base {
        let part = |kind: &str| {
            adapter.get(&format!(
                "base_model.model.{}.{kind}.weight",
                name.strip_suffix(".weight").unwrap()
            ))
        };
        let (Some(a), Some(b)) = (part("lora_A"), part("lora_B")) else {
            assert_eq!(w.data, merged[name].data, "{name}");
            continue;
        };
        added += 1;
        let (rank, inputs) = (a.shape[0], a.shape[1]);
        for (i, (w, m)) in w.data.iter().zip(&merged[name].data).enumerate() {
            let (row, column) = (i / inputs, i % inputs);
            let sum: f64 =
                (0..rank).map(|r| b.data[row * rank + r] * a.data[r * inputs + column]).sum();
            assert!((w + 2.0 * sum - m).abs() < 1e-6, "{name}[{i}]");
        }
    }
    assert_eq!(added, 14);
}

#[test]
fn adapters_and_settings_that_cannot_be_used_are_refused() {
    let p = Place::new();
    for (settings, phrases) in [
        ("--set lora.rank=0", &["lora.rank"][..]),
        ("--set lora.alpha=-1", &["lora.alpha"]),
        ("--set lora.targets=[]", &["names no layer"]),
        (
            "--set lora.targets=[\"q_proj\",\"c_attn\",\"lm_head\"]",
            &["c_attn: is no linear layer", "lm_head: is no", "q_proj, up_proj"],
        ),
        ("--set lora.dropout=0.1", &["lora.dropout"]),
        ("--set lora.base=q2_k", &["lora.base", "q8_0"]),
        ("--set lora.rank=4 --set init=random", &["adds to a trained model"]),
    ] {
        let refused = p.run(&format!("train r.toml {settings}"));
        assert_eq!(refused.code, Some(1), "{settings}: {}", refused.out);
        for phrase in phrases {
            assert!(refused.err.contains(phrase), "{settings}: {phrase} in {}", refused.err);
        }
    }
    // A section without a setting asks for LoRA too.
    let text = std::fs::read_to_string(p.path("r.toml")).unwrap();
    let text = text.replace("[optim]", "[lora]\n[optim]");
    let recipe = recipe::Recipe::parse("r.toml", &text, &[]).unwrap();
    assert_eq!(recipe.lora.as_ref().unwrap().rank, None);
    assert_eq!(recipe::Recipe::parse("again", &recipe.to_toml(), &[]).unwrap(), recipe);

    let config: serde_json::Value = serde_json::from_slice(
        &std::fs::read(golden("lora_llama_untied/adapter_config.json")).unwrap(),
    )
    .unwrap();
    let factors = factors(&golden("lora_llama_untied"));
    p.model("bad");
    for file in ["config.json", "model.safetensors"] {
        std::fs::remove_file(p.path("bad").join(file)).unwrap();
    }
    for (key, value, phrase) in [
        ("peft_type", "IA3".into(), "peft_type: is \"IA3\""),
        ("use_dora", true.into(), "use_dora"),
        ("bias", "all".into(), "bias"),
        ("r", 0.into(), "r: is 0"),
        ("r", 5.into(), "has shape [4, 64], but the configuration asks for [5, 64]"),
        ("lora_alpha", "x".into(), "lora_alpha"),
        ("rank_pattern", serde_json::json!({"q_proj": 2}), "rank_pattern"),
        ("base_model_name_or_path", "owner/name".into(), "no model folder of that name here"),
        ("base_model_name_or_path", serde_json::Value::Null, "must name the folder"),
        ("modules_to_save", serde_json::json!(["lm_head"]), "modules_to_save"),
    ] {
        let mut changed = config.clone();
        changed["base_model_name_or_path"] = golden("llama_untied").display().to_string().into();
        changed[key] = value;
        p.write("bad/adapter_config.json", changed.to_string());
        p.write("bad/adapter_model.safetensors", &factors);
        let refused = p.run("generate bad --prompt Say");
        assert_eq!(refused.code, Some(1), "{key}: {}", refused.out);
        assert!(refused.err.contains(phrase), "{key}: {phrase} in {}", refused.err);
    }
    // Another base than the factors are for.
    let mut other = config;
    other["base_model_name_or_path"] = golden("gpt2").display().to_string().into();
    p.write("bad/adapter_config.json", other.to_string());
    let refused = p.run("generate bad --prompt Say");
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("is no linear layer of this model"), "{}", refused.err);
    std::fs::remove_file(p.path("bad/adapter_model.safetensors")).unwrap();
    let refused = p.run("generate bad --prompt Say");
    assert!(refused.err.contains("but no adapter_model.safetensors"), "{}", refused.err);
}

/// A layer whose weight is a part of a fused tensor shares its A, as PEFT has it.
#[test]
fn fused_layers_share_their_first_factor() {
    let config = ModelConfig::load(&golden("gpt2")).unwrap();
    let lora = Lora { rank: 3, alpha: 6.0, rslora: false, targets: Targets::AllLinear };
    let adapted = config.adapted(&lora).unwrap();
    let names: Vec<&str> =
        adapted.parameters().iter().map(|p| p.name.as_str()).filter(|n| is_factor(n)).collect();
    assert!(names.contains(&"transformer.h.0.attn.c_attn.lora_A.weight"), "{names:?}");
    assert!(names.contains(&"transformer.h.0.attn.k.lora_B.weight"));
    let file = oddgrad::model::layout::adapter_layout(&adapted);
    let fused = file
        .iter()
        .find(|t| t.name == "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight")
        .unwrap();
    assert_eq!((fused.shape.as_slice(), fused.parts.len()), (&[192, 3][..], 3));
    // c_attn and attn.c_proj, c_fc and mlp.c_proj, in two layers.
    assert_eq!(file.len(), 2 * 4 * 2);
    assert!(adapted.adapted(&lora).is_err());
}

/// A frozen matrix stays in the type it came in.
#[test]
fn a_frozen_model_takes_the_bytes_of_its_file() {
    let gpu = gpu();
    let folder = golden("qwen3_tied");
    let config = ModelConfig::load(&folder).unwrap();
    let lora = Lora { rank: 4, alpha: 8.0, rslora: false, targets: Targets::AllLinear };
    let adapted = config.adapted(&lora).unwrap();
    let recipe = recipe::Recipe::parse(
        "r.toml",
        "model = \"m\"\noutput = \"o\"\ndata.train = \"x\"\noptim.learning_rate = 1e-3\nbatch.stream_tokens = 64\n",
        &[],
    )
    .unwrap();
    let loss = Loss::default();
    let plan = |config: &ModelConfig, placement: &Placement| {
        let objective = &*loss.objective;
        memory_plan(gpu.target(), config, capacity(&recipe), objective, placement, None)
            .unwrap()
            .state
    };
    let matrices = |config: &ModelConfig, of: fn(&str) -> bool| -> u64 {
        let all = config.parameters().iter().filter(|p| of(&p.name) && p.shape.len() > 1);
        all.map(|p| p.len() as u64).sum()
    };
    let base = matrices(&adapted, |name| !is_factor(name));
    let factors = matrices(&adapted, is_factor);
    let vectors = adapted.parameter_count() as u64 - base - factors;
    let weights = FolderWeights::open(&folder, &config).unwrap();
    assert_eq!(collect(&weights).unwrap().len(), config.parameters().len());
    for (dtype, bytes) in
        [(DType::F32, 4 * base), (DType::BF16, 2 * base), (DType::Q8_0, base / 32 * 34)]
    {
        let storage = weights.storage().into_keys().map(|name| (name, dtype)).collect();
        let placement =
            Placement { storage: Rc::new(storage), ..Placement::of(Rc::new(is_factor)) };
        assert_eq!(plan(&adapted, &placement), bytes + 16 * factors + 4 * vectors, "{dtype}");
    }
    assert_eq!(plan(&config, &Placement::all()), 16 * config.parameter_count() as u64);
}

/// Loss and gradients over a base in fewer bits are those over the values that these bits stand for.
#[test]
fn a_base_of_fewer_bits_agrees_with_its_values_in_f32() {
    let gpu = gpu();
    let lora = Lora { rank: 4, alpha: 8.0, rslora: true, targets: Targets::AllLinear };
    let config = ModelConfig::load(&golden("qwen3_tied")).unwrap().adapted(&lora).unwrap();
    let capacity = Capacity { tokens: 128, targets: 128, pairs: 4 };
    let examples = pairs();
    let stream = pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap().remove(0);
    let (loss, optim) = (Loss::default(), OptimSettings::new(1e-3));
    let objective = &*loss.objective;
    let coefficients = objective.coefficients(&[&stream], 1).remove(0);
    let mut weights = init_weights(&config, 4);
    for (i, x) in weights.iter_mut().filter(|(n, _)| n.ends_with("lora_B.weight")).enumerate() {
        x.1.data
            .iter_mut()
            .enumerate()
            .for_each(|(j, x)| *x = ((7 * i + 3 * j) % 11) as f32 * 0.01 - 0.05);
    }
    let run = |weights: &BTreeMap<String, Tensor>, base: Option<Base>| {
        let storage = base.map_or_else(Storage::new, |b| b.storage(&config, Storage::new()));
        let placement =
            Placement { storage: Rc::new(storage), ..Placement::of(Rc::new(is_factor)) };
        let options = LearnerOptions { placement, ..LearnerOptions::default() };
        let learner =
            Learner::with_options(&gpu, &config, weights, capacity, objective, &optim, &options)
                .unwrap();
        let loss = learner.accumulate(&stream, &coefficients).unwrap().loss();
        (loss, learner.read_state(GRAD).unwrap())
    };
    let (exact, _) = run(&weights, None);
    for (base, moved) in
        [(Base::F16, 1e-7), (Base::BF16, 1e-6), (Base::Q8_0, 1e-6), (Base::Q4_0, 1e-4)]
    {
        let storage = base.storage(&config, Storage::new());
        let kinds: BTreeSet<DType> = storage.values().copied().collect();
        assert!(base != Base::Q4_0 || kinds.contains(&DType::Q4_0) && kinds.contains(&DType::Q8_0));
        let mut rounded = weights.clone();
        for (name, dtype) in &storage {
            let data = &mut rounded.get_mut(name).unwrap().data;
            *data = dtype.decode(&dtype.encode(data));
        }
        let (narrow, wide) = (run(&weights, Some(base)), run(&rounded, None));
        assert!((narrow.0 - wide.0).abs() <= 2e-6, "{base:?}: loss {} and {}", narrow.0, wide.0);
        assert!((narrow.0 - exact).abs() > moved, "{base:?} is rounded: {} and {exact}", narrow.0);
        assert_eq!(narrow.1.len(), wide.1.len());
        for (name, g) in &narrow.1 {
            let pairs = g.data.iter().zip(&wide.1[name].data);
            let off: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let size: f64 = g.data.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!(
                size > 0.0 && (off / size).sqrt() < 2e-5,
                "{base:?} {name}: {off:e} of {size:e}"
            );
        }
    }
}
