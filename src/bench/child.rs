//! Processes that are watched: for someone's kernel, which may never end, and for blocks of samples.
//!
//! A device has no way to stop a shader that never ends, but a process has an end.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Runs `program` with `args` and hands each line of its standard error to `progress`. Standard
/// output stays as it is.
///
/// # Errors
/// A process that writes no line for `silence` is stopped and named with its last line; one that
/// fails has said why itself.
pub fn supervise(
    program: &Path,
    args: &[OsString],
    silence: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let mut command = Command::new(program);
    let child = command.args(args).stderr(Stdio::piped()).spawn();
    watch(child.map_err(|e| Error::io("run", program, e))?, silence, progress)?;
    Ok(())
}

/// As [`supervise`], with a line for the process' standard input; gives its standard output. The
/// input stays open as long as this process lives: see [`end_with_parent`].
///
/// # Errors
/// As [`supervise`].
pub fn ask(
    program: &Path,
    args: &[OsString],
    line: &str,
    silence: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).stderr(Stdio::piped()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|e| Error::io("run", program, e))?;
    let mut input = child.stdin.take().expect("it is piped");
    let mut output = child.stdout.take().expect("it is piped");
    let answer = std::thread::spawn(move || {
        let mut answer = String::new();
        output.read_to_string(&mut answer).map(|_| answer)
    });
    // One that has ended already says why below.
    let _ = writeln!(input, "{line}");
    watch(child, silence, progress)?;
    drop(input);
    let answer = answer.join().expect("reading does not panic");
    answer.map_err(|e| Error::io("read from", program, e))
}

/// The line that [`ask`] sends.
///
/// # Errors
/// Standard input that cannot be read.
pub fn asked() -> Result<String> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    read.map(|_| line).map_err(|e| Error::io("read", "standard input", e))
}

/// From now on this process ends when the one that [`ask`]ed does, however that ends, so that no
/// kernel goes on alone.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
}

fn watch(mut child: Child, silence: Duration, progress: &mut dyn FnMut(&str)) -> Result<()> {
    let stderr = child.stderr.take().expect("it is piped");
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        // Ends with the child, or when no one reads them any more.
        for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut last = String::from("start");
    loop {
        match lines.recv_timeout(silence) {
            Ok(line) => {
                progress(&line);
                last = line;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                // It may have ended by itself just now, which is as well.
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Mismatch(format!(
                    "stopped: nothing happened for {} s after `{last}`. The kernel does not end, or is very slow; --timeout gives it longer.",
                    silence.as_secs_f64()
                )));
            }
        }
    }
    let status = child.wait().map_err(|e| Error::io("wait for", "a process", e))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Mismatch("the benchmark failed; the reason is above".into()))
}
