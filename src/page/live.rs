//! The report of a training run while it goes on: written anew after evaluations, and every few seconds
//! while there are steps. A browser that has it open loads it again by itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::page::report::{Continuation, ReportPage, RunCurves, write_report};
use crate::train::metrics::{METRICS, MetricsRecord, read_metrics};
use crate::train::prepare::REPORT;
use crate::train::recipe::Recipe;
use crate::train::trainer::TrainEvent;

/// Time between two pages while there are only steps.
const EVERY: Duration = Duration::from_secs(5);

/// The page of a run, and what it has heard of the run.
pub struct LiveReport {
    folder: PathBuf,
    page: ReportPage,
    records: Vec<MetricsRecord>,
    total: u64,
    /// Where it began in this process, and when.
    began: Option<(u64, Instant)>,
    written: Option<Instant>,
}

impl LiveReport {
    /// The page of a run of this recipe, in its folder.
    pub fn new(recipe: &Recipe) -> Self {
        let objective = &recipe.loss.objective;
        let page = ReportPage {
            title: format!("{}: {}", objective.name(), recipe.output.display()),
            metrics: objective.metrics(),
            facts: vec![("recipe".into(), recipe.to_toml())],
            ..ReportPage::default()
        };
        let folder = recipe.output.clone();
        Self { folder, page, records: Vec::new(), total: 0, began: None, written: None }
    }

    /// The page's path.
    pub fn path(&self) -> PathBuf {
        self.folder.join(REPORT)
    }

    /// Hears what happens, and writes the page if it is time to.
    ///
    /// # Errors
    /// When the page cannot be written, or the records of a run that goes on cannot be read.
    pub fn hear(&mut self, event: &TrainEvent) -> Result<()> {
        match event {
            TrainEvent::Plan(lines) => {
                self.page.facts.retain(|(name, _)| name != "run");
                self.page.facts.insert(0, ("run".into(), lines.join("\n")));
            }
            TrainEvent::Begin { step, total, .. } => {
                let path = self.folder.join(METRICS);
                self.records = if path.exists() { read_metrics(&path)? } else { Vec::new() };
                (self.total, self.began) = (*total, Some((*step, Instant::now())));
            }
            TrainEvent::Step(record) => {
                self.records.push((*record).clone());
                if self.written.is_none_or(|at| at.elapsed() >= EVERY) {
                    return self.write(true);
                }
            }
            TrainEvent::Evaluated(record) => {
                self.records.push((*record).clone());
                return self.write(true);
            }
            TrainEvent::Sampled { step, prompt, text } => self.continued(*step, prompt, text),
            _ => {}
        }
        Ok(())
    }

    /// Writes the page for the last time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&mut self) -> Result<()> {
        if self.began.is_none() { Ok(()) } else { self.write(false) }
    }

    fn continued(&mut self, step: u64, prompt: &str, text: &str) {
        let said = (step, text.to_owned());
        match self.page.continuations.iter_mut().find(|c| c.prompt == prompt) {
            Some(before) => before.last = said,
            None => self.page.continuations.push(Continuation {
                prompt: prompt.to_owned(),
                first: said.clone(),
                last: said,
            }),
        }
    }

    fn write(&mut self, live: bool) -> Result<()> {
        self.page.runs = vec![RunCurves::new("this run", &self.records)];
        self.page.refresh = live.then_some(EVERY.as_secs() * 2);
        self.page.state = self.state(live);
        self.written = Some(Instant::now());
        write_report(&self.path(), &self.page)
    }

    /// How far it is, in words.
    fn state(&self, live: bool) -> String {
        let done = self.records.last().map_or(0, |record| record.step);
        let now =
            DateTime::<Utc>::from(std::time::SystemTime::now()).format("%Y-%m-%d %H:%M:%S UTC");
        let left = self.left(done).filter(|_| live && done < self.total);
        let left = left.map_or(String::new(), |left| format!(", about {} left", spoken(left)));
        let over = if live { "" } else { "; this run is over" };
        format!("Step {done} of {}{left}{over}. As of {now}.", self.total)
    }

    /// Time that the steps left will take, by those that this process has done.
    fn left(&self, done: u64) -> Option<Duration> {
        let (from, since) = self.began?;
        time_left(since.elapsed(), done.checked_sub(from)?, self.total.checked_sub(done)?)
    }
}

/// Time for `left` things if `done` of them took `elapsed`.
pub fn time_left(elapsed: Duration, done: u64, left: u64) -> Option<Duration> {
    (done > 0).then(|| elapsed.mul_f64(left as f64 / done as f64))
}

/// A time as people say it.
pub fn spoken(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=99 => format!("{seconds} s"),
        seconds @ 100..=5_999 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_do() {
        let left = |done, left| time_left(Duration::from_secs(10), done, left);
        assert_eq!(left(0, 5), None);
        assert_eq!(left(4, 6).map(spoken).as_deref(), Some("15 s"));
        assert_eq!(left(1, 60).map(spoken).as_deref(), Some("10 min"));
        assert_eq!(left(1, 1800).map(spoken).as_deref(), Some("5.0 h"));
    }
}
