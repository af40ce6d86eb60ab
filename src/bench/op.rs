//! One operation: its kernels through the gate, then against the clock.

use crate::bench::ceiling::measure;
use crate::bench::clock::Clock;
use crate::bench::facts::{check_contract, read_kernel, workgroup_bytes};
use crate::bench::gate::{judge, same_as_first};
use crate::bench::race::{Block, Entry, Lap, Limits, Race};
use crate::bench::report::{FORMAT, Gate, LeftOut, Report, Row, time};
use crate::bench::shapes::{self, Shape};
use crate::bench::stats::Summary;
use crate::bench::track::Track;
use crate::error::{Error, Problem, Result};
use crate::gpu::{Checks, Gpu};
use crate::kernel::{Needs, Pass, Takes, Variant, VariantId};
use crate::ops::case::OpCase;
use crate::ops::trial::Plant;
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
    /// A kernel from a file that races ours.
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

/// The case of an operation.
///
/// # Errors
/// An unknown name: says what there is.
pub fn find_case(op: &str) -> Result<OpCase> {
    let cases = crate::ops::cases();
    let names: Vec<_> = cases.iter().map(|c| c.op).collect();
    cases.into_iter().find(|c| c.op == op).ok_or_else(|| {
        let what = format!("there is no such operation; there are {}", names.join(", "));
        Error::input("unknown operation", vec![Problem::new(format!("bench {op}"), what)])
    })
}

/// The passes of a case that are asked for.
///
/// # Errors
/// An unknown pass: says what there is.
pub fn find_passes(case: &OpCase, pass: Option<&str>) -> Result<Vec<&'static Pass>> {
    let Some(wanted) = pass else { return Ok(case.passes.to_vec()) };
    let found: Vec<_> = case.passes.iter().copied().filter(|p| p.name == wanted).collect();
    if found.is_empty() {
        let names: Vec<_> = case.passes.iter().map(|p| p.name).collect();
        let what = format!("{} has the passes {}", case.op, names.join(", "));
        return Err(Error::input(
            "unknown pass",
            vec![Problem::new(format!("--pass {wanted}"), what)],
        ));
    }
    Ok(found)
}

/// A kernel of a pass with what a table calls it.
pub(super) struct Contender {
    pub(super) plant: Plant,
    pub(super) label: String,
    fault: Option<String>,
    trials: usize,
    slowest: Option<Run>,
}

/// How long a run took at some shape.
#[derive(Debug, Clone, Copy)]
struct Run {
    work: f64,
    seconds: f64,
}

/// A shorter run is mostly what a submission costs and says little about larger shapes.
const TELLING: f64 = 0.05;

impl Contender {
    fn pass(&self) -> String {
        format!("{}.{}", self.plant.pass.op, self.plant.pass.name)
    }

    /// Remembers a run with so many operations, or bytes, if it tells how long others will take.
    fn took(&mut self, work: f64, seconds: f64) {
        if seconds >= TELLING && self.slowest.is_none_or(|run| run.seconds < seconds) {
            self.slowest = Some(Run { work, seconds });
        }
    }

    /// Seconds that a run should take, if a slow one was seen before.
    fn expected(&self, work: f64) -> Option<f64> {
        self.slowest.map(|run| run.seconds * work / run.work)
    }

    fn left_out(&self, shape: &Shape, took: &str, seconds: f64, limits: Limits) -> LeftOut {
        let why = format!(
            "too slow here: a run {took} {}, more than {}",
            time(seconds),
            time(limits.run)
        );
        LeftOut { pass: self.pass(), kernel: self.label.clone(), shape: shape.dims.clone(), why }
    }
}

/// True if `id` means this variant: without a tile all of a number.
fn names(id: &VariantId, v: &Variant) -> bool {
    id.number == v.number() && (id.tile.is_empty() || id.tile == v.tile_name)
}

/// Bindings that a kernel declares as vectors of four, as [`Takes::quads`] wants them.
fn quads(source: &str) -> &'static [usize] {
    let binding = |line: &str| {
        let (_, rest) = line.split_once("@binding(")?;
        let (number, rest) = rest.split_once(')')?;
        number.trim().parse().ok().filter(|_| rest.contains("array<vec4"))
    };
    let found: Vec<usize> = source.lines().filter_map(binding).collect();
    found.leak()
}

/// The kernels of a pass that the request names, each with why it cannot run here.
pub(super) fn contenders(
    gpu: &Gpu,
    request: &Request,
    pass: &'static Pass,
) -> Result<Vec<Contender>> {
    let mut all = Vec::new();
    for v in pass.variants {
        if !request.variants.is_empty() && !request.variants.iter().any(|id| names(id, v)) {
            continue;
        }
        let fault = (!v.needs_met(gpu.target()))
            .then(|| "the adapter lacks what it needs (see the file's header)".to_owned());
        let label = v.name();
        let plant = Plant { pass, variant: v, checks: Checks::Off };
        all.push(Contender { plant, label, fault, trials: 0, slowest: None });
    }
    if let Some(own) = &request.with {
        let (path, source) = read_kernel(&own.path)?;
        check_contract(path, source, pass)?;
        let tile = own.tile.unwrap_or(pass.variants[0].tile);
        let variant: &'static Variant = Box::leak(Box::new(Variant {
            path,
            source,
            needs: Needs::NONE,
            tile,
            tile_name: "",
            constants: &[],
            suits: &[],
            takes: Takes { quads: quads(source), stored: &[] },
            tolerance: 0.0,
        }));
        let label = own.path.file_name().map_or(path.into(), |n| n.to_string_lossy().into_owned());
        let plant = Plant { pass, variant, checks: Checks::On };
        all.push(Contender { plant, label, fault: None, trials: 0, slowest: None });
    }
    Ok(all)
}

/// # Errors
/// Variants that none of the passes has: says what there is.
fn check_variants(variants: &[VariantId], passes: &[&Pass]) -> Result<()> {
    let there = || passes.iter().flat_map(|p| p.variants);
    let unknown = variants.iter().filter(|id| !there().any(|v| names(id, v)));
    let mut all: Vec<_> = there().map(Variant::id).collect();
    all.sort();
    all.dedup();
    let all = all.iter().map(VariantId::to_string).collect::<Vec<_>>().join(", ");
    let problems: Vec<_> = unknown
        .map(|id| Problem::new(format!("--variants {id}"), format!("is none of {all}")))
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::input("unknown variants", problems)) }
}

/// Times a lap and hands on what it tells of its progress.
pub type Laps<'a> = dyn FnMut(&Lap, &mut dyn FnMut(&str)) -> Result<Vec<Block>> + 'a;

/// Runs the gate and the races of a request. `laps` is what times all blocks but the first, by
/// [`lap::run`](crate::bench::lap::run): in a process of its own each time, or the intervals are too
/// narrow. `progress` hears what comes next.
///
/// # Errors
/// Unknown names and shapes, a kernel that does not fit, a device without room or lost.
pub fn bench_op(
    gpu: &Rc<Gpu>,
    request: &Request,
    laps: &mut Laps,
    progress: &mut dyn FnMut(&str),
) -> Result<Report> {
    let case = find_case(&request.op)?;
    let passes = find_passes(&case, request.pass.as_deref())?;
    if request.with.is_some() && passes.len() > 1 {
        let names: Vec<_> = passes.iter().map(|p| p.name).collect();
        let what = format!("needs --pass: one of {}", names.join(", "));
        return Err(Error::input("which pass?", vec![Problem::new("--with", what)]));
    }
    let usual = if gpu.is_software() { "nano" } else { "smollm2" };
    let shapes = shapes::parse(&case, request.shapes.as_deref().unwrap_or(usual))?;

    check_variants(&request.variants, &passes)?;
    let mut field = Vec::new();
    for pass in &passes {
        field.extend(contenders(gpu, request, pass)?);
    }
    let able: Vec<usize> = (0..field.len()).filter(|&i| field[i].fault.is_none()).collect();
    let plants: Vec<Plant> = able.iter().map(|&i| field[i].plant).collect();
    for (&i, verdict) in able.iter().zip(judge(gpu, &case, &plants, request.seed, progress)?) {
        field[i].trials = verdict.trials;
        field[i].fault = verdict.fault.map(|f| f.to_string());
        if verdict.trials == 0 {
            field[i].fault = Some("no shape of the gate uses this pass".into());
        }
    }

    progress("ceilings: multiply-adds and copies");
    let (clock, ceilings) = measure(gpu)?;
    let mut races: Vec<Started> = Vec::new();
    let mut left_out = Vec::new();
    let mut unused = Vec::new();
    for shape in &shapes {
        for pass in &passes {
            let dims = (case.bench.case_shape)(pass.name, &shape.dims);
            let place = format!("{}.{} {:?}", pass.op, pass.name, shape.dims);
            progress(&format!("inputs: {place}"));
            let Some(track) = Track::build(gpu, &case, pass, &dims, request.seed)? else {
                unused.push(place);
                continue;
            };
            progress(&format!("race: {place}"));
            let mut here: Vec<&mut Contender> = field
                .iter_mut()
                .filter(|c| std::ptr::eq(c.plant.pass, *pass) && c.fault.is_none())
                .collect();
            let (limits, slow) = (request.limits, &mut left_out);
            races.extend(Started::new(&track, &case, shape, &mut here, &clock, limits, slow)?);
        }
    }
    for number in 2.. {
        let mut open: Vec<_> = races.iter_mut().filter(|r| r.race.over().is_none()).collect();
        if open.is_empty() {
            break;
        }
        progress(&format!("block: number {number} of {} races", open.len()));
        let entries = open.iter().map(|r| r.entry()).collect();
        let lap = Lap { seed: request.seed, timestamps: clock.is_device(), races: entries };
        let blocks = laps(&lap, progress)?;
        open.iter_mut().zip(blocks).for_each(|(r, block)| r.race.add(block));
    }
    let mut rows: Vec<Row> = races.into_iter().flat_map(Started::finish).collect();
    // A kernel that is wrong at one shape is not ranked at another.
    rows.retain(|r: &Row| {
        field.iter().any(|c| c.fault.is_none() && c.label == r.kernel && c.pass() == r.pass)
    });
    // A pass that was asked for by name, and does nothing at any shape, is a mistake to name.
    if request.pass.is_some() && unused.len() == shapes.len() {
        let what = "does not occur there, or none of these kernels takes its rows".to_owned();
        let problems = unused.into_iter().map(|p| Problem::new(p, what.clone())).collect();
        return Err(Error::input("nothing to time", problems));
    }
    let info = gpu.info();
    Ok(Report {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        adapter: info.name.clone(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
        backend: format!("{:?}", info.backend),
        clock: clock.name.clone(),
        command: request.command.clone(),
        seed: request.seed,
        ceilings,
        gates: field
            .into_iter()
            .map(|c| Gate { pass: c.pass(), kernel: c.label, trials: c.trials, fault: c.fault })
            .collect(),
        rows,
        left_out,
    })
}

/// A race with its first block, and the rows of the report it becomes.
struct Started {
    race: Race,
    pass: &'static Pass,
    rows: Vec<Row>,
}

impl Started {
    /// Compares the kernels with the pass' first and times a block of those that agree. Those too
    /// slow for that go to `left_out`. None if nothing is left to time.
    fn new(
        track: &Track,
        case: &OpCase,
        shape: &Shape,
        field: &mut [&mut Contender],
        clock: &Clock,
        limits: Limits,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<Option<Self>> {
        let work = track.flops.unwrap_or(track.bytes);
        let call = &track.step.graph().calls()[track.calls[0]];
        let mut baseline = None;
        let mut able: Vec<&mut Contender> = Vec::new();
        for c in field.iter_mut() {
            // A kernel for other rows is no candidate here, which is not a fault of its own.
            let graph = track.step.graph();
            let takes = |&at: &usize| {
                c.plant.variant.takes.fits(&graph.facts_of(&graph.calls()[at]).operands)
            };
            if !track.calls.iter().all(takes) {
                continue;
            }
            let too_large = |&at: &usize| graph.calls()[at].grid_of(c.plant.variant).err();
            c.fault = track.calls.iter().find_map(too_large);
            if c.fault.is_some() {
                continue;
            }
            let operands = graph.facts_of(call).operands;
            let first = c.plant.pass.variants.iter().find(|v| v.takes.fits(&operands));
            let first = first.expect("the call has a kernel");
            let expected = c.expected(work).filter(|&seconds| seconds > limits.run);
            let Some(seconds) = expected else {
                baseline.get_or_insert(first);
                able.push(c);
                continue;
            };
            left_out.push(c.left_out(shape, "would take about", seconds, limits));
            if std::ptr::eq(c.plant.variant, first) {
                // The step has just run with the kernel of its own choice.
                baseline = Some(call.variant);
            }
        }
        let mut field = able;
        let Some(baseline) = baseline.filter(|_| !field.is_empty()) else { return Ok(None) };
        let mut replays = vec![track.step.replay(&track.calls, baseline, Checks::Off)?];
        for c in field.iter() {
            replays.push(track.step.replay(&track.calls, c.plant.variant, c.plant.checks)?);
        }
        let all: Vec<_> = replays.iter().collect();
        let lossy = field.iter().map(|c| case.tolerance.max(c.plant.variant.tolerance));
        let tolerances: Vec<f64> = std::iter::once(case.tolerance).chain(lossy).collect();
        let number = baseline.number();
        let faults = same_as_first(&track.step, &all, number, &shape.dims, &tolerances)?;
        for (c, fault) in field.iter_mut().zip(faults.into_iter().skip(1)) {
            c.fault = fault.map(|f| f.to_string());
        }
        // `same_as_first` has run every kernel, so what a driver compiles late is compiled. For
        // the time that takes each kernel is made once more.
        let mut fit = Vec::new();
        for c in field.into_iter().filter(|c| c.fault.is_none()) {
            let replay = track.step.replay(&track.calls, c.plant.variant, c.plant.checks)?;
            let first = track.step.time(&replay, 1, None)?.wall;
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
        let runners: Vec<_> = fit.iter().map(|(_, replay, first)| (replay, *first)).collect();
        let race = Race::start(&track.step, &runners, clock, limits)?;
        let pass = fit[0].0.plant.pass;
        let mut rows = Vec::new();
        for (i, (c, replay, _)) in fit.into_iter().enumerate() {
            let row = row(track, c, shape, &race, i, replay.compiled_in);
            c.took(work, row.seconds.median);
            rows.push(row);
        }
        Ok(Some(Self { race, pass, rows }))
    }

    /// What another process needs to go on.
    fn entry(&self) -> Entry {
        Entry {
            pass: self.pass.name.into(),
            shape: self.rows[0].shape.clone(),
            kernels: self.rows.iter().map(|r| r.kernel.clone()).collect(),
            pace: self.race.pace.clone(),
            backwards: self.race.backwards(),
        }
    }

    /// The rows with all blocks.
    fn finish(self) -> Vec<Row> {
        let stopped = self.race.over().unwrap_or_default();
        let mut rows = self.rows;
        for (row, blocks) in rows.iter_mut().zip(self.race.blocks) {
            row.seconds = Summary::of(&blocks);
            row.blocks = blocks;
            row.stopped.clone_from(&stopped);
        }
        rows
    }
}

/// The row of kernel `i` of a race after its first block.
fn row(
    track: &Track,
    c: &Contender,
    shape: &Shape,
    race: &Race,
    i: usize,
    compiled_in: f64,
) -> Row {
    let variant = c.plant.variant;
    let constants = &track.step.graph().calls()[track.calls[0]].constants;
    let specialised = variant.specialise(constants).ok();
    Row {
        pass: c.pass(),
        kernel: c.label.clone(),
        hash: blake3::hash(variant.text().as_bytes()).to_hex()[..16].into(),
        shape: shape.dims.clone(),
        set: shape.set.into(),
        seconds: Summary::of(&race.blocks[i]),
        blocks: race.blocks[i].clone(),
        repeats: race.pace.repeats[i],
        stopped: String::new(),
        flops: track.flops,
        bytes: track.bytes,
        compile: compiled_in + race.first[i],
        workgroup_bytes: specialised.and_then(|s| workgroup_bytes(&s)).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bench_expects_a_slow_kernel_to_be_slower_at_larger_shapes() {
        let pass = crate::ops::scale::case().passes[0];
        let plant = Plant { pass, variant: &pass.variants[0], checks: Checks::Off };
        let label = "1 naive".into();
        let mut c = Contender { plant, label, fault: None, trials: 0, slowest: None };
        // What a submission costs is no rate.
        c.took(1.0, 1e-4);
        assert_eq!(c.expected(1e9), None);
        c.took(1e6, 1.0);
        c.took(1e5, 0.5);
        assert_eq!(c.expected(3e7), Some(30.0));
        let shape = Shape { set: "", dims: vec![7] };
        let line = c.left_out(&shape, "would take about", 30.0, Limits::default());
        assert_eq!(line.why, "too slow here: a run would take about 30.0 s, more than 20.0 s");
    }
}
