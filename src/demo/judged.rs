//! What the base model, the control and ORPO make of held-out rows: how often each prefers the right
//! sentence, what each corrects, and what that comes to in words.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Finished;
use super::rows::HeldOutRow;
use crate::data::form::Form;
use crate::data::rows::Split;
use crate::data::tokenize::Tokenizer;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::generate::Sampling;
use crate::model::weights::{FolderWeights, FreshAdapter, ParameterValues};
use crate::page::report::{Sample, Table};
use crate::program::Store;
use crate::train::dataset::Dataset;
use crate::train::evaluation::{Estimate, FIGURES, estimates, score};
use crate::train::objectives::RowKind;
use crate::train::sampler::{Sampler, encode_prompts};

/// Longest sentence in characters that the page shows corrections of.
const SHOWN_CHARS: usize = 72;
/// Tokens a correction may have beyond the longest right one.
const SPARE_TOKENS: usize = 4;

/// Held-out rows of one kind, and what the base model and both trained ones make of them.
#[derive(Debug, Clone)]
pub struct Judged {
    /// What the rows have in common, behind "sentences".
    pub kind: &'static str,
    /// How many rows there are.
    pub rows: usize,
    /// What the base model, the control and ORPO come to in each of [`FIGURES`], by its key.
    pub figures: BTreeMap<&'static str, [Estimate; 3]>,
    /// By how much more often ORPO prefers the right sentence than the base model and than the control,
    /// on the same rows.
    pub gained: [Estimate; 2],
    /// How many of [`Judged::corrected`] greedy corrections are exactly right.
    pub exact: [usize; 3],
    /// Sentences that each of them corrected.
    pub corrected: usize,
}

/// The key of the figure that says how often the right sentence is preferred.
const PREFERRED: &str = "rewards/accuracies";

impl Judged {
    /// Of the base model, the control and ORPO: how often the right sentence is preferred.
    pub fn preferred(&self) -> [Estimate; 3] {
        self.figures[PREFERRED]
    }

    /// Their log odds ratios.
    pub fn log_odds(&self) -> [Estimate; 3] {
        self.figures["log_odds_chosen"]
    }
}

/// What the three models are called, while they work.
const NAMES: [&str; 3] = ["the base model", "the control", "ORPO"];

/// `count` corrections short enough for a table: those that got better, then one of every rule file,
/// then a second one, and so on.
pub(super) fn pick(rows: &[HeldOutRow], corrections: Vec<Sample>, count: usize) -> Vec<Sample> {
    let mut better = Vec::new();
    let mut by_rule: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
    for (row, sample) in rows.iter().zip(corrections) {
        if row.right.chars().count().max(row.wrong.chars().count()) > SHOWN_CHARS {
            continue;
        }
        match sample.outputs.last().map(String::as_str) {
            Some(orpo) if is_right(orpo, &sample) && !is_right(&sample.outputs[0], &sample) => {
                better.push(sample);
            }
            _ => by_rule.entry(&row.source).or_default().push(sample),
        }
    }
    // Half of the room at most, so that what did not get better is seen too.
    better.truncate(count.div_ceil(2));
    let rounds = by_rule.values().map(Vec::len).max().unwrap_or(0);
    let others = (0..rounds)
        .flat_map(|round| by_rule.values().filter_map(move |rows| rows.get(round)).cloned());
    let left = count - better.len();
    better.extend(others.take(left).collect::<Vec<_>>());
    better
}

fn is_right(text: &str, sample: &Sample) -> bool {
    text.trim() == sample.right.trim()
}

/// Whether ORPO's correction, the second, is right and that of the base model, the first, is not.
pub(super) fn got_better(sample: &Sample) -> bool {
    match &sample.outputs[..] {
        [base, orpo, ..] => is_right(orpo, sample) && !is_right(base, sample),
        _ => false,
    }
}

/// What the base model, the control and ORPO make of the rows in a file.
pub(super) fn judge(
    gpu: &Rc<Gpu>,
    models: [&PathBuf; 3],
    kind: &'static str,
    file: &Path,
    orpo: &Finished,
    corrections: &[Sample],
    working: &mut dyn FnMut(String),
) -> Result<Judged> {
    let tokenizer = Tokenizer::from_folder(models[0])?;
    let paths = [file.to_owned()];
    let (data, tokens) = (&orpo.recipe.data, orpo.recipe.batch.stream_tokens);
    let rows = Dataset::load(data, RowKind::Pairs, &tokenizer, &paths, Split::Train)?;
    let mut scored = Vec::new();
    for (model, name) in models.into_iter().zip(NAMES) {
        let config = ModelConfig::load(model)?;
        let weights = FolderWeights::open(model, &config)?;
        let all = rows.examples.len();
        let mut progress =
            |done| working(format!("{name}: {done} of {all} sentences {kind} judged"));
        scored.push(score(gpu, &config, &weights, &tokenizer, &rows, tokens, &mut progress)?);
    }
    let figures = FIGURES.iter().zip(estimates(&scored, RESAMPLES, 0)).map(|(figure, found)| {
        let found = found.expect("every row has both answers");
        (figure.key, [0, 1, 2].map(|model| found.models[model]))
    });
    let preferred = FIGURES.iter().position(|figure| figure.key == PREFERRED).expect("it is one");
    let gained = [0, 1].map(|model| {
        let both = [scored[model].clone(), scored[2].clone()];
        let found = estimates(&both, RESAMPLES, 0).swap_remove(preferred);
        found.and_then(|found| found.difference).expect("every row has both answers")
    });
    let exact = [0, 1, 2].map(|model| {
        corrections.iter().filter(|sample| is_right(&sample.outputs[model], sample)).count()
    });
    Ok(Judged {
        kind,
        rows: scored[0].len(),
        figures: figures.collect(),
        gained,
        exact,
        corrected: corrections.len(),
    })
}

/// Draws of rows for the intervals.
const RESAMPLES: usize = 1000;

/// A sentence about rows of one kind. Whether something is a difference is told by the interval of the
/// difference on the same rows.
pub(super) fn verdict_of(judged: &Judged) -> String {
    let Judged { kind, rows, gained: [over_base, over_control], exact, corrected, .. } = judged;
    let [base, control, orpo] = &judged.preferred();
    let share = |e: &Estimate| format!("{:.1} %", 100.0 * e.value);
    let apart =
        |difference: &Estimate| difference.interval[0] > 0.0 || difference.interval[1] < 0.0;
    let change = match (apart(over_base), over_base.value > 0.0) {
        (false, _) => "that is no change that so few rows could show",
        (true, true) if apart(over_control) && over_control.value > 0.0 => {
            "more than before, and more than imitation alone brings"
        }
        (true, true) => "more than before",
        (true, false) => "less than before",
    };
    format!(
        "On {rows} new sentences {kind}, ORPO prefers the right one in {} of the pairs, the base model in {} and imitation alone in {}: {change}. Exactly right corrections, of {corrected}: ORPO {}, base model {}, imitation {}.",
        share(orpo),
        share(base),
        share(control),
        exact[2],
        exact[0],
        exact[1]
    )
}

/// Both kinds of rows as a table.
pub(super) fn table_of(judged: &[Judged; 2]) -> Table {
    let share = |e: &Estimate| {
        let [low, high] = e.interval.map(|x| 100.0 * x);
        format!("{:.1} % ({low:.1} to {high:.1})", 100.0 * e.value)
    };
    let number =
        |e: &Estimate| format!("{:.2} ({:.2} to {:.2})", e.value, e.interval[0], e.interval[1]);
    let mut rows = Vec::new();
    for j in judged {
        let Judged { kind, rows: count, figures, gained, exact, corrected } = j;
        rows.push((
            format!("Right sentence preferred, {count} sentences {kind}"),
            j.preferred().iter().map(share).collect(),
        ));
        let gained = gained.iter().map(|e| {
            let [low, high] = e.interval.map(|x| 100.0 * x);
            format!("{:+.1} points ({low:+.1} to {high:+.1})", 100.0 * e.value)
        });
        rows.push((
            format!("ORPO prefers it more often on the same sentences {kind}, by"),
            gained.chain([String::new()]).collect(),
        ));
        rows.push((
            format!("Log odds ratio, sentences {kind}"),
            j.log_odds().iter().map(number).collect(),
        ));
        let [right, wrong] = ["logps/chosen", "logps/rejected"].map(|key| &figures[key]);
        let both = right.iter().zip(wrong);
        rows.push((
            format!("Log-prob per token, right / wrong, sentences {kind}"),
            both.map(|(r, w)| format!("{:.2} / {:.2}", r.value, w.value)).collect(),
        ));
        let exact = exact.iter().map(|n| format!("{n} of {corrected}")).collect();
        rows.push((format!("Exactly right corrections, sentences {kind}"), exact));
    }
    Table {
        title: "Sentences that no run has seen".into(),
        note: "In brackets 95 % of 1,000 draws of the rows (bootstrap).".into(),
        columns: ["base model", "imitation alone", "ORPO"].map(str::to_owned).into(),
        rows,
    }
}

/// Greedy corrections by the base model, the control and ORPO: one program, in which the weights are
/// exchanged.
pub(super) fn correct(
    gpu: &Rc<Gpu>,
    models: [&PathBuf; 3],
    rows: &[HeldOutRow],
    working: &mut dyn FnMut(String),
) -> Result<Vec<Sample>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    // Where both runs trained additions, the base model has some too: fresh ones, which add nothing.
    let config = ModelConfig::load(models[2])?;
    let tokenizer = Tokenizer::from_folder(models[0])?;
    // A model that has not learnt to end a sentence is stopped a little behind where the right one
    // ends; those of one length are continued together.
    let limit = |row: &HeldOutRow| Ok(tokenizer.encode(&row.right)?.len() + SPARE_TOKENS);
    let mut order: Vec<(usize, usize)> =
        rows.iter().map(limit).collect::<Result<Vec<_>>>()?.into_iter().zip(0..).collect();
    order.sort_unstable();
    let limits: Vec<usize> = order.iter().map(|&(limit, _)| limit).collect();
    let max_tokens = limits.last().copied().unwrap_or(0);
    let store = Store::new(gpu);
    let put = |model: &Path| -> Result<()> {
        let weights = FolderWeights::open(model, &config)?;
        let write =
            &mut |name: &str, shape: &[usize], values: &[f32]| store.write(name, shape, values);
        match Adapter::of(model)? {
            None => FreshAdapter { base: Box::new(weights), config: &config, seed: 0 }.each(write),
            Some(_) => weights.each(write),
        }
    };
    put(models[0])?;
    let prompts: Vec<String> = order.iter().map(|&(_, row)| rows[row].prompt.clone()).collect();
    let prompts = (&prompts[..], Form::of_template(tokenizer.has_template()));
    let prompts = encode_prompts(&tokenizer, &config, prompts, max_tokens)?;
    let sampler =
        Sampler::new(gpu, &store, &config, tokenizer, prompts, max_tokens)?.limited(limits);
    let greedy = Sampling::greedy(max_tokens);
    let sample = |row: &HeldOutRow| Sample {
        wrong: row.wrong.clone(),
        outputs: Vec::new(),
        right: row.right.clone(),
    };
    let mut samples: Vec<Sample> = rows.iter().map(sample).collect();
    for (model, name) in models.into_iter().zip(NAMES) {
        put(model)?;
        let mut hear = |at: usize, _: &str| {
            working(format!("{name}: correcting sentence {} of {}", at + 1, rows.len()));
        };
        let texts = sampler.run(&greedy, &[], &mut hear)?;
        order.iter().zip(texts).for_each(|(&(_, row), text)| samples[row].outputs.push(text));
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::rows::tests::rows;

    /// Corrections of which ORPO's is right where `better` says so.
    fn corrections(rows: &[HeldOutRow], better: &[usize]) -> Vec<Sample> {
        let sample = |(at, row): (usize, &HeldOutRow)| {
            let orpo = if better.contains(&at) { row.right.clone() } else { "no".into() };
            let outputs = vec!["no".into(), "no".into(), orpo];
            Sample { wrong: row.wrong.clone(), outputs, right: row.right.clone() }
        };
        rows.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn demo_shows_what_got_better_then_different_rules_and_no_long_ones() {
        let mut rows = rows(&[("a", 3), ("b", 1), ("c", 2)]);
        rows[0].wrong = "x".repeat(SHOWN_CHARS + 1);
        let shown = |better: &[usize], count| -> Vec<String> {
            let picked = pick(&rows, corrections(&rows, better), count);
            picked
                .into_iter()
                .map(|s| s.right.replace("sentence ", "").replace("of ", ""))
                .collect()
        };
        assert_eq!(shown(&[], 4), ["1 a", "0 b", "0 c", "2 a"]);
        assert_eq!(shown(&[5, 2, 3], 4), ["2 a", "0 b", "1 a", "0 c"]);
        assert_eq!(shown(&[], 99).len(), 5);
    }

    #[test]
    fn demo_verdicts_go_by_the_intervals() {
        let estimate = |value: f64, by: f64| Estimate { value, interval: [value - by, value + by] };
        let judged = |shares: [f64; 3], by| Judged {
            kind: "of rules",
            rows: 160,
            figures: BTreeMap::from([
                ("rewards/accuracies", shares.map(|share| estimate(share, by))),
                ("log_odds_chosen", [estimate(0.0, 1.0); 3]),
                ("logps/chosen", [estimate(-0.5, 0.1); 3]),
                ("logps/rejected", [estimate(-0.25, 0.1); 3]),
            ]),
            gained: [0, 1].map(|model| estimate(shares[2] - shares[model], by)),
            exact: [1, 2, 30],
            corrected: 160,
        };
        let verdict = |shares, by| verdict_of(&judged(shares, by));
        let clear = verdict([0.01, 0.05, 0.55], 0.04);
        assert!(clear.contains("55.0 %") && clear.contains("more than imitation alone"), "{clear}");
        assert!(clear.contains("ORPO 30, base model 1, imitation 2"), "{clear}");
        assert!(verdict([0.01, 0.5, 0.55], 0.06).contains("more than before."));
        assert!(verdict([0.5, 0.5, 0.55], 0.06).contains("no change"));
        assert!(verdict([0.6, 0.5, 0.5], 0.04).contains("less than before"));
        let table = table_of(&[judged([0.01, 0.05, 0.55], 0.01), judged([0.0, 0.0, 0.0], 0.0)]);
        assert_eq!((table.rows.len(), table.rows[0].1[2].as_str()), (10, "55.0 % (54.0 to 56.0)"));
        assert_eq!(table.rows[1].1[0], "+54.0 points (+53.0 to +55.0)");
        assert_eq!(table.rows[3].1, ["-0.50 / -0.25"; 3]);
    }
}
