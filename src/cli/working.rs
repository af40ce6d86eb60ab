//! A line that moves while nothing else can be shown: rows and weights are read, kernels compiled
//! (on software adapters one takes seconds).

use crate::gpu::Gpu;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The line, while there is one; only on a terminal.
static LINE: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shows `what` until [`done`].
pub(super) fn on(what: &str) {
    if std::io::stderr().is_terminal() {
        let mut line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
        line.get_or_insert_with(begin).set_message(what.to_owned());
    }
}

/// Takes the line away, before something else is written.
pub(super) fn done() {
    let line = LINE.lock().unwrap_or_else(PoisonError::into_inner).take();
    line.iter().for_each(ProgressBar::finish_and_clear);
}

/// Shows each kernel as it is compiled; off a terminal at most one a second.
pub(super) fn on_compiling(gpu: &Gpu) {
    let mut told = Instant::now();
    gpu.on_compile(move |kernel| match kernel {
        None => done(),
        Some(kernel) if std::io::stderr().is_terminal() => on(&format!("compiling {kernel}")),
        Some(kernel) if told.elapsed() >= Duration::from_secs(1) => {
            errln!("compiling {kernel}");
            told = Instant::now();
        }
        Some(_) => {}
    });
}

fn begin() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
    let line = ProgressBar::new_spinner().with_style(style.expect("the template is fixed"));
    line.enable_steady_tick(Duration::from_millis(200));
    line
}
