//! A model judged by rows it was not trained on: what it gives both answers of each, and figures of
//! that with their uncertainty.

use crate::data::pack::{Capacity, footprint};
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::weights::FolderWeights;
use crate::ops::odds_ratio::log_odds;
use crate::train::dataset::Dataset;
use crate::train::evaluator::Evaluator;
use crate::train::objectives::Objective;
use crate::train::objectives::orpo::Orpo;
use crate::train::objectives::preference::MEAN_LOGP;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a model gives an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// Mean log-probability of its tokens.
    pub mean: f64,
    /// Its tokens, end of sequence included.
    pub tokens: usize,
}

impl Answer {
    /// Log-probability of the whole answer.
    pub fn sum(&self) -> f64 {
        self.mean * self.tokens as f64
    }
}

/// What a model gives the answers of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredRow {
    /// The chosen answer; None of a row whose only answer is labelled as undesirable.
    pub chosen: Option<Answer>,
    /// The rejected one, or that of such a row; None where there is none.
    pub rejected: Option<Answer>,
}

/// Rows by their number in the data.
pub type ScoredRows = BTreeMap<usize, ScoredRow>;

/// What the model in `weights` gives every row. Streams have `stream_tokens`, or what the largest row
/// needs. `progress` hears how many rows are done.
///
/// # Errors
/// Rows that do not fit the model; an adapter whose memory or limits do not suffice; values that are
/// not finite, by row; a lost device.
pub fn score(
    gpu: &Rc<Gpu>,
    config: &ModelConfig,
    weights: &FolderWeights,
    tokenizer: &Tokenizer,
    rows: &Dataset,
    stream_tokens: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<ScoredRows> {
    let largest = rows.examples.iter().map(|example| footprint(example).tokens).max();
    let tokens = stream_tokens.max(largest.unwrap_or(0));
    let capacity = Capacity { tokens, targets: tokens, pairs: (tokens / 2).clamp(1, 256) };
    rows.check_fit(tokenizer, config, capacity)?;
    // Only its means are read, which depend on no setting.
    let objective = Orpo::default();
    let evaluator = Evaluator::new(gpu, config, weights, capacity, &objective)?;
    let mut scored = ScoredRows::new();
    let mut bad = Vec::new();
    for share in rows.share_out(capacity)? {
        let stream = rows.stream(&share, capacity);
        let coefficients = objective.coefficients(&[&stream], 1).remove(0);
        let results = evaluator.evaluate(&stream, &coefficients)?;
        let mean = results.get(MEAN_LOGP);
        let answer = |sequence: usize| Answer {
            mean: f64::from(mean[sequence]),
            tokens: stream.response(sequence).len(),
        };
        for (p, pair) in stream.pairs().enumerate() {
            let (chosen, rejected) = (Some(answer(pair.chosen)), pair.rejected.map(answer));
            let row = match stream.desirable[p] {
                true => ScoredRow { chosen, rejected },
                false => ScoredRow { chosen: None, rejected: chosen },
            };
            let mut answers = row.chosen.iter().chain(&row.rejected);
            if !answers.all(|answer| answer.mean.is_finite()) {
                let what = "the model gives its answers no finite log-probability";
                bad.push(Problem::new(rows.sources[pair.row].to_string(), what));
            }
            scored.insert(pair.row, row);
        }
        progress(scored.len());
    }
    if bad.is_empty() {
        return Ok(scored);
    }
    Err(Error::input("these rows cannot be scored; the model's weights may be damaged", bad))
}

/// A figure of rows: a sum over them divided by another one.
pub struct Figure {
    /// TRL's name where it has one.
    pub key: &'static str,
    /// In words.
    pub title: &'static str,
    /// What a row adds to both sums; None for a row without a rejected answer where that is needed.
    of: fn(&ScoredRow) -> Option<(f64, f64)>,
}

fn share(holds: bool) -> Option<(f64, f64)> {
    Some((f64::from(u8::from(holds)), 1.0))
}

/// The figures, the most telling first.
pub static FIGURES: [Figure; 9] = [
    Figure {
        key: "rewards/accuracies",
        title: "chosen answer preferred, by mean log-prob",
        of: |row| share(row.chosen?.mean > row.rejected?.mean),
    },
    Figure {
        key: "accuracy_by_sum",
        title: "chosen answer preferred, by log-prob of the whole",
        of: |row| share(row.chosen?.sum() > row.rejected?.sum()),
    },
    Figure {
        key: "log_odds_chosen",
        title: "log odds ratio",
        of: |row| Some((log_odds(row.chosen?.mean, row.rejected?.mean).z, 1.0)),
    },
    Figure {
        key: "log_odds_ratio",
        title: "log sigmoid of it (minus ORPO's L_OR)",
        of: |row| Some((-log_odds(row.chosen?.mean, row.rejected?.mean).loss, 1.0)),
    },
    Figure {
        key: "logps/chosen",
        title: "log-prob per token, chosen",
        of: |row| Some((row.chosen?.mean, 1.0)),
    },
    Figure {
        key: "logps/rejected",
        title: "log-prob per token, rejected",
        of: |row| Some((row.rejected?.mean, 1.0)),
    },
    Figure {
        key: "nll_loss",
        title: "NLL of chosen answers, over all tokens",
        of: |row| Some((-row.chosen?.sum(), row.chosen?.tokens as f64)),
    },
    Figure {
        key: "chosen_tokens",
        title: "tokens of a chosen answer",
        of: |row| Some((row.chosen?.tokens as f64, 1.0)),
    },
    Figure {
        key: "rejected_tokens",
        title: "tokens of a rejected answer",
        of: |row| Some((row.rejected?.tokens as f64, 1.0)),
    },
];

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// Of the rows as they are.
    pub value: f64,
    /// From the 2.5th to the 97.5th percentile of resampled rows.
    pub interval: [f64; 2],
}

/// What [`estimates`] finds of a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimated {
    /// Of each model.
    pub models: Vec<Estimate>,
    /// Of the second less the first, on the same rows; None for one model.
    pub difference: Option<Estimate>,
}

impl Estimate {
    fn of(value: f64, mut drawn: Vec<f64>) -> Self {
        // A draw without any of the rows that count says nothing.
        drawn.retain(|value| value.is_finite());
        drawn.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (share * drawn.len() as f64) as usize;
            drawn.get(place.min(drawn.len().saturating_sub(1))).copied().unwrap_or(value)
        };
        Self { value, interval: [at(0.025), at(0.975)] }
    }
}

/// The mean of `values`, with the interval of [`estimates`].
pub fn mean(values: &[f64], resamples: usize, seed: u64) -> Estimate {
    let n = values.len();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |_| (0..n).map(|_| values[rng.random_range(0..n)]).sum::<f64>() / n as f64;
    let drawn = (0..if n == 0 { 0 } else { resamples }).map(&mut draw).collect();
    Estimate::of(values.iter().sum::<f64>() / n as f64, drawn)
}

/// What each row adds to the two sums of a figure.
type Parts = Vec<(f64, f64)>;

/// Leaves the rows that all models were asked about, and says how many each of them lost.
///
/// # Errors
/// When there is no such row.
pub fn keep_common(models: &mut [ScoredRows]) -> Result<Vec<usize>> {
    let common: Vec<usize> = match &*models {
        [first, rest @ ..] => first
            .keys()
            .filter(|row| rest.iter().all(|model| model.contains_key(row)))
            .copied()
            .collect(),
        [] => Vec::new(),
    };
    if common.is_empty() {
        return Err(Error::input("there is no row that both models can be asked about", vec![]));
    }
    let keep = |model: &mut ScoredRows| {
        let before = model.len();
        model.retain(|row, _| common.binary_search(row).is_ok());
        before - common.len()
    };
    Ok(models.iter_mut().map(keep).collect())
}

/// Each of [`FIGURES`] for each model, and the difference of two; None where no row gives it. `models`
/// hold the same rows.
///
/// Intervals are percentiles of `resamples` draws of as many rows with replacement (Efron, "Bootstrap
/// methods", 1979); the rows of a draw are the same for all models and figures, so the interval of a
/// difference is that of paired rows.
pub fn estimates(models: &[ScoredRows], resamples: usize, seed: u64) -> Vec<Option<Estimated>> {
    let rows = models.first().map_or(0, BTreeMap::len);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let parts: Vec<Vec<Parts>> = FIGURES
        .iter()
        .map(|figure| {
            let of_model = |model: &ScoredRows| {
                model.values().map(|row| (figure.of)(row).unwrap_or_default()).collect()
            };
            models.iter().map(of_model).collect()
        })
        .collect();
    let ratio = |parts: &[(f64, f64)], rows: &mut dyn Iterator<Item = usize>| {
        let (mut over, mut under) = (0.0, 0.0);
        for row in rows {
            over += parts[row].0;
            under += parts[row].1;
        }
        over / under
    };
    let mut drawn = vec![vec![Vec::with_capacity(resamples); models.len()]; FIGURES.len()];
    for _ in 0..resamples {
        let draw: Vec<usize> = (0..rows).map(|_| rng.random_range(0..rows)).collect();
        for (figure, drawn) in parts.iter().zip(&mut drawn) {
            for (model, drawn) in figure.iter().zip(drawn) {
                drawn.push(ratio(model, &mut draw.iter().copied()));
            }
        }
    }
    let whole = |parts: &[(f64, f64)]| ratio(parts, &mut (0..rows));
    let of_figure = |(parts, drawn): (&Vec<Parts>, Vec<Vec<f64>>)| {
        let values: Vec<f64> = parts.iter().map(|parts| whole(parts)).collect();
        if !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        let difference = match (&values[..], &drawn[..]) {
            (&[first, second], [a, b]) => {
                let differences = a.iter().zip(b).map(|(a, b)| b - a).collect();
                Some(Estimate::of(second - first, differences))
            }
            _ => None,
        };
        let models = values.into_iter().zip(drawn).map(|(v, d)| Estimate::of(v, d)).collect();
        Some(Estimated { models, difference })
    };
    parts.iter().zip(drawn).map(of_figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(chosen: (f64, usize), rejected: Option<(f64, usize)>) -> ScoredRow {
        let answer = |(mean, tokens)| Answer { mean, tokens };
        ScoredRow { chosen: Some(answer(chosen)), rejected: rejected.map(answer) }
    }

    fn value(all: &[Option<Estimated>], key: &str) -> Option<Estimated> {
        let at = FIGURES.iter().position(|figure| figure.key == key).unwrap();
        all[at].clone()
    }

    #[test]
    fn figures_are_those_of_the_rows() {
        // By the mean the first is preferred, by the sum the second.
        let rows = [
            row((-1.0, 10), Some((-2.0, 2))),
            row((-2.0, 1), Some((-1.0, 4))),
            row((-3.0, 3), None),
        ];
        let rows: ScoredRows = rows.into_iter().enumerate().collect();
        let all = estimates(&[rows], 200, 1);
        let found = |key| value(&all, key).unwrap().models[0];
        assert_eq!(found("rewards/accuracies").value, 0.5);
        assert_eq!(found("accuracy_by_sum").value, 0.5);
        assert_eq!(found("logps/chosen").value, -2.0);
        assert_eq!(found("logps/rejected").value, -1.5);
        assert!((found("nll_loss").value - 21.0 / 14.0).abs() < 1e-12);
        let [low, high] = found("rewards/accuracies").interval;
        assert_eq!((low, high), (0.0, 1.0));
        let singles: ScoredRows = [(4, row((-1.0, 2), None))].into();
        assert_eq!(value(&estimates(&[singles], 10, 1), "log_odds_chosen"), None);
    }

    #[test]
    fn intervals_shrink_with_rows_and_differences_are_paired() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let rows = |n: usize, rng: &mut ChaCha8Rng| -> ScoredRows {
            (0..n).map(|i| (i, row((-rng.random::<f64>(), 3), Some((-0.5, 3))))).collect()
        };
        let width = |e: &Estimate| e.interval[1] - e.interval[0];
        let few = rows(50, &mut rng);
        let many = rows(5_000, &mut rng);
        let one = |rows: &ScoredRows| {
            value(&estimates(std::slice::from_ref(rows), 500, 2), "logps/chosen").unwrap().models[0]
        };
        let (wide, narrow) = (one(&few), one(&many));
        // Ten times as many for a hundred times the rows; uniform rows scatter by 0.29.
        assert!((width(&wide) / width(&narrow) - 10.0).abs() < 3.0, "{wide:?} {narrow:?}");
        assert!((width(&narrow) - 2.0 * 1.96 * 0.2887 / 5000f64.sqrt()).abs() < 3e-3);
        let [low, high] = narrow.interval;
        assert!(low < narrow.value && narrow.value < high && (narrow.value + 0.5).abs() < 0.02);
        // Each row better by the same: the difference has no uncertainty.
        let better: ScoredRows = few
            .iter()
            .map(|(&i, r)| (i, row((r.chosen.unwrap().mean + 0.25, 3), Some((-0.5, 3)))))
            .collect();
        let both = value(&estimates(&[few, better], 500, 2), "logps/chosen").unwrap();
        let difference = both.difference.unwrap();
        assert!((difference.value - 0.25).abs() < 1e-12 && width(&difference) < 1e-12);
    }
}
