//! `oddgrad eval`, and what a run leaves to be looked at.

use crate::place::{Place, ROW};
use serde_json::Value;

fn eval(p: &Place, args: &str) -> Value {
    let answer = p.run(&format!("eval {args} --untuned --json"));
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    serde_json::from_str(&answer.out).unwrap()
}

/// The figures of `eval` are those that training records for the same weights and rows.
#[test]
fn figures_are_those_of_training() {
    let p = Place::new();
    let other = r#"{"prompt": "Tell me more.", "chosen": "It was long ago.", "rejected": "I will not tell you."}"#;
    p.write("held.jsonl", format!("{ROW}\n{other}\n"));
    let train = "train r.toml --untuned --set data.eval=held.jsonl --set train.eval_every=6 --set train.max_steps=6";
    let trained = p.run(train);
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    let metrics = std::fs::read_to_string(p.path("run/metrics.jsonl")).unwrap();
    let last = metrics.lines().rfind(|line| line.contains("eval_loss")).unwrap();
    let recorded: Value = serde_json::from_str(last).unwrap();
    let found = eval(&p, "run/model held.jsonl --against model");
    assert_eq!((found["rows"].as_u64(), found["models"][1].as_str()), (Some(2), Some("model")));
    for key in [
        "logps/chosen",
        "logps/rejected",
        "log_odds_chosen",
        "log_odds_ratio",
        "rewards/accuracies",
    ] {
        let of = &found["figures"][key];
        let [got, want] = [&of["models"][0]["value"], &recorded[&format!("eval_{key}")]];
        let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
        assert!((got - want).abs() < 1e-5 * want.abs().max(1.0), "{key}: {got} is not {want}");
        let difference = of["models"][1]["value"].as_f64().unwrap() - got;
        assert!((of["difference"]["value"].as_f64().unwrap() - difference).abs() < 1e-12, "{key}");
        let interval = &of["models"][0]["interval"];
        assert!(interval[0].as_f64() <= Some(got) && Some(got) <= interval[1].as_f64(), "{key}");
    }
    let text = p.run("eval run/model held.jsonl --untuned");
    assert!(text.out.contains("2 rows, 2 of them pairs"), "{}{}", text.out, text.err);
    // The same rows twice are the same figures.
    assert_eq!(found, eval(&p, "run/model held.jsonl --against model"));
    p.write("answers.jsonl", "{\"prompt\": \"Say it.\", \"completion\": \" Yes.\"}\n");
    let answers = eval(&p, "model answers.jsonl");
    assert!(
        answers["figures"].get("rewards/accuracies").is_none()
            && answers["figures"]["nll_loss"].is_object()
    );
    p.refused("eval model held.jsonl --resamples 3", &["--resamples", "from 100"]);
    p.refused("eval model nowhere.jsonl", &["nowhere.jsonl"]);
}

/// A run's page and TensorBoard's file grow with it, and hold what was recorded before a resume.
#[test]
fn a_run_leaves_a_page_and_events() {
    let p = Place::new();
    p.write("held.jsonl", format!("{ROW}\n"));
    let train = "train r.toml --untuned --set data.eval=held.jsonl --set train.eval_every=2 --set sample.every=2 \
                 --set sample.prompts=[\"Say\"] --set sample.max_tokens=4";
    let first = p.run(&format!("{train} --set train.max_steps=4"));
    assert_eq!(first.code, Some(0), "{}", first.err);
    assert!(first.out.contains("report     run/report.html"), "{}", first.out);
    let page = || std::fs::read_to_string(p.path("run/report.html")).unwrap();
    for part in
        ["Step 4 of 4; this run is over", "<svg", "After step 4", "Log odds ratio", "learning_rate"]
    {
        assert!(page().contains(part), "{part}");
    }
    assert!(!page().contains("http-equiv"), "a page that is finished is not loaded again");
    let events = || std::fs::metadata(p.path("run/events.out.tfevents.oddgrad")).unwrap().len();
    let before = events();
    let resumed = p.run(&format!("{train} --resume --set train.max_steps=6"));
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    assert!(page().contains("Step 6 of 6") && events() > before);
}
