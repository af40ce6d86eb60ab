//! From rows to a model: labelled rows (KTO) and answers alone (SFT), and what of them is refused.

use crate::place::{Place, timeless};
use serde_json::{Value, json};

/// Twelve rows, every third of them undesirable.
fn labelled() -> String {
    let row = |i: usize| {
        let (prompt, answer) =
            (format!("Say {i} things."), format!(" Thing {}, {i} times.", i * i));
        format!(
            "{}\n",
            json!({"prompt": prompt, "completion": answer, "label": !i.is_multiple_of(3)})
        )
    };
    (0..12).map(row).collect()
}

fn place() -> Place {
    let p = Place::new();
    p.write("rows.jsonl", labelled());
    p.write("held.jsonl", labelled().replace("things", "words"));
    p
}

const TRAIN: &str = "train r.toml --untuned --set objective=kto --set data.eval=held.jsonl \
    --set batch.size=6 --set train.max_steps=5 --set train.eval_every=5 --set optim.schedule=constant \
    --set optim.learning_rate=2e-3 --set train.eval_at_start=true";

fn records(p: &Place, run: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(p.path(run).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn model(p: &Place, run: &str) -> Vec<u8> {
    std::fs::read(p.path(run).join("model/model.safetensors")).unwrap()
}

#[track_caller]
fn done(p: &Place, args: &str) -> String {
    let answer = p.run(args);
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    answer.err
}

#[test]
fn a_run_learns_labels_and_resumes_with_its_bits() {
    let p = place();
    let told = done(&p, TRAIN);
    for part in [
        "labels: 8 true, 4 false; to weigh them alike, set loss.desirable_weight from 0.50 to 0.67",
        "12 sequences, 8 with label true, 4 with false",
        "mismatched reference log-probs: 12 rows",
        "held-out mismatched reference log-probs: 12 rows",
    ] {
        assert!(told.contains(part), "`{part}` is missing: {told}");
    }
    let all = records(&p, "run");
    let of = |record: &Value, key: &str| record[key].as_f64().unwrap_or_else(|| panic!("no {key}"));
    // Before the first step the model is its own reference: sigmoid(0) is the loss of every row.
    let start = &all[0];
    assert!((of(start, "eval_loss") - 0.5).abs() < 1e-6 && of(start, "eval_kl") < 1e-4);
    let (first, last) = (&all[1], all.last().unwrap());
    assert!((of(first, "loss") - 0.5).abs() < 1e-6, "{first}");
    assert!(of(last, "eval_loss") < 0.499, "{last}");
    assert!(of(last, "eval_rewards/margins") > 0.01, "{last}");
    // Training makes its own prompts' answers likelier, after whichever prompt.
    assert!(all.iter().any(|r| r.get("kl").and_then(Value::as_f64) > Some(0.0)), "{all:?}");
    let page = std::fs::read_to_string(p.path("run/report.html")).unwrap();
    assert!(page.contains("Divergence from the reference model"), "{page}");
    let best = std::fs::read_to_string(p.path("run/best.json")).unwrap();
    assert!(best.contains("\"loss\""), "{best}");
    for key in ["logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"] {
        assert!(of(last, &format!("eval_{key}")).is_finite());
    }

    done(&p, &format!("{TRAIN} --set output=part --set train.max_steps=3"));
    done(&p, &format!("{TRAIN} --set output=part --resume"));
    assert!(model(&p, "part") == model(&p, "run"), "a run that goes on has other bits");
    done(&p, &format!("{TRAIN} --set output=again"));
    let names = |run: &str| timeless(&p.path(run)).len();
    assert!(model(&p, "again") == model(&p, "run") && names("again") == names("run"));
}

/// Steps of one row have one label each, and nothing is said of the other.
#[test]
fn steps_of_one_row_train_too() {
    let p = place();
    let told = done(&p, &format!("{TRAIN} --set batch.size=1 --set train.eval_every=0"));
    assert!(told.contains("step     5/5"), "{told}");
    for record in records(&p, "run") {
        let [chosen, rejected] =
            ["logps/chosen", "logps/rejected"].map(|k| record.get(k).is_some());
        assert!(chosen != rejected && record.get("rewards/margins").is_none(), "{record}");
        assert!(record["kl"].as_f64() >= Some(0.0), "{record}");
    }
}

/// The divergence is that of the whole step, however many streams its rows take.
#[test]
fn accumulation_changes_nothing() {
    let p = place();
    let whole = "--set batch.stream_tokens=256 --set output=whole";
    let split = "--set batch.stream_tokens=48 --set output=split";
    for more in [whole, split] {
        done(&p, &format!("{TRAIN} {more}"));
    }
    for (a, b) in records(&p, "whole").iter().zip(&records(&p, "split")) {
        for (key, value) in a.as_object().unwrap() {
            if key.ends_with("tokens_per_second") {
                continue;
            }
            let (x, y) = (value.as_f64().unwrap(), b[key].as_f64().unwrap());
            assert!((x - y).abs() <= 1e-4 * x.abs().max(1.0), "{key}: {x} is not {y}");
        }
    }
}

#[test]
fn pairs_train_too_and_say_so() {
    let p = place();
    let row = |i: usize| {
        let [a, b] = ["Of course", "Never"].map(|word| format!(" {word}, {i} times."));
        format!("{}\n", json!({"prompt": format!("Say {i}."), "chosen": a, "rejected": b}))
    };
    p.write("pairs.jsonl", (0..5).map(row).collect::<String>());
    let told = done(&p, &format!("{TRAIN} --set data.train=pairs.jsonl"));
    assert!(
        told.contains("pairs.jsonl: 5 pairs are 10 rows, their chosen answers with label true")
    );
    assert!(told.contains("mismatched reference log-probs: 10 rows"), "{told}");
    // The comparison judges by pairs, whatever was trained on.
    let compare = "compare-objectives r.toml --untuned --objectives kto,dpo --output all \
                   --set data.train=pairs.jsonl --set data.eval=pairs.jsonl --set train.max_steps=2";
    let compared = p.run(compare);
    assert_eq!(compared.code, Some(0), "{}", compared.err);
    let referred = compared.out.lines().find(|line| line.contains("reference model, forward"));
    let tokens: Vec<f64> =
        referred.unwrap().split_whitespace().filter_map(|cell| cell.parse().ok()).collect();
    assert!(tokens.len() == 2 && tokens[0] > tokens[1], "{}", compared.out);
}

#[test]
fn the_other_commands_know_labelled_rows() {
    let p = place();
    let found = p.run("data check rows.jsonl --model model --kto");
    assert_eq!(found.code, Some(0), "{}", found.err);
    assert!(found.out.contains("labels     8 true, 4 false"), "{}", found.out);
    let plain = p.run("data check rows.jsonl --model model");
    assert!(plain.err.contains("column \"rejected\" is missing"), "{}", plain.err);
    let judged = p.run("eval model rows.jsonl --untuned");
    assert!(judged.out.contains("12 rows, 0 of them pairs, 4 with label false"), "{}", judged.out);
    assert!(judged.out.contains("log-prob per token, rejected"), "{}", judged.out);
    let planned = p.run("plan r.toml --set objective=kto");
    assert_eq!(planned.code, Some(0), "{}", planned.err);
}

#[test]
fn rows_that_cannot_teach_are_refused() {
    let p = place();
    let with = |rows: &str| {
        p.write("bad.jsonl", rows);
        format!("{TRAIN} --set data.train=bad.jsonl")
    };
    let row = |i: usize, more: Value| {
        let mut row = json!({"prompt": format!("Say {i}."), "completion": format!(" {i}.")});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{row}\n")
    };
    let [yes, no] = [true, false].map(|label| json!({ "label": label }));
    let rows = [row(1, json!({})), row(2, json!({"label": "poem"})), row(3, no.clone())].concat();
    p.refused(
        &with(&rows),
        &[
            "2 of 3 rows cannot be used",
            "bad.jsonl:1: column \"label\" is missing; the row has prompt, completion (set data.map.label",
            "bad.jsonl:2: column \"label\" is \"poem\", not true or false",
        ],
    );
    let same = [row(1, yes.clone()), row(2, yes.clone())].concat();
    p.refused(&with(&same), &["data.train: has label true in every row", "objective = \"sft\""]);
    p.refused(
        &with(&row(1, yes.clone())),
        &["bad.jsonl:1: there is no other row whose prompt", "apo_zero_unpaired"],
    );
    // One prompt has no other prompt's answers; the loss without a divergence needs none.
    let one = [row(1, yes), row(1, no).replace(" 1.", " One.")].concat();
    let one = one.replace("Say One.", "Say 1.");
    p.refused(&with(&one), &["bad.jsonl:1: there is no other row", "bad.jsonl:2: there is no"]);
    let apo = "--set loss.type=apo_zero_unpaired --set output=apo --set train.max_steps=2";
    let told = done(&p, &format!("{} {apo}", with(&one)));
    assert!(!told.contains("mismatched"), "{told}");
    p.refused(
        &format!("{TRAIN} --set loss.desirable_weight=-1 --set loss.beta=0 --set loss.type=bco"),
        &["loss.desirable_weight", "loss.beta", "one of \"kto\", \"apo_zero_unpaired\""],
    );
}

/// Rows for imitation, in the three layouts without a rejected side, are the same run.
#[test]
fn answers_alone_train_in_three_layouts() {
    let p = Place::new();
    let said = ["Yes, of course.", "Not now.", "In the evening, by the sea."];
    type Layout = fn(&str, &str) -> Value;
    let rows = |layout: Layout| -> String {
        let row = |(i, said): (usize, &&str)| format!("{}\n", layout(&format!("Say {i}."), said));
        said.iter().enumerate().map(row).collect()
    };
    let layouts: [(&str, Layout); 4] = [
        ("completion", |asked, said| json!({"prompt": asked, "completion": said})),
        ("alpaca", |asked, said| json!({"instruction": asked, "input": "", "output": said})),
        (
            "messages",
            |asked, said| json!({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}),
        ),
        (
            "completion_of_messages",
            |asked, said| json!({"prompt": [{"role": "user", "content": asked}], "completion": [{"role": "assistant", "content": said}]}),
        ),
    ];
    for (name, layout) in layouts {
        p.write("rows.jsonl", rows(layout));
        let told =
            done(&p, &format!("train r.toml --untuned --set objective=sft --set output={name}"));
        assert!(told.contains("rows.jsonl: 3 rows"), "{told}");
        let last = records(&p, name).pop().unwrap();
        assert!(last["nll_loss"].as_f64().unwrap() > 0.0 && last["logps/chosen"].is_f64());
        assert!(last.get("logps/rejected").is_none(), "{last}");
    }
    assert!(model(&p, "completion") == model(&p, "alpaca"));
    assert!(model(&p, "messages") == model(&p, "completion_of_messages"));
    assert!(model(&p, "messages") != model(&p, "completion"), "a template makes other tokens");
    // The input is part of what was asked.
    p.write("rows.jsonl", r#"{"instruction": "Translate.", "input": "Ja.", "output": "Yes."}"#);
    done(&p, "train r.toml --untuned --set objective=sft --set output=input");
    p.write("rows.jsonl", r#"{"prompt": "Translate.\nJa.", "completion": "Yes."}"#);
    done(&p, "train r.toml --untuned --set objective=sft --set output=joined");
    assert!(model(&p, "input") == model(&p, "joined"));
}
