//! A block of samples of every comparison of a benchmark, in a process of its own.
//!
//! Where code, stacks and buffers lie in memory is fixed for a process, and it shifts a kernel's time
//! by about 1 %, while samples of one process agree better than that. An interval from one process
//! therefore says too little about the next run. With a process for each block (the leading process
//! times the first), and the blocks of all comparisons in turns, the interval holds most of what
//! differs between runs.

use crate::bench::candidate::{candidates, find_case, find_passes};
use crate::bench::clock::Clock;
use crate::bench::comparison::{Block, BlockRequest, time_block};
use crate::bench::op::Request;
use crate::bench::report::dims;
use crate::bench::workload::Workload;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use std::rc::Rc;

/// Times the blocks that `wanted` names, part of the benchmark `request`. `progress` hears what comes
/// next.
///
/// # Errors
/// A comparison that does not fit the request, a device without room or lost.
pub fn run(
    gpu: &Rc<Gpu>,
    request: &Request,
    wanted: &BlockRequest,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Block>> {
    let case = find_case(&request.op)?;
    let clock = Clock::again(gpu, wanted.timestamps)?;
    let mut blocks = Vec::new();
    for entry in &wanted.comparisons {
        let pass = find_passes(&case, Some(&entry.pass))?[0];
        let place = format!("{} {}", pass.full_name(), dims(&entry.shape));
        progress(&format!("block: inputs of {place}"));
        let workload = Workload::build(
            gpu,
            &case,
            pass,
            &(case.bench.case_shape)(pass.name, &entry.shape),
            wanted.seed,
        )?;
        let workload =
            workload.ok_or_else(|| Error::Mismatch(format!("{place} does not occur")))?;
        let all = candidates(gpu, request, pass)?;
        let mut replays = Vec::new();
        for name in &entry.kernels {
            let kernel = all.iter().find(|c| c.label == *name);
            let kernel = kernel.ok_or_else(|| Error::Mismatch(format!("{place} has no {name}")))?;
            let replacement = kernel.replacement;
            replays.push(workload.program.replay(
                &workload.calls,
                replacement.variant,
                replacement.checks,
            )?);
        }
        // Many drivers compile when a kernel first runs. Quick ones warm the device up as well.
        for ((replay, name), &iterations) in
            replays.iter().zip(&entry.kernels).zip(&entry.size.iterations)
        {
            progress(&format!("block: warm-up of {name} at {place}"));
            workload.program.time(replay, iterations, None)?;
        }
        let mut alive = || progress(&format!("block: {place}"));
        alive();
        let replays: Vec<_> = replays.iter().collect();
        let (size, backwards) = (&entry.size, entry.backwards);
        blocks.push(time_block(&workload.program, &replays, &clock, size, backwards, &mut alive)?);
    }
    Ok(blocks)
}
