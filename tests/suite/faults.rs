//! Faults on purpose, at random moments: kills, signals, full disks, flipped bytes, lost devices. A run
//! that goes on after them ends with the bits of one that nothing happened to.
//!
//! Each test provokes a few; `ODDGRAD_FAULTS=full cargo nextest run --no-capture faults` as many as
//! are worth a claim, and tells how many.

use crate::place::{Place, ROW};
use fastrand::Rng;
use oddgrad::train::checkpoint::{self, latest, verify};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How often a test provokes its fault.
fn count(few: usize, full: usize) -> usize {
    match std::env::var("ODDGRAD_FAULTS").as_deref() {
        Ok("full") => full,
        Err(_) => few,
        Ok(other) => panic!("ODDGRAD_FAULTS is {other}; it may be full, or not set"),
    }
}

/// Evaluations and checkpoints between the steps, and a best one that moves.
const TRAIN: &str = "train r.toml --set train.max_steps=40 --set train.save_every=4 \
                     --set data.eval=held.jsonl --set train.eval_every=3";

/// Rows that are not all the same, so that their order counts.
fn place() -> Place {
    let p = Place::new();
    let rows: Vec<String> = (0..4).map(|i| ROW.replace("course", &format!("course {i}"))).collect();
    p.write("rows.jsonl", rows.join("\n"));
    p.write("held.jsonl", format!("{ROW}\n").repeat(3));
    p
}

/// What a run leaves, but for the time it took.
#[derive(PartialEq)]
struct Outcome {
    model: Vec<u8>,
    best: Vec<u8>,
    proof: Vec<u8>,
    metrics: Vec<serde_json::Value>,
}

fn outcome(p: &Place) -> Outcome {
    let read = |name: &str| std::fs::read(p.path("run").join(name)).unwrap();
    let mut metrics = recorded(p);
    for line in &mut metrics {
        line.as_object_mut().unwrap().retain(|key, _| !key.ends_with("tokens_per_second"));
    }
    let [model, best, proof] = ["model/model.safetensors", "best.json", "proof.json"].map(read);
    Outcome { model, best, proof, metrics }
}

/// The records of the run; none before it has any.
fn recorded(p: &Place) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(p.path("run/metrics.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a run comes to that nothing happens to, and how long it takes.
fn undisturbed(train: &str) -> (Outcome, Duration) {
    let p = place();
    let start = Instant::now();
    let answer = p.run(train);
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    (outcome(&p), start.elapsed())
}

#[track_caller]
fn compare(p: &Place, whole: &Outcome) {
    let found = outcome(p);
    assert!(found.model == whole.model, "other weights");
    assert!(found == *whole, "another best.json, proof.json or metrics.jsonl");
}

/// Starts a run that goes on from what is there; what it says goes into a file.
fn begin(p: &Place, train: &str) -> Child {
    let log = std::fs::File::create(p.path("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
    command.args(train.split_whitespace()).current_dir(p.dir.path());
    if p.path("run").exists() {
        command.arg("--resume");
    }
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn log(p: &Place) -> String {
    std::fs::read_to_string(p.path("log")).unwrap()
}

/// How a process ended, if it did within this time.
fn ended(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        let status = child.try_wait().unwrap();
        if status.is_some() || start.elapsed() >= within {
            return status;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

const LONG: Duration = Duration::from_secs(100);

#[test]
fn killed_at_any_moment() {
    let (whole, time) = undisturbed(TRAIN);
    let (p, mut rng, wanted) = (place(), Rng::with_seed(1), count(10, 200));
    let (mut kills, mut runs) = (0, 0);
    while kills < wanted || p.path("run").exists() {
        let mut child = begin(&p, TRAIN);
        let after = if kills < wanted { time.mul_f64(rng.f64()) } else { LONG };
        match ended(&mut child, after) {
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                assert!(after < LONG, "hangs: {}", log(&p));
            }
            Some(status) => {
                assert!(status.success(), "{}", log(&p));
                compare(&p, &whole);
                std::fs::remove_dir_all(p.path("run")).unwrap();
                runs += 1;
            }
        }
    }
    println!("{kills} kills of {runs} runs: {runs} of {runs} ended with the same bits");
}

/// Ctrl-C and SIGTERM: the step that a run is in is saved, and the run goes on from there.
#[cfg(unix)]
#[test]
fn asked_to_stop_at_any_moment() {
    use std::os::unix::process::ExitStatusExt;
    let train =
        TRAIN.replace("max_steps=40", "max_steps=150").replace("save_every=4", "save_every=0");
    let (whole, time) = undisturbed(&train);
    let (p, mut rng, wanted) = (place(), Rng::with_seed(2), count(5, 100));
    let (mut saved, mut early, mut runs) = (0, 0, 0);
    let last_step = |p: &Place| recorded(p).last().map_or(0, |line| line["step"].as_u64().unwrap());
    while saved < wanted || p.path("run").exists() {
        let before = recorded(&p).len();
        let mut child = begin(&p, &train);
        if saved < wanted {
            // In a step, or before the first one.
            let lines = before + rng.usize(0..30);
            let start = Instant::now();
            while recorded(&p).len() < lines && ended(&mut child, Duration::ZERO).is_none() {
                assert!(start.elapsed() < LONG, "{}", log(&p));
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(time.mul_f64(rng.f64() / if lines > before { 30.0 } else { 2.0 }));
            let name = ["INT", "TERM"][rng.usize(0..2)];
            let id = child.id().to_string();
            if ended(&mut child, Duration::ZERO).is_none() {
                assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
            }
        }
        let seen = last_step(&p);
        let status = ended(&mut child, LONG).unwrap_or_else(|| panic!("hangs: {}", log(&p)));
        if status.success() {
            compare(&p, &whole);
            std::fs::remove_dir_all(p.path("run")).unwrap();
            runs += 1;
        } else if status.signal().is_some() {
            // Before it listened to signals: no step had begun.
            assert_eq!(recorded(&p).len(), before, "{}", log(&p));
            early += 1;
        } else {
            assert_eq!(status.code(), Some(130), "{}", log(&p));
            let (step, there) = (last_step(&p), p.path("run"));
            let newest = match there.exists() {
                true => latest(&there).unwrap().folder,
                false => None,
            };
            let newest = newest.map_or(0, |folder| verify(&folder).unwrap().step);
            assert!(newest == step && step >= seen, "{newest}, {step}, {seen}: {}", log(&p));
            saved += 1;
        }
    }
    println!(
        "{saved} stops: {saved} checkpoints of the step that was running; {early} before a step; \
         {runs} of {runs} runs ended with the same bits"
    );
}

/// The checkpoints of a run, which are all whole, by step.
#[track_caller]
fn whole_checkpoints(run: &Path) -> BTreeMap<u64, PathBuf> {
    let all: BTreeMap<u64, PathBuf> = checkpoint::list(run).unwrap().into_iter().collect();
    for (step, folder) in &all {
        assert_eq!(verify(folder).unwrap().step, *step);
    }
    all
}

#[test]
fn one_flipped_byte() {
    let train = "train r.toml --set train.max_steps=8 --set data.eval=held.jsonl";
    let (whole, _) = undisturbed(train);
    let p = place();
    assert_eq!(p.run(train).code, Some(0));
    let run = p.path("run");
    let all = whole_checkpoints(&run);
    let (&newest, folder) = all.last_key_value().unwrap();
    let (&before, earlier) = all.iter().nth_back(1).unwrap();
    let files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 6 && before < newest, "{files:?}");
    let (mut rng, wanted) = (Rng::with_seed(3), count(200, 1000));
    let resumed = count(2, 20);
    for n in 0..wanted {
        let file = &files[n % files.len()];
        let right = std::fs::read(file).unwrap();
        let mut bytes = right.clone();
        bytes[rng.usize(0..right.len())] ^= rng.u8(1..);
        std::fs::write(file, bytes).unwrap();
        let found = latest(&run).unwrap();
        assert_eq!(found.folder.as_ref(), Some(earlier), "{}", file.display());
        assert_eq!(found.skipped.len(), 1);
        if n < resumed {
            let answer = p.run(&format!("{train} --resume"));
            assert_eq!(answer.code, Some(0), "{}", answer.err);
            compare(&p, &whole);
            // Set aside; the step was done again.
            assert_eq!(std::fs::read(file).unwrap(), right, "{}", file.display());
        } else {
            std::fs::write(file, right).unwrap();
        }
    }
    println!(
        "{wanted} of {wanted} flipped bytes noticed; {resumed} runs went on from the one before"
    );
}

/// Files that may not become longer than a limit, and in the full count a disk that is full after so
/// many bytes: the checkpoints that are there stay whole, and the run goes on when there is room.
#[cfg(target_os = "linux")]
#[test]
fn no_room_for_a_checkpoint() {
    let train = "train r.toml --set data.eval=held.jsonl --set optim.schedule=constant \
                 --set train.eval_every=4";
    let (whole, _) = undisturbed(&format!("{train} --set train.max_steps=8"));
    let p = place();
    assert_eq!(p.run(&format!("{train} --set train.max_steps=4")).code, Some(0));
    std::fs::rename(p.path("run"), p.path("four")).unwrap();
    let on = format!("\"$ODDGRAD\" {train} --set train.max_steps=8 --resume");
    // KiB of a file: shorter than the metrics, the tokenizer, the weights, the moments.
    let limits = [1, 8, 100, 400, 600, 900]
        .map(|most| format!("cp -r four run; (trap '' XFSZ; ulimit -f {most}; {on})"));
    // KiB of the disk beyond what is on it. Whoever may not mount one is told so.
    let rooms = (0..count(0, 60)).map(|n| {
        let inside = format!(
            "mount -t tmpfs -o size=$(( $(du -sk four | cut -f1) + {} ))k disk run || exit 99; \
             cp -r four/. run/ || exit 98; {on}; code=$?; cp -r run/. after/; exit $code",
            n * 32
        );
        format!("mkdir run after; unshare -rm bash -c '{inside}'; code=$?; rmdir run; mv after run; (exit $code)")
    });
    let (mut refused, mut wrote) = (0, 0);
    for script in limits.into_iter().chain(rooms) {
        let mut command = Command::new("bash");
        // What it says must not be cut short by the limit.
        let script = format!("({script}) 2>&1 | cat; exit ${{PIPESTATUS[0]}}");
        command.args(["-c", &script]).env("ODDGRAD", env!("CARGO_BIN_EXE_oddgrad"));
        let answer = p.command(&mut command);
        let checkpoints = whole_checkpoints(&p.path("run"));
        if answer.code == Some(0) {
            wrote += 1;
        } else {
            assert_eq!(answer.code, Some(1), "{script}: {}", answer.out);
            assert!(answer.out.contains("error: "), "{script}: {}", answer.out);
            assert!(checkpoints.last_key_value().unwrap().0 >= &4, "{script}: {checkpoints:?}");
            refused += 1;
            let answer = p.run(&format!("{train} --set train.max_steps=8 --resume"));
            assert_eq!(answer.code, Some(0), "{}", answer.err);
        }
        compare(&p, &whole);
        std::fs::remove_dir_all(p.path("run")).unwrap();
    }
    assert!(refused >= 6);
    println!(
        "{refused} of {refused} full disks refused, each checkpoint before whole, and the run went \
         on with the same bits; {wrote} had room"
    );
}

/// A device that is gone at any submission: the run goes on with a new one, or when it is told to.
#[test]
fn devices_lost_at_any_moment() {
    let (whole, _) = undisturbed(TRAIN);
    let (p, mut rng, wanted) = (place(), Rng::with_seed(4), count(5, 50));
    let (mut lost, mut most) = (0, 4096);
    while lost < wanted {
        let at = rng.u32(1..=most);
        let stays = lost % 5 == 4;
        let what = if stays { "stop" } else { "resume" };
        let answer = p.run(&format!("{TRAIN} --on-device-lost {what} --lose-device-at {at}"));
        let err = &answer.err;
        if err.contains(" was lost (") {
            lost += 1;
            assert!(err.contains("It was doing: "), "{err}");
        } else {
            most = at - 1;
            assert!(most > 100, "no run has so few submissions");
        }
        if stays && err.contains(" was lost (") {
            assert_eq!(answer.code, Some(1), "{err}");
            assert!(err.contains("--on-device-lost resume"), "{err}");
            let answer = p.run(&format!("{TRAIN} --resume"));
            assert_eq!(answer.code, Some(0), "{}", answer.err);
        } else {
            assert_eq!(answer.code, Some(0), "{err}");
        }
        compare(&p, &whole);
        std::fs::remove_dir_all(p.path("run")).unwrap();
    }
    println!("{lost} of {lost} lost devices: the run ended with the same bits");
    // Lost again and again, it is no accident.
    let again = p.run(&format!("{TRAIN} --on-device-lost resume --lose-device-at 60,60,60"));
    assert_eq!(again.code, Some(1), "{}", again.err);
    assert!(again.err.contains("It is lost each time after step 0."), "{}", again.err);
}
