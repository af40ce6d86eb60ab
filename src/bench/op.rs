//! One operation: its kernels through the gate, then against the clock.

use crate::bench::candidate::{Candidate, candidates, check_variants, find_case, find_passes};
use crate::bench::ceiling::measure;
use crate::bench::clock::Clock;
use crate::bench::comparison::{Block, BlockOf, BlockRequest, Comparison, Limits};
use crate::bench::facts::workgroup_bytes;
use crate::bench::gate::{judge, same_as_first};
use crate::bench::machine::Machine;
use crate::bench::report::{BenchReport, BenchRow, FORMAT, Gate, LeftOut};
use crate::bench::shapes::{self, Shape};
use crate::bench::stats::Summary;
use crate::bench::workload::Workload;
use crate::error::{Error, Problem, Result};
use crate::gpu::{Checks, Gpu};
use crate::kernel::{Pass, VariantId};
use crate::ops::case::OpCase;
use crate::ops::trial::Replacement;
use std::path::PathBuf;
use std::rc::Rc;

/// What to benchmark.
#[derive(Debug, Clone)]
pub struct Request {
    /// The operation.
    pub op: String,
    /// One pass; all that occur by default.
    pub pass: Option<String>,
    /// Variants by number, or number and tile; all by default.
    pub variants: Vec<VariantId>,
    /// Sets and shapes; by default a set that suits the adapter.
    pub shapes: Option<String>,
    /// Seed of all random inputs.
    pub seed: u64,
    /// When to stop.
    pub limits: Limits,
    /// A kernel from a file that is compared with ours.
    pub with: Option<Own>,
    /// The command line, for the report.
    pub command: String,
}

/// A kernel from outside.
#[derive(Debug, Clone)]
pub struct Own {
    /// Its WGSL file.
    pub path: PathBuf,
    /// Outputs of a workgroup along x, y, z; those of the first variant by default.
    pub tile: Option<[u32; 3]>,
}

/// Times blocks and hands on what is told of their progress.
pub type TimeBlocks<'a> = dyn FnMut(&BlockRequest, &mut dyn FnMut(&str)) -> Result<Vec<Block>> + 'a;

/// Runs the gate and the comparisons of a request. `time_blocks` is what times all blocks but the
/// first, by [`block::run`](crate::bench::block::run): in a process of its own each time, or the
/// intervals are too narrow. `progress` hears what comes next.
///
/// # Errors
/// Unknown names and shapes, a kernel that does not fit, a device without room or lost.
pub fn bench_op(
    gpu: &Rc<Gpu>,
    request: &Request,
    time_blocks: &mut TimeBlocks,
    progress: &mut dyn FnMut(&str),
) -> Result<BenchReport> {
    let machine = Machine::now(gpu);
    let case = find_case(&request.op)?;
    let passes = find_passes(&case, request.pass.as_deref())?;
    if request.with.is_some() && passes.len() > 1 {
        let names: Vec<_> = passes.iter().map(|p| p.name).collect();
        let what = format!("needs --pass: one of {}", names.join(", "));
        return Err(Error::input("which pass?", vec![Problem::new("--with", what)]));
    }
    let default = if gpu.is_software() { "nano" } else { "smollm2" };
    let shapes = shapes::parse(&case, request.shapes.as_deref().unwrap_or(default))?;

    check_variants(&request.variants, &passes)?;
    let mut all = judged(gpu, &case, &passes, request, progress)?;
    progress("ceilings: multiply-adds and copies");
    let (clock, ceilings) = measure(gpu)?;
    let mut left_out = Vec::new();
    let work = Work { gpu, case: &case, passes: &passes, shapes: &shapes, request, clock: &clock };
    let mut comparisons = work.first_blocks(&mut all, &mut left_out, progress)?;
    work.more_blocks(&mut comparisons, time_blocks, progress)?;

    let mut rows: Vec<BenchRow> = comparisons.into_iter().flat_map(Running::finish).collect();
    // A kernel that is wrong at one shape is not ranked at another.
    rows.retain(|r: &BenchRow| {
        all.iter().any(|c| c.fault.is_none() && c.label == r.kernel && c.pass() == r.pass)
    });
    let info = gpu.info();
    let gate =
        |c: Candidate| Gate { pass: c.pass(), kernel: c.label, trials: c.trials, fault: c.fault };
    Ok(BenchReport {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        adapter: info.name.clone(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
        backend: format!("{:?}", info.backend),
        machine,
        clock: clock.name.clone(),
        command: request.command.clone(),
        seed: request.seed,
        ceilings,
        gates: all.into_iter().map(gate).collect(),
        rows,
        left_out,
    })
}

/// The candidates of all passes, those that can run with the gate's verdict.
fn judged(
    gpu: &Rc<Gpu>,
    case: &OpCase,
    passes: &[&'static Pass],
    request: &Request,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Candidate>> {
    let mut all = Vec::new();
    for pass in passes {
        all.extend(candidates(gpu, request, pass)?);
    }
    let mut able: Vec<_> = all.iter_mut().filter(|c| c.fault.is_none()).collect();
    let replacements: Vec<Replacement> = able.iter().map(|c| c.replacement).collect();
    let verdicts = judge(gpu, case, &replacements, request.seed, progress)?;
    for (c, verdict) in able.iter_mut().zip(verdicts) {
        c.trials = verdict.trials;
        c.fault = verdict.fault.map(|f| f.to_string());
        if verdict.trials == 0 {
            c.fault = Some("no shape of the gate uses this pass".into());
        }
    }
    Ok(all)
}

/// What is to be timed, and how.
struct Work<'a> {
    gpu: &'a Rc<Gpu>,
    case: &'a OpCase,
    passes: &'a [&'static Pass],
    shapes: &'a [Shape],
    request: &'a Request,
    clock: &'a Clock,
}

impl Work<'_> {
    /// The comparison of each pass at each shape, with its first block.
    ///
    /// # Errors
    /// A pass that was asked for by name and does nothing at any shape; a device without room or lost.
    fn first_blocks(
        &self,
        all: &mut [Candidate],
        left_out: &mut Vec<LeftOut>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Running>> {
        let (mut comparisons, mut unused) = (Vec::new(), Vec::new());
        for shape in self.shapes {
            for pass in self.passes {
                let dims = (self.case.bench.case_shape)(pass.name, &shape.dims);
                let place = format!("{} {:?}", pass.full_name(), shape.dims);
                progress(&format!("inputs: {place}"));
                let seed = self.request.seed;
                let Some(workload) = Workload::build(self.gpu, self.case, pass, &dims, seed)?
                else {
                    unused.push(place);
                    continue;
                };
                progress(&format!("comparison: {place}"));
                let here = all.iter_mut();
                let here = here.filter(|c| std::ptr::eq(c.replacement.pass, *pass));
                let mut here: Vec<_> = here.filter(|c| c.fault.is_none()).collect();
                let (limits, clock) = (self.request.limits, self.clock);
                let first =
                    Running::new(&workload, self.case, shape, &mut here, clock, limits, left_out)?;
                comparisons.extend(first);
            }
        }
        if self.request.pass.is_some() && unused.len() == self.shapes.len() {
            // A pass that was asked for by name, and does nothing at any shape.
            let what = "does not occur there, or none of these kernels takes its rows";
            let problems = unused.into_iter().map(|place| Problem::new(place, what)).collect();
            return Err(Error::input("nothing to time", problems));
        }
        Ok(comparisons)
    }

    /// Times blocks of all comparisons in turns until each is over.
    fn more_blocks(
        &self,
        comparisons: &mut [Running],
        time_blocks: &mut TimeBlocks,
        progress: &mut dyn FnMut(&str),
    ) -> Result<()> {
        for number in 2.. {
            let open = comparisons.iter_mut().filter(|r| r.comparison.over().is_none());
            let mut open: Vec<_> = open.collect();
            if open.is_empty() {
                break;
            }
            progress(&format!("block: number {number} of {} comparisons", open.len()));
            let wanted = BlockRequest {
                seed: self.request.seed,
                timestamps: self.clock.is_device(),
                comparisons: open.iter().map(|r| r.wanted()).collect(),
            };
            let blocks = time_blocks(&wanted, progress)?;
            open.iter_mut().zip(blocks).for_each(|(r, block)| r.comparison.add(block));
        }
        Ok(())
    }
}

/// A comparison with its first block, and the rows of the report it becomes.
struct Running {
    comparison: Comparison,
    pass: &'static Pass,
    rows: Vec<BenchRow>,
}

impl Running {
    /// Compares the kernels with the pass' first and times a block of those that agree. Those too
    /// slow for that go to `left_out`. None if nothing is left to time.
    fn new(
        workload: &Workload,
        case: &OpCase,
        shape: &Shape,
        candidates: &mut [&mut Candidate],
        clock: &Clock,
        limits: Limits,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<Option<Self>> {
        let work = workload.flops.unwrap_or(workload.bytes);
        let call = &workload.program.graph().calls()[workload.calls[0]];
        let mut baseline = None;
        let mut able: Vec<&mut Candidate> = Vec::new();
        for c in candidates.iter_mut() {
            // A kernel for other rows is no candidate here, which is not a fault of its own.
            let graph = workload.program.graph();
            let takes = |&at: &usize| {
                c.replacement.variant.takes.fits(&graph.facts_of(&graph.calls()[at]).operands)
            };
            if !workload.calls.iter().all(takes) {
                continue;
            }
            let too_large = |&at: &usize| graph.calls()[at].grid_of(c.replacement.variant).err();
            c.fault = workload.calls.iter().find_map(too_large);
            if c.fault.is_some() {
                continue;
            }
            let operands = graph.facts_of(call).operands;
            let first = c.replacement.pass.variants.iter().find(|v| v.takes.fits(&operands));
            let first = first.expect("the call has a kernel");
            let expected = c.expected(work).filter(|&seconds| seconds > limits.run);
            let Some(seconds) = expected else {
                baseline.get_or_insert(first);
                able.push(c);
                continue;
            };
            left_out.push(c.left_out(shape, "would take about", seconds, limits));
            if std::ptr::eq(c.replacement.variant, first) {
                // The step has just run with the kernel of its own choice.
                baseline = Some(call.variant);
            }
        }
        let mut candidates = able;
        let Some(baseline) = baseline.filter(|_| !candidates.is_empty()) else { return Ok(None) };
        let mut replays = vec![workload.program.replay(&workload.calls, baseline, Checks::Off)?];
        for c in candidates.iter() {
            replays.push(workload.program.replay(
                &workload.calls,
                c.replacement.variant,
                c.replacement.checks,
            )?);
        }
        let all: Vec<_> = replays.iter().collect();
        let lossy = candidates.iter().map(|c| case.tolerance.max(c.replacement.variant.tolerance));
        let tolerances: Vec<f64> = std::iter::once(case.tolerance).chain(lossy).collect();
        let number = baseline.number();
        let faults = same_as_first(&workload.program, &all, number, &shape.dims, &tolerances)?;
        for (c, fault) in candidates.iter_mut().zip(faults.into_iter().skip(1)) {
            c.fault = fault.map(|f| f.to_string());
        }
        // `same_as_first` has run every kernel, so what a driver compiles late is compiled. For
        // the time that takes each kernel is made once more.
        let mut fit = Vec::new();
        for c in candidates.into_iter().filter(|c| c.fault.is_none()) {
            let replay = workload.program.replay(
                &workload.calls,
                c.replacement.variant,
                c.replacement.checks,
            )?;
            let first = workload.program.time(&replay, 1, None)?.wall;
            if first > limits.run {
                c.took(work, first);
                left_out.push(c.left_out(shape, "takes", first, limits));
            } else {
                fit.push((c, replay, first));
            }
        }
        if fit.is_empty() {
            return Ok(None);
        }
        let timed: Vec<_> = fit.iter().map(|(_, replay, first)| (replay, *first)).collect();
        let comparison = Comparison::start(&workload.program, &timed, clock, limits)?;
        let pass = fit[0].0.replacement.pass;
        let mut rows = Vec::new();
        for (i, (c, replay, _)) in fit.into_iter().enumerate() {
            let row = row(workload, c, shape, &comparison, i, replay.compiled_in);
            c.took(work, row.seconds.median);
            rows.push(row);
        }
        Ok(Some(Self { comparison, pass, rows }))
    }

    /// What another process needs to go on.
    fn wanted(&self) -> BlockOf {
        BlockOf {
            pass: self.pass.name.into(),
            shape: self.rows[0].shape.clone(),
            kernels: self.rows.iter().map(|r| r.kernel.clone()).collect(),
            size: self.comparison.size.clone(),
            backwards: self.comparison.backwards(),
        }
    }

    /// The rows with all blocks.
    fn finish(self) -> Vec<BenchRow> {
        let stopped = self.comparison.over().unwrap_or_default();
        let mut rows = self.rows;
        for (row, blocks) in rows.iter_mut().zip(self.comparison.blocks) {
            row.seconds = Summary::of(&blocks);
            row.blocks = blocks;
            row.stopped.clone_from(&stopped);
        }
        rows
    }
}

/// The row of kernel `i` of a comparison after its first block.
fn row(
    workload: &Workload,
    c: &Candidate,
    shape: &Shape,
    comparison: &Comparison,
    i: usize,
    compiled_in: f64,
) -> BenchRow {
    let variant = c.replacement.variant;
    let constants = &workload.program.graph().calls()[workload.calls[0]].constants;
    let specialised = variant.specialise(constants).ok();
    BenchRow {
        pass: c.pass(),
        kernel: c.label.clone(),
        hash: blake3::hash(variant.text().as_bytes()).to_hex()[..16].into(),
        shape: shape.dims.clone(),
        set: shape.set.into(),
        seconds: Summary::of(&comparison.blocks[i]),
        blocks: comparison.blocks[i].clone(),
        iterations: comparison.size.iterations[i],
        stopped: String::new(),
        flops: workload.flops,
        bytes: workload.bytes,
        compile: compiled_in + comparison.first[i],
        workgroup_bytes: specialised.and_then(|s| workgroup_bytes(&s)).unwrap_or(0),
    }
}
