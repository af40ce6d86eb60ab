//! Someone's kernel runs in a process of its own, which is ended when it falls silent.
//!
//! A device has no way to stop a shader that never ends, but a process has an end.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
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
    let mut child = Command::new(program)
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Error::io("run", program, e))?;
    let stderr = child.stderr.take().expect("it is piped");
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        // Ends with the child, or when nobody listens any more.
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
    let status = child.wait().map_err(|e| Error::io("run", program, e))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Mismatch("the benchmark failed; the reason is above".into()))
}
