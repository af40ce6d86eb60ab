//! The demo from pairs to page, on a tiny model and a handful of sentences.

use crate::engine::small_config;
use crate::gpu;
use oddgrad::data::bpe::{CHAT_TOKENS, CHATML, train_bpe};
use oddgrad::demo::pairs::GrammarPairs;
use oddgrad::demo::{CONTROL, DemoOptions, DemoOutcome, Event, HELDOUT, ORPO, run_on};
use oddgrad::model::config::ModelConfig;
use oddgrad::model::folder::save_model_folder;
use oddgrad::model::weights::init_weights;
use oddgrad::train::checkpoint;
use oddgrad::train::metrics::{MetricsRecord, Split, read_metrics};
use oddgrad::train::trainer;
use std::path::{Path, PathBuf};

const NOUNS: [&str; 6] = ["cat", "bird", "child", "teacher", "friend", "dog"];
const RULES: [(&str, &str, &str); 3] = [
    ("agreement", "sleeps in the old house", "sleep in the old house"),
    ("article", "saw an apple on a table", "saw a apple on an table"),
    ("past", "went home in the rain", "goed home in the rain"),
];

fn row(noun: &str, (rule, right, wrong): (&str, &str, &str)) -> String {
    let message = |role: &str, text: String| serde_json::json!([{"role": role, "content": text}]);
    let row = serde_json::json!({
        "prompt": message("user", format!("Correct the sentence: The {noun} {wrong}.")),
        "chosen": message("assistant", format!("The {noun} {right}.")),
        "rejected": message("assistant", format!("The {noun} {wrong}.")),
        "source": format!("rules/{rule}.rs"),
    });
    format!("{row}\n")
}

/// A model with a tokenizer of its own, eight training rows of two rules, four held-out ones of the same
/// and six of a third.
fn prepare(folder: &Path) -> (PathBuf, GrammarPairs) {
    let rows = |rules: &[(&'static str, &'static str, &'static str)]| -> String {
        rules.iter().flat_map(|&rule| NOUNS.map(|noun| row(noun, rule))).collect()
    };
    let heldout_rows = rows(&RULES[2..]);
    let of_nouns = |nouns: &[&str]| -> String {
        RULES[..2].iter().flat_map(|&rule| nouns.iter().map(move |noun| row(noun, rule))).collect()
    };
    let (train_rows, known_rows) = (of_nouns(&NOUNS[..4]), of_nouns(&NOUNS[4..]));
    let [train, known, heldout] =
        ["train", "known", "held"].map(|n| folder.join(format!("{n}.jsonl")));
    std::fs::write(&train, &train_rows).unwrap();
    std::fs::write(&known, &known_rows).unwrap();
    std::fs::write(&heldout, &heldout_rows).unwrap();
    let pairs = GrammarPairs {
        train_rows: train_rows.lines().count(),
        known_rows: known_rows.lines().count(),
        heldout_rows: heldout_rows.lines().count(),
        train_rules: 2,
        heldout_rules: 1,
        train,
        known,
        heldout,
    };
    let tokenizer = folder.join("tokenizer");
    let texts = vec![train_rows, known_rows, heldout_rows].into_iter();
    train_bpe(texts, 300, &CHAT_TOKENS)
        .unwrap()
        .write_tokenizer_folder(&tokenizer, CHATML)
        .unwrap();
    let mut json = small_config().to_json();
    json["vocab_size"] = 300.into();
    let config = ModelConfig::from_json("config.json", &json).unwrap();
    let model = folder.join("model");
    let weights = init_weights(&config, 5);
    let read = |name: &str| Ok(weights[name].data.clone());
    save_model_folder(&model, Some(&tokenizer), None, &config, &read).unwrap();
    (model, pairs)
}

fn options(folder: &Path, model: &Path, resume: bool) -> DemoOptions {
    let set = [
        "train.max_steps=4",
        "train.eval_every=2",
        "train.save_every=2",
        "batch.size=5",
        "batch.stream_tokens=384",
        "optim.learning_rate=1e-2",
    ];
    DemoOptions {
        model: model.to_owned(),
        name: "tiny".into(),
        output: folder.join("demo"),
        cache: folder.to_owned(),
        quick: true,
        resume,
        set: set.map(str::to_owned).into(),
        command: "oddgrad demo --quick".into(),
        stop: Default::default(),
    }
}

fn evals(records: &[MetricsRecord]) -> Vec<&MetricsRecord> {
    records.iter().filter(|r| r.split == Split::Eval).collect()
}

fn records(outcome: &DemoOutcome, run: &str) -> Vec<MetricsRecord> {
    read_metrics(&outcome.report.with_file_name(run).join("metrics.jsonl")).unwrap()
}

#[test]
fn the_demo_leaves_a_report_of_two_runs_on_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (model, pairs) = prepare(dir.path());
    let gpu = gpu();

    // Stopped within the control, as by a kill; then resumed.
    let started = options(dir.path(), &model, false);
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = run_on(&gpu, &started, &pairs, &mut |event| {
            if let Event::Run { name: "control", event: trainer::TrainEvent::Step(record) } = event
                && record.step == 3
            {
                panic!("killed");
            }
        });
    }));
    assert!(stopped.is_err());
    let error = run_on(&gpu, &started, &pairs, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("exists already") && error.contains("--resume"), "{error}");
    let again = options(dir.path(), &model, true);
    let outcome = run_on(&gpu, &again, &pairs, &mut |_| {}).unwrap();

    // Three of the six held-out rows, as --quick takes them.
    let heldout = std::fs::read_to_string(again.output.join(HELDOUT)).unwrap();
    assert_eq!(heldout.lines().count(), 3);
    let all = std::fs::read_to_string(&pairs.heldout).unwrap();
    assert!(heldout.lines().all(|line| all.lines().any(|l| l == line)));

    let (orpo, control) = (records(&outcome, ORPO), records(&outcome, CONTROL));
    for run in [&orpo, &control] {
        assert_eq!(evals(run).iter().map(|r| r.step).collect::<Vec<_>>(), [0, 2, 4]);
        assert_eq!(run.iter().filter(|r| r.split == Split::Train).count(), 4);
        assert!(run.iter().all(|r| r.get("logps/rejected").is_some()));
    }
    // The same rows in the same order: the same tokens after each step, and the hash of the order.
    let tokens =
        |run: &[MetricsRecord]| run.iter().map(|r| r.get("num_tokens")).collect::<Vec<_>>();
    assert_eq!(tokens(&orpo), tokens(&control));
    let state =
        |run: &str| checkpoint::verify(&checkpoint::folder_of(&again.output.join(run), 4)).unwrap();
    assert_eq!(state(ORPO).row_order_hash, state(CONTROL).row_order_hash);
    assert_ne!(state(ORPO).recipe_hash, state(CONTROL).recipe_hash);
    // The same start, measured alike; then lambda parts them.
    let measured = ["logps/chosen", "logps/rejected", "log_odds_chosen", "nll_loss"];
    for key in measured {
        let (a, b) = (evals(&orpo), evals(&control));
        assert_eq!(a[0].get(key), b[0].get(key), "{key} before the first step");
        assert_ne!(a[2].get(key), b[2].get(key), "{key} after the last step");
    }
    let loss = |r: &MetricsRecord, key: &str| r.get(key).unwrap();
    for record in evals(&control) {
        assert_eq!(loss(record, "loss"), loss(record, "nll_loss"), "lambda is 0");
    }
    assert!(loss(evals(&orpo)[0], "loss") > loss(evals(&orpo)[0], "nll_loss") + 0.1);

    // Four sentences of each kind at most, as --quick shows them.
    assert_eq!(outcome.samples.len(), 7);
    let [known, unknown] = &outcome.judged;
    assert_eq!((known.rows, known.corrected, unknown.rows, unknown.corrected), (4, 4, 3, 3));
    // What training measured first and last on the rows of known rules is what is told of them.
    let last = |run: &[MetricsRecord], key: &str| loss(evals(run)[2], key);
    assert_eq!(known.preferred()[2].value, last(&orpo, "rewards/accuracies"));
    // (The NLL that training measures is of prompts too.)
    for key in &measured[..3] {
        let [base, imitation, trained] = known.figures[key].map(|estimate| estimate.value);
        let measured = [loss(evals(&orpo)[0], key), last(&control, key), last(&orpo, key)];
        for (told, measured) in [base, imitation, trained].into_iter().zip(measured) {
            assert!((told - measured).abs() < 1e-5, "{key}: {told} and {measured}");
        }
    }

    let page = std::fs::read_to_string(&outcome.report).unwrap();
    let shown = format!("{:.3}", last(&orpo, "log_odds_chosen"));
    for text in [
        "ORPO",
        "control",
        &gpu.info().name,
        "oddgrad demo --quick",
        "goed",
        "max_steps = 4",
        &shown.replace('-', "\u{2212}"),
        &outcome.verdict[0],
        "sentences of rules that were not",
    ] {
        assert!(page.contains(text), "{text} is not on the page");
    }
}

#[test]
fn the_demo_trains_additions_where_the_recipe_has_some() {
    let dir = tempfile::tempdir().unwrap();
    let (model, pairs) = prepare(dir.path());
    let gpu = gpu();
    let mut options = options(dir.path(), &model, false);
    options.set.extend(["lora.rank=4", "train.eval_every=0", "nothing"].map(str::to_owned));
    let error = run_on(&gpu, &options, &pairs, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("--set nothing"), "{error}");
    options.set.pop();
    let mut told = Vec::new();
    let outcome = run_on(&gpu, &options, &pairs, &mut |event| {
        if let Event::Working(what) = event {
            told.push(what);
        }
    })
    .unwrap();
    assert!(told.iter().any(|what| what.starts_with("ORPO: correcting")), "{told:?}");

    let before = std::fs::read(model.join("model.safetensors")).unwrap();
    for run in [ORPO, CONTROL] {
        let adapter = options.output.join(run).join("model");
        assert!(adapter.join("adapter_model.safetensors").is_file(), "{run}");
        assert!(evals(&records(&outcome, run)).is_empty(), "{run}: none was asked for");
    }
    assert_eq!(std::fs::read(model.join("model.safetensors")).unwrap(), before);
    let page = std::fs::read_to_string(&outcome.report).unwrap();
    assert!(page.contains("more train instead of them"));
    let [known, _] = &outcome.judged;
    let [base, imitation, orpo] = known.log_odds().map(|estimate| estimate.value);
    assert!(orpo > base && orpo != imitation, "{base} {imitation} {orpo}");
    // The base model's corrections are those of the model without additions.
    let plain = run_on(
        &gpu,
        &DemoOptions {
            output: dir.path().join("plain"),
            set: options.set[..options.set.len() - 2].to_vec(),
            ..options.clone()
        },
        &pairs,
        &mut |_| {},
    )
    .unwrap();
    let of_base = |outcome: &DemoOutcome| -> Vec<(String, String)> {
        let of = |s: &oddgrad::page::report::Sample| (s.wrong.clone(), s.outputs[0].clone());
        let mut texts: Vec<_> = outcome.samples.iter().map(of).collect();
        texts.sort();
        texts
    };
    assert_eq!(of_base(&outcome), of_base(&plain));
    assert_eq!(plain.judged[0].log_odds()[0], known.log_odds()[0]);
}
