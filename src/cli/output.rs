//! Where the commands write. Output that goes nowhere (a closed pipe, a terminal that is gone, a full
//! disk) ends no run.

use super::working;
use crate::error::{Error, Result};
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::Mutex;

/// Why standard output could not be written to, if somebody reads it at all.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes to standard output; a failure is kept for [`finish`].
pub(super) fn out(text: Arguments) {
    working::done();
    if let Err(error) = io::stdout().lock().write_fmt(text) {
        keep(error);
    }
}

/// Shows what was written of a line that is not at its end.
pub(super) fn flush() {
    if let Err(error) = io::stdout().lock().flush() {
        keep(error);
    }
}

/// Writes to standard error. Where that fails there is nobody to tell.
pub(super) fn err(text: Arguments) {
    working::done();
    let _ = io::stderr().lock().write_fmt(text);
}

fn keep(error: io::Error) {
    // A reader that has seen enough is no failure.
    if error.kind() != ErrorKind::BrokenPipe
        && let Ok(mut failed) = FAILED.lock()
    {
        failed.get_or_insert(error);
    }
}

/// Whether all output of a command arrived.
///
/// # Errors
/// What the system said, for instance of a full disk.
pub(super) fn finish() -> Result<()> {
    flush();
    let failed = FAILED.lock().ok().and_then(|mut failed| failed.take());
    failed.map_or(Ok(()), |error| Err(Error::io("write", "standard output", error)))
}

macro_rules! out {
    ($($text:tt)*) => { $crate::cli::output::out(format_args!($($text)*)) };
}

macro_rules! outln {
    () => { out!("\n") };
    ($($text:tt)*) => { out!("{}\n", format_args!($($text)*)) };
}

macro_rules! err {
    ($($text:tt)*) => { $crate::cli::output::err(format_args!($($text)*)) };
}

macro_rules! errln {
    ($($text:tt)*) => { err!("{}\n", format_args!($($text)*)) };
}
