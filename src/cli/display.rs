//! What a person sees of a run: a few lines at the start, a progress bar, evaluations.

use crate::cli::working;
use crate::page::live::{spoken, time_left};
use crate::train::metrics::MetricsRecord;
use crate::train::objectives::Metric;
use crate::train::trainer::TrainEvent;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shows the events of one run.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    name: String,
    total: u64,
    metrics: &'static [Metric],
    /// The step it began at, and when.
    began: Option<(u64, Instant)>,
}

impl Display {
    /// `name` stands in front of the lines where several runs follow each other.
    pub(super) fn new(name: &str) -> Self {
        Self { bar: None, name: name.to_owned(), total: 0, metrics: &[], began: None }
    }

    fn line(&self, text: &str) {
        let text =
            if self.name.is_empty() { text.to_owned() } else { format!("{:<8} {text}", self.name) };
        match &self.bar {
            Some(bar) if std::io::stderr().is_terminal() => bar.println(text),
            _ => errln!("{text}"),
        }
    }

    pub(super) fn show(&mut self, event: TrainEvent) {
        working::done();
        match event {
            TrainEvent::Plan(lines) => lines.iter().for_each(|l| errln!("{l}")),
            TrainEvent::Referring { rows } => {
                working::on(&format!("reference log-probs of {rows} rows"))
            }
            TrainEvent::Begin { step, total, metrics } => {
                let style = ProgressStyle::with_template(
                    "{prefix}{wide_bar} {pos}/{len} {msg} {elapsed}, eta {eta}",
                )
                .expect("the template is fixed");
                let bar = ProgressBar::new(total).with_style(style).with_position(step);
                bar.set_prefix(if self.name.is_empty() {
                    String::new()
                } else {
                    format!("{} ", self.name)
                });
                // What lasts, such as an evaluation or a checkpoint, is seen to go on.
                bar.enable_steady_tick(Duration::from_millis(200));
                // A run whose device was lost begins again.
                if let Some(before) = self.bar.replace(bar) {
                    before.finish_and_clear();
                }
                self.total = total;
                self.began = Some((step, Instant::now()));
                self.metrics = metrics;
            }
            TrainEvent::Epoch(epoch, stats) => self.line(&format!("epoch {epoch}: {stats}")),
            TrainEvent::Step(record) => self.step(record),
            TrainEvent::Evaluated(record) => {
                self.line(&format!("step {:>5}  held out: {}", record.step, self.figures(record)))
            }
            TrainEvent::Sampled { step, prompt, text } => {
                self.line(&format!("step {step:>5}  {prompt} -> {text}"))
            }
            TrainEvent::Saved(folder) => self.line(&format!("saved {}", folder.display())),
            TrainEvent::Best(best) => self.line(&format!(
                "step {:>5}  best so far: eval {} {:.4}",
                best.step, best.metric, best.value
            )),
            TrainEvent::Note(text) => self.line(&text),
        }
    }

    fn step(&self, record: &MetricsRecord) {
        let rate = record.get("tokens_per_second").unwrap_or(0.0);
        let message = format!("{}  {rate:.0} tokens/s", self.figures(record));
        if let Some(bar) = &self.bar {
            bar.set_position(record.step);
            bar.set_message(message.clone());
        }
        // Where there is no terminal a bar is invisible: a line now and then says it is alive.
        let every = (self.total / 20).max(1);
        if !std::io::stderr().is_terminal() && record.step.is_multiple_of(every) {
            let left = self.left(record.step);
            self.line(&format!("step {:>5}/{}  {message}{left}", record.step, self.total));
        }
    }

    /// The time that the steps behind `step` will take, as a part of a line.
    fn left(&self, step: u64) -> String {
        let left = self.began.and_then(|(from, since)| {
            time_left(since.elapsed(), step.checked_sub(from)?, self.total.checked_sub(step)?)
        });
        left.filter(|_| step < self.total)
            .map_or(String::new(), |left| format!("  {} left", spoken(left)))
    }

    /// The objective's figures of a record, as far as it has them.
    fn figures(&self, record: &MetricsRecord) -> String {
        let shown = self
            .metrics
            .iter()
            .filter_map(|metric| Some(format!("{} {:.4}", metric.label?, record.get(metric.key)?)));
        shown.collect::<Vec<_>>().join("  ")
    }

    pub(super) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Where a benchmark is, on standard error.
pub(super) struct Progress {
    /// Every line, for the process that watches this one.
    all: bool,
    terminal: bool,
}

impl Progress {
    pub(super) fn new(all: bool) -> Self {
        Self { all, terminal: std::io::stderr().is_terminal() && !all }
    }

    pub(super) fn line(&mut self, line: &str) {
        let step = ["gate: ", "inputs: ", "ceilings: ", "comparison: ", "run: ", "block: "]
            .iter()
            .any(|p| line.starts_with(p));
        if self.terminal && step {
            err!("\r\x1b[K{line}");
        } else if self.all || !step || line.starts_with("comparison: ") {
            self.clear();
            errln!("{line}");
        }
    }

    pub(super) fn clear(&self) {
        if self.terminal {
            err!("\r\x1b[K");
        }
    }
}
