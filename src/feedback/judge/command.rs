//! A judge that is a command of the shell: it reads a prompt and an answer and scores that answer.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Ballot, Cost, Failure, Judge};
use crate::data::rows::Text;
use crate::error::{Error, shown};
use crate::feedback::comparison::{Comparison, shown as spoken, value};

/// Bytes of output that are read.
const MOST_OUTPUT: u64 = 1 << 20;
/// Characters of it that are told.
const TOLD: usize = 300;

/// The judge: the answer with the higher score is better, equal ones are a tie.
pub struct ShellCommand {
    command: String,
    timeout: Duration,
    stop: Arc<AtomicBool>,
    /// Scores by comparison-independent content: prompt and answer.
    scores: HashMap<String, f64>,
    cost: Cost,
}

/// What a run of a command left.
struct Output {
    status: ExitStatus,
    out: String,
    err: String,
}

impl ShellCommand {
    /// Runs `command` by `sh -c`, or `cmd /C` on Windows, for at most `timeout`. It reads
    /// `{"prompt": …, "answer": …}` on its standard input, both as text, and `messages` with both where
    /// they are a conversation. The last line that it prints is its score; if it prints nothing, exit
    /// code 0 is the score 1 and exit code 1 the score 0.
    pub fn new(command: String, timeout: Duration, stop: Arc<AtomicBool>) -> Self {
        Self { command, timeout, stop, scores: HashMap::new(), cost: Cost::default() }
    }

    fn score(&mut self, comparison: &Comparison, place: usize) -> Result<f64, Failure> {
        let (prompt, answer) = (&comparison.prompt, &comparison.answers[place]);
        let mut input = json!({"prompt": spoken(prompt), "answer": spoken(answer)});
        if let (Text::Messages(_), Value::Array(mut all), Value::Array(rest)) =
            (prompt, value(prompt), value(answer))
        {
            all.extend(rest);
            input["messages"] = all.into();
        }
        let input = input.to_string();
        if let Some(score) = self.scores.get(&input) {
            return Ok(*score);
        }
        self.cost.calls += 1;
        let output = self.run(&input)?;
        let score = score_of(&output).map_err(|why| {
            let command = shown(&self.command, TOLD);
            Failure::Here(format!("the command `{command}` gave no score: {why}"))
        })?;
        self.scores.insert(input, score);
        Ok(score)
    }

    /// Files stand in for pipes: a process that the command leaves behind cannot keep them open.
    fn run(&self, input: &str) -> Result<Output, Failure> {
        let io = |e| Failure::Stop(Error::io("write", std::env::temp_dir(), e));
        let mut stdin = tempfile::tempfile().map_err(io)?;
        let written = stdin.write_all(input.as_bytes()).and_then(|()| stdin.write_all(b"\n"));
        written.and_then(|()| stdin.seek(SeekFrom::Start(0))).map_err(io)?;
        let (mut out, mut err) =
            (tempfile::tempfile().map_err(io)?, tempfile::tempfile().map_err(io)?);
        let mut command = shell(&self.command);
        command.stdin(Stdio::from(stdin));
        command.stdout(out.try_clone().map_err(io)?).stderr(err.try_clone().map_err(io)?);
        let mut child = command
            .spawn()
            .map_err(|e| Failure::Stop(Error::io("run", "the shell of --command", e)))?;
        let status = self.wait(&mut child)?;
        let text = |file: &mut std::fs::File| -> Result<String, Failure> {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            file.take(MOST_OUTPUT).read_to_end(&mut bytes).map_err(io)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Output { status, out: text(&mut out)?, err: text(&mut err)? })
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus, Failure> {
        let io = |e| Failure::Stop(Error::io("wait for", "--command", e));
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(status) = child.try_wait().map_err(io)? {
                return Ok(status);
            }
            let stopped = self.stop.load(Ordering::Relaxed);
            if stopped || start.elapsed() >= self.timeout {
                end(child);
                return Err(match stopped {
                    true => Failure::Stop(Error::Stopped(String::new())),
                    false => Failure::Here(format!(
                        "the command did not end within {:?} and was ended (--timeout)",
                        self.timeout
                    )),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

#[cfg(unix)]
fn shell(text: &str) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("sh");
    // A group of its own, so that it can be ended with all it started.
    command.args(["-c", text]).process_group(0);
    command
}

#[cfg(windows)]
fn shell(text: &str) -> Command {
    use std::os::windows::process::CommandExt;
    let mut command = Command::new("cmd");
    // Quotes are the command's own.
    command.arg("/C").raw_arg(text);
    command
}

/// Ends a command and what it started.
fn end(child: &mut Child) {
    let id = child.id();
    let group = if cfg!(windows) {
        Command::new("taskkill").args(["/T", "/F", "/PID", &id.to_string()]).output()
    } else {
        Command::new("kill").args(["-KILL", "--", &format!("-{id}")]).output()
    };
    // Where there is no such program, the shell alone is ended.
    drop(group);
    let _ = child.kill();
    let _ = child.wait();
}

fn score_of(output: &Output) -> Result<f64, String> {
    let Output { status, out, err } = output;
    let told = |text: &str| shown(text.trim(), TOLD);
    let last = out.lines().rev().find(|line| !line.trim().is_empty());
    let failed = || {
        let code =
            status.code().map_or("a signal ended it".to_owned(), |c| format!("exit code {c}"));
        format!("{code}; it wrote \"{}\"", told(if err.trim().is_empty() { out } else { err }))
    };
    match (last, status.code()) {
        (Some(line), Some(0)) => match line.trim().parse::<f64>() {
            Ok(score) if score.is_finite() => Ok(score),
            _ => Err(format!("its last line must be a number and is \"{}\"", told(line))),
        },
        (None, Some(0)) => Ok(1.0),
        (None, Some(1)) if err.trim().is_empty() => Ok(0.0),
        _ => Err(failed()),
    }
}

impl Judge for ShellCommand {
    fn name(&self) -> String {
        format!("command {}", shown(&self.command, TOLD))
    }

    fn sees_order(&self) -> bool {
        false
    }

    fn ask(&mut self, comparison: &Comparison, _: [usize; 2], _: usize) -> Result<Ballot, Failure> {
        let scores = [self.score(comparison, 0)?, self.score(comparison, 1)?];
        let better = match scores[0].total_cmp(&scores[1]) {
            _ if scores[0] == scores[1] => None,
            std::cmp::Ordering::Less => Some(1),
            _ => Some(0),
        };
        let raw = Map::from_iter([("scores".to_owned(), json!(scores))]);
        Ok(Ballot { order: None, better, raw })
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::data::messages::Message;
    use crate::data::rows::Source;

    fn ask(command: &str, answers: [&str; 2]) -> Result<Ballot, Failure> {
        let plain = |text: &str| Text::Plain(text.into());
        let comparison = Comparison {
            id: "x".into(),
            source: Source { file: "p".into(), line: 1 },
            prompt: Text::Messages(vec![Message::new("user", "It's \"so\"?")]),
            given: Map::new(),
            answers: answers.map(plain),
        };
        let mut judge =
            ShellCommand::new(command.into(), Duration::from_millis(500), Arc::default());
        judge.ask(&comparison, [0, 1], 0)
    }

    fn reason(command: &str) -> String {
        match ask(command, ["a", "b"]) {
            Err(Failure::Here(why)) => why,
            other => panic!("{command}: {other:?}"),
        }
    }

    #[test]
    fn scores_are_numbers_or_exit_codes() {
        let longer = ask("wc -c", ["a", "a longer one"]).unwrap();
        assert_eq!(longer.better, Some(1));
        assert_eq!(ask("echo noise; echo -1e3", ["a", "b"]).unwrap().better, None);
        let exit = ask("grep -q '\"answer\":\"yes'", ["yes, it is", "no"]).unwrap();
        assert_eq!((exit.better, &exit.raw["scores"]), (Some(0), &json!([1.0, 0.0])));
        assert!(reason("echo high").contains("must be a number and is \"high\""));
        assert!(reason("echo NaN").contains("must be a number"));
        assert!(reason("echo 3; exit 2").contains("exit code 2"));
        assert!(reason("no-such-command-here").contains("exit code 127"));
        assert!(reason("echo broken >&2; exit 1").contains("broken"));
        assert!(reason("kill -9 $$").contains("a signal ended it"));
    }

    #[test]
    fn what_takes_too_long_is_ended_with_all_it_started() {
        let start = Instant::now();
        assert!(reason("sleep 50 & sleep 50; echo 1").contains("did not end within 500ms"));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
