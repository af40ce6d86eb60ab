//! `oddgrad judge` as a person uses it, beside servers that fail and processes that are killed.

use crate::place::{Answer, Place};
use fastrand::Rng;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub fn nano() -> String {
    format!("{}/models/nano", env!("CARGO_MANIFEST_DIR"))
}

/// The lines of a file of JSON rows; none if it is not there.
pub fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A server of chat completions on this machine, as long as it lives.
struct Stub {
    address: String,
    calls: Arc<AtomicUsize>,
    /// Calls that are being answered, and the most of them at a time.
    busy: Arc<[AtomicUsize; 2]>,
    /// What each call was answered by: a rule or a fault.
    said: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// What a stub answers to a question with these answers as A and B.
type Rule = fn(&str, &str) -> &'static str;

/// The longer answer is better.
fn longer(a: &str, b: &str) -> &'static str {
    if a.len() > b.len() { "A" } else { "Answer B." }
}

const FAULTS: [&str; 6] = ["500", "429", "no JSON", "cut", "neither", "silence"];

impl Stub {
    /// Fails `share` of all calls, in six ways.
    fn new(rule: Rule, share: f64, wait: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let (calls, said) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<_>>::default());
        let busy = Arc::<[AtomicUsize; 2]>::default();
        let (count, notes, work) = (calls.clone(), said.clone(), busy.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (count, notes, work) = (count.clone(), notes.clone(), work.clone());
                let counted = move |a: &str, b: &str| {
                    let now = work[0].fetch_add(1, Ordering::Relaxed) + 1;
                    work[1].fetch_max(now, Ordering::Relaxed);
                    let said = rule(a, b);
                    work[0].fetch_sub(1, Ordering::Relaxed);
                    said
                };
                std::thread::spawn(move || {
                    // A client that was killed has no more questions.
                    let _ = serve(stream.unwrap(), &counted, share, wait, &count, &notes);
                });
            }
        });
        Self { address, calls, busy, said }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

fn serve(
    mut stream: TcpStream,
    rule: &dyn Fn(&str, &str) -> &'static str,
    share: f64,
    wait: Duration,
    calls: &AtomicUsize,
    said: &Mutex<BTreeMap<&'static str, usize>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).unwrap();
        let number = calls.fetch_add(1, Ordering::Relaxed);
        let mut rng = Rng::with_seed(number as u64);
        let fault = (rng.f64() < share).then(|| FAULTS[rng.usize(0..6)]);
        *said.lock().unwrap().entry(fault.unwrap_or("right")).or_default() += 1;
        let asked = body["messages"][0]["content"].as_str().unwrap();
        let part = |from: &str, to: &str| {
            asked.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned()
        };
        let a = part("Answer A:\n", "\n\nAnswer B:");
        let b = part("Answer B:\n", "\n\nWhich answer");
        let reply = |text: &str| {
            json!({
                "choices": [{"message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 2},
            })
            .to_string()
        };
        let (status, more, text) = match fault {
            Some("500") => ("500 Internal Server Error", "", "it broke".to_owned()),
            Some("429") => ("429 Too Many Requests", "Retry-After: 0.01\r\n", "{}".to_owned()),
            Some("no JSON") => ("200 OK", "", "<html>Welcome!</html>".to_owned()),
            Some("neither") => ("200 OK", "", reply("Both have their charm.")),
            Some("silence") => {
                std::thread::sleep(wait);
                return Ok(());
            }
            _ => ("200 OK", "", reply(rule(&a, &b))),
        };
        let length = text.len() + if fault == Some("cut") { 40 } else { 0 };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        stream.write_all(format!("{head}{text}").as_bytes())?;
        if fault == Some("cut") {
            return Ok(());
        }
    }
}

/// Prompts with two answers of different lengths.
fn answered(count: usize) -> String {
    let row = |i: usize| {
        let (short, long) = (format!("No {i}."), format!("Yes, and here is why it is {i}."));
        let answers = if i.is_multiple_of(3) { [long, short] } else { [short, long] };
        format!("{}\n", json!({"prompt": format!("Question {i}?"), "answers": answers}))
    };
    (0..count).map(row).collect()
}

/// Every pair is there once, and the longer answer is the chosen one.
#[track_caller]
fn all_judged(rows: &[Value], count: usize) {
    let ids: BTreeSet<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    let prompts: BTreeSet<&str> = rows.iter().map(|row| row["prompt"].as_str().unwrap()).collect();
    assert_eq!((rows.len(), ids.len(), prompts.len()), (count, count, count));
    for row in rows {
        let length = |name: &str| row[name].as_str().unwrap().len();
        assert!(length("chosen") > length("rejected"), "{row}");
        let ballots = row["judge"][0].as_array().unwrap();
        assert!(ballots.len() == 2 && ballots.iter().all(|b| b["reply"].is_string()), "{row}");
    }
}

#[test]
fn a_server_that_fails_in_six_ways_and_kills_lose_nothing() {
    let p = Place::new();
    const PAIRS: usize = 60;
    p.write("prompts.jsonl", answered(PAIRS));
    let stub = Stub::new(longer, 0.3, Duration::from_millis(400));
    let args = format!(
        "judge prompts.jsonl --out judged.jsonl --endpoint {} --judge-model stub --timeout 0.2 --backoff 0.01 --retries 12 --parallel 3",
        stub.address
    );
    let mut rng = Rng::with_seed(3);
    let mut kills = 0;
    loop {
        let log = std::fs::File::create(p.path("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_oddgrad"))
            .args(args.split(' '))
            .current_dir(p.dir.path())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        if kills < 12 {
            // So many calls later, wherever that is in one.
            let until = stub.calls() + rng.usize(0..16);
            while stub.calls() < until && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(100));
            }
            std::thread::sleep(Duration::from_micros(rng.u64(0..3000)));
            child.kill().unwrap();
            kills += 1;
        }
        let status = child.wait().unwrap();
        if status.code().is_some() {
            let log = std::fs::read_to_string(p.path("log")).unwrap();
            assert!(status.success(), "{log}");
            assert!(log.contains("60 decided, 0 ties"), "{log}");
            assert!(log.contains("agreement  the same answer both ways round: 60 of 60"), "{log}");
            assert!(log.contains("won 60 of 120 (50 %)") && log.contains("retries)"), "{log}");
            break;
        }
    }
    all_judged(&rows(&p.path("judged.jsonl")), PAIRS);
    let said = stub.said.lock().unwrap();
    assert!(kills == 12 && FAULTS.iter().all(|fault| said.contains_key(fault)), "{said:?}");
    drop(said);
    // Training reads them, and nothing is asked again.
    let before = stub.calls();
    let again = p.run(&args);
    assert!(again.out.contains("60 comparisons were judged before, 0 now"), "{}", again.out);
    assert_eq!((again.code, stub.calls()), (Some(0), before), "{}", again.err);
    let check = p.run("data check judged.jsonl --model model");
    assert!(check.out.contains("60 read, 60 usable"), "{}{}", check.out, check.err);
}

#[test]
fn several_comparisons_are_asked_about_at_once() {
    let p = Place::new();
    p.write("prompts.jsonl", answered(24));
    let slow: Rule = |a, b| {
        std::thread::sleep(Duration::from_millis(50));
        longer(a, b)
    };
    let stub = Stub::new(slow, 0.0, Duration::ZERO);
    let args = format!("--endpoint {} --judge-model m --parallel", stub.address);
    let found = p.run(&format!("judge prompts.jsonl --out judged.jsonl {args} 8"));
    assert_eq!(found.code, Some(0), "{}", found.err);
    all_judged(&rows(&p.path("judged.jsonl")), 24);
    assert!(found.out.contains("48 calls, 4800 prompt and 96"), "{}", found.out);
    let most = stub.busy[1].load(Ordering::Relaxed);
    assert!((2..=8).contains(&most), "{most} at once");
    // One of them ends it for all, and what the others decided is kept.
    let refusing = fixed("401 Unauthorized", "no");
    let asked = format!("judge prompts.jsonl --out other.jsonl --endpoint {refusing}");
    p.refused(&format!("{asked} --judge-model m --parallel 4"), &["HTTP 401"]);
    p.refused(
        "judge prompts.jsonl --out other.jsonl --command true --parallel 300",
        &["--parallel: is 300; it must be 1 to 256"],
    );
    p.refused(
        "judge prompts.jsonl --out other.jsonl --command true --parallel 2",
        &["--parallel: is for an endpoint"],
    );
}

#[test]
fn votes_are_counted() {
    let p = Place::new();
    p.write("prompts.jsonl", answered(6));
    let stub = Stub::new(longer, 0.0, Duration::ZERO);
    let args = format!(
        "judge prompts.jsonl --out judged.jsonl --votes 3 --endpoint {} --judge-model m",
        stub.address
    );
    let found = p.run(&args);
    assert_eq!(found.code, Some(0), "{}", found.err);
    for part in ["votes      unanimous: 6 of 6", "18 of 18 (100 %)", "36 calls, 3600 prompt and 72"]
    {
        assert!(found.out.contains(part), "`{part}` is missing: {}", found.out);
    }
    let row = &rows(&p.path("judged.jsonl"))[0];
    assert_eq!(row["judge"].as_array().unwrap().len(), 3, "{row}");
    p.refused(&format!("{args} --judge-temperature 0"), &["--judge-temperature", "the same"]);
}

/// Ctrl-C: what was decided is there, and the same command goes on.
#[cfg(unix)]
#[test]
fn a_judge_that_is_asked_to_stop_says_how_it_goes_on() {
    let p = Place::new();
    p.write("prompts.jsonl", answered(4));
    p.write("slow.sh", "sleep 0.3\nwc -c\n");
    let args = ["judge", "prompts.jsonl", "--out", "judged.jsonl", "--command", "sh slow.sh"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
    command.args(args).current_dir(p.dir.path()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    while rows(&p.path("judged.jsonl")).is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("of 4 comparisons; the same command goes on"), "{said}");
    let done = rows(&p.path("judged.jsonl")).len();
    let mut again = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
    let again = p.command(again.args(args));
    assert!(again.out.contains(&format!("{done} comparisons were judged before")), "{}", again.out);
    assert_eq!(rows(&p.path("judged.jsonl")).len(), 4);
}

#[test]
fn two_judges_of_one_file_share_the_work() {
    let p = Place::new();
    p.write("prompts.jsonl", answered(40));
    let slow: Rule = |a, b| {
        std::thread::sleep(Duration::from_millis(20));
        longer(a, b)
    };
    let stub = Stub::new(slow, 0.0, Duration::ZERO);
    let mut judges: Vec<_> = ["8", "1"]
        .into_iter()
        .map(|parallel| {
            Command::new(env!("CARGO_BIN_EXE_oddgrad"))
                .args(["judge", "prompts.jsonl", "--out", "judged.jsonl", "--judge-model", "m"])
                .args(["--endpoint", &stub.address, "--parallel", parallel])
                .current_dir(p.dir.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    assert!(judges.iter_mut().all(|judge| judge.wait().unwrap().success()));
    all_judged(&rows(&p.path("judged.jsonl")), 40);
    // Neither asks about what the other one has decided meanwhile: twice 80 calls would be.
    assert!(stub.calls() < 120, "{} calls", stub.calls());
}

/// Runs a judge with a key in its environment.
fn with_key(p: &Place, args: &str) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
    p.command(command.args(args.split(' ')).env("JUDGE_KEY", "sk-secret"))
}

/// A server that answers everything with this status and text.
fn fixed(status: &'static str, text: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 1 << 14];
            let mut got = 0;
            while !asked[..got].windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut asked[got..]) {
                    Ok(n) if n > 0 => got += n,
                    _ => break,
                }
            }
            let head = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                text.len()
            );
            let _ = stream.write_all(format!("{head}{text}").as_bytes());
        }
    });
    address
}

#[test]
fn an_endpoint_that_cannot_judge_is_told_in_one_message() {
    let p = Place::new();
    p.write("prompts.jsonl", answered(8));
    let judge = |address: &str, more: &str| {
        format!(
            "judge prompts.jsonl --out judged.jsonl --endpoint {address} --judge-model m --backoff 0 --retries 1{more}"
        )
    };
    // A port that nobody listens at.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    p.refused(
        &judge(&format!("http://{nobody}/v1"), ""),
        &["2 attempts: nothing answers there", "start the server"],
    );
    let said = r#"{"error": {"message": "Incorrect key provided: sk-secret"}}"#;
    let refused = with_key(&p, &judge(&fixed("401 Unauthorized", said), " --key-env JUDGE_KEY"));
    assert_eq!(refused.code, Some(1));
    for part in ["refuses the key in $JUDGE_KEY", "HTTP 401", "Incorrect key provided: [key]"] {
        assert!(refused.err.contains(part), "`{part}` is missing: {}", refused.err);
    }
    assert!(!refused.err.contains("sk-secret"), "{}", refused.err);
    p.refused(
        &judge(&fixed("403 Forbidden", "no"), " --key-env NO_SUCH_KEY"),
        &["put it into $NO_SUCH_KEY", "--key-env"],
    );
    p.refused(&judge(&fixed("404 Not Found", "x"), ""), &["no model m", "--judge-model", "404"]);
    p.refused(
        &judge(&fixed("200 OK", "<html>"), ""),
        &["2 attempts: the reply is no JSON: \"<html>\"", "in a row"],
    );
    p.refused(&judge(&fixed("200 OK", "[]"), ""), &["no choices[0].message.content"]);
    p.refused(&judge(&fixed("400 Bad Request", "too long"), ""), &["HTTP 400: too long"]);
    p.refused(&judge("localhost:8080", ""), &["--endpoint localhost:8080", "is no address"]);
}

#[test]
fn a_judge_that_always_says_a_is_reported() {
    let p = Place::new();
    p.write("prompts.jsonl", answered(9));
    let stub = Stub::new(|_, _| "A", 0.0, Duration::ZERO);
    let args = format!(
        "judge prompts.jsonl --out judged.jsonl --endpoint {} --judge-model m",
        stub.address
    );
    let found = p.run(&args);
    assert_eq!(found.code, Some(1), "{}", found.out);
    for part in ["0 decided, 9 ties", "won 18 of 18 (100 %)", "bias       the judge leans to A"] {
        assert!(found.out.contains(part), "`{part}` is missing: {}", found.out);
    }
    assert!(found.err.contains("by the place of an answer alone"), "{}", found.err);
    assert_eq!(rows(&p.path("judged.jsonl")).len(), 9, "ties are kept");
    p.refused("train r.toml --set data.train=judged.jsonl", &["9 ties left out"]);
    // Asked once in a drawn order, every pair has a winner; the bias is told all the same.
    let once = p.run(&args.replace("judged.jsonl", "once.jsonl --one-way"));
    assert!(once.out.contains("won 9 of 9 (100 %)"), "{}{}", once.out, once.err);
}

#[test]
fn prompts_without_two_answers_are_named() {
    let p = Place::new();
    let judge = |more: &str| format!("judge prompts.jsonl --out judged.jsonl {more}");
    p.write(
        "prompts.jsonl",
        "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"answers\": [\"x\", \"y\"]}\n",
    );
    p.refused(&judge("--command true"), &["prompts.jsonl:1: has no answers", "--model"]);
    p.write("prompts.jsonl", "{\"prompt\": \"a\", \"answers\": [\"x\", \" x\"]}\n{\"prompt\": \"b\", \"answers\": [\"x\"]}\n");
    let found = p.run(&judge("--command true"));
    assert_eq!(found.code, Some(1), "{}", found.out);
    for part in [
        "left out: 1 answers that another one says too; 2 prompts without two different answers",
        "there is nothing to compare",
        "prompts.jsonl:1: all its answers are equal",
        "prompts.jsonl:2: has one answer",
    ] {
        assert!(found.err.contains(part), "`{part}` is missing: {}", found.err);
    }
    p.write("prompts.jsonl", answered(2));
    p.refused(&judge("--command true --votes 3"), &["--votes", "the same every time"]);
    p.refused("judge prompts.jsonl --out prompts.jsonl --command x", &["is the file of prompts"]);
    p.refused("judge prompts.jsonl --out rows.txt --command x", &["must end in .jsonl"]);
    p.refused(&judge("--command true --model model --answers 1"), &["--answers", "at least 2"]);
    p.refused(&judge("--judge nowhere"), &["nowhere"]);
    let failed = p.run(&judge("--command no-such-program-here"));
    assert_eq!(failed.code, Some(1), "{}", failed.out);
    assert!(failed.err.contains("2 of 2 comparisons could not be judged"), "{}", failed.err);
}

#[cfg(unix)]
/// Answers of the tiny model of the tests, which says nothing that means anything.
fn drawn(p: &Place, args: &str) -> Answer {
    p.run(&format!("judge {args} --untuned --model model --max-tokens 8 --command wc$IFS-c"))
}

#[cfg(unix)]
/// The answers to each prompt.
fn answers(p: &Place, name: &str) -> BTreeMap<String, Value> {
    let of = |row: Value| (row["prompt"].to_string(), row["answers"].clone());
    rows(&p.path(name)).into_iter().map(of).collect()
}

#[cfg(unix)]
#[test]
fn answers_do_not_depend_on_their_company_nor_on_kills() {
    let p = Place::new();
    let prompts: Vec<String> = (0..9).map(|i| format!("Prompt number {i} says")).collect();
    p.write("all.txt", prompts.join("\n"));
    p.write("turned.txt", prompts.iter().rev().cloned().collect::<Vec<_>>().join("\n"));
    let found = drawn(&p, "all.txt --answers 3 --out all.jsonl");
    assert_eq!(found.code, Some(0), "{}{}", found.out, found.err);
    let whole = answers(&p, "all.answers.jsonl");
    assert_eq!(whole.len(), 9);
    assert!(whole.values().all(|list| list.as_array().unwrap().len() == 3));
    let different: BTreeSet<String> = whole.values().map(Value::to_string).collect();
    assert_eq!(different.len(), 9, "they are drawn one by one");
    drawn(&p, "turned.txt --answers 3 --out turned.jsonl");
    assert_eq!(answers(&p, "turned.answers.jsonl"), whole);
    // What is drawn is kept; the rest is drawn as it would have been. A cut line is put aside.
    let text = std::fs::read_to_string(p.path("all.answers.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    p.write("cut.answers.jsonl", format!("{}\n{}\n{}", lines[1], lines[7], &lines[3][..30]));
    let resumed = drawn(&p, "all.txt --answers 3 --out cut.jsonl");
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    assert!(resumed.err.contains("the last line was cut after 30 bytes"), "{}", resumed.err);
    assert_eq!(answers(&p, "cut.answers.jsonl"), whole);
    let (one, two) = (rows(&p.path("all.jsonl")), rows(&p.path("cut.jsonl")));
    let timeless = |rows: Vec<Value>| -> Vec<Value> {
        let each = |mut row: Value| {
            row.as_object_mut().unwrap().remove("when");
            row
        };
        rows.into_iter().map(each).collect()
    };
    assert_eq!(timeless(one), timeless(two));
    // Another seed, other answers; they are added.
    drawn(&p, "all.txt --answers 3 --seed 1 --out all.jsonl");
    assert_eq!(rows(&p.path("all.answers.jsonl")).len(), 18);
}

#[test]
fn a_local_model_judges_by_log_odds() {
    let p = Place::new();
    p.write("prompts.jsonl", answered(5));
    let judge = format!("judge prompts.jsonl --out judged.jsonl --untuned --judge {}", nano());
    let found = p.run(&judge);
    assert!(found.out.contains("5 comparisons judged"), "{}{}", found.out, found.err);
    for row in rows(&p.path("judged.jsonl")) {
        let ballots = row["judge"][0].as_array().unwrap();
        let odds: Vec<f64> = ballots.iter().map(|b| b["log_odds"].as_f64().unwrap()).collect();
        // Both ways round, in favour of the first answer: what a place is worth cancels.
        let mean = (odds[0] - odds[1]) / 2.0;
        assert_eq!(row["choice"], if mean > 0.0 { "first" } else { "second" }, "{row}");
    }
    // It was never taught to judge: what it writes names neither letter, and that is told.
    let replies =
        p.run(&format!("{judge} --judge-by reply --judge-tokens 6").replace("judged.", "replies."));
    assert_eq!(replies.code, Some(1), "{}", replies.out);
    assert!(replies.err.contains("named neither A nor B"), "{}", replies.err);
}
