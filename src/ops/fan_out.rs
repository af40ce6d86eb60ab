//! One test for every operation: a gradient that is there already is added to, not overwritten.

use super::case::{Array, Data, OpCase, TestRng, normal};
use crate::gpu::Gpu;
use crate::graph::{DType, Graph, Var};
use crate::kernel::Target;
use crate::program::{Program, ProgramOptions, Store};
use std::collections::BTreeSet;
use std::rc::Rc;

/// The gradients of all inputs when the operation is applied once for each of `cotangents`, to the
/// same inputs. None where an input wants none.
fn gradients(
    gpu: &Rc<Gpu>,
    target: &Target,
    case: &OpCase,
    shape: &[usize],
    inputs: &[Array],
    cotangents: &[&Vec<Vec<f32>>],
) -> Vec<Option<Vec<f32>>> {
    let mut g = Graph::new(target);
    let vars: Vec<Var> = inputs
        .iter()
        .map(|a| match &a.data {
            Data::Float { grad: true, .. } => g.input_with_grad(a.name, &a.shape),
            _ => g.input(a.name, &a.shape, a.stored),
        })
        .collect();
    let mut seeds = Vec::new();
    let mut values = Vec::new();
    for cotangent in cotangents {
        for (out, values_of_out) in (case.build)(&mut g, shape, &vars).into_iter().zip(*cotangent) {
            let dims = g.shape(out).to_vec();
            seeds.push((out, g.input("cotangent", &dims, DType::F32)));
            values.push(values_of_out);
        }
    }
    g.backward_from(&seeds);
    let grads: Vec<Option<Var>> = vars.iter().map(|&v| g.grad(v)).collect();
    for grad in grads.iter().flatten() {
        g.output(*grad);
    }
    let options = ProgramOptions { poison: true, ..ProgramOptions::default() };
    let program = Program::with_options(gpu, g, &Store::new(gpu), options).unwrap();
    for (&var, a) in vars.iter().zip(inputs) {
        match &a.data {
            Data::Float { values, .. } => {
                program.write(var, &values.iter().map(|&v| v as f32).collect::<Vec<_>>());
            }
            Data::Index(values) => program.write_u32(var, values),
        }
    }
    for ((_, seed), values) in seeds.iter().zip(values) {
        program.write(*seed, values);
    }
    program.run();
    grads.iter().map(|grad| grad.map(|grad| program.read(grad).unwrap())).collect()
}

/// One target per variant number of the operation that the adapter can run. Of a file with several
/// tiles the first will do: all add by the same lines.
fn targets(gpu: &Gpu, case: &OpCase) -> Vec<Target> {
    let runs = |v: &&crate::kernel::Variant| {
        v.needs_met(gpu.target()) && v.takes.stored.is_empty() // no derivative reads others
    };
    let numbers: BTreeSet<u32> =
        case.passes.iter().flat_map(|p| p.variants).filter(runs).map(|v| v.number()).collect();
    let pin = |number: u32| {
        let mut target = gpu.target().clone();
        target.pinned.insert(case.op.to_owned(), number.into());
        target
    };
    numbers.into_iter().map(pin).collect()
}

#[test]
fn every_operation_adds_to_gradients_that_are_there() {
    let gpu = super::case::tests::gpu();
    for case in super::cases().iter().filter(|c| c.differentiable) {
        let shapes = case.shapes.iter().filter(|s| case.differentiable_at(s));
        for (shape, target) in
            shapes.flat_map(|s| targets(&gpu, case).into_iter().map(move |t| (s, t)))
        {
            let rng = &mut TestRng::with_seed(shape.iter().sum::<usize>() as u64);
            let inputs = (case.inputs)(shape, rng);
            let value = (case.reference)(shape, &inputs);
            let mut cotangent = || -> Vec<Vec<f32>> {
                value.iter().map(|v| v.iter().map(|_| normal(rng)).collect()).collect()
            };
            let (one, two) = (cotangent(), cotangent());
            let of_one = gradients(&gpu, &target, case, shape, &inputs, &[&one]);
            let of_two = gradients(&gpu, &target, case, shape, &inputs, &[&two]);
            let of_both = gradients(&gpu, &target, case, shape, &inputs, &[&one, &two]);
            for (i, both) in of_both.iter().enumerate() {
                let name = inputs[i].name;
                let (Some(both), Some(a), Some(b)) = (both, &of_one[i], &of_two[i]) else {
                    assert!(both.is_none() && of_one[i].is_none() && of_two[i].is_none());
                    continue;
                };
                let largest = a.iter().chain(b).fold(1e-30f32, |m, v| m.max(v.abs()));
                for ((both, a), b) in both.iter().zip(a).zip(b) {
                    // Written so that NaN fails.
                    assert!(
                        (both - (a + b)).abs() <= 1e-5 * largest,
                        "{} {shape:?} {:?} d {name}: {both} instead of {a} + {b}",
                        case.op,
                        target.pinned
                    );
                }
            }
        }
    }
}
