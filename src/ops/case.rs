//! One [`OpCase`] drives an operation's kernel test, its gradient check and its benchmark.
//!
//! [`check_forward`] runs every variant on every shape, outputs pre-filled with NaN and guard
//! zones behind every buffer, against the f64 reference. [`check_gradient`] compares the gradient
//! computed by the kernels, for a random cotangent, with central differences of the f64
//! reference, so reference and derivative can only agree by both being right.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::{DType, Graph, Var};
use crate::kernel::{Pass, Target};
use crate::plan::Reuse;
use crate::step::{Options, Step, Store};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::rc::Rc;

/// The random numbers of tests and benchmarks: the same on every machine.
pub type TestRng = ChaCha8Rng;

/// An input of an operation, held in f64 so that a reference can be differentiated numerically.
#[derive(Debug, Clone)]
pub struct Array {
    /// For messages.
    pub name: &'static str,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The values.
    pub data: Data,
}

/// Values of an [`Array`].
#[derive(Debug, Clone)]
pub enum Data {
    /// Floats (each exactly an f32 at first); `grad` says whether a gradient is wanted.
    Float {
        /// Values.
        values: Vec<f64>,
        /// Check the gradient with respect to this input.
        grad: bool,
    },
    /// Indices.
    Index(Vec<u32>),
}

impl Array {
    /// Standard-normal values (by summing uniforms) with a gradient.
    pub fn normal(name: &'static str, shape: &[usize], rng: &mut TestRng) -> Self {
        let n = shape.iter().product();
        let values = (0..n).map(|_| f64::from(normal(rng))).collect();
        Self { name, shape: shape.to_vec(), data: Data::Float { values, grad: true } }
    }

    /// Given values (rounded to f32) without a gradient.
    pub fn fixed(name: &'static str, shape: &[usize], values: Vec<f64>) -> Self {
        let values = values.into_iter().map(|v| f64::from(v as f32)).collect();
        Self { name, shape: shape.to_vec(), data: Data::Float { values, grad: false } }
    }

    /// Given values (rounded to f32) with a gradient.
    pub fn float(name: &'static str, shape: &[usize], values: Vec<f64>) -> Self {
        let values = values.into_iter().map(|v| f64::from(v as f32)).collect();
        Self { name, shape: shape.to_vec(), data: Data::Float { values, grad: true } }
    }

    /// Indices.
    pub fn index(name: &'static str, shape: &[usize], values: Vec<u32>) -> Self {
        Self { name, shape: shape.to_vec(), data: Data::Index(values) }
    }

    /// The floats.
    ///
    /// # Panics
    /// When it holds indices.
    pub fn f(&self) -> &[f64] {
        match &self.data {
            Data::Float { values, .. } => values,
            Data::Index(_) => panic!("{} holds indices", self.name),
        }
    }

    /// The indices.
    ///
    /// # Panics
    /// When it holds floats.
    pub fn u(&self) -> &[u32] {
        match &self.data {
            Data::Index(values) => values,
            Data::Float { .. } => panic!("{} holds floats", self.name),
        }
    }
}

/// A roughly normal number: twelve uniforms summed (Irwin-Hall), enough for tests.
pub fn normal(rng: &mut TestRng) -> f32 {
    (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0
}

/// What drives an operation's tests and benchmark.
pub struct OpCase {
    /// The operation: its folder below `shaders/`, its file, its function.
    pub op: &'static str,
    /// All its passes.
    pub passes: &'static [&'static Pass],
    /// Awkward shapes (1, prime, tile - 1, tile, tile + 1); the meaning of the numbers is the
    /// operation's own and said in its file.
    pub shapes: &'static [&'static [usize]],
    /// Shapes too large for the gradient check (grids beyond 65,535 groups).
    pub large: &'static [&'static [usize]],
    /// Random inputs for a shape.
    pub inputs: fn(&[usize], &mut TestRng) -> Vec<Array>,
    /// Appends the operation; returns the outputs to compare.
    pub build: fn(&mut Graph, &[usize], &[Var]) -> Vec<Var>,
    /// The outputs in f64.
    pub reference: fn(&[usize], &[Array]) -> Vec<Vec<f64>>,
    /// Largest allowed |kernel - reference| as a part of the largest |reference| of that output.
    pub tolerance: f64,
    /// Has a derivative.
    pub differentiable: bool,
    /// Floating-point operations of the forward pass.
    pub flops: fn(&[usize]) -> f64,
    /// Bytes the forward pass must move at least.
    pub bytes: fn(&[usize]) -> f64,
}

/// Each pass alone pinned to each variant the adapter can run; one entry without pins if there is
/// nothing to choose.
pub fn pinnings(case: &OpCase, target: &Target) -> Vec<Target> {
    let mut all = Vec::new();
    for pass in case.passes {
        for v in pass.variants {
            let mut pinned = target.clone();
            pinned.pinned.insert(format!("{}.{}", pass.op, pass.name), v.number());
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

/// The random numbers for a shape.
pub fn rng(shape: &[usize]) -> TestRng {
    ChaCha8Rng::seed_from_u64(shape.iter().fold(7, |a, &d| a * 1009 + d as u64))
}

/// The inputs as variables of `graph`.
pub fn declare(graph: &mut Graph, inputs: &[Array]) -> Vec<Var> {
    inputs
        .iter()
        .map(|a| match &a.data {
            Data::Float { grad: true, .. } => graph.input_with_grad(a.name, &a.shape),
            Data::Float { grad: false, .. } => graph.input(a.name, &a.shape, DType::F32),
            Data::Index(_) => graph.input(a.name, &a.shape, DType::U32),
        })
        .collect()
}

fn upload(step: &Step, vars: &[Var], inputs: &[Array]) {
    for (&var, a) in vars.iter().zip(inputs) {
        match &a.data {
            Data::Float { values, .. } => {
                step.write(var, &values.iter().map(|&v| v as f32).collect::<Vec<_>>());
            }
            Data::Index(values) => step.write_u32(var, values),
        }
    }
}

const POISONED: Options =
    Options { reuse: Reuse::None, poison: true, checks: crate::gpu::Checks::Off };

fn compare(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-30);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(g) - w).abs() / scale;
        // Written so that NaN fails.
        assert!(
            off <= tolerance,
            "{what}[{i}]: {g} instead of {w} ({off:.1e} of the largest, {tolerance:.0e} allowed)"
        );
    }
}

/// Runs every variant of `case` on every shape against the reference.
///
/// # Errors
/// When the device is lost.
///
/// # Panics
/// On the first difference, unwritten element or broken guard zone.
pub fn check_forward(gpu: &Rc<Gpu>, case: &OpCase) -> Result<()> {
    for shape in case.shapes.iter().chain(case.large) {
        let inputs = (case.inputs)(shape, &mut rng(shape));
        let want = (case.reference)(shape, &inputs);
        for target in pinnings(case, gpu.target()) {
            let mut graph = Graph::new(&target);
            let vars = declare(&mut graph, &inputs);
            let outputs = (case.build)(&mut graph, shape, &vars);
            for &out in &outputs {
                graph.output(out);
            }
            let step = Step::with_options(gpu, graph, &Store::new(gpu), POISONED)?;
            upload(&step, &vars, &inputs);
            step.run();
            assert_eq!(outputs.len(), want.len(), "{}: outputs", case.op);
            for (&out, want) in outputs.iter().zip(&want) {
                let what = format!(
                    "{} {shape:?} {:?} {}",
                    case.op,
                    target.pinned,
                    step.graph().info(out).name
                );
                compare(&what, &step.read(out)?, want, case.tolerance);
            }
            let broken = step.broken_guards()?;
            assert!(
                broken.is_empty(),
                "{} {shape:?} {:?} wrote beyond {broken:?}",
                case.op,
                target.pinned
            );
        }
    }
    Ok(())
}

/// Elements per input whose derivative is checked.
const SAMPLED: usize = 24;

/// What the derivative of an operation must be at one shape.
pub struct Slopes {
    /// The point it is taken at.
    pub inputs: Vec<Array>,
    /// The gradient of each output that is handed to the operation.
    pub cotangents: Vec<Vec<f32>>,
    /// Which input, which of its elements, and the derivative by each.
    pub of: Vec<(usize, Vec<usize>, Vec<f64>)>,
}

/// Central differences of the reference, for random cotangents, at a sample of the elements.
pub fn slopes(case: &OpCase, shape: &[usize]) -> Slopes {
    let rng = &mut rng(shape);
    let inputs = (case.inputs)(shape, rng);
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
    let mut of = Vec::new();
    for (which, a) in inputs.iter().enumerate() {
        let Data::Float { values, grad: true } = &a.data else { continue };
        let at: Vec<usize> = if values.len() <= SAMPLED {
            (0..values.len()).collect()
        } else {
            (0..SAMPLED).map(|_| rng.random_range(0..values.len())).collect()
        };
        let slope = at
            .iter()
            .map(|&i| {
                let mut moved = inputs.clone();
                let h = 1e-4 * values[i].abs().max(1.0);
                let mut at_offset = |offset: f64| {
                    if let Data::Float { values: v, .. } = &mut moved[which].data {
                        v[i] = values[i] + offset;
                    }
                    objective(&moved)
                };
                // Fourth order: the error is h^4, far below single precision.
                (8.0 * (at_offset(h) - at_offset(-h)) - (at_offset(2.0 * h) - at_offset(-2.0 * h)))
                    / (12.0 * h)
            })
            .collect();
        of.push((which, at, slope));
    }
    Slopes { inputs, cotangents, of }
}

/// Allowed error of a gradient, as a part of the largest, as a multiple of [`OpCase::tolerance`]:
/// one step of single precision per term of the sums behind it, generously.
pub const GRADIENT_TOLERANCE: f64 = 10.0;

/// Compares the kernels' gradient with central differences of the reference.
///
/// # Errors
/// When the device is lost.
///
/// # Panics
/// On the first difference.
pub fn check_gradient(gpu: &Rc<Gpu>, case: &OpCase) -> Result<()> {
    assert!(case.differentiable, "{} has no derivative", case.op);
    for shape in case.shapes {
        let Slopes { inputs, cotangents, of: checks } = slopes(case, shape);
        for target in pinnings(case, gpu.target()) {
            let mut graph = Graph::new(&target);
            let vars = declare(&mut graph, &inputs);
            let outputs = (case.build)(&mut graph, shape, &vars);
            let seeds: Vec<(Var, Var)> = outputs
                .iter()
                .map(|&out| {
                    let dims = graph.shape(out).to_vec();
                    (out, graph.input("cotangent", &dims, DType::F32))
                })
                .collect();
            graph.backward_from(&seeds);
            let grads: Vec<Option<Var>> = vars.iter().map(|&v| graph.grad(v)).collect();
            for grad in grads.iter().flatten() {
                graph.output(*grad);
            }
            let step = Step::with_options(gpu, graph, &Store::new(gpu), POISONED)?;
            upload(&step, &vars, &inputs);
            for ((_, seed), c) in seeds.iter().zip(&cotangents) {
                step.write(*seed, c);
            }
            step.run();
            for (which, at, slope) in &checks {
                let what =
                    format!("{} {shape:?} {:?} d {}", case.op, target.pinned, inputs[*which].name);
                let grad = grads[*which].unwrap_or_else(|| panic!("{what}: no gradient arrived"));
                let all = step.read(grad)?;
                let got: Vec<f32> = at.iter().map(|&i| all[i]).collect();
                compare(&what, &got, slope, GRADIENT_TOLERANCE * case.tolerance);
                assert!(all.iter().all(|v| v.is_finite()), "{what}: an element was not written");
            }
            let broken = step.broken_guards()?;
            assert!(broken.is_empty(), "{} {shape:?} wrote beyond {broken:?}", case.op);
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::gpu::AdapterChoice;

    /// The adapter tests run on. No adapter is never a pass.
    pub(crate) fn gpu() -> Rc<Gpu> {
        Rc::new(
            Gpu::open(&AdapterChoice::default())
                .unwrap_or_else(|e| panic!("tests need an adapter: {e}")),
        )
    }

    /// Forward test of a case.
    pub(crate) fn forward(case: &OpCase) {
        check_forward(&gpu(), case).unwrap();
    }

    /// Gradient test of a case.
    pub(crate) fn gradient(case: &OpCase) {
        check_gradient(&gpu(), case).unwrap();
    }
}
