//! Which kernel is fastest for each dispatch of a training step on this adapter.
//!
//! The step itself is the workload: a model and a full stream, so that what is tuned is what the
//! trainer runs, at its sizes, on its buffers. Candidates are timed by the same clock and as often as in
//! `oddgrad bench OP`.
//!
//! A driver may take seconds to compile a kernel, and each set of constants is a kernel to it, so
//! the whole gate for every kernel would take minutes. Hence the order:
//!
//! 1. A kernel with special needs runs at one small awkward shape, as when a device is opened.
//! 2. Each kernel runs at the real dispatch. One that is slower by far is dropped there, and is not
//!    tried again at sizes near by.
//! 3. Those left must write what the default kernel writes, in the whole of the real result, and then
//!    are compared with it.
//! 4. A winner goes through the gate at a few awkward shapes (`GATED`), and at a small one with every
//!    kind of values, before it is chosen.
//!
//! That is enough to trust a winner: every kernel goes through the whole gate in this crate's tests,
//! so what is left to find is what this driver makes of it. The real size shows wrong arithmetic,
//! and the awkward shapes what it does at edges: a poisoned result, guard zones, the same bits
//! twice. The default kernel needs none of it, because it runs anyway.

use crate::bench::candidate::find_case;
use crate::bench::ceiling::measure;
use crate::bench::clock::Clock;
use crate::bench::comparison::{Limits, compare_kernels};
use crate::bench::gate::same_as_first;
use crate::bench::stats::Summary;
use crate::bench::step::Loaded;
use crate::bench::tuned::{Choice, Factors, texts_hash};
use crate::error::{Error, Problem, Result};
use crate::gpu::{Checks, Gpu};
use crate::kernel::{Facts, Operand, Pass, SizeClass, Variant};
use crate::ops::self_test::{fault_of, fault_with_values, first_fault};
use crate::ops::trial::{Fault, Kind};
use crate::ops::values::Values;
use crate::plan::Reuse;
use crate::program::{Program, Replay};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

/// What `tune` found.
#[derive(Debug)]
pub struct Tuning {
    /// Every class of dispatches with more than one kernel, in the order of the step.
    pub found: Vec<Found>,
    /// Kernels found wrong, each with its fault.
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

/// A kernel this many times slower than the quickest in a single run is not compared.
const HOPELESS: f64 = 3.0;
/// One this many times slower is not even tried where a dispatch reads and writes about as much.
const FAR: f64 = 10.0;
/// Awkward shapes that a winner goes through.
const GATED: usize = 3;

/// Races the kernels of every dispatch of a training step of the model in `folder` on streams of
/// `tokens` tokens, or of the operations and passes in `only` (`matmul`, `matmul.nt`) if there are
/// any. Kernels that lose digits ([`Variant::tolerance`]) are measured only if `half`, and what they
/// win is a choice of its own beside the exact one. `gpu` must not be
/// tuned or pinned: the default kernels are what others must beat.
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
    let mut loaded = Loaded::new(gpu, folder, tokens, None, Reuse::None, Vec::new())?;
    loaded.step()?;
    let passes = crate::ops::passes();
    let mut jobs: Vec<Job> = Vec::new();
    for program in [loaded.learner.micro_program(), loaded.learner.update_program()] {
        for (at, call) in program.graph().calls().iter().enumerate() {
            let pass = passes.iter().find(|p| (p.op, p.name) == (call.op, call.pass));
            let pass = *pass.expect("every call is of a pass");
            let Facts { operands, size } = program.graph().facts_of(call);
            // Rows of other lengths have other kernels to choose between.
            let default = pass.default_for(gpu.target(), &operands).expect("the call has a kernel");
            let same = |j: &&mut Job| {
                std::ptr::eq(j.pass, pass) && j.size == size && std::ptr::eq(j.default, default)
            };
            match jobs.iter_mut().find(same) {
                Some(job) => job.dispatches += 1,
                None => {
                    jobs.push(Job { program, at, pass, default, operands, size, dispatches: 1 })
                }
            }
        }
    }
    keep_only(&mut jobs, only)?;
    progress("ceilings: which clock to believe");
    let (clock, _) = measure(gpu)?;
    let limits = Limits { seconds, ..Limits::default() };
    let mut findings = Findings::new(gpu, half);
    // Small sizes first: what is slow there costs little, and need not be tried at larger ones.
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|&i| jobs[i].size.reads_below + jobs[i].size.writes_below);
    let mut comparisons: Vec<Compared> = jobs.iter().map(|job| Compared::new(job.pass)).collect();
    for i in order {
        comparisons[i].timings = jobs[i].compare(&mut findings, &clock, limits, progress)?;
    }
    while !findings.winners_pass(&comparisons, progress)? {}
    let found = jobs
        .iter()
        .zip(&comparisons)
        .filter_map(|(job, comparison)| job.found(&findings, comparison));
    let found = found.collect();
    Ok(Tuning { found, faults: findings.faults, clock: clock.name })
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

/// What is known of the kernels so far.
struct Findings<'a> {
    gpu: &'a Rc<Gpu>,
    half: bool,
    /// Kernels with special needs that ran at a small shape, and winners that passed the gate.
    tried: BTreeSet<String>,
    passed: BTreeSet<String>,
    /// Not to be used, with or without a fault that was told before.
    wrong: BTreeSet<String>,
    faults: Vec<String>,
    /// Slower by far than others at such sizes.
    slow: Vec<(String, SizeClass)>,
}

/// What tells a kernel from all others.
fn key(pass: &Pass, v: &Variant) -> String {
    format!("{} {}", pass.full_name(), v.label())
}

impl<'a> Findings<'a> {
    fn new(gpu: &'a Rc<Gpu>, half: bool) -> Self {
        Self {
            gpu,
            half,
            tried: BTreeSet::new(),
            passed: BTreeSet::new(),
            wrong: BTreeSet::new(),
            faults: Vec::new(),
            slow: Vec::new(),
        }
    }

    /// Kernels that can take the place of the default one of a job.
    fn candidates(&mut self, job: &Job) -> Result<Vec<&'static Variant>> {
        let (target, pass) = (self.gpu.target(), job.pass);
        let mut candidates = Vec::new();
        for v in pass.variants {
            let able = v.needs_met(target) && v.takes.fits(&job.operands);
            if std::ptr::eq(v, job.default) || !able || !(self.half || exact(v)) {
                continue;
            }
            if v.needs.special() && self.tried.insert(key(pass, v)) {
                let fault = fault_of(self.gpu, &find_case(pass.op)?, pass, v)?;
                self.note(pass, v, fault);
            }
            if self.right(pass, v) {
                candidates.push(v);
            }
        }
        Ok(candidates)
    }

    fn right(&self, pass: &Pass, v: &Variant) -> bool {
        !self.wrong.contains(&key(pass, v))
    }

    /// Remembers a fault, if it is one.
    fn note(&mut self, pass: &Pass, v: &Variant, fault: Option<Fault>) {
        if let Some(fault) = fault
            && self.wrong.insert(key(pass, v))
        {
            self.faults.push(format!("{}: {fault}", v.label()));
        }
    }

    /// True if the kernel was slower by far where a dispatch reads and writes about as much.
    fn was_slow(&self, pass: &Pass, v: &Variant, size: SizeClass) -> bool {
        let near = |a: u64, b: u64| a <= 4 * b && b <= 4 * a;
        let key = key(pass, v);
        self.slow.iter().any(|(slow, at)| {
            *slow == key
                && near(at.reads_below, size.reads_below)
                && near(at.writes_below, size.writes_below)
                && near(at.columns_below, size.columns_below)
        })
    }

    /// Puts the winners of all comparisons through the gate, where they have not been; false if one did
    /// not pass, so that there are other winners now.
    fn winners_pass(
        &mut self,
        comparisons: &[Compared],
        progress: &mut dyn FnMut(&str),
    ) -> Result<bool> {
        let mut all = true;
        for comparison in comparisons {
            let (won, lossy) = comparison.winners(self);
            for i in [won, lossy].into_iter().filter(|&i| i > 0) {
                let (pass, v) = (comparison.pass, comparison.timings[i].variant);
                if self.right(pass, v) && self.passed.insert(key(pass, v)) {
                    progress(&format!("gate: {} at {GATED} shapes", v.label()));
                    let case = find_case(pass.op)?;
                    let mut fault = first_fault(self.gpu, &case, pass, v, usize::MAX, GATED)?;
                    if fault.is_none() {
                        fault = fault_with_values(self.gpu, &case, pass, v)?;
                    }
                    all &= fault.is_none();
                    self.note(pass, v, fault);
                }
            }
        }
        Ok(all)
    }
}

/// A kernel that comes near the best, by a run or two.
struct Quick {
    variant: &'static Variant,
    replay: Replay,
    seconds: f64,
}

impl Quick {
    fn timing(&self, blocks: &[Vec<f64>]) -> Timing {
        Timing { variant: self.variant, seconds: Summary::of(blocks) }
    }
}

/// A kernel in a comparison, and what it took.
struct Timing {
    variant: &'static Variant,
    seconds: Summary,
}

/// What a comparison found: the default kernel comes first; none where there was nothing to choose between.
struct Compared {
    pass: &'static Pass,
    timings: Vec<Timing>,
}

impl Compared {
    fn new(pass: &'static Pass) -> Self {
        Self { pass, timings: Vec::new() }
    }

    /// Positions of the fastest exact kernel and of the fastest of all.
    fn winners(&self, findings: &Findings) -> (usize, usize) {
        let right = |i: usize| findings.right(self.pass, self.timings[i].variant);
        let is_exact = |i: usize| exact(self.timings[i].variant);
        let sums: Vec<_> = self.timings.iter().map(|h| h.seconds).collect();
        if sums.is_empty() {
            return (0, 0);
        }
        let won = winner(&sums, 0, |i| is_exact(i) && right(i));
        (won, winner(&sums, won, |i| !is_exact(i) && right(i)))
    }
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
    program: &'a Program,
    at: usize,
    pass: &'static Pass,
    default: &'static Variant,
    operands: Vec<Operand>,
    size: SizeClass,
    dispatches: usize,
}

impl Job<'_> {
    /// Shape of what is written.
    fn shape(&self) -> &[usize] {
        let graph = self.program.graph();
        graph.shape(graph.calls()[self.at].writes[0])
    }

    /// Races the kernels that come near the default one and write the same; none of them if there is
    /// nothing to choose between.
    fn compare(
        &self,
        findings: &mut Findings,
        clock: &Clock,
        limits: Limits,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Timing>> {
        let default = self.default;
        let call = &self.program.graph().calls()[self.at];
        let mut candidates = findings.candidates(self)?;
        candidates.retain(|v| call.grid_of(v).is_ok());
        if candidates.is_empty() || call.grid_of(default).is_err() {
            return Ok(Vec::new());
        }
        candidates.retain(|v| !findings.was_slow(self.pass, v, self.size));
        let first = self.program.replay(&[self.at], default, Checks::Off)?;
        // Kernels add to what is there, and a wrong one may write anything.
        let before = self.program.written(&first)?;
        let mut quick = self.quick(first, candidates, findings, clock, progress)?;
        self.program.restore(&quick[0].replay, &before);

        let case = find_case(self.pass.op)?;
        let tolerances: Vec<f64> =
            quick.iter().map(|q| case.tolerance.max(q.variant.tolerance)).collect();
        let all: Vec<_> = quick.iter().map(|q| &q.replay).collect();
        let faults =
            same_as_first(self.program, &all, default.number(), self.shape(), &tolerances)?;
        for (q, fault) in quick.iter().zip(faults) {
            findings.note(self.pass, q.variant, fault);
        }
        quick.retain(|q| findings.right(self.pass, q.variant));
        if quick.len() < 2 {
            // Nothing comes near the default kernel, which is a finding too.
            return Ok(quick.iter().map(|q| q.timing(&[vec![q.seconds]])).collect());
        }
        progress(&format!("comparison: {} of {:?}", self.pass.full_name(), self.shape()));
        let timed: Vec<_> = quick.iter().map(|q| (&q.replay, q.seconds)).collect();
        let comparison = compare_kernels(self.program, &timed, clock, limits)?;
        self.program.restore(&quick[0].replay, &before);
        Ok(quick.iter().zip(&comparison.blocks).map(|(q, blocks)| q.timing(blocks)).collect())
    }

    /// Runs each kernel once or a few times, and returns the default one and those that come near the
    /// best.
    fn quick(
        &self,
        default: Replay,
        candidates: Vec<&'static Variant>,
        findings: &mut Findings,
        clock: &Clock,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Quick>> {
        let place = format!("{} of {:?}", self.pass.full_name(), self.shape());
        let time = |replay: &Replay, hopeless: f64| -> Result<f64> {
            // Many drivers compile in the first run.
            self.program.time(replay, 1, None)?;
            let once = clock.time(self.program, replay, 1)?;
            // The better of two, where it matters: other work on the machine may meet one of them.
            let again = once > hopeless && once <= FAR / HOPELESS * hopeless;
            Ok(if again { once.min(clock.time(self.program, replay, 1)?) } else { once })
        };
        progress(&format!("run: {place} by the default kernel"));
        let variant = self.default;
        let seconds = time(&default, 0.0)?.min(clock.time(self.program, &default, 1)?);
        // Exact kernels have exact ones to beat, however quick those are that lose digits.
        let (mut best_exact, mut best) = (seconds, seconds);
        let mut quick = vec![Quick { variant, replay: default, seconds }];
        for variant in candidates {
            progress(&format!("run: {place} by {}", variant.name()));
            let replay = match self.program.replay(&[self.at], variant, Checks::Off) {
                Ok(replay) => replay,
                Err(e) => {
                    let kind = Kind::Refused(e.to_string());
                    let (shape, place) = (self.shape().to_vec(), String::new());
                    let fault = Fault { shape, values: Values::Normal, folded: false, place, kind };
                    findings.note(self.pass, variant, Some(fault));
                    continue;
                }
            };
            let bar = if exact(variant) { best_exact } else { best };
            let seconds = time(&replay, HOPELESS * bar)?;
            if seconds > FAR * bar {
                findings.slow.push((key(self.pass, variant), self.size));
            }
            best = best.min(seconds);
            if exact(variant) {
                best_exact = best_exact.min(seconds);
            }
            quick.push(Quick { variant, replay, seconds });
        }
        let near =
            |q: &Quick| q.seconds <= HOPELESS * if exact(q.variant) { best_exact } else { best };
        // The default kernel is never left out: it is what the others are compared with.
        let kept = quick.into_iter().enumerate().filter(|(i, q)| *i == 0 || near(q));
        Ok(kept.map(|(_, q)| q).collect())
    }

    /// None if there was nothing to choose between.
    fn found(&self, findings: &Findings, comparison: &Compared) -> Option<Found> {
        let timings = &comparison.timings;
        let default = timings.first()?;
        let choice = |i: usize| {
            self.choice(timings[i].variant, timings[i].seconds.median, default.seconds.median)
        };
        let (won, lossy) = comparison.winners(findings);
        Some(Found {
            exact: choice(won),
            lossy: (lossy != won).then(|| choice(lossy)),
            dispatches: self.dispatches,
        })
    }

    fn choice(&self, v: &Variant, seconds: f64, default: f64) -> Choice {
        let us = |s: f64| (1e8 * s).round() / 100.0;
        Choice {
            pass: self.pass.full_name(),
            reads_below: self.size.reads_below,
            writes_below: self.size.writes_below,
            columns_below: self.size.columns_below,
            dtype: if exact(v) { Factors::F32 } else { Factors::F16 },
            variant: v.number(),
            tile: v.tile_name.into(),
            idea: v.idea().into(),
            us: us(seconds),
            default_us: us(default),
            kernels: texts_hash(self.pass),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{ANY, Needs, Takes};
    use crate::ops::case::tests::gpu;

    fn seconds(low: f64, high: f64) -> Summary {
        Summary { median: (low + high) / 2.0, low, high, ..Summary::of(&[vec![1.0]]) }
    }

    #[test]
    fn tune_takes_no_winner_that_fails_the_gate() {
        const SCALE: &str = include_str!("../../shaders/scale/forward_1_naive.wgsl");
        let variant = |path, source: String| Variant {
            path,
            source: source.leak(),
            needs: Needs::NONE,
            tile: [256, 1, 1],
            tile_name: "",
            constants: &[],
            default_on: ANY,
            takes: Takes::WORDS,
            tolerance: 0.0,
        };
        let variants = vec![
            variant("scale/forward_3_usual.wgsl", SCALE.into()),
            variant("scale/forward_1_wrong.wgsl", SCALE.replace("if i >= N {", "if i > N {")),
            variant("scale/forward_2_right.wgsl", SCALE.into()),
        ];
        let pass: &'static Pass =
            Box::leak(Box::new(Pass { op: "scale", name: "forward", variants: variants.leak() }));
        let times = [seconds(5.0, 6.0), seconds(1.0, 2.0), seconds(3.0, 4.0)];
        let timings = pass.variants.iter().zip(times);
        let timings = timings.map(|(variant, seconds)| Timing { variant, seconds }).collect();
        let comparisons = [Compared { pass, timings }, Compared::new(pass)];
        let gpu = gpu();
        let mut findings = Findings::new(&gpu, false);
        let mut gated = Vec::new();
        let mut progress = |line: &str| gated.push(line.to_owned());
        assert_eq!(comparisons[0].winners(&findings), (1, 1));
        assert!(!findings.winners_pass(&comparisons, &mut progress).unwrap());
        assert_eq!(comparisons[0].winners(&findings), (2, 2));
        assert!(findings.winners_pass(&comparisons, &mut progress).unwrap());
        assert!(findings.winners_pass(&comparisons, &mut progress).unwrap());
        assert_eq!(gated.len(), 2, "each winner once: {gated:?}");
        let [fault] = findings.faults.as_slice() else { panic!("{:?}", findings.faults) };
        assert!(fault.contains("forward_1_wrong") && fault.contains("beyond the end"), "{fault}");
    }

    #[test]
    fn tune_does_not_try_again_near_by_what_was_slow_by_far() {
        let pass = crate::ops::scale::case().passes[0];
        let v = &pass.variants[0];
        let gpu = gpu();
        let mut findings = Findings::new(&gpu, false);
        findings.slow.push((key(pass, v), SizeClass::of(1000, 1000, 250)));
        for (reads, writes, slow) in
            [(1000, 1000, true), (4000, 300, true), (20000, 1000, false), (1000, 60, false)]
        {
            let size = SizeClass::of(reads, writes, 250);
            assert_eq!(findings.was_slow(pass, v, size), slow, "{size:?}");
        }
    }

    #[test]
    fn tune_changes_kernels_for_more_than_noise_and_keeps_kinds_apart() {
        // The default kernel, one within its noise, a faster one, and one that loses digits.
        let sums = [seconds(5.0, 6.0), seconds(4.5, 5.5), seconds(3.0, 4.0), seconds(1.0, 2.0)];
        let exact = winner(&sums, 0, |i| i < 3);
        assert_eq!(exact, 2);
        assert_eq!(winner(&sums, exact, |i| i == 3), 3);
        assert_eq!(winner(&sums, 0, |i| i < 2), 0, "noise");
        assert_eq!(winner(&sums, 3, |i| i < 3), 3, "slower");
        assert_eq!(winner(&sums, 0, |_| false), 0);
    }
}
