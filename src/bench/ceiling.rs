//! What the adapter itself can do: multiply-adds and bytes per second, measured.

use crate::bench::clock::Clock;
use crate::error::Result;
use crate::gpu::{Checks, Gpu};
use crate::graph::{DType, Graph};
use crate::kernel::Pass;
use crate::program::{Program, Replay, Store};
use crate::variant;
use serde::{Deserialize, Serialize};
use std::rc::Rc;

static FMA: Pass = Pass {
    op: "bench",
    name: "fma",
    variants: &[variant!("bench/fma_1_chain.wgsl", tile: [64, 1, 1])],
};

static COPY: Pass = Pass {
    op: "bench",
    name: "copy",
    variants: &[variant!("bench/copy_1_vec4.wgsl", tile: [256, 1, 1])],
};

/// The kernels of this module, for the tests that look at every shader.
pub static PASSES: &[&Pass] = &[&FMA, &COPY];

/// The most the adapter was seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Floating-point operations per second in chains of fused multiply-adds.
    pub flops: f64,
    /// Bytes per second, read and written, of a copy.
    pub bytes: f64,
}

/// Multiply-adds of one invocation and round of the kernel.
const PER_ROUND: usize = 96;
const ROUNDS: usize = 170;
/// Samples of each; the fastest counts.
const SAMPLES: usize = 9;

/// A replay of one of the kernels, its step, and operations or bytes of one run.
struct Probe {
    program: Program,
    replay: Replay,
    work: f64,
}

fn fma(gpu: &Rc<Gpu>) -> Result<Probe> {
    let n = if gpu.is_software() { 1 << 12 } else { 1 << 20 };
    let mut g = Graph::new(gpu.target());
    // A fixed point at 1 that chains approach, so that nothing grows or becomes subnormal.
    let x = g.constant("factor and summand", &[2], &[0.5, 0.5]);
    let y = g.temp("y", &[n]);
    g.call(&FMA, &[("N", n.into()), ("ROUNDS", ROUNDS.into())], &[x], &[y], [n, 1, 1]);
    probe(gpu, g, &FMA, (2 * PER_ROUND * ROUNDS * n) as f64)
}

fn copy(gpu: &Rc<Gpu>) -> Result<Probe> {
    let most = if gpu.is_software() { 32 << 20 } else { 256 << 20 };
    let bytes = gpu.target().binding_bytes.min(most) / 16 * 16;
    let n = (bytes / 16) as usize;
    let mut g = Graph::new(gpu.target());
    let x = g.input("x", &[n, 4], DType::F32);
    let y = g.temp("y", &[n, 4]);
    g.call(&COPY, &[("N", n.into())], &[x], &[y], [n, 1, 1]);
    probe(gpu, g, &COPY, 2.0 * bytes as f64)
}

fn probe(gpu: &Rc<Gpu>, graph: Graph, pass: &'static Pass, work: f64) -> Result<Probe> {
    let program = Program::new(gpu, graph, &Store::new(gpu))?;
    let replay = program.replay(&[0], &pass.variants[0], Checks::Off)?;
    Ok(Probe { program, replay, work })
}

impl Probe {
    /// Work per second of the fastest sample.
    fn best(&self, clock: &Clock) -> Result<f64> {
        let mut iterations = 1;
        while clock.time(&self.program, &self.replay, iterations)? < 0.02 && iterations < 1 << 12 {
            iterations *= 2;
        }
        let mut best = f64::INFINITY;
        for _ in 0..SAMPLES {
            best =
                best.min(clock.time(&self.program, &self.replay, iterations)? / iterations as f64);
        }
        Ok(self.work / best)
    }
}

/// Chooses the clock and measures both ceilings with it.
///
/// # Errors
/// A device without room or lost.
pub fn measure(gpu: &Rc<Gpu>) -> Result<(Clock, Ceilings)> {
    let fma = fma(gpu)?;
    let clock = Clock::choose(gpu, &fma.program, &fma.replay)?;
    let flops = fma.best(&clock)?;
    let bytes = copy(gpu)?.best(&clock)?;
    Ok((clock, Ceilings { flops, bytes }))
}
