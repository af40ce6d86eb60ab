//! Training as a whole: shared prefixes, packing, accumulation, reproducibility, resuming, errors.

use crate::engine::small_config;
use crate::{golden, gpu};
use oddgrad::data::example::{Example, Sequence};
use oddgrad::data::pack::{Capacity, NONE, PackedBatch, TargetKind, pack};
use oddgrad::error::Error;
use oddgrad::gpu::{AdapterChoice, Gpu};
use oddgrad::graph::GRAD;
use oddgrad::model::source::read_safetensors_f64;
use oddgrad::model::weights::init_weights;
use oddgrad::train::learner::Learner;
use oddgrad::train::objectives::Loss;
use oddgrad::train::objectives::orpo::{Orpo, PAIR_WEIGHT};
use oddgrad::train::recipe::{OptimSettings, Recipe};
use oddgrad::train::trainer::{TrainEvent, TrainOutcome, train};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

/// Pairs with a common prompt and partly common answers.
fn pairs(n: usize) -> Vec<Example> {
    let token = |i: usize, j: usize| ((i * 131 + j * 37 + j * j + 11) % 500 + 6) as u32;
    (0..n)
        .map(|i| {
            let prompt = 4 + i % 4;
            let common = prompt + i % 3;
            let shared: Vec<u32> = (0..common).map(|j| token(i, j)).collect();
            let side = |salt: usize, len: usize| {
                let mut ids = shared.clone();
                ids.extend((0..len).map(|j| token(i * 7 + salt, j + 50)));
                Sequence { ids, response_start: prompt }
            };
            Example {
                row: i,
                chosen: side(3, 4 + i % 5),
                rejected: Some(side(8, 2 + i % 4)),
                desirable: None,
            }
        })
        .collect()
}

/// The layout other tools use: every sequence by itself, in rows padded to the longest.
fn padded(examples: &[Example], capacity: Capacity) -> PackedBatch {
    let mut s = PackedBatch::empty(capacity);
    let width = examples
        .iter()
        .map(|e| e.chosen.ids.len().max(e.rejected.as_ref().unwrap().ids.len()))
        .max()
        .unwrap();
    let (mut n, mut listed) = (0, 0);
    for (p, e) in examples.iter().enumerate() {
        for (side, sequence) in [&e.chosen, e.rejected.as_ref().unwrap()].into_iter().enumerate() {
            let row = 2 * p + side;
            let at = row * width;
            for (j, &id) in sequence.ids.iter().enumerate() {
                s.tokens[at + j] = id;
                s.position[at + j] = j as u32;
                let end = (at + sequence.ids.len()) as u32;
                s.spans[4 * (at + j)..4 * (at + j) + 4].copy_from_slice(&[0, 0, at as u32, end]);
                if j == 0 || (side == 1 && j < sequence.response_start) {
                    continue;
                }
                s.target_row[n] = (at + j - 1) as u32;
                s.target_id[n] = id;
                s.nll_pair[n] = p as u32;
                let response = j >= sequence.response_start;
                s.nll[n] = match (side, response) {
                    (1, _) => TargetKind::None,
                    (_, true) => TargetKind::Response,
                    (_, false) => TargetKind::Prompt,
                };
                if response {
                    s.owner[2 * n + side] = row as u32;
                    s.seq_target[listed] = n as u32;
                    listed += 1;
                }
                n += 1;
            }
            s.seq_offset[row + 1..].fill(listed as u32);
        }
        s.rows.push(e.row);
    }
    assert!(s.owner.iter().filter(|&&o| o != NONE).count() == listed);
    s
}

/// Loss and every gradient of the streams of one optimizer step.
fn loss_and_gradients(streams: &[PackedBatch], loss: &Loss) -> (f64, BTreeMap<String, Vec<f32>>) {
    let config = small_config();
    let learner = Learner::new(
        &gpu(),
        &config,
        &init_weights(&config, 3),
        streams[0].capacity,
        &*loss.objective,
        &OptimSettings::new(1e-3),
    )
    .unwrap();
    let coefficients = loss.coefficients(streams);
    let loss = streams
        .iter()
        .zip(&coefficients)
        .map(|(s, c)| f64::from(learner.accumulate(s, c).unwrap().loss()))
        .sum();
    let grads =
        learner.read_state(GRAD).unwrap().into_iter().map(|(name, t)| (name, t.data)).collect();
    (loss, grads)
}

fn assert_same(
    a: &(f64, BTreeMap<String, Vec<f32>>),
    b: &(f64, BTreeMap<String, Vec<f32>>),
    bar: f64,
) {
    assert!((a.0 - b.0).abs() <= bar, "loss {} and {}", a.0, b.0);
    for (name, x) in &a.1 {
        let y = &b.1[name];
        let off: f64 = x.iter().zip(y).map(|(&x, &y)| f64::from(x - y).powi(2)).sum();
        let size: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((off / size).sqrt() <= bar, "{name}: {:.1e}", (off / size).sqrt());
    }
}

fn orpo() -> Loss {
    // A strong odds-ratio part, so that a mistake in it shows.
    Loss::new(Orpo { lambda: 1.0, ..Orpo::default() })
}

fn all(examples: &[Example], capacity: Capacity) -> Vec<PackedBatch> {
    pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap()
}

#[test]
fn shared_prefixes_give_the_loss_and_gradients_of_the_padded_batch() {
    let examples = pairs(6);
    let capacity = Capacity { tokens: 300, targets: 300, pairs: 6 };
    let shared = all(&examples, capacity);
    assert_eq!(shared.len(), 1);
    let plain = padded(&examples, capacity);
    assert_same(
        &loss_and_gradients(&shared, &orpo()),
        &loss_and_gradients(std::slice::from_ref(&plain), &orpo()),
        1e-5,
    );
}

#[test]
fn pads_and_packing_order_change_nothing() {
    let mut examples = pairs(6);
    let tight = all(&examples, Capacity { tokens: 140, targets: 140, pairs: 6 });
    examples.reverse();
    let loose = all(&examples, Capacity { tokens: 333, targets: 301, pairs: 11 });
    assert_same(&loss_and_gradients(&tight, &orpo()), &loss_and_gradients(&loose, &orpo()), 1e-5);
}

#[test]
fn micro_batches_give_the_gradient_of_one_batch_with_the_same_bits_each_time() {
    let examples = pairs(9);
    let one = all(&examples, Capacity { tokens: 400, targets: 400, pairs: 9 });
    let many = all(&examples, Capacity { tokens: 60, targets: 60, pairs: 9 });
    assert!(one.len() == 1 && many.len() > 2, "{} and {} streams", one.len(), many.len());
    let first = loss_and_gradients(&many, &orpo());
    assert_same(&loss_and_gradients(&one, &orpo()), &first, 1e-5);
    let again = loss_and_gradients(&many, &orpo());
    let bits = |g: &BTreeMap<String, Vec<f32>>| {
        g.values().flatten().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(bits(&first.1), bits(&again.1));
}

#[test]
fn sequences_without_a_rejected_side_train_too() {
    let mut examples = pairs(3);
    examples.iter_mut().for_each(|e| e.rejected = None);
    let streams = all(&examples, Capacity { tokens: 64, targets: 64, pairs: 4 });
    let coefficients = orpo().coefficients(&streams);
    assert!(coefficients.iter().all(|c| c[PAIR_WEIGHT].iter().all(|&p| p == 0.0)));
    let (loss, grads) = loss_and_gradients(&streams, &orpo());
    assert!(loss.is_finite() && loss > 1.0, "{loss}");
    assert!(grads.values().flatten().all(|v| v.is_finite()));
}

fn recipe(output: &Path, extra: &[&str]) -> Recipe {
    let text = format!(
        "objective = \"orpo\"\nmodel = {:?}\noutput = {:?}\n\
         [data]\ntrain = [{:?}]\neval = [{:?}]\nmax_length = 64\n\
         [optim]\nlearning_rate = 3e-3\nwarmup_steps = 2\n\
         [batch]\nsize = 4\nstream_tokens = 160\n\
         [train]\nmax_steps = 6\neval_every = 3\nsave_every = 2\n",
        golden("llama_tied"),
        output,
        golden("data/prefs_plain.jsonl"),
        golden("data/prefs_plain.jsonl"),
    );
    let extra: Vec<String> = extra.iter().map(|&s| s.to_owned()).collect();
    Recipe::parse("test", &text, &extra).unwrap()
}

fn run(recipe: &Recipe, resume: bool) -> Result<TrainOutcome, Error> {
    train(&gpu(), recipe, resume, &mut |_| {})
}

fn model_bits(folder: &Path) -> Vec<u32> {
    let tensors = read_safetensors_f64(&folder.join("model/model.safetensors")).unwrap();
    tensors.values().flat_map(|t| t.data.iter().map(|&v| (v as f32).to_bits())).collect()
}

#[test]
fn the_same_seed_gives_the_same_bits_and_so_does_resuming() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    run(&recipe(&a, &[]), false).unwrap();

    // Stopped in the middle: an error from the display stands for a kill; checkpoint 4 is there.
    let stopped = std::panic::catch_unwind(|| {
        let stop = |event: TrainEvent| {
            if let TrainEvent::Step(record) = event
                && record.step == 5
            {
                panic!("killed");
            }
        };
        let mut stop = stop;
        let _ = train(&gpu(), &recipe(&b, &[]), false, &mut stop);
    });
    assert!(stopped.is_err());
    let outcome = run(&recipe(&b, &[]), true).unwrap();
    assert_eq!(outcome.steps, 6);
    assert_eq!(model_bits(&a), model_bits(&b));
    let lines = |dir: &Path| {
        let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|l| {
                let mut v: serde_json::Value = serde_json::from_str(l).unwrap();
                let o = v.as_object_mut().unwrap();
                o.retain(|k, _| !k.ends_with("tokens_per_second"));
                v
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(&a), lines(&b));
}

#[test]
fn training_lowers_the_loss_and_evaluation_agrees_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut evals = Vec::new();
    let mut keep = |event: TrainEvent| {
        if let TrainEvent::Evaluated(record) = event {
            evals.push((
                record.step,
                record.get("loss").unwrap(),
                record.get("logps/chosen").unwrap(),
            ));
        }
    };
    train(&gpu(), &recipe(&out, &["train.max_steps=12", "train.eval_every=6"]), false, &mut keep)
        .unwrap();
    assert_eq!(evals.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 6, 12]);
    assert!(evals[2].1 < evals[0].1 - 0.5, "{evals:?}");
    assert!(evals[2].2 > evals[0].2, "{evals:?}");
}

#[test]
fn never_evaluating_means_not_at_the_start_or_the_end_either() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut plan = Vec::new();
    let mut evaluated = 0;
    let mut keep = |event: TrainEvent| match event {
        TrainEvent::Plan(lines) => plan = lines,
        TrainEvent::Evaluated(_) => evaluated += 1,
        _ => {}
    };
    let recipe = recipe(&out, &["train.max_steps=1", "train.eval_every=0"]);
    assert!(recipe.train.eval_at_start);
    let outcome = train(&gpu(), &recipe, false, &mut keep).unwrap();
    assert_eq!((evaluated, outcome.eval), (0, None));
    assert!(!std::fs::read_to_string(out.join("metrics.jsonl")).unwrap().contains("eval_"));
    // What is minimised is told in the recipe's own words.
    let loss = "loss       orpo: lambda = 0.1, nll_scope = \"prompt+response\", \
                nll_reduction = \"token\", accumulation = \"exact\"";
    assert!(plan.iter().any(|line| line == loss), "{plan:#?}");
}

#[test]
fn an_existing_output_folder_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine.txt"), "mine").unwrap();
    let error = run(&recipe(&out, &[]), false).unwrap_err().to_string();
    assert!(error.contains("exists") && error.contains("--resume"), "{error}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn resuming_another_recipe_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    run(&recipe(&out, &["train.max_steps=2"]), false).unwrap();
    let error = run(&recipe(&out, &["train.max_steps=2", "loss.lambda=0.7"]), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("another recipe"), "{error}");
}

/// The same bits can be promised with the same kernels only, so others are told of.
#[test]
fn resuming_with_other_kernels_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(&dir.path().join("run"), &["train.max_steps=1"]);
    run(&recipe, false).unwrap();
    for number in [1, 2] {
        let mut choice = AdapterChoice::default();
        let default = gpu().target().clone();
        let pass = oddgrad::ops::passes().into_iter().find(|p| p.full_name() == "adamw.update");
        let told = pass.unwrap().default_for(&default, &[]).unwrap().number() != number;
        choice.kernels.insert("adamw".into(), number.into());
        let mut notes = Vec::new();
        let mut keep = |event: TrainEvent| {
            if let TrainEvent::Note(text) = event {
                notes.push(text);
            }
        };
        train(&Rc::new(Gpu::open(&choice).unwrap()), &recipe, true, &mut keep).unwrap();
        assert_eq!(notes.iter().any(|n| n.contains("other kernels")), told, "{number}: {notes:?}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_step_and_rows() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let blow_up = [
        "optim.learning_rate=1e18",
        "optim.warmup_steps=0",
        "train.save_every=1",
        "optim.schedule=constant",
    ];
    let error = run(&recipe(&out, &blow_up), false).unwrap_err();
    assert!(matches!(error, Error::NonFinite(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("step 2") && text.contains("prefs_plain.jsonl:"), "{text}");
    assert!(out.join("checkpoint-00000001").is_dir());
}

#[test]
fn an_evaluation_that_is_not_finite_stops_the_run_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let blow_up = [
        "optim.learning_rate=1e18",
        "optim.warmup_steps=0",
        "train.eval_every=1",
        "train.save_every=1",
    ];
    let error = run(&recipe(&out, &blow_up), false).unwrap_err();
    assert!(matches!(error, Error::NonFinite(_)), "{error}");
    let text = error.to_string();
    for part in ["held-out rows after step 1", "prefs_plain.jsonl:", "learning_rate, which is 1e18"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!out.join("checkpoint-00000001").exists(), "what was found bad is not saved");
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert!(!metrics.contains("null"), "{metrics}");
}

/// What a power cut leaves in the metrics keeps no run from going on.
#[test]
fn damaged_metrics_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    run(&recipe(&out, &["train.max_steps=2"]), false).unwrap();
    let path = out.join("metrics.jsonl");
    let whole = std::fs::read(&path).unwrap();
    let damaged = [whole.as_slice(), &[0; 512], b"\n"].concat();
    std::fs::write(&path, &damaged).unwrap();
    let mut notes = Vec::new();
    let mut keep = |event: TrainEvent| {
        if let TrainEvent::Note(text) = event {
            notes.push(text);
        }
    };
    train(&gpu(), &recipe(&out, &["train.max_steps=2"]), true, &mut keep).unwrap();
    assert!(notes.iter().any(|n| n.contains("damaged-1-metrics.jsonl")), "{notes:?}");
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert_eq!(std::fs::read(out.join("damaged-1-metrics.jsonl")).unwrap(), damaged);
}

#[test]
fn a_row_that_does_not_fit_the_stream_is_named_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let error = run(&recipe(&out, &["batch.stream_tokens=40"]), false).unwrap_err().to_string();
    assert!(
        error.contains("prefs_plain.jsonl:") && error.contains("batch.stream_tokens"),
        "{error}"
    );
    assert!(!out.exists());
}
