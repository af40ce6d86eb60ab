//! Logits, loss, every gradient and recorded training runs against PyTorch and TRL.

use crate::families::FOLDERS;
use crate::{golden, gpu};
use oddgrad::train::verify::{Comparison, Reference, verify};

fn check(folder: &str) {
    let rows = verify(&gpu(), &golden(folder), 1.0).unwrap();
    assert!(!rows.is_empty());
    for row in &rows {
        eprintln!("{:<60} {:.1e} of {:.1e} {}", row.what, row.difference, row.bar, row.measure);
    }
    meets_the_bars(&rows);
}

/// The bars of tests/golden/README.md, tighter than what `verify` allows any adapter.
#[track_caller]
fn meets_the_bars(rows: &[Comparison]) {
    let failed: Vec<_> = rows.iter().filter(|r| !r.passed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    for row in rows {
        let bar = match row.what.as_str() {
            "loss" | "nll" => 3e-6,
            "logits" => 1e-5,
            what if what.starts_with("gradient ") => 1e-5,
            _ => row.bar,
        };
        assert!(row.difference <= bar, "{row:?} beyond {bar:e}");
    }
}

#[test]
fn llama_tied_agrees_with_pytorch() {
    check("llama_tied");
}

#[test]
fn llama_untied_agrees_with_pytorch() {
    check("llama_untied");
}

#[test]
fn llama_overfit_agrees_with_pytorch() {
    check("llama_overfit");
}

#[test]
fn qwen3_agrees_with_pytorch() {
    check("qwen3_tied");
}

/// Frequencies scaled for longer contexts.
#[test]
fn scaled_rope_agrees_with_pytorch() {
    for kind in ["linear", "dynamic", "llama3", "yarn"] {
        check(&format!("llama_rope_{kind}"));
    }
}

/// A window of 8 in every layer, and in the second of two: sequences of up to 32 tokens, whose
/// shared prefixes it cuts too.
#[test]
fn sliding_windows_agree_with_pytorch() {
    check("mistral_window");
    check("qwen2_window");
}

#[test]
fn gpt2_agrees_with_pytorch() {
    check("gpt2");
}

#[test]
fn opt_agrees_with_pytorch() {
    check("opt");
}

#[test]
fn phi3_agrees_with_pytorch() {
    check("phi3");
}

#[test]
fn olmo2_agrees_with_pytorch() {
    check("olmo2");
}

#[test]
fn smollm3_agrees_with_pytorch() {
    check("smollm3");
}

#[test]
fn granite_agrees_with_pytorch() {
    check("granite");
}

#[test]
fn stablelm_agrees_with_pytorch() {
    check("stablelm");
}

#[test]
fn gemma2_agrees_with_pytorch() {
    check("gemma2");
}

#[test]
fn gemma3_agrees_with_pytorch() {
    check("gemma3_text");
}

/// PEFT's adapter on llama_untied: its logits, and the gradients of its factors.
#[test]
fn lora_agrees_with_peft() {
    check("lora_llama_untied");
}

#[test]
fn recorded_run_of_gpt2_agrees_with_trl() {
    check("train/gpt2_plain_const");
}

#[test]
fn recorded_run_with_linear_schedule_agrees_with_trl() {
    check("train/llama_tied_plain_linear");
}

#[test]
fn recorded_run_with_constant_rate_agrees_with_trl() {
    check("train/llama_untied_plain_const");
}

#[test]
fn recorded_run_of_dpo_agrees_with_trl() {
    check("train/llama_untied_dpo");
}

/// Batches whose divergence is above 0 and batches where it is clamped, to the end of the rows and on.
#[test]
fn recorded_run_of_kto_agrees_with_trl() {
    check("train/llama_untied_kto");
}

#[test]
fn two_steps_of_adamw_agree_with_pytorch() {
    let gpu = gpu();
    let steps = |folder: &str, n: usize| {
        Reference::load(&golden(folder)).unwrap().compare_steps(&gpu, n, 1.0)
    };
    for folder in FOLDERS.iter().map(|(_, folder)| *folder).chain(["llama_tied", "llama_overfit"]) {
        let row = steps(folder, 2).unwrap().remove(0);
        eprintln!("{folder:<20} {:.1e} {}", row.difference, row.what);
        assert!(row.passed() && row.difference <= 1e-6, "{folder}: {row:?}");
    }
    let refused = |folder: &str, n| steps(folder, n).unwrap_err().to_string();
    assert!(refused("llama_tied", 3).contains("--steps: is 3; recorded are 2"));
    assert!(refused("lora_llama_untied", 2).contains("has no adamw.json"));
    assert!(refused("train/gpt2_plain_const", 2).contains("has steps of its own"));
}

#[test]
fn a_wrong_reference_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("llama_tied")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("golden.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let loss = value["float64"]["loss"].as_f64().unwrap();
    value["float64"]["loss"] = (loss + 1e-4).into();
    std::fs::write(&path, value.to_string()).unwrap();
    let rows = verify(&gpu(), dir.path(), 1.0).unwrap();
    assert_eq!(
        rows.iter().filter(|r| !r.passed()).map(|r| r.what.as_str()).collect::<Vec<_>>(),
        ["loss"]
    );
}

/// llama_untied's folder with the loss and the gradients of another objective.
fn check_objective(reference: &str, objective: &str, settings: serde_json::Value) {
    let file = golden("objectives/objectives.json");
    let values: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let means = values["reference_mean_logps"].as_array().unwrap();
    let (chosen, rejected) = means.split_at(means.len() / 2);
    check_golden(
        reference,
        serde_json::json!({
            "objective": objective,
            "loss": settings,
            "float64": values["objectives"][reference],
            "reference": {"chosen_logps": chosen, "rejected_logps": rejected},
        }),
    );
}

/// llama_untied's folder with another golden.json and the gradients of `reference`.
fn check_golden(reference: &str, json: serde_json::Value) -> Vec<Comparison> {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("llama_untied")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let gradients = golden("objectives").join(format!("{reference}.grads.safetensors"));
    std::fs::copy(gradients, dir.path().join("grads_f64.safetensors")).unwrap();
    std::fs::write(dir.path().join("golden.json"), json.to_string()).unwrap();
    let rows = verify(&gpu(), dir.path(), 1.0).unwrap();
    assert!(rows.iter().filter(|r| r.what.starts_with("gradient ")).count() > 20);
    meets_the_bars(&rows);
    rows
}

#[test]
fn sft_agrees_with_pytorch() {
    check_objective("sft_all", "sft", serde_json::json!({}));
    check_objective("sft_answer", "sft", serde_json::json!({"nll_scope": "response"}));
}

#[test]
fn simpo_agrees_with_pytorch() {
    check_objective("simpo", "simpo", serde_json::json!({"beta": 2.0, "gamma": 0.5}));
}

#[test]
fn dpo_agrees_with_pytorch() {
    for (reference, kind) in
        [("dpo_sigmoid", "sigmoid"), ("dpo_hinge", "hinge"), ("dpo_ipo", "ipo")]
    {
        check_objective(reference, "dpo", serde_json::json!({"type": kind, "beta": 0.1}));
    }
}

#[test]
fn cpo_agrees_with_pytorch() {
    let settings = |kind: &str| serde_json::json!({"type": kind, "beta": 0.1, "cpo_alpha": 1.0});
    check_objective("cpo", "cpo", settings("sigmoid"));
    check_objective("cpo_hinge", "cpo", settings("hinge"));
}

/// Values of TRL's own trainer: with a divergence above 0, with one that is clamped, and without.
#[test]
fn kto_agrees_with_trl() {
    let text = std::fs::read_to_string(golden("objectives/kto.json")).unwrap();
    let values: serde_json::Value = serde_json::from_str(&text).unwrap();
    for name in ["kto", "kto_weighted", "apo_zero_unpaired"] {
        let found = &values[name];
        let mut settings = found["settings"].clone();
        settings["type"] = settings.as_object_mut().unwrap().remove("loss_type").unwrap();
        let rows = check_golden(
            name,
            serde_json::json!({
                "objective": "kto",
                "loss": settings,
                "max_length": 32,
                "float64": found["float64"],
                "reference": {
                    "logps": found["reference_mean_logps"],
                    "mismatched_logps": found["mismatched_reference_mean_logps"],
                },
            }),
        );
        let kl = rows.iter().find(|row| row.what == "kl");
        assert_eq!(kl.is_some(), name != "apo_zero_unpaired");
    }
    assert!(values["kto"]["float64"]["kl"].as_f64().unwrap() > 1.0);
    assert_eq!(values["kto_weighted"]["float64"]["kl"].as_f64(), Some(0.0));
}
