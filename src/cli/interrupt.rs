//! Ctrl-C, and what else asks a run to end.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell makes of a process that Ctrl-C ended.
pub(super) const STOPPED: u8 = 130;

/// A flag that the first Ctrl-C (or SIGTERM, Ctrl-Break) sets; the second ends the process at once.
/// `after` is what is finished first: a step. Call it once.
///
/// # Errors
/// When the system does not let signals be handled.
pub(super) fn stop_on_signal(after: &'static str) -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let stop = flag.clone();
    on_each_signal(move || {
        if stop.swap(true, Ordering::Relaxed) {
            leave();
        }
        errln!("stopping after {after}; once more (Ctrl-C) stops at once");
    })
    .map_err(|e| Error::io("handle", "signals", e))?;
    Ok(flag)
}

/// Ctrl-C and SIGTERM; SIGHUP keeps its meaning, so that `nohup` does.
#[cfg(unix)]
fn on_each_signal(mut each: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || signals.forever().for_each(|_| each()));
    Ok(())
}

/// Ctrl-C, Ctrl-Break and the closing of the console.
#[cfg(windows)]
fn on_each_signal(each: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    ctrlc::set_handler(each).map_err(std::io::Error::other)
}

/// Ends the process without a word to the driver, whose threads may be at work.
#[cfg(unix)]
fn leave() -> ! {
    signal_hook::low_level::exit(STOPPED.into())
}

#[cfg(windows)]
fn leave() -> ! {
    std::process::exit(STOPPED.into())
}
