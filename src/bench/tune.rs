//! Which kernel is fastest for each dispatch of a training step on this adapter.
//!
//! The step itself is the workload: a model and a full stream, so that what is tuned is what the
//! trainer runs, at its sizes, on its buffers. Candidates pass the same gate and are timed by the
//! same clock and race as in `oddgrad bench OP`.

use crate::bench::ceiling::measure;
use crate::bench::clock::Clock;
use crate::bench::gate::{judge, same_as_first};
use crate::bench::op::find_case;
use crate::bench::race::{Limits, race};
use crate::bench::stats::Summary;
use crate::bench::step::Loaded;
use crate::bench::tuned::{Choice, Factors, texts_hash};
use crate::error::{Error, Problem, Result};
use crate::gpu::{Checks, Gpu};
use crate::kernel::{Pass, SizeClass, Variant};
use crate::ops::trial::Plant;
use crate::plan::Reuse;
use crate::step::Step;
use std::path::Path;
use std::rc::Rc;

/// What `tune` found.
#[derive(Debug)]
pub struct Tuning {
    /// Every class of dispatches with more than one kernel, in the order of the step.
    pub found: Vec<Found>,
    /// Kernels that failed the gate, each with its fault.
    pub faults: Vec<String>,
    /// Which clock was read.
    pub clock: String,
}

/// What `tune` found for one class of dispatches.
#[derive(Debug)]
pub struct Found {
    /// The fastest kernel of those with the digits of single precision.
    pub exact: Choice,
    /// The fastest of those that read factors as f16, if it is faster still.
    pub lossy: Option<Choice>,
    /// Dispatches of a step.
    pub dispatches: usize,
}

/// A kernel this many times slower than the quickest in a single run is not raced.
const HOPELESS: f64 = 3.0;

/// Races the kernels of every dispatch of a training step of the model in `folder` on streams of
/// `tokens` tokens, or of the operations and passes in `only` (`matmul`, `matmul.nt`) if there are
/// any. Kernels that lose digits ([`Variant::tolerance`]) are measured only if `half`, and what they
/// win is a choice of its own beside the exact one. `gpu` must not be
/// tuned or pinned: the usual kernels are what others must beat.
///
/// # Errors
/// An unreadable model, a stream too small for one pair, a device without room or lost.
pub fn tune(
    gpu: &Rc<Gpu>,
    folder: &Path,
    tokens: usize,
    only: &[String],
    half: bool,
    seconds: f64,
    progress: &mut dyn FnMut(&str),
) -> Result<Tuning> {
    let mut loaded = Loaded::new(gpu, folder, tokens, Reuse::None, Vec::new())?;
    loaded.step()?;
    let passes = crate::ops::passes();
    let mut jobs: Vec<Job> = Vec::new();
    for step in [loaded.learner.micro_step(), loaded.learner.update_step()] {
        for (at, call) in step.graph().calls().iter().enumerate() {
            let pass = passes.iter().find(|p| (p.op, p.name) == (call.op, call.pass));
            let pass = *pass.expect("every call is of a pass");
            let size = step.graph().size_class(&call.reads, &call.writes);
            match jobs.iter_mut().find(|j| std::ptr::eq(j.pass, pass) && j.size == size) {
                Some(job) => job.dispatches += 1,
                None => jobs.push(Job { step, at, pass, size, dispatches: 1 }),
            }
        }
    }
    keep_only(&mut jobs, only)?;
    let mut faults = Vec::new();
    let mut field: Vec<(&'static Pass, Vec<&'static Variant>)> = Vec::new();
    for job in &jobs {
        if !field.iter().any(|(p, _)| std::ptr::eq(*p, job.pass)) {
            field.push((job.pass, fit(gpu, job.pass, half, &mut faults, progress)?));
        }
    }
    progress("ceilings: which clock to believe");
    let (clock, _) = measure(gpu)?;
    let limits = Limits { seconds, ..Limits::default() };
    let mut found = Vec::new();
    for job in &jobs {
        let (_, able) = field.iter().find(|(p, _)| std::ptr::eq(*p, job.pass)).expect("above");
        if able.len() < 2 {
            continue;
        }
        progress(&format!("race: {} of {:?}", job.pass.full_name(), job.shape()));
        found.extend(job.choose(gpu, able, &clock, limits)?);
    }
    Ok(Tuning { found, faults, clock: clock.name })
}

/// Drops the jobs that were not asked for.
fn keep_only(jobs: &mut Vec<Job>, only: &[String]) -> Result<()> {
    let named = |job: &Job, name: &String| job.pass.op == name || job.pass.full_name() == *name;
    let unknown: Vec<_> =
        only.iter().filter(|name| !jobs.iter().any(|job| named(job, name))).collect();
    if !unknown.is_empty() {
        let mut there: Vec<_> = jobs.iter().map(|job| job.pass.full_name()).collect();
        there.sort();
        there.dedup();
        let what = format!("is nothing that a training step runs; it runs {}", there.join(", "));
        let problem = |name: &&String| Problem::new(format!("--only {name}"), what.clone());
        return Err(Error::input("nothing to tune", unknown.iter().map(problem).collect()));
    }
    jobs.retain(|job| only.is_empty() || only.iter().any(|name| named(job, name)));
    Ok(())
}

/// The kernels of a pass that the adapter can run and that pass the gate.
fn fit(
    gpu: &Rc<Gpu>,
    pass: &'static Pass,
    half: bool,
    faults: &mut Vec<String>,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<&'static Variant>> {
    let fits = |v: &&Variant| v.needs_met(gpu.target()) && (half || v.tolerance == 0.0);
    let able: Vec<_> = pass.variants.iter().filter(fits).collect();
    if able.len() < 2 {
        return Ok(able);
    }
    let plants: Vec<Plant> =
        able.iter().map(|&variant| Plant { pass, variant, checks: Checks::Off }).collect();
    let verdicts = judge(gpu, &find_case(pass.op)?, &plants, 0, progress)?;
    let mut right = Vec::new();
    for (v, verdict) in able.into_iter().zip(verdicts) {
        match verdict.fault {
            None => right.push(v),
            Some(fault) => faults.push(format!("{}: {fault}", v.label())),
        }
    }
    Ok(right)
}

/// True for a kernel with the digits of single precision.
fn exact(v: &Variant) -> bool {
    v.tolerance == 0.0
}

/// The fastest of those that `may` take the place of `holder`, else the holder. Noise is no reason
/// to change: the winner's interval must lie below the holder's.
fn winner(sums: &[Summary], holder: usize, may: impl Fn(usize) -> bool) -> usize {
    let able = (0..sums.len()).filter(|&i| may(i));
    let fastest = able.min_by(|&a, &b| sums[a].median.total_cmp(&sums[b].median));
    fastest.filter(|&i| sums[i].high < sums[holder].low).unwrap_or(holder)
}

/// One class of dispatches, stood for by its first.
struct Job<'a> {
    step: &'a Step,
    at: usize,
    pass: &'static Pass,
    size: SizeClass,
    dispatches: usize,
}

impl Job<'_> {
    /// Shape of what is written.
    fn shape(&self) -> &[usize] {
        let graph = self.step.graph();
        graph.shape(graph.calls()[self.at].writes[0])
    }

    /// None if fewer than two kernels can be compared here.
    fn choose(
        &self,
        gpu: &Gpu,
        able: &[&'static Variant],
        clock: &Clock,
        limits: Limits,
    ) -> Result<Option<Found>> {
        let usual = self.pass.usual(gpu.target());
        let call = &self.step.graph().calls()[self.at];
        let mut replays = Vec::new();
        // The usual kernel first: it is what the others are compared with.
        let rest = able.iter().copied().filter(|v| !std::ptr::eq(*v, usual));
        for v in std::iter::once(usual).chain(rest) {
            if call.grid_of(v).is_ok() && able.iter().any(|a| std::ptr::eq(*a, v)) {
                replays.push((v, self.step.replay(&[self.at], v, Checks::Off)?));
            }
        }
        if !replays.first().is_some_and(|(v, _)| std::ptr::eq(*v, usual)) {
            return Ok(None);
        }
        let case = find_case(self.pass.op)?;
        let tolerances: Vec<f64> =
            replays.iter().map(|(v, _)| case.tolerance.max(v.tolerance)).collect();
        let all: Vec<_> = replays.iter().map(|(_, r)| r).collect();
        let faults = same_as_first(self.step, &all, usual.number(), self.shape(), &tolerances)?;
        let mut quick = Vec::new();
        for ((v, replay), fault) in replays.iter().zip(faults) {
            if fault.is_none() {
                // The better of two: other work on the machine may meet one of them.
                let time = || clock.time(self.step, replay, 1);
                quick.push((*v, replay, time()?.min(time()?)));
            }
        }
        // Exact kernels have exact ones to beat, however quick those are that lose digits.
        let best = |of: fn(&Variant) -> bool| {
            quick.iter().filter(|q| of(q.0)).map(|q| q.2).fold(f64::INFINITY, f64::min)
        };
        let (best_exact, best_of_all) = (best(exact), best(|_| true));
        quick.retain(|q| {
            let best = if exact(q.0) { best_exact } else { best_of_all };
            q.2 <= HOPELESS * best || std::ptr::eq(q.0, usual)
        });
        if quick.len() < 2 {
            // Nothing comes near the usual kernel, which is a finding too. It is never left out:
            // it is what the others were compared with.
            let (v, _, t) = quick[0];
            let exact = self.choice(v, t, t);
            return Ok(Some(Found { exact, lossy: None, dispatches: self.dispatches }));
        }
        let runners: Vec<_> = quick.iter().map(|q| (q.1, q.2)).collect();
        let race = race(self.step, &runners, clock, limits)?;
        let sums: Vec<Summary> = race.blocks.iter().map(|blocks| Summary::of(blocks)).collect();
        let choice = |won: usize| self.choice(quick[won].0, sums[won].median, sums[0].median);
        let won = winner(&sums, 0, |i| exact(quick[i].0));
        let lossy = winner(&sums, won, |i| !exact(quick[i].0));
        Ok(Some(Found {
            exact: choice(won),
            lossy: (lossy != won).then(|| choice(lossy)),
            dispatches: self.dispatches,
        }))
    }

    fn choice(&self, v: &Variant, seconds: f64, usual: f64) -> Choice {
        let us = |s: f64| (1e8 * s).round() / 100.0;
        Choice {
            pass: self.pass.full_name(),
            reads_below: self.size.reads_below,
            writes_below: self.size.writes_below,
            dtype: if exact(v) { Factors::F32 } else { Factors::F16 },
            variant: v.number(),
            tile: v.tile_name.into(),
            idea: v.idea().into(),
            us: us(seconds),
            usual_us: us(usual),
            kernels: texts_hash(self.pass),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tune_changes_kernels_for_more_than_noise_and_keeps_kinds_apart() {
        let sum = |low: f64, high: f64| Summary {
            median: (low + high) / 2.0,
            low,
            high,
            ..Summary::of(&[vec![1.0]])
        };
        // The usual kernel, one within its noise, a faster one, and one that loses digits.
        let sums = [sum(5.0, 6.0), sum(4.5, 5.5), sum(3.0, 4.0), sum(1.0, 2.0)];
        let exact = winner(&sums, 0, |i| i < 3);
        assert_eq!(exact, 2);
        assert_eq!(winner(&sums, exact, |i| i == 3), 3);
        assert_eq!(winner(&sums, 0, |i| i < 2), 0, "noise");
        assert_eq!(winner(&sums, 3, |i| i < 3), 3, "slower");
        assert_eq!(winner(&sums, 0, |_| false), 0);
    }
}
