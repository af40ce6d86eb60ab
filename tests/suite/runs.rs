//! A run and its owner: stopped, locked, resumed, read by nobody; and what it leaves beside the
//! weights.

use crate::place::{Place, contents, timeless};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn oddgrad() -> Command {
    Command::new(env!("CARGO_BIN_EXE_oddgrad"))
}

/// Lines of a run's metrics.
fn recorded(p: &Place, run: &str) -> usize {
    let text = std::fs::read_to_string(p.path(run).join("metrics.jsonl")).unwrap_or_default();
    text.lines().count()
}

/// Starts a run in the background and waits until it has recorded `lines` lines.
fn started(p: &Place, args: &str, run: &str, lines: usize) -> Child {
    let mut command = oddgrad();
    command.args(args.split_whitespace()).current_dir(p.dir.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while recorded(p, run) < lines {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before line {lines}");
        assert!(start.elapsed() < Duration::from_secs(100), "no line {lines}");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}

fn model(p: &Place, run: &str) -> Vec<u8> {
    std::fs::read(p.path(run).join("model/model.safetensors")).unwrap()
}

#[cfg(unix)]
#[test]
fn a_second_signal_does_not_wait() {
    let p = Place::new();
    let train = "train r.toml --set train.max_steps=1000000 --set train.save_every=0";
    let mut child = started(&p, train, "run", 1);
    signal(&child, "INT");
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[cfg(unix)]
#[test]
fn two_runs_do_not_share_a_folder() {
    let p = Place::new();
    let long = "--set train.max_steps=1000000 --set train.save_every=3";
    let mut first = started(&p, &format!("train r.toml {long}"), "run", 8);
    let recipe = std::fs::read(p.path("run/recipe.toml")).unwrap();
    for resume in ["", "--resume"] {
        let second = p.run(&format!("train r.toml {resume} {long}"));
        assert_eq!(second.code, Some(1), "{}", second.err);
        let who = format!("run: another run (process {}) is at work", first.id());
        assert!(second.err.contains(&who), "{}", second.err);
    }
    assert_eq!(std::fs::read(p.path("run/recipe.toml")).unwrap(), recipe);
    let lines = recorded(&p, "run");
    let start = Instant::now();
    while recorded(&p, "run") <= lines {
        assert!(start.elapsed() < Duration::from_secs(60), "the first run goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    // A process that is killed leaves no lock behind.
    first.kill().unwrap();
    first.wait().unwrap();
    let mut third = started(&p, &format!("train r.toml --resume {long}"), "run", lines + 20);
    signal(&third, "TERM");
    assert_eq!(third.wait().unwrap().code(), Some(130));
}

/// A folder that goes away under a run: made again, unless another run is in it by now.
#[cfg(unix)]
#[test]
fn a_run_notices_when_its_folder_is_no_longer_its_own() {
    let p = Place::new();
    let train = "train r.toml --set train.max_steps=1000000 --set train.save_every=0";
    let mut moved = started(&p, train, "run", 3);
    std::fs::rename(p.path("run"), p.path("elsewhere")).unwrap();
    signal(&moved, "INT");
    assert_eq!(moved.wait().unwrap().code(), Some(130));
    let names: Vec<_> = contents(&p.path("run")).into_keys().collect();
    for name in ["recipe.toml", "metrics.jsonl"] {
        assert!(names.contains(&p.path("run").join(name)), "{names:?}");
    }
    assert!(names.iter().any(|n| n.ends_with("state.json")), "{names:?}");

    std::fs::remove_dir_all(p.path("run")).unwrap();
    let mut first = started(&p, train, "run", 3);
    std::fs::remove_dir_all(p.path("run")).unwrap();
    let mut second = started(&p, train, "run", 3);
    signal(&first, "INT");
    assert_eq!(first.wait().unwrap().code(), Some(1));
    signal(&second, "INT");
    assert_eq!(second.wait().unwrap().code(), Some(130));
    let checkpoints = checkpoint_count(&p.path("run"));
    assert_eq!(checkpoints, 1, "the second run's alone");
}

fn checkpoint_count(run: &Path) -> usize {
    let names = std::fs::read_dir(run).unwrap().map(|e| e.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("checkpoint-")).count()
}

#[test]
fn the_model_of_a_finished_run_is_the_one_that_was_trained() {
    let p = Place::new();
    assert_eq!(p.run("train r.toml").code, Some(0));
    let right = model(&p, "run");
    let whole = timeless(&p.path("run"));
    assert_eq!(p.run("train r.toml --resume").code, Some(0));
    assert!(timeless(&p.path("run")) == whole, "nothing is written twice");
    p.write("run/model/model.safetensors", "another run's");
    let again = p.run("train r.toml --resume");
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert!(again.err.contains("was moved to run/replaced-1-model"), "{}", again.err);
    assert!(model(&p, "run") == right, "the model that was trained");
    let aside = std::fs::read(p.path("run/replaced-1-model/model.safetensors")).unwrap();
    assert_eq!(aside, b"another run's");
}

/// A run that ends shows that it trained; resumed, it compares with the weights it began with.
#[test]
fn a_run_ends_with_a_proof() {
    let p = Place::new();
    let eval = "--set data.eval=rows.jsonl --set train.eval_at_start=true";
    let whole = p.run(&format!("train r.toml {eval} --set output=whole"));
    assert_eq!(whole.code, Some(0), "{}", whole.err);
    for line in ["trained: all ", "held out: loss ", "reads back bit for bit"] {
        assert!(whole.err.contains(line), "{line}: {}", whole.err);
    }
    let proof = |run: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(p.path(run).join("proof.json")).unwrap()).unwrap()
    };
    let hash = blake3::hash(&model(&p, "whole")).to_hex().to_string();
    assert_eq!(proof("whole")["model_blake3"], hash.as_str());

    // From its checkpoint in the middle it comes to the same.
    assert_eq!(p.run(&format!("train r.toml {eval}")).code, Some(0));
    for name in ["checkpoint-00000004", "model"] {
        std::fs::remove_dir_all(p.path("run").join(name)).unwrap();
    }
    let resumed = p.run(&format!("train r.toml {eval} --resume"));
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    assert_eq!(proof("run"), proof("whole"));

    // Other weights to begin with: what the run made of its own cannot be said any more.
    let start = p.path("model/model.safetensors");
    let own = std::fs::read(&start).unwrap();
    std::fs::copy(p.path("run/model/model.safetensors"), &start).unwrap();
    let changed = p.run(&format!("train r.toml {eval} --resume"));
    assert_eq!(changed.code, Some(1), "{}", changed.err);
    assert!(changed.err.contains("have changed since"), "{}", changed.err);
    assert!(!p.path("run/proof.json").exists());
    std::fs::write(&start, own).unwrap();
    assert_eq!(p.run(&format!("train r.toml {eval} --resume")).code, Some(0));
    assert_eq!(proof("run"), proof("whole"));

    let idle = p.run("train r.toml --set output=idle --set optim.learning_rate=0");
    assert_eq!(idle.code, Some(0), "{}", idle.err);
    assert!(idle.err.contains("nothing was trained"), "{}", idle.err);
    let faint = p.run("train r.toml --set output=faint --set optim.learning_rate=1e-30");
    assert_eq!(faint.code, Some(1), "{}", faint.err);
    assert!(faint.err.contains("model.norm.weight: had gradients"), "{}", faint.err);
}

/// The checkpoint of the best evaluation stays, whatever comes after it.
#[test]
fn the_best_checkpoint_stays() {
    let p = Place::new();
    // Held-out rows that want the contrary: each step makes them worse.
    let contrary = r#"{"prompt": "Say it.", "chosen": "No.", "rejected": "Yes, of course."}"#;
    p.write("held.jsonl", format!("{contrary}\n"));
    let bare = "train r.toml --set objective=simpo --set optim.schedule=constant \
                --set train.save_every=1 \
                --set train.eval_every=2 --set train.keep_checkpoints=1";
    let train = format!("{bare} --set data.eval=held.jsonl");
    let steps = |run: &str| -> Vec<u64> {
        let all = oddgrad::train::checkpoint::list(&p.path(run)).unwrap();
        all.into_iter().map(|(step, _)| step).collect()
    };
    let whole = p.run(&format!("{train} --set output=whole --set train.max_steps=8"));
    assert_eq!(whole.code, Some(0), "{}", whole.err);
    assert_eq!(steps("whole"), [2, 8]);
    assert!(whole.err.contains("step     2  best so far: eval loss "), "{}", whole.err);
    let told = "best       whole/checkpoint-00000002 (step 2, eval loss ";
    assert!(whole.out.contains(told), "{}", whole.out);
    let best = |run: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(p.path(run).join("best.json")).unwrap()).unwrap()
    };
    let metrics = std::fs::read_to_string(p.path("whole/metrics.jsonl")).unwrap();
    let evaluation = metrics.lines().find(|line| line.contains("eval_loss")).unwrap();
    let evaluation: serde_json::Value = serde_json::from_str(evaluation).unwrap();
    assert_eq!(best("whole")["step"], evaluation["step"]);
    assert_eq!(best("whole")["value"], evaluation["eval_loss"]);
    let generate = "generate whole/checkpoint-00000002 --prompt Say --max-tokens 2";
    assert_eq!(p.run(generate).code, Some(0));

    // It stays over a resume, and the run is the same.
    assert_eq!(p.run(&format!("{train} --set train.max_steps=5")).code, Some(0));
    assert_eq!(steps("run"), [2, 5]);
    let on = p.run(&format!("{train} --set train.max_steps=8 --resume"));
    assert_eq!(on.code, Some(0), "{}", on.err);
    assert_eq!((steps("run"), best("run")), (vec![2, 8], best("whole")));
    assert!(model(&p, "run") == model(&p, "whole"), "other bits");
    let weights = |run: &str| {
        std::fs::read(p.path(run).join("checkpoint-00000002/model.safetensors")).unwrap()
    };
    assert!(weights("run") == weights("whole"), "other bits");

    // Another figure decides, none does, or there is none.
    let other = format!("{train} --set train.best=logps/rejected --set output=other");
    assert_eq!(p.run(&format!("{other} --set train.max_steps=8")).code, Some(0));
    assert_eq!(best("other")["metric"], "logps/rejected");
    for (run, train) in [("none", format!("{train} --set train.best=none")), ("bare", bare.into())]
    {
        let answer = p.run(&format!("{train} --set output={run} --set train.max_steps=8"));
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        assert_eq!(steps(run), [8], "{run}");
        assert!(!p.path(run).join("best.json").exists() && !answer.out.contains("best"));
        assert!(model(&p, run) == model(&p, "whole"), "other bits");
    }
}

#[test]
fn a_run_goes_on_under_settings_that_do_not_falsify_it() {
    let p = Place::new();
    let train = "train r.toml --set optim.schedule=constant";
    assert_eq!(p.run(&format!("{train} --set output=six --set train.max_steps=6")).code, Some(0));
    assert_eq!(p.run(train).code, Some(0));
    for (set, change) in [
        ("loss.lambda=0.3", "loss.lambda: 0.1 -> 0.3"),
        ("optim.warmup_ratio=0.5", "optim.warmup_steps: 0 -> not set"),
        ("seed=3", "seed: 0 -> 3"),
    ] {
        let what = &["cannot resume", "another recipe", change];
        p.refused(&format!("{train} --resume --set {set}"), what);
    }
    let longer = p.run(&format!(
        "{train} --resume --set train.max_steps=6 --set train.save_every=0 --set train.log_every=2"
    ));
    assert_eq!(longer.code, Some(0), "{}", longer.err);
    let told = "changed since the checkpoint: train.log_every 1 -> 2, train.max_steps 4 -> 6, \
                train.save_every 2 -> 0\n";
    assert!(longer.err.contains(told), "{}", longer.err);
    assert!(model(&p, "run") == model(&p, "six"), "as if it had been this long from the start");
    p.refused(
        &format!("{train} --resume --set train.max_steps=5"),
        &["is at step 6, and the recipe ends at step 5"],
    );
    // A falling learning rate is another one under another length, which is told.
    let falls = p.run("train r.toml --set output=falls");
    assert_eq!(falls.code, Some(0), "{}", falls.err);
    let on = p.run("train r.toml --set output=falls --resume --set train.epochs=4");
    assert_eq!(on.code, Some(0), "{}", on.err);
    assert!(on.err.contains("learning rate follows the new length"), "{}", on.err);
    assert!(on.err.contains("train.max_steps 4 -> not set"), "{}", on.err);
}

#[test]
fn checkpoints_by_the_clock() {
    let p = Place::new();
    let clock = p.run(
        "train r.toml --set train.save_every=0 --set train.save_minutes=1e-9 \
         --set train.keep_checkpoints=9",
    );
    assert_eq!(clock.code, Some(0), "{}", clock.err);
    for step in 1..=4 {
        assert!(p.path(&format!("run/checkpoint-{step:08}")).exists(), "{step}");
    }
    p.refused("train r.toml --set train.save_minutes=0 --set output=x", &["train.save_minutes"]);
}

#[cfg(unix)]
#[test]
fn output_that_goes_nowhere_ends_nothing() {
    let p = Place::new();
    let shell = |script: &str| {
        let script = format!("\"$ODDGRAD\" {script}");
        let mut command = Command::new("bash");
        p.command(command.args(["-c", &script]).env("ODDGRAD", env!("CARGO_BIN_EXE_oddgrad")))
    };
    for (i, script) in [
        "train r.toml --set output=out$N 2>&1 | true; exit ${PIPESTATUS[0]}",
        "train r.toml --set output=out$N 2>&1 | head -1; exit ${PIPESTATUS[0]}",
        "train r.toml --set output=out$N >&- 2>&-",
        "train r.toml --set output=out$N >/dev/full 2>/dev/full",
    ]
    .into_iter()
    .enumerate()
    {
        if script.contains("/dev/full") && !Path::new("/dev/full").exists() {
            continue;
        }
        let answer = shell(&script.replace("$N", &i.to_string()));
        assert_eq!(answer.code, Some(0), "{script}: {}{}", answer.out, answer.err);
        assert!(p.path(&format!("out{i}/model/model.safetensors")).exists(), "{script}");
    }
    let kernels = shell("doctor --kernels | head -1; exit ${PIPESTATUS[0]}");
    assert_eq!((kernels.code, kernels.out.trim()), (Some(0), "adapters"), "{}", kernels.err);
    // Where the output is all there is, losing it is a failure.
    if Path::new("/dev/full").exists() {
        let lost = shell("generate model --prompt x --max-tokens 2 >/dev/full");
        assert_eq!(lost.code, Some(1), "{}", lost.err);
        assert!(lost.err.contains("error: cannot write standard output"), "{}", lost.err);
    }
}

/// The rows decide the form, the folder keeps it, and prompts follow it.
#[test]
fn prompts_take_the_form_that_a_model_was_trained_in() {
    let p = Place::new();
    let chat = r#"{"prompt": [{"role": "user", "content": "Say it."}], "chosen": [{"role": "assistant", "content": "Yes."}], "rejected": [{"role": "assistant", "content": "No."}]}"#;
    p.write("chat.jsonl", format!("{chat}\n").repeat(4));
    p.write("model/chat_template.jinja", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}");
    let sample = "--set sample.every=4 --set sample.prompts=Red --set sample.max_tokens=2";
    for (run, set, form) in [
        ("plain", "", "plain"),
        ("chat", "--set data.train=chat.jsonl", "chat"),
        ("said", "--set sample.form=chat", "chat"),
    ] {
        let trained = p.run(&format!("train r.toml --set output={run} {set} {sample}"));
        assert_eq!(trained.code, Some(0), "{}", trained.err);
        for folder in ["model", "checkpoint-00000004"] {
            let record = p.path(&format!("{run}/{folder}/oddgrad.json"));
            let record = std::fs::read_to_string(record).unwrap();
            assert!(record.contains(&format!("\"form\": \"{form}\"")), "{run}: {record}");
        }
        let generate = |form: &str| {
            let answer = p.run(&format!("generate {run}/model --prompt Red --max-tokens 2 {form}"));
            assert_eq!(answer.code, Some(0), "{}", answer.err);
            (answer.out, answer.err)
        };
        let (as_trained, note) = generate("");
        let said = if form == "plain" { "plain text" } else { "a user's message in the chat" };
        assert!(note.contains(said) && note.contains("as the model was trained"), "{note}");
        assert_eq!(as_trained, generate(&format!("--form {form}")).0);
        // Samples of the run are in the same form.
        let line = trained.err.lines().rfind(|l| l.contains("Red -> ")).unwrap();
        let text = line.split_once("Red -> ").unwrap().1.trim();
        assert_eq!(text, as_trained.trim(), "{run}");
    }
    let before = p.run("generate model --prompt Red --max-tokens 2");
    assert!(before.err.contains("as the model has a template"), "{}", before.err);
}

/// A template that writes the time makes other tokens of the same rows a second later: a run keeps the
/// time of its start.
#[test]
fn a_template_with_a_date_resumes() {
    let p = Place::new();
    let chat = r#"{"prompt": [{"role": "user", "content": "Say it."}], "chosen": [{"role": "assistant", "content": "Yes."}], "rejected": [{"role": "assistant", "content": "No."}]}"#;
    p.write("chat.jsonl", format!("{chat}\n").repeat(4));
    p.write("model/chat_template.jinja", "{{ strftime_now('%H:%M:%S') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}");
    let train = "train r.toml --set data.train=chat.jsonl --set train.save_every=1 \
                 --set train.keep_checkpoints=9";
    let first = p.run(&format!("{train} --set train.max_steps=2"));
    assert_eq!(first.code, Some(0), "{}", first.err);
    assert!(first.err.contains("this run keeps that of its start"), "{}", first.err);
    std::thread::sleep(Duration::from_millis(1100));
    let resumed = p.run(&format!("{train} --resume --set train.max_steps=4"));
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    let date = |step: u64| -> i64 {
        let path = p.path(&format!("run/checkpoint-{step:08}/state.json"));
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        state["state"]["date"].as_i64().unwrap()
    };
    assert_eq!(date(2), date(4));
}
