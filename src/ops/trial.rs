//! Runs an [`OpCase`] against its f64 reference, for tests and for the gate of the benchmark.
//!
//! Outputs are filled with NaN beforehand and guard zones stand behind every buffer. A forward
//! trial compares every element with the reference. A gradient trial compares the gradient computed
//! by the kernels, for a random cotangent, with central differences of the reference, so reference
//! and derivative can only agree by both being right.

use crate::error::Result;
use crate::gpu::{Checks, Gpu};
use crate::graph::{Call, DType, Graph, Var};
use crate::kernel::{Pass, Target, Variant};
use crate::ops::case::{Array, Data, OpCase, TestRng, normal};
use crate::ops::values::Values;
use crate::plan::Reuse;
use crate::program::{POISON, Program, ProgramOptions, Store};
use std::fmt;
use std::rc::Rc;

/// A kernel that stands in for every call of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Replacement {
    /// Whose place it takes.
    pub pass: &'static Pass,
    /// The kernel that takes it.
    pub variant: &'static Variant,
    /// On for kernels that have not been tested yet.
    pub checks: Checks,
}

/// The first thing found wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// The shape it happened at.
    pub shape: Vec<usize>,
    /// What the inputs were like.
    pub values: Values,
    /// The grid was folded.
    pub folded: bool,
    /// The output, or the gradient as `d x`; empty for a kernel that did not run.
    pub place: String,
    /// What it was.
    pub kind: Kind,
}

/// What can be wrong with a kernel.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// An element differs from the reference.
    Wrong {
        /// Its position, row-major.
        index: usize,
        /// What the kernel wrote.
        got: f32,
        /// What is right.
        want: f64,
        /// The difference as a part of the largest element.
        off: f64,
        /// The part that is allowed.
        allowed: f64,
    },
    /// An element that no kernel wrote, at this position.
    Unwritten(usize),
    /// An element that is not finite where none may be.
    NotFinite(usize, f32),
    /// Something behind the end of these variables was written.
    Beyond(Vec<String>),
    /// A second run on the same inputs gave other bits first at this position: a race, or it
    /// reads what it should only write.
    Unsteady(usize),
    /// The device does not take the kernel.
    Refused(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.place;
        match &self.kind {
            Kind::Wrong { index, got, want, off, allowed } => write!(
                f,
                "{place}[{index}]: {got} instead of {want} ({off:.1e} of the largest, {allowed:.0e} allowed)"
            )?,
            Kind::Unwritten(index) => write!(f, "{place}[{index}] was not written")?,
            Kind::NotFinite(index, got) => write!(f, "{place}[{index}] is {got}")?,
            Kind::Beyond(names) => write!(f, "wrote beyond the end of {}", names.join(", "))?,
            Kind::Unsteady(index) => write!(
                f,
                "{place}[{index}] has other bits when run again on the same inputs: invocations race, or it reads what was there before"
            )?,
            Kind::Refused(why) => return write!(f, "does not run: {why}"),
        }
        write!(f, " at shape {:?}", self.shape)?;
        if self.values != Values::Normal {
            write!(f, " with {}", self.values)?;
        }
        if self.folded {
            f.write_str(
                " on a grid folded into two rows: its place is group.x + group.y * groups.x",
            )?;
        }
        Ok(())
    }
}

/// One shape of a case with inputs of a kind and what must come out.
pub struct Trial<'a> {
    case: &'a OpCase,
    shape: &'a [usize],
    values: Values,
    inputs: Vec<Array>,
    /// How often the operation is applied to the same inputs.
    uses: usize,
    /// The replacement runs on a grid of two rows, see [`Trial::folded`].
    folded: bool,
    wanted: Wanted,
}

enum Wanted {
    Outputs(Vec<Vec<f64>>),
    Derivatives { cotangents: Vec<Vec<f32>>, samples: Vec<GradientSample> },
}

/// Derivatives with respect to some elements of one input.
pub struct GradientSample {
    /// Position in the inputs.
    pub input: usize,
    /// Positions of the elements in it, row-major.
    pub at: Vec<usize>,
    /// The derivative with respect to each of them.
    pub values: Vec<f64>,
}

/// What the derivative of an operation must be at one shape.
pub struct Derivatives {
    /// The point it is taken at.
    pub inputs: Vec<Array>,
    /// The gradient of each output that is handed to the operation.
    pub cotangents: Vec<Vec<f32>>,
    /// The derivative with respect to some elements of each input.
    pub samples: Vec<GradientSample>,
}

struct Built {
    graph: Graph,
    vars: Vec<Var>,
    /// What is read back, with the name a fault calls it by.
    outputs: Vec<(Var, String)>,
    cotangents: Vec<Var>,
}

const POISONED: ProgramOptions =
    ProgramOptions { reuse: Reuse::None, poison: true, checks: Checks::Off };

/// Factor on the tolerance of a planted kernel: the tolerance was set on the inputs of the tests, and
/// new random inputs may round a little worse. Mistakes are larger by far.
const FRESH: f64 = 4.0;

/// Allowed error of a gradient, relative to its largest element, in units of [`OpCase::tolerance`]:
/// generously one rounding of single precision for each term of the sums behind it.
pub const GRADIENT_TOLERANCE: f64 = 10.0;

/// Differences are measured by the largest element, or by this where all are smaller: kernels may
/// stop at exp(-80).
pub(crate) const SMALLEST: f64 = 1e-28;

/// Elements per input whose derivative is checked.
const SAMPLED: usize = 24;

impl<'a> Trial<'a> {
    /// Compares the outputs. Other seeds give other inputs.
    pub fn forward(case: &'a OpCase, shape: &'a [usize], values: Values, seed: u64) -> Self {
        let inputs = case.inputs_of(shape, values, &mut rng(shape, seed));
        let wanted = Wanted::Outputs((case.reference)(shape, &inputs));
        Self { case, shape, values, inputs, uses: 1, folded: false, wanted }
    }

    /// Compares the gradients of the inputs.
    ///
    /// # Panics
    /// When the operation has no derivative.
    pub fn gradient(case: &'a OpCase, shape: &'a [usize], values: Values, seed: u64) -> Self {
        let Derivatives { inputs, cotangents, samples } = derivatives(case, shape, values, seed);
        let wanted = Wanted::Derivatives { cotangents, samples };
        Self { case, shape, values, inputs, uses: 1, folded: false, wanted }
    }

    /// As [`Trial::gradient`] of the operation applied twice to the same inputs, ordinary ones: the
    /// gradients of the second use are added to those that are there.
    ///
    /// # Panics
    /// When the operation has no derivative.
    pub fn added_gradient(case: &'a OpCase, shape: &'a [usize], seed: u64) -> Self {
        let mut trial = Self { uses: 2, ..Self::gradient(case, shape, Values::Normal, seed) };
        if let Wanted::Derivatives { samples, .. } = &mut trial.wanted {
            samples.iter_mut().flat_map(|s| &mut s.values).for_each(|value| *value *= 2.0);
        }
        trial
    }

    /// Starts the replacement on a grid folded into two rows, as one of more than 65,535 groups is,
    /// wherever its grid has one dimension and more than one group: a kernel that takes its place from
    /// `workgroup_id.x` alone leaves half of the results out.
    #[must_use]
    pub fn folded(self) -> Self {
        Self { folded: true, ..self }
    }

    fn build(&self, target: &Target) -> Built {
        let mut graph = Graph::new(target);
        let vars = declare(&mut graph, &self.inputs);
        let mut results = Vec::new();
        for _ in 0..self.uses {
            results.extend((self.case.build)(&mut graph, self.shape, &vars));
        }
        let mut built = Built { graph, vars, outputs: Vec::new(), cotangents: Vec::new() };
        let graph = &mut built.graph;
        match &self.wanted {
            Wanted::Outputs(want) => {
                assert_eq!(results.len(), want.len(), "{}: outputs", self.case.op);
                for out in results {
                    built.outputs.push((out, graph.info(out).name.clone()));
                }
            }
            Wanted::Derivatives { samples, .. } => {
                let seeds = cotangents(graph, &results);
                graph.backward_from(&seeds);
                built.cotangents = seeds.into_iter().map(|(_, seed)| seed).collect();
                for s in samples {
                    let name = format!("d {}", self.inputs[s.input].name);
                    let grad = graph.grad(built.vars[s.input]);
                    let grad = grad.unwrap_or_else(|| panic!("{name}: no gradient arrived"));
                    built.outputs.push((grad, name));
                }
            }
        }
        for (out, _) in &built.outputs {
            graph.output(*out);
        }
        built
    }

    /// True if a kernel can be expected to hold the values: 16 bits end at 6e-8.
    fn holds(&self, variant: &Variant) -> bool {
        self.values != Values::Tiny || variant.tolerance == 0.0
    }

    /// True if the trial runs a kernel that `target` pins.
    fn runs_a_pin(&self, target: &Target) -> bool {
        let calls = self.build(target).graph.calls().to_vec();
        let pinned = |c: &Call| target.pinned.get(&c.full_name()) == Some(&c.variant.id());
        calls.iter().any(|c| pinned(c) && self.holds(c.variant))
    }

    /// True if the trial runs a call of `pass` that `variant` takes.
    pub fn meets(&self, target: &Target, pass: &Pass, variant: &Variant) -> bool {
        let graph = self.build(target).graph;
        self.holds(variant)
            && graph.calls().iter().any(|c| {
                let fits = variant.takes.fits(&graph.facts_of(c).operands);
                (c.op, c.pass) == (pass.op, pass.name) && fits
            })
    }

    /// Runs the kernels that `target` chooses, with `replacement` in the place of one of them, and
    /// compares. A replacement is run twice.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn run(
        &self,
        gpu: &Rc<Gpu>,
        target: &Target,
        replacement: Option<&Replacement>,
    ) -> Result<Option<Fault>> {
        let Built { mut graph, vars, outputs, cotangents } = self.build(target);
        let mut options = POISONED;
        let slack = if replacement.is_some() { FRESH } else { 1.0 };
        if let Some(p) = replacement {
            options.checks = p.checks;
            let refused = |why| Ok(Some(self.fault("", Kind::Refused(why))));
            let ours = |c: &&Call| {
                let fits = p.variant.takes.fits(&graph.facts_of(c).operands);
                (c.op, c.pass) == (p.pass.op, p.pass.name) && fits
            };
            for call in graph.calls().iter().filter(ours) {
                if let Err(why) = call.grid_of(p.variant) {
                    return refused(why);
                }
            }
            graph.replace(p.pass.op, p.pass.name, p.variant);
            if self.folded {
                graph.fold(p.variant);
            }
            let planted = |c: &&Call| std::ptr::eq(c.variant, p.variant);
            for call in graph.calls().iter().filter(planted) {
                if let Err(e) = gpu.try_pipeline(call, p.checks) {
                    return refused(e.to_string());
                }
            }
        }
        // Kernels that round to 16 bits may be further off than the case allows.
        let lossy = graph.calls().iter().fold(0.0, |most: f64, c| most.max(c.variant.tolerance));
        let slack = slack * self.case.domain.slack(self.values);
        let tolerance = slack * self.case.tolerance.max(lossy);
        let program = Program::with_options(gpu, graph, &Store::new(gpu), options)?;
        let run = || {
            upload(&program, vars.iter().copied().zip(&self.inputs));
            if let Wanted::Derivatives { cotangents: values, .. } = &self.wanted {
                let values = values.iter().cycle();
                cotangents.iter().zip(values).for_each(|(&var, c)| program.write(var, c));
            }
            program.run();
        };
        run();
        // One by one: two inputs may have one variable as their gradient.
        let read = || outputs.iter().map(|(var, _)| program.read(*var)).collect::<Result<Vec<_>>>();
        let got = read()?;
        for (i, (_, name)) in outputs.iter().enumerate() {
            if let Some(kind) = self.compare(i, &got[i], tolerance) {
                return Ok(Some(self.fault(name, kind)));
            }
        }
        let broken = program.broken_guards()?;
        if !broken.is_empty() {
            return Ok(Some(self.fault("", Kind::Beyond(broken))));
        }
        if replacement.is_some() {
            run();
            for ((first, again), (_, name)) in got.iter().zip(read()?).zip(&outputs) {
                let other = first.iter().zip(&again).position(|(a, b)| a.to_bits() != b.to_bits());
                if let Some(index) = other {
                    return Ok(Some(self.fault(name, Kind::Unsteady(index))));
                }
            }
        }
        Ok(None)
    }

    fn fault(&self, place: &str, kind: Kind) -> Fault {
        let place = place.to_owned();
        let (values, folded) = (self.values, self.folded);
        Fault { shape: self.shape.to_vec(), values, folded, place, kind }
    }

    /// What the largest element counts as at least: [`SMALLEST`], and more where inputs are larger than
    /// usual, by what two of them may multiply such a rest by.
    fn smallest(&self) -> f64 {
        let large = if self.values == Values::Large { self.case.domain.large } else { 1.0 };
        SMALLEST * large.clamp(1.0, 1e6).powi(2)
    }

    fn compare(&self, which: usize, got: &[f32], tolerance: f64) -> Option<Kind> {
        if let Some(index) = got.iter().position(|v| v.to_bits() == POISON) {
            return Some(Kind::Unwritten(index));
        }
        match &self.wanted {
            Wanted::Outputs(want) => {
                let want = &want[which];
                assert_eq!(got.len(), want.len(), "{}: elements of an output", self.case.op);
                first_difference(got.iter().copied().enumerate(), want, tolerance, self.smallest())
            }
            Wanted::Derivatives { samples, .. } => {
                let GradientSample { at, values, .. } = &samples[which];
                let got_there = at.iter().map(|&i| (i, got[i]));
                let allowed = GRADIENT_TOLERANCE * tolerance;
                first_difference(got_there, values, allowed, self.smallest()).or_else(|| {
                    let index = got.iter().position(|v| !v.is_finite())?;
                    Some(Kind::NotFinite(index, got[index]))
                })
            }
        }
    }
}

/// Central differences of the reference, for random cotangents, at a sample of the elements.
///
/// # Panics
/// When the operation has no derivative.
pub fn derivatives(case: &OpCase, shape: &[usize], values: Values, seed: u64) -> Derivatives {
    assert!(case.differentiable, "{} has no derivative", case.op);
    let rng = &mut rng(shape, seed);
    let inputs = case.inputs_of(shape, values, rng);
    let value = (case.reference)(shape, &inputs);
    let cotangents: Vec<Vec<f32>> =
        value.iter().map(|v| v.iter().map(|_| normal(rng)).collect()).collect();
    let objective = |inputs: &[Array]| -> f64 {
        let value = (case.reference)(shape, inputs);
        value
            .iter()
            .flatten()
            .zip(cotangents.iter().flatten())
            .map(|(v, &c)| v * f64::from(c))
            .sum()
    };
    let mut samples = Vec::new();
    for (input, a) in inputs.iter().enumerate() {
        let Data::Float { values, grad: true } = &a.data else { continue };
        let at: Vec<usize> = if values.len() <= SAMPLED {
            (0..values.len()).collect()
        } else {
            (0..SAMPLED).map(|_| rng.usize(0..values.len())).collect()
        };
        let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let slope = |&i: &usize| {
            let mut moved = inputs.clone();
            // Curves have the scale of 1 wherever they are, and far out f64 wants larger steps.
            let h = 1e-4f64.max(1e-6 * largest);
            let mut at_offset = |offset: f64| {
                if let Data::Float { values: v, .. } = &mut moved[input].data {
                    v[i] = values[i] + offset;
                }
                objective(&moved)
            };
            // Fourth order: the error is h^4, far below single precision.
            (8.0 * (at_offset(h) - at_offset(-h)) - (at_offset(2.0 * h) - at_offset(-2.0 * h)))
                / (12.0 * h)
        };
        let values = at.iter().map(slope).collect();
        samples.push(GradientSample { input, at, values });
    }
    Derivatives { inputs, cotangents, samples }
}

/// The first element that is further from `want` than a part `allowed` of the largest, which counts as
/// `smallest` at least.
fn first_difference(
    got: impl Iterator<Item = (usize, f32)>,
    want: &[f64],
    allowed: f64,
    smallest: f64,
) -> Option<Kind> {
    let scale = want.iter().fold(smallest, |m, v| m.max(v.abs()));
    got.zip(want).find_map(|((index, got), &want)| {
        let off = (f64::from(got) - want).abs() / scale;
        // Written so that NaN is a difference, where it is not what must come out.
        let fits = off <= allowed || !want.is_finite() && !got.is_finite();
        (!fits).then_some(Kind::Wrong { index, got, want, off, allowed })
    })
}

/// Inputs for the gradients of `outputs`, as pairs for [`Graph::backward_from`].
pub(crate) fn cotangents(graph: &mut Graph, outputs: &[Var]) -> Vec<(Var, Var)> {
    let mut seed = |&out: &Var| {
        let dims = graph.shape(out).to_vec();
        (out, graph.input("cotangent", &dims, DType::F32))
    };
    outputs.iter().map(&mut seed).collect()
}

/// The random numbers for a shape.
pub fn rng(shape: &[usize], seed: u64) -> TestRng {
    let mix = |a: u64, &d: &usize| a.wrapping_mul(1009).wrapping_add(d as u64);
    TestRng::with_seed(shape.iter().fold(seed.wrapping_add(7), mix))
}

/// An input variable for each array.
pub fn declare(graph: &mut Graph, inputs: &[Array]) -> Vec<Var> {
    inputs
        .iter()
        .map(|a| match &a.data {
            Data::Float { grad: true, .. } => graph.input_with_grad(a.name, &a.shape),
            _ => graph.input(a.name, &a.shape, a.stored),
        })
        .collect()
}

/// Writes the arrays to their variables.
pub(crate) fn upload<'a>(program: &Program, inputs: impl IntoIterator<Item = (Var, &'a Array)>) {
    for (var, a) in inputs {
        match &a.data {
            Data::Float { values, .. } => {
                program.write(var, &values.iter().map(|&v| v as f32).collect::<Vec<_>>());
            }
            Data::Index(values) => program.write_u32(var, values),
        }
    }
}

/// Each pass alone pinned to each variant the adapter can run; one entry without pins if there is
/// nothing to choose.
pub fn pinnings(case: &OpCase, target: &Target) -> Vec<Target> {
    let mut all = Vec::new();
    for pass in case.passes {
        for v in pass.variants {
            let mut pinned = target.clone();
            pinned.pinned.insert(pass.full_name(), v.id());
            if v.needs_met(target) && pass.variants.len() > 1 {
                all.push(pinned);
            }
        }
    }
    if all.is_empty() {
        all.push(target.clone());
    }
    all
}

fn assert_agrees(gpu: &Rc<Gpu>, case: &OpCase, trial: &Trial) -> Result<()> {
    let mut targets = pinnings(case, gpu.target());
    // A pin of a pass that does not occur here, or of a kernel that does not take it, changes nothing.
    targets.retain(|t| trial.runs_a_pin(t));
    if targets.is_empty() {
        targets.push(gpu.target().clone());
    }
    for target in targets {
        if let Some(fault) = trial.run(gpu, &target, None)? {
            panic!("{} {:?}: {fault}", case.op, target.pinned);
        }
    }
    Ok(())
}

/// Runs every variant of `case` on every shape and kind of values against the reference.
///
/// # Errors
/// When the device is lost.
///
/// # Panics
/// On the first difference, unwritten element or broken guard zone.
pub fn check_forward(gpu: &Rc<Gpu>, case: &OpCase) -> Result<()> {
    for shape in case.shapes.iter().chain(case.large) {
        for values in case.values_at(shape) {
            assert_agrees(gpu, case, &Trial::forward(case, shape, values, 0))?;
        }
    }
    Ok(())
}

/// Compares the kernels' gradient with central differences of the reference.
///
/// # Errors
/// When the device is lost.
///
/// # Panics
/// On the first difference.
pub fn check_gradient(gpu: &Rc<Gpu>, case: &OpCase) -> Result<()> {
    for shape in case.shapes.iter().filter(|shape| case.differentiable_at(shape)) {
        for values in case.gradient_values_at(shape) {
            assert_agrees(gpu, case, &Trial::gradient(case, shape, values, 0))?;
        }
    }
    Ok(())
}
