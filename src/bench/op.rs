//! One operation: its kernels through the gate, then against the clock.

use crate::bench::ceiling::measure;
use crate::bench::clock::Clock;
use crate::bench::facts::{check_contract, read_kernel, workgroup_bytes};
use crate::bench::gate::{judge, same_as_first};
use crate::bench::race::{Limits, Race, Timing};
use crate::bench::report::{FORMAT, Gate, LeftOut, Report, Row, time};
use crate::bench::shapes::{self, Shape, of_case};
use crate::bench::stats::Summary;
use crate::error::{Error, Problem, Result};
use crate::gpu::{Checks, Gpu};
use crate::graph::{Call, Graph, Role, Var};
use crate::kernel::{Const, Needs, Pass, Variant};
use crate::ops::case::{Array, OpCase, TestRng};
use crate::ops::trial::{Plant, cotangents, declare, upload};
use crate::plan::Reuse;
use crate::step::{Options, Replay, Step, Store};
use rand::SeedableRng;
use std::path::PathBuf;
use std::rc::Rc;

/// What to benchmark.
#[derive(Debug, Clone)]
pub struct Request {
    /// The operation.
    pub op: String,
    /// One pass; all that occur by default.
    pub pass: Option<String>,
    /// Variants by number; all by default.
    pub variants: Vec<u32>,
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
struct Contender {
    plant: Plant,
    label: String,
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

fn contenders(gpu: &Gpu, request: &Request, pass: &'static Pass) -> Result<Vec<Contender>> {
    let mut all = Vec::new();
    for v in pass.variants {
        if !request.variants.is_empty() && !request.variants.contains(&v.number()) {
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
            tolerance: 0.0,
        }));
        let label = own.path.file_name().map_or(path.into(), |n| n.to_string_lossy().into_owned());
        let plant = Plant { pass, variant, checks: Checks::On };
        all.push(Contender { plant, label, fault: None, trials: 0, slowest: None });
    }
    Ok(all)
}

/// Runs the gate and the races of a request. `progress` hears what comes next.
///
/// # Errors
/// Unknown names and shapes, a kernel that does not fit, a device without room or lost.
pub fn bench_op(
    gpu: &Rc<Gpu>,
    request: &Request,
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
    let shapes = shapes::parse(case.op, request.shapes.as_deref().unwrap_or(usual))?;

    let mut field = Vec::new();
    for pass in &passes {
        field.extend(contenders(gpu, request, pass)?);
    }
    if field.is_empty() {
        let there = passes.iter().flat_map(|p| p.variants).map(|v| v.path).collect::<Vec<_>>();
        let what = format!("no variant has such a number; there are {}", there.join(", "));
        return Err(Error::input("unknown variants", vec![Problem::new("--variants", what)]));
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
    let mut rows = Vec::new();
    let mut left_out = Vec::new();
    let mut unused = Vec::new();
    for shape in &shapes {
        for pass in &passes {
            let dims = of_case(case.op, pass.name, &shape.dims);
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
            let slow = &mut left_out;
            rows.extend(track.race(&case, shape, &mut here, &clock, request.limits, slow)?);
        }
    }
    // A kernel that is wrong at one shape is not ranked at another.
    rows.retain(|r: &Row| {
        field.iter().any(|c| c.fault.is_none() && c.label == r.kernel && c.pass() == r.pass)
    });
    // A pass that was asked for by name, and does nothing at any shape, is a mistake to name.
    if request.pass.is_some() && unused.len() == shapes.len() {
        let what = "does not occur there; kernels for rows of a multiple of four and for other rows are different passes".to_owned();
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

/// A step at a shape with its inputs, and which of its calls are the pass'.
struct Track {
    gpu: Rc<Gpu>,
    step: Step,
    inputs: Vec<(Var, Array)>,
    calls: Vec<usize>,
    flops: Option<f64>,
    bytes: f64,
}

/// Positions of a pass' calls.
fn positions(graph: &Graph, pass: &Pass) -> Vec<usize> {
    let ours = |c: &Call| (c.op, c.pass) == (pass.op, pass.name);
    (0..graph.calls().len()).filter(|&i| ours(&graph.calls()[i])).collect()
}

impl Track {
    /// None if the operation does not use the pass at this shape.
    fn build(
        gpu: &Rc<Gpu>,
        case: &OpCase,
        pass: &'static Pass,
        dims: &[usize],
        seed: u64,
    ) -> Result<Option<Self>> {
        let rng = &mut TestRng::seed_from_u64(seed);
        let inputs = (case.inputs)(dims, rng);
        let mut graph = Graph::new(gpu.target());
        let vars = declare(&mut graph, &inputs);
        let outputs = (case.build)(&mut graph, dims, &vars);
        let mut calls = positions(&graph, pass);
        let is_forward = !calls.is_empty() && calls.len() == graph.calls().len();
        let mut seeds = Vec::new();
        if calls.is_empty() && case.differentiable {
            seeds = cotangents(&mut graph, &outputs);
            graph.backward_from(&seeds);
            calls = positions(&graph, pass);
        }
        if calls.is_empty() {
            return Ok(None);
        }
        let (flops, bytes) = if is_forward {
            let flops = (case.flops)(dims);
            ((flops > 0.0).then_some(flops), (case.bytes)(dims))
        } else {
            (flops_of(case, pass, dims), bound_bytes(&graph, &calls))
        };
        let mut inputs: Vec<_> = vars.into_iter().zip(inputs).collect();
        for (_, seed) in seeds {
            inputs.push((seed, Array::normal("cotangent", graph.shape(seed), rng)));
        }
        let step = fresh(gpu, graph, &inputs)?;
        Ok(Some(Self { gpu: gpu.clone(), step, inputs, calls, flops, bytes }))
    }

    /// The same step on other buffers.
    fn renewed(self) -> Result<Self> {
        let step = fresh(&self.gpu, self.step.into_graph(), &self.inputs)?;
        Ok(Self { step, ..self })
    }

    /// Compares the kernels with the pass' first and times those that agree. Those too slow for
    /// that go to `left_out`.
    fn race(
        mut self,
        case: &OpCase,
        shape: &Shape,
        field: &mut [&mut Contender],
        clock: &Clock,
        limits: Limits,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<Vec<Row>> {
        let work = self.flops.unwrap_or(self.bytes);
        let call = &self.step.graph().calls()[self.calls[0]];
        let mut baseline = None;
        let mut able: Vec<&mut Contender> = Vec::new();
        for c in field.iter_mut() {
            let too_large =
                |&at: &usize| self.step.graph().calls()[at].grid_of(c.plant.variant).err();
            c.fault = self.calls.iter().find_map(too_large);
            if c.fault.is_some() {
                continue;
            }
            let first = &c.plant.pass.variants[0];
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
        let Some(baseline) = baseline.filter(|_| !field.is_empty()) else { return Ok(Vec::new()) };
        let mut replays = vec![self.step.replay(&self.calls, baseline, Checks::Off)?];
        for c in field.iter() {
            replays.push(self.step.replay(&self.calls, c.plant.variant, c.plant.checks)?);
        }
        let all: Vec<_> = replays.iter().collect();
        let lossy = field.iter().map(|c| case.tolerance.max(c.plant.variant.tolerance));
        let tolerances: Vec<f64> = std::iter::once(case.tolerance).chain(lossy).collect();
        let number = baseline.number();
        let faults = same_as_first(&self.step, &all, number, &shape.dims, &tolerances)?;
        for (c, fault) in field.iter_mut().zip(faults.into_iter().skip(1)) {
            c.fault = fault.map(|f| f.to_string());
        }
        // `same_as_first` has run every kernel, so what a driver compiles late is compiled. For
        // the time that takes each kernel is made once more.
        let mut fit = Vec::new();
        for c in field.into_iter().filter(|c| c.fault.is_none()) {
            let replay = self.step.replay(&self.calls, c.plant.variant, c.plant.checks)?;
            let first = self.step.time(&replay, 1, None)?.wall;
            if first > limits.run {
                c.took(work, first);
                left_out.push(c.left_out(shape, "takes", first, limits));
            } else {
                fit.push((c, replay, first));
            }
        }
        if fit.is_empty() {
            return Ok(Vec::new());
        }
        let mut race = Race::new(clock, limits);
        let runners: Vec<_> = fit.iter().map(|(_, replay, first)| (replay, *first)).collect();
        let mut over = race.start(&self.step, &runners)?;
        // The others hold the buffers that are given up for new ones.
        drop(replays);
        let stopped = loop {
            if let Some(why) = over {
                break why;
            }
            fit.iter_mut().for_each(|(_, replay, _)| replay.unbind());
            self = self.renewed()?;
            fit.iter_mut().for_each(|(_, replay, _)| self.step.rebind(replay));
            let runners: Vec<_> = fit.iter().map(|(_, replay, _)| replay).collect();
            over = race.go_on(&self.step, &runners)?;
        };
        let mut rows = Vec::new();
        for ((c, replay, _), timing) in fit.into_iter().zip(race.timings) {
            let row = self.row(c, &replay, timing, shape, &stopped);
            c.took(work, row.seconds.median);
            rows.push(row);
        }
        Ok(rows)
    }

    fn row(&self, c: &Contender, replay: &Replay, t: Timing, shape: &Shape, stopped: &str) -> Row {
        let variant = c.plant.variant;
        let constants = &self.step.graph().calls()[self.calls[0]].constants;
        let specialised = variant.specialise(constants).ok();
        Row {
            pass: c.pass(),
            kernel: c.label.clone(),
            hash: blake3::hash(variant.text().as_bytes()).to_hex()[..16].into(),
            shape: shape.dims.clone(),
            set: shape.set.into(),
            seconds: Summary::of(&t.blocks),
            blocks: t.blocks,
            repeats: t.repeats,
            stopped: stopped.into(),
            flops: self.flops,
            bytes: self.bytes,
            compile: replay.compiled_in + t.first,
            workgroup_bytes: specialised.and_then(|s| workgroup_bytes(&s)).unwrap_or(0),
        }
    }
}

/// A step with new buffers that has run once.
fn fresh(gpu: &Rc<Gpu>, graph: Graph, inputs: &[(Var, Array)]) -> Result<Step> {
    let options = Options { reuse: Reuse::None, poison: false, checks: Checks::Off };
    let step = Step::with_options(gpu, graph, &Store::new(gpu), options)?;
    upload(&step, inputs.iter().map(|(var, array)| (*var, array)));
    step.run();
    gpu.wait()?;
    Ok(step)
}

/// Operations of a pass that is not the whole forward, where they follow from the forward's.
fn flops_of(case: &OpCase, pass: &Pass, dims: &[usize]) -> Option<f64> {
    let forward = (case.flops)(dims);
    match (pass.op, pass.name) {
        ("matmul", "bias_backward") => None,
        // Every product of a linear layer has the same three dimensions.
        ("matmul", _) if case.op == "matmul" => Some(forward),
        // Forward multiplies twice (scores, output), dq three times, dk_dv four times.
        ("attention", "dq") => Some(1.5 * forward),
        ("attention", "dk_dv") => Some(2.0 * forward),
        _ => None,
    }
}

/// Bytes of everything the calls read and write, once for each call; what a kernel adds to is
/// read too.
fn bound_bytes(graph: &Graph, calls: &[usize]) -> f64 {
    let mut bytes = 0;
    for &at in calls {
        let call = &graph.calls()[at];
        let adds = call.constants.contains(&("ACCUMULATE", Const::Bool(true)));
        let mut reads = call.reads.clone();
        // One variable may stand in for another that is not used.
        reads.sort_unstable();
        reads.dedup();
        let tables = |v: &&Var| !matches!(graph.info(**v).role, Role::Constant(_));
        bytes += reads.iter().filter(tables).map(|&v| graph.info(v).bytes()).sum::<u64>();
        let written: u64 = call.writes.iter().map(|&v| graph.info(v).bytes()).sum();
        bytes += if adds { 2 * written } else { written };
    }
    bytes as f64
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
