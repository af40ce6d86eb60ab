//! The best evaluation of a run so far, whose checkpoint is kept.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Problem, Result};
use crate::files::write_atomically;
use crate::train::checkpoint::{folder_of, verify};
use crate::train::metrics::MetricsRecord;
use crate::train::objectives::{Better, Metric};

/// Name of the record of it in a run's folder.
pub const BEST: &str = "best.json";

/// The best evaluation so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimizer steps done before it.
    pub step: u64,
    /// The figure that decides, by its key in `metrics.jsonl` without `eval_`.
    pub metric: String,
    /// Its value.
    pub value: f64,
}

impl Best {
    /// The evaluation `record`, if it is better by `metric` than the `best` before it. That before
    /// the first step is none: it needs no checkpoint, and the model is the one a run began with.
    ///
    /// # Errors
    /// An evaluation that has no such figure.
    pub fn of(
        record: &MetricsRecord,
        metric: &Metric,
        best: Option<&Self>,
    ) -> Result<Option<Self>> {
        let Some(value) = record.get(metric.key) else {
            let there: Vec<&str> = record.values.iter().map(|(key, _)| key.as_str()).collect();
            let what = format!(
                "is \"{}\", which these held-out rows do not give; they give {}",
                metric.key,
                there.join(", ")
            );
            let summary = "it cannot be said which evaluation is the best";
            return Err(Error::input(summary, vec![Problem::new("train.best", what)]));
        };
        let same = best.filter(|best| best.metric == metric.key);
        let improves = same.is_none_or(|best| {
            record.step > best.step
                && match metric.better {
                    Better::Higher => value > best.value,
                    Better::Lower => value < best.value,
                }
        });
        let new = || Self { step: record.step, metric: metric.key.to_owned(), value };
        Ok((record.step > 0 && improves).then(new))
    }

    /// Its checkpoint, which is a model folder too.
    ///
    /// # Errors
    /// One that is missing, damaged or of another step.
    pub fn checkpoint(&self, run_folder: &Path) -> Result<PathBuf> {
        let folder = folder_of(run_folder, self.step);
        match verify(&folder)?.step {
            step if step == self.step => Ok(folder),
            step => Err(Error::file(folder, format!("is the checkpoint of step {step}"))),
        }
    }

    /// Writes it into the run's folder.
    ///
    /// # Errors
    /// When the disk takes no more.
    pub fn write(&self, run_folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("a record is JSON") + "\n";
        write_atomically(&run_folder.join(BEST), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::Split;
    use crate::train::objectives::preference::{ACCURACY, METRICS};

    fn evaluation(step: u64, loss: f64, accuracy: f64) -> MetricsRecord {
        let figures = [("loss", loss), (ACCURACY.key, accuracy)];
        MetricsRecord::new(Split::Eval, step, 0.0, &figures)
    }

    fn steps(metric: &Metric, figures: &[(f64, f64)]) -> Vec<u64> {
        let (mut best, mut steps): (Option<Best>, _) = (None, Vec::new());
        for (step, &(loss, accuracy)) in figures.iter().enumerate() {
            let record = evaluation(step as u64, loss, accuracy);
            if let Some(better) = Best::of(&record, metric, best.as_ref()).unwrap() {
                steps.push(better.step);
                best = Some(better);
            }
            // Looked at again, as after a resume, it is no better than itself.
            assert_eq!(Best::of(&record, metric, best.as_ref()).unwrap(), None);
        }
        steps
    }

    #[test]
    fn the_figure_that_decides_goes_its_way() {
        let figures = [(0.1, 1.0), (3.0, 0.5), (2.0, 0.5), (2.0, 0.6), (2.5, 0.7), (1.0, 0.7)];
        assert_eq!(steps(&METRICS[0], &figures), [1, 2, 5]);
        assert_eq!(steps(&ACCURACY, &figures), [1, 3, 4]);
    }

    #[test]
    fn another_figure_begins_anew_and_one_that_is_absent_is_named() {
        let best = Best { step: 9, metric: "loss".into(), value: 0.5 };
        let found = Best::of(&evaluation(4, 1.0, 0.2), &ACCURACY, Some(&best)).unwrap().unwrap();
        assert_eq!((found.step, found.value), (4, 0.2));
        let record = MetricsRecord::new(Split::Eval, 4, 0.0, &[("loss", 1.0)]);
        let error = Best::of(&record, &ACCURACY, None).unwrap_err().to_string();
        assert!(error.contains("train.best") && error.contains("they give loss"), "{error}");
    }
}
