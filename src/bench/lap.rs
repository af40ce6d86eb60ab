//! A block of samples of every race of a benchmark, in a process of its own.
//!
//! A process keeps the place of its code, stacks and buffers in memory for as long as it lives, and
//! with it a time for a kernel that may be a per cent off the next process' while its own samples
//! agree better than that. An interval from one process therefore says too little about the next run.
//! With a process a block (the first is timed by the one that leads), and the blocks of all races in
//! turns, the interval holds most of what differs between runs.

use crate::bench::clock::Clock;
use crate::bench::op::{Request, contenders, find_case, find_passes};
use crate::bench::race::{Block, Lap, block};
use crate::bench::report::dims;
use crate::bench::track::Track;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use std::rc::Rc;

/// Times a block of each race of `lap`, part of the benchmark `request`. `progress` hears what comes
/// next.
///
/// # Errors
/// A race that does not fit the request, a device without room or lost.
pub fn run(
    gpu: &Rc<Gpu>,
    request: &Request,
    lap: &Lap,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Block>> {
    let case = find_case(&request.op)?;
    let clock = Clock::again(gpu, lap.timestamps)?;
    let mut blocks = Vec::new();
    for entry in &lap.races {
        let pass = find_passes(&case, Some(&entry.pass))?[0];
        let place = format!("{} {}", pass.full_name(), dims(&entry.shape));
        progress(&format!("block: inputs of {place}"));
        let track = Track::build(
            gpu,
            &case,
            pass,
            &(case.bench.case_shape)(pass.name, &entry.shape),
            lap.seed,
        )?;
        let track = track.ok_or_else(|| Error::Mismatch(format!("{place} does not occur")))?;
        let field = contenders(gpu, request, pass)?;
        let mut replays = Vec::new();
        for name in &entry.kernels {
            let kernel = field.iter().find(|c| c.label == *name);
            let kernel = kernel.ok_or_else(|| Error::Mismatch(format!("{place} has no {name}")))?;
            let plant = kernel.plant;
            replays.push(track.step.replay(&track.calls, plant.variant, plant.checks)?);
        }
        // Many drivers compile when a kernel first runs. Quick ones warm the device up as well.
        for ((replay, name), &repeats) in
            replays.iter().zip(&entry.kernels).zip(&entry.pace.repeats)
        {
            progress(&format!("block: warm-up of {name} at {place}"));
            track.step.time(replay, repeats, None)?;
        }
        let mut alive = || progress(&format!("block: {place}"));
        alive();
        let replays: Vec<_> = replays.iter().collect();
        let (pace, backwards) = (&entry.pace, entry.backwards);
        blocks.push(block(&track.step, &replays, &clock, pace, backwards, &mut alive)?);
    }
    Ok(blocks)
}
