//! `oddgrad rounds` as a person uses it, and when it is killed.

use crate::place::Place;
#[cfg(unix)]
use {
    crate::feedback::{nano, rows},
    fastrand::Rng,
    serde_json::Value,
    std::path::Path,
    std::process::Command,
    std::time::Duration,
};

#[cfg(unix)]
/// Prompts that have nothing to do with each other.
fn subjects(from: usize, count: usize) -> String {
    const WHO: [&str; 8] = [
        "the cat",
        "my father",
        "a sailor",
        "the king",
        "our teacher",
        "a friend",
        "she",
        "the dog",
    ];
    const WHAT: [&str; 8] = [
        "sing at night",
        "like the rain",
        "go to the town",
        "read that book",
        "leave so early",
        "want some tea",
        "run in the field",
        "stay at home",
    ];
    let line = |i: usize| format!("Why did {} {}?\n", WHO[i % 8], WHAT[i / 8 % 8]);
    (from..from + count).map(line).collect()
}

/// A recipe of rounds whose judge likes short answers.
#[cfg(unix)]
fn rounds_place(model: &str, steps: usize, rounds: &str) -> Place {
    let p = Place::new();
    p.write("prompts.txt", subjects(0, 24));
    p.write("heldout.txt", subjects(32, 24));
    p.write("shorter.sh", "echo -$(($(wc -c)))\n");
    let recipe = format!(
        r#"
objective = "orpo"
model = "{model}"
output = "rounds"
[data]
max_length = 128
[loss]
lambda = 1.0
[optim]
learning_rate = 1e-3
[batch]
size = 16
stream_tokens = 512
[train]
max_steps = {steps}
save_every = 2
[rounds]
prompts = "prompts.txt"
heldout = "heldout.txt"
pairs = 2
{rounds}
[rounds.judge]
command = "sh shorter.sh"
"#
    );
    p.write("rounds.toml", recipe);
    p
}

#[cfg(unix)]
#[test]
fn rounds_teach_what_the_judge_likes() {
    let p = rounds_place(&nano(), 6, "count = 3\nmax_tokens = 20");
    let found = p.run("rounds rounds.toml --untuned");
    assert_eq!(found.code, Some(0), "{}{}", found.out, found.err);
    let results = &json_of(&p.path("rounds/rounds.json"))["rounds"];
    let rate = |round: usize| results[round]["win_rate"].as_f64().unwrap();
    assert!(rate(2) > 0.75 && rate(2) > rate(0), "{results}");
    assert!(results[2]["interval"][0].as_f64().unwrap() > 0.6, "{results}");
    assert!(found.out.contains("against round 0") && found.out.contains("best       round "));
    let model = results[2]["model"].as_str().unwrap();
    let said = p.run(&format!("generate {model} --untuned --prompt Why?"));
    assert_eq!(said.code, Some(0), "{}", said.err);
}

#[cfg(unix)]
fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What rounds leave, but for the time it took and how often the judge was asked.
#[cfg(unix)]
fn left_by_rounds(p: &Place) -> Vec<Value> {
    let mut all = Vec::new();
    for round in 1..=2 {
        for name in ["answers.jsonl", "rows.jsonl", "heldout.answers.jsonl", "heldout.jsonl"] {
            all.extend(rows(&p.path(&format!("rounds/round-{round}/{name}"))));
        }
        let proof = json_of(&p.path(&format!("rounds/round-{round}/run/proof.json")));
        all.push(proof["model_blake3"].clone());
        all.push(json_of(&p.path(&format!("rounds/round-{round}/result.json"))));
    }
    for row in all.iter_mut().filter_map(Value::as_object_mut) {
        row.retain(|key, _| !matches!(key.as_str(), "when" | "calls"));
    }
    all
}

/// Runs the rounds of a place to their end, killed up to `most` times; gives how often.
#[cfg(unix)]
fn run_with_kills(p: &Place, most: u32) -> u32 {
    let mut rng = Rng::with_seed(9);
    let mut kills = 0;
    loop {
        let log = std::fs::File::create(p.path("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_oddgrad"))
            .args(["rounds", "rounds.toml", "--untuned"])
            .current_dir(p.dir.path())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        if kills < most {
            std::thread::sleep(Duration::from_millis(rng.u64(0..1500)));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
            }
        }
        let status = child.wait().unwrap();
        if status.code().is_some() {
            let log = std::fs::read_to_string(p.path("log")).unwrap();
            assert!(status.success(), "{log}");
            return kills;
        }
    }
}

/// Each round trains the adapter of the one before further, over the model of round 0.
#[cfg(unix)]
#[test]
fn rounds_train_one_adapter() {
    let rounds = "count = 2\nanswers = 3\nmax_tokens = 6";
    let place = || {
        let p = rounds_place("model", 2, rounds);
        let text = std::fs::read_to_string(p.path("rounds.toml")).unwrap();
        p.write(
            "rounds.toml",
            format!("{text}[lora]\nrank = 2\ntargets = [\"q_proj\", \"up_proj\"]\n"),
        );
        p
    };
    let whole = place();
    let found = whole.run("rounds rounds.toml --untuned");
    assert_eq!(found.code, Some(0), "{}{}", found.out, found.err);
    assert!(found.err.contains("is an adapter, which is trained further"), "{}", found.err);
    for round in 1..=2 {
        let model = format!("rounds/round-{round}/run/model");
        let config = json_of(&whole.path(&format!("{model}/adapter_config.json")));
        assert_eq!(config["base_model_name_or_path"], "model");
        assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "up_proj"]));
        // The second round starts where the first ended, so its B is not zero.
        let proof = json_of(&whole.path(&format!("rounds/round-{round}/run/proof.json")));
        let changes = proof["parameters"].as_array().unwrap().iter();
        let mut b = changes.filter(|c| c["name"].as_str().unwrap().ends_with("lora_B.weight"));
        assert!(b.all(|change| change["relative"].is_null() == (round == 1)), "{proof}");
    }
    let p = place();
    let kills = run_with_kills(&p, 3);
    assert!(kills >= 1, "it was over before it was killed");
    assert_eq!(left_by_rounds(&p), left_by_rounds(&whole));
}

/// Rounds that are killed again and again come to what they come to undisturbed.
#[cfg(unix)]
#[test]
fn rounds_go_on_after_kills() {
    let rounds = "count = 2\nanswers = 3\nmax_tokens = 6";
    let whole = rounds_place("model", 4, rounds);
    let found = whole.run("rounds rounds.toml --untuned");
    assert_eq!(found.code, Some(0), "{}{}", found.out, found.err);
    let p = rounds_place("model", 4, rounds);
    let kills = run_with_kills(&p, 6);
    assert!(kills >= 3, "it was over after {kills} kills");
    assert_eq!(left_by_rounds(&p), left_by_rounds(&whole));
    // Another recipe has no business there; more rounds have.
    let text = std::fs::read_to_string(p.path("rounds.toml")).unwrap();
    p.write("other.toml", text.replace("max_tokens = 6", "max_tokens = 7"));
    let other = p.run("rounds other.toml --untuned");
    assert_eq!(other.code, Some(1));
    assert!(other.err.contains("rounds.max_tokens: was 6 and is 7"), "{}", other.err);
    p.write("rounds.toml", text.replace("count = 2", "count = 3"));
    let more = p.run("rounds rounds.toml --untuned");
    assert!(more.code == Some(0) && p.path("rounds/round-3/run/model").exists(), "{}", more.err);
}

#[test]
fn recipes_of_rounds_are_checked_at_once() {
    let p = Place::new();
    p.write("prompts.txt", "Why?\n");
    let recipe = |rounds: &str| {
        p.write(
            "rounds.toml",
            format!(
                "objective = \"orpo\"\nmodel = \"model\"\noutput = \"rounds\"\n[optim]\nlearning_rate = 1e-3\n{rounds}"
            ),
        );
    };
    let refused = |phrases: &[&str]| p.refused("rounds rounds.toml", phrases);
    recipe("");
    refused(&["rounds: is missing", "prompts, heldout and judge"]);
    recipe(
        "[rounds]\nprompts = \"prompts.txt\"\nheldouts = \"x\"\n[rounds.judge]\ncommand = \"x\"\n",
    );
    refused(&["rounds", "heldouts"]);
    let section = "[rounds]\nprompts = \"prompts.txt\"\nheldout = \"prompts.txt\"\n";
    recipe(&format!(
        "{section}count = 0\nanswers = 1\ntemperature = 0.0\n[rounds.judge]\nvotes = 0\n"
    ));
    refused(&[
        "rounds.count: is 0",
        "rounds.answers: must be at least 2",
        "rounds.temperature: is 0",
        "rounds.judge.command: name one judge",
        "rounds.judge.votes: is 0",
    ]);
    recipe(&format!("[data]\ntrain = \"rows.jsonl\"\n{section}[rounds.judge]\ncommand = \"x\"\n"));
    refused(&["data.train", "made by the rounds themselves"]);
    recipe(&format!("{section}[rounds.judge]\nendpoint = \"x\"\nname = \"m\"\n"));
    refused(&["--endpoint x", "is no address"]);
    recipe(&format!(
        "{}[rounds.judge]\ncommand = \"x\"\n",
        section.replacen("prompts.txt", "nowhere.txt", 1)
    ));
    refused(&["nowhere.txt"]);
}
