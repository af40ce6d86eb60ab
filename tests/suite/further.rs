//! Adapters that are trained further.

use crate::golden;
use crate::place::{Answer, Place, contents, copy_folder};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const TRAIN: &str = "train r.toml --untuned --set optim.learning_rate=1e-2";
const FURTHER: &str = "train r.toml --untuned --set model=first/model --set optim.learning_rate=1e-2 \
                       --set optim.schedule=constant";

fn factors(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn done(answer: Answer) -> Answer {
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    answer
}

/// A place with an adapter in `first/model`.
fn place() -> Place {
    let p = Place::new();
    let lora = "--set lora.rank=4 --set lora.alpha=6 --set lora.targets=[\"v_proj\",\"up_proj\"]";
    done(p.run(&format!("{TRAIN} {lora} --set output=first")));
    p
}

/// The record of a run's first evaluation.
fn before(p: &Place, run: &str) -> Value {
    let metrics = std::fs::read_to_string(p.path(run).join("metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!(first["step"], 0, "{first}");
    first
}

#[test]
fn an_adapter_is_trained_further_over_the_same_base() {
    let p = place();
    let (base, first) = (contents(&p.path("model")), contents(&p.path("first")));
    let plan = done(p.run("plan r.toml --untuned --set model=first/model"));
    assert!(plan.out.contains("  lora.base=q8_0 "), "{}", plan.out);
    let more = done(p.run(&format!("{FURTHER} --set output=more")));
    assert!(more.err.contains("first/model is an adapter, which is trained further over model"));
    assert!((more.out + &more.err).contains("LoRA of rank 4, scale 1.5000, on up_proj, v_proj"));
    let resolved = std::fs::read_to_string(p.path("more/recipe.toml")).unwrap();
    assert!(resolved.contains("rank = 4\nalpha = 6.0\n"), "{resolved}");
    for folder in ["more/model", "more/checkpoint-00000004"] {
        let config = json(&p.path(folder).join("adapter_config.json"));
        assert_eq!(config["base_model_name_or_path"], "model");
        assert_eq!((&config["r"], &config["lora_alpha"]), (&4.into(), &6.0.into()));
        assert_eq!(config["target_modules"], serde_json::json!(["up_proj", "v_proj"]));
        assert!(p.path(folder).join("tokenizer.json").is_file());
    }
    assert!(contents(&p.path("model")) == base && contents(&p.path("first")) == first);
    let proof = json(&p.path("more/proof.json"));
    for parameter in proof["parameters"].as_array().unwrap() {
        let is_factor = parameter["name"].as_str().unwrap().contains(".lora_");
        assert_eq!(parameter["trained"], is_factor, "{parameter}");
        assert_eq!(parameter["changed_values"] != 0, is_factor, "{parameter}");
        // Fresh factors would begin with a B of zeros, which has no relative change.
        assert!(parameter["relative"].as_f64().is_some(), "{parameter}");
    }
    // It begins where the other ended.
    done(p.run(&format!("{FURTHER} --set output=still --set optim.learning_rate=0")));
    assert!(factors(&p.path("still/model")) == factors(&p.path("first/model")));
    assert!(factors(&p.path("more/model")) != factors(&p.path("first/model")));

    // The settings that it has may be named; over a base of fewer bits the bits are others.
    let named = "--set lora.rank=4 --set lora.alpha=6 --set lora.rslora=false \
                 --set lora.targets=[\"layers.0.self_attn.v_proj\",\"1.self_attn.v_proj\",\"up_proj\"]";
    done(p.run(&format!("{FURTHER} --set output=named {named}")));
    assert!(factors(&p.path("named/model")) == factors(&p.path("more/model")));
    done(p.run(&format!("{FURTHER} --set output=few --set lora.base=q4_0")));
    assert!(factors(&p.path("few/model")) != factors(&p.path("more/model")));

    // Cut short and resumed.
    done(p.run(&format!("{FURTHER} --set output=cut --set train.max_steps=2")));
    done(p.run(&format!("{FURTHER} --set output=cut --resume")));
    assert!(factors(&p.path("cut/model")) == factors(&p.path("more/model")), "other bits");

    // What comes of it is an adapter like any other.
    done(p.run("merge more/model --output merged"));
    let say = |model: &str| {
        p.run(&format!("generate {model} --untuned --prompt Say --max-tokens 24")).out
    };
    assert!(say("more/model") == say("merged") && say("merged") != say("first/model"));
    let found = done(p.run("eval more/model rows.jsonl --untuned --against first/model"));
    assert!(found.out.contains("first/model"), "{}", found.out);
}

#[test]
fn settings_that_the_adapter_does_not_have_are_refused() {
    let p = place();
    let refused = |set: &str, phrases: &[&str]| {
        p.refused(&format!("{FURTHER} --set output=more {set}"), phrases);
        let plan = p.run(&format!("plan r.toml --untuned --set model=first/model {set}"));
        assert_eq!(plan.code, Some(1), "{}", plan.out);
        phrases.iter().for_each(|phrase| assert!(plan.err.contains(phrase), "{}", plan.err));
    };
    refused(
        "--set lora.rank=8 --set lora.alpha=8 --set lora.rslora=true --set lora.targets=all",
        &[
            "first/model cannot be trained further so",
            "lora.rank: is 8, but the adapter that is to be trained further has 4",
            "lora.alpha: is 8, but",
            "lora.rslora: is true",
            "lora.targets: is all, but the adapter that is to be trained further has up_proj, v_proj",
            "oddgrad merge",
        ],
    );
    refused("--set lora.targets=[\"c_attn\",\"v_proj\",\"up_proj\"]", &["lora.targets: is c_attn"]);
    refused("--set init=random", &["init: is \"random\", but the model is an adapter"]);
    p.edit("first/model/adapter_config.json", |config| {
        config["init_lora_weights"] = "pissa_niter_4".into();
    });
    refused("", &["init_lora_weights: is \"pissa_niter_4\", with which PEFT changes the weights"]);
}

/// The reference model of an adapter that is trained further is that adapter, as in TRL, and not its
/// base.
#[test]
fn the_reference_is_the_adapter_as_it_was() {
    let p = place();
    // KTO asks for rows of which each has another answer.
    let row = |n: usize| {
        format!(
            "{{\"prompt\": \"Say {n}.\", \"chosen\": \"Yes, {n}.\", \"rejected\": \"No, {n}.\"}}\n"
        )
    };
    p.write("rows.jsonl", (1..=4).map(row).collect::<String>());
    let held = "--set data.eval=rows.jsonl --set train.eval_at_start=true";
    for (objective, loss, figure) in
        [("dpo", 2f64.ln(), "eval_rewards/margins"), ("kto", 0.5, "eval_rewards/margins")]
    {
        let train = |output: &str, cache: &str, more: &str| {
            let args = format!(
                "{FURTHER} --set objective={objective} --set loss.beta=0.5 {held} --set output={output} {more}"
            );
            let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
            command.args(args.split_whitespace()).env("ODDGRAD_CACHE", p.path(cache));
            done(p.command(&mut command))
        };
        let whole = train(objective, "cache", "");
        assert!(whole.err.contains("the reference model is the adapter as it is now"));
        let first = before(&p, objective);
        assert!((first["eval_loss"].as_f64().unwrap() - loss).abs() < 1e-6, "{first}");
        assert_eq!(first[figure].as_f64().unwrap().abs(), 0.0, "{first}");
        let again = train(&format!("{objective}-again"), "cache", "");
        assert!(again.err.contains("rows read from the cache"), "{}", again.err);
        // Resumed on a machine whose cache is empty.
        let cut = format!("{objective}-cut");
        train(&cut, "cache", "--set train.max_steps=2");
        let rest = train(&cut, "empty", "--resume");
        assert!(rest.err.contains("rows computed in"), "{}", rest.err);
        let model = |run: &str| factors(&p.path(run).join("model"));
        assert!(model(objective) == model(&cut), "{objective}: other bits");
        assert!(model(objective) == model(&format!("{objective}-again")));
        std::fs::remove_dir_all(p.path("empty")).unwrap();
    }
    // Of another scale the same factors are another model.
    p.edit("first/model/adapter_config.json", |config| config["lora_alpha"] = 3.into());
    let args =
        format!("{FURTHER} --set objective=dpo --set loss.beta=0.5 {held} --set output=half");
    let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
    command.args(args.split_whitespace()).env("ODDGRAD_CACHE", p.path("cache"));
    let half = done(p.command(&mut command));
    assert!(half.err.contains("rows computed in"), "{}", half.err);
}

/// An adapter that PEFT wrote, and what it notes of it.
#[test]
fn adapters_of_peft_are_trained_further() {
    let p = Place::new();
    copy_folder(&golden("llama_untied"), &p.path("base"));
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(p.path("model").join(file), p.path("base").join(file)).unwrap();
    }
    copy_folder(&golden("lora_llama_untied"), &p.path("first/model"));
    p.edit("first/model/adapter_config.json", |config| {
        config["base_model_name_or_path"] = "base".into();
        config["lora_dropout"] = 0.05.into();
    });
    let more = done(p.run(&format!("{FURTHER} --set output=more")));
    assert!(more.err.contains("lora_dropout is 0.05, and this program trains without"));
    let config = json(&p.path("more/model/adapter_config.json"));
    assert_eq!(config["base_model_name_or_path"], "base");
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
    // Its own folder has no tokenizer.
    assert!(p.path("more/model/tokenizer.json").is_file());
    assert!(factors(&p.path("more/model")) != factors(&p.path("first/model")));
}

#[test]
fn two_objectives_in_a_row_train_one_adapter() {
    let p = Place::new();
    let compare = "compare-objectives r.toml --untuned --objectives sft+dpo --output all \
                   --set data.eval=rows.jsonl --set lora.rank=4 --set lora.alpha=8 --set train.eval_at_start=true";
    let found = done(p.run(compare));
    assert!(found.out.contains("runs in a row"), "{}", found.out);
    let config = json(&p.path("all/sft+dpo.1/model/adapter_config.json"));
    assert_eq!((&config["base_model_name_or_path"], &config["r"]), (&"model".into(), &4.into()));
    let first = before(&p, "all/sft+dpo.1");
    assert!((first["eval_loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{first}");
}
