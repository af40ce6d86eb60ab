//! Says which kernel is being compiled: on software adapters one takes seconds.

use crate::gpu::Gpu;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A line that moves on a terminal, else a line a second at most on standard error.
pub(super) fn show(gpu: &Gpu) {
    if std::io::stderr().is_terminal() {
        let mut spinner: Option<ProgressBar> = None;
        gpu.on_compile(move |kernel| match kernel {
            Some(kernel) => spinner.get_or_insert_with(begin).set_message(kernel.to_owned()),
            None => spinner.take().iter().for_each(ProgressBar::finish_and_clear),
        });
    } else {
        let mut told = Instant::now();
        gpu.on_compile(move |kernel| {
            if let Some(kernel) = kernel.filter(|_| told.elapsed() >= Duration::from_secs(1)) {
                errln!("compiling {kernel}");
                told = Instant::now();
            }
        });
    }
}

fn begin() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} compiling {msg} {elapsed}");
    let spinner = ProgressBar::new_spinner().with_style(style.expect("the template is fixed"));
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}
