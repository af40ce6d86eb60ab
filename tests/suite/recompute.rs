//! Blocks that are computed again for the derivative: every gradient keeps its bits, and most of the
//! memory goes.

use crate::place::Place;
use crate::{golden, gpu};
use oddgrad::data::example::{Example, Sequence};
use oddgrad::data::pack::{Capacity, pack};
use oddgrad::graph::GRAD;
use oddgrad::kernel::{Class, Target};
use oddgrad::model::config::ModelConfig;
use oddgrad::model::lora::{Lora, Targets, is_factor};
use oddgrad::model::weights::init_weights;
use oddgrad::train::learner::{Learner, LearnerOptions, memory_plan};
use oddgrad::train::objectives::Loss;
use oddgrad::train::program::Placement;
use oddgrad::train::recipe::OptimSettings;
use std::rc::Rc;

/// Loss and gradients of two pairs by every family, with everything kept and with blocks computed
/// again, of all weights and of low-rank additions.
#[test]
fn gradients_keep_their_bits() {
    let gpu = gpu();
    let side = |ids: &[u32]| Sequence { ids: ids.to_vec(), response_start: 3 };
    let example = |row, chosen: &[u32], rejected: &[u32]| Example {
        row,
        chosen: side(chosen),
        rejected: Some(side(rejected)),
        desirable: None,
    };
    let examples = [
        example(0, &[1, 9, 4, 7, 30, 2], &[1, 9, 4, 8, 2]),
        example(1, &[1, 3, 3, 5, 5, 6, 2], &[1, 3, 3, 20, 2]),
    ];
    let capacity = Capacity { tokens: 64, targets: 64, pairs: 2 };
    let stream = pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap().remove(0);
    let (loss, optim) = (Loss::default(), OptimSettings::new(1e-3));
    let objective = &*loss.objective;
    let coefficients = objective.coefficients(&[&stream], 1).remove(0);
    for family in ["llama_untied", "mistral_window", "qwen2_window", "qwen3_tied", "gpt2", "opt"] {
        let whole = ModelConfig::load(&golden(family)).unwrap();
        let lora = Lora { rank: 4, alpha: 8.0, rslora: false, targets: Targets::AllLinear };
        for config in [whole.clone(), whole.adapted(&lora).unwrap()] {
            let weights = init_weights(&config, 4);
            let gradients = |recompute: bool| {
                let placement = match config.lora() {
                    None => Placement::all(),
                    Some(_) => Placement::of(Rc::new(is_factor)),
                };
                let placement = Placement { recompute, ..placement };
                let options = LearnerOptions { placement, ..LearnerOptions::default() };
                let learner = Learner::with_options(
                    &gpu, &config, &weights, capacity, objective, &optim, &options,
                )
                .unwrap();
                let calls = learner.micro_program().graph().calls().len();
                let loss = learner.accumulate(&stream, &coefficients).unwrap().loss();
                (loss.to_bits(), learner.read_state(GRAD).unwrap(), learner.kernels_hash(), calls)
            };
            let (kept, again) = (gradients(false), gradients(true));
            assert!(again.3 > kept.3, "{family}: nothing is computed again");
            assert_eq!((kept.0, kept.2), (again.0, again.2), "{family}");
            assert!(kept.1.values().any(|t| t.data.iter().any(|&x| x != 0.0)), "{family}");
            for (name, before) in &kept.1 {
                let bits = |data: &[f32]| data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&before.data), bits(&again.1[name].data), "{family} {name}");
            }
        }
    }
}

/// The shape of SmolLM2-135M on a stream of 1,024 tokens.
#[test]
fn activations_take_a_quarter() {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152,
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": true, "hidden_act": "silu",
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let config = ModelConfig::load(folder.path()).unwrap();
    let target = Target::baseline(Class::Software);
    let capacity = Capacity { tokens: 1024, targets: 1024, pairs: 16 };
    let loss = Loss::default();
    let activations = |recompute| {
        let placement = Placement { recompute, ..Placement::all() };
        let plan = memory_plan(&target, &config, capacity, &*loss.objective, &placement, None);
        plan.unwrap().micro.temporaries()
    };
    let (kept, again) = (activations(false), activations(true));
    println!("{kept} bytes, {again} with blocks computed again");
    assert!(again * 4 <= kept, "{again} of {kept} bytes");
}

/// `auto` computes again where memory does not suffice, `plan` says what would fit, and a run that
/// cannot fit is refused before anything is written.
#[test]
fn plans_name_what_fits() {
    let p = Place::new();
    let plan = |args: &str| p.run(&format!("plan r.toml --untuned {args}"));
    let total = |text: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with("total ")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let kept = plan("--set batch.recompute=none");
    assert_eq!(kept.code, Some(0), "{}", kept.err);
    let again = plan("--set batch.recompute=block");
    assert!(again.out.contains("blocks are computed again"), "{}", again.out);
    let (most, least) = (total(&kept.out), total(&again.out));
    assert!(least < most);
    for part in
        ["batch.recompute=block", "lora.rank=16 lora.base=q8_0", "longest batch.stream_tokens"]
    {
        assert!(kept.out.contains(part), "`{part}` is missing: {}", kept.out);
    }
    let gib = |mib: f64| mib / 1024.0;
    let between = gib((most + least) / 2.0);
    let auto = plan(&format!("--memory {between}"));
    assert_eq!(auto.code, Some(0), "{}", auto.err);
    assert!(auto.out.contains("blocks are computed again"), "{}", auto.out);
    assert!(
        auto.out.contains("batch.recompute=none") && auto.out.contains("does not fit"),
        "{}",
        auto.out
    );
    let none = plan(&format!("--memory {between} --set batch.recompute=none"));
    assert_eq!(none.code, Some(1));
    assert!(
        none.err.contains("GiB of memory") && none.out.contains("batch.recompute=block"),
        "{}{}",
        none.out,
        none.err
    );
    p.refused("plan r.toml --memory 0", &["--memory"]);
}
