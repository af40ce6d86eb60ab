//! The place where the kernels of a pass comparison: a step at a shape.

use crate::error::Result;
use crate::gpu::{Checks, Gpu};
use crate::graph::{Call, Graph, Role, Var};
use crate::kernel::{Const, Pass};
use crate::ops::case::{Array, OpCase, TestRng};
use crate::ops::trial::{cotangents, declare, upload};
use crate::plan::Reuse;
use crate::program::{Program, ProgramOptions, Store};
use std::rc::Rc;

/// A step at a shape with random inputs, and which of its calls are the pass'.
pub(super) struct Workload {
    /// Has run once, so that everything the calls read is there.
    pub(super) program: Program,
    /// Positions of the pass' calls.
    pub(super) calls: Vec<usize>,
    /// Floating-point operations of the calls, where they are counted.
    pub(super) flops: Option<f64>,
    /// Bytes that the calls must move.
    pub(super) bytes: f64,
}

/// Positions of a pass' calls.
fn positions(graph: &Graph, pass: &Pass) -> Vec<usize> {
    let ours = |c: &Call| (c.op, c.pass) == (pass.op, pass.name);
    (0..graph.calls().len()).filter(|&i| ours(&graph.calls()[i])).collect()
}

impl Workload {
    /// None if the operation does not use the pass at this shape.
    pub(super) fn build(
        gpu: &Rc<Gpu>,
        case: &OpCase,
        pass: &'static Pass,
        dims: &[usize],
        seed: u64,
    ) -> Result<Option<Self>> {
        let rng = &mut TestRng::with_seed(seed);
        let inputs = (case.inputs)(dims, rng);
        let mut graph = Graph::new(gpu.target());
        let vars = declare(&mut graph, &inputs);
        let outputs = (case.build)(&mut graph, dims, &vars);
        let mut calls = positions(&graph, pass);
        let mut seeds = Vec::new();
        if calls.is_empty() && case.differentiable {
            seeds = cotangents(&mut graph, &outputs);
            graph.backward_from(&seeds);
            calls = positions(&graph, pass);
        }
        if calls.is_empty() {
            return Ok(None);
        }
        let flops = (case.bench.flops)(pass.name, dims, &inputs);
        let bytes = (case.bench.bytes)(pass.name, dims, &inputs);
        let bytes = bytes.unwrap_or_else(|| bound_bytes(&graph, &calls));
        let mut inputs: Vec<_> = vars.into_iter().zip(inputs).collect();
        for (_, seed) in seeds {
            inputs.push((seed, Array::normal("cotangent", graph.shape(seed), rng)));
        }
        let options = ProgramOptions { reuse: Reuse::None, poison: false, checks: Checks::Off };
        let program = Program::with_options(gpu, graph, &Store::new(gpu), options)?;
        upload(&program, inputs.iter().map(|(var, array)| (*var, array)));
        program.run();
        gpu.wait()?;
        Ok(Some(Self { program, calls, flops, bytes }))
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
