//! Kernels timed in turns on the same buffers.
//!
//! Each round takes one sample of every kernel, and every other round in the opposite order, so
//! that heat, clocks and other work on the machine meet all of them alike. A sample repeats the
//! kernel until it is long enough for the clock.

use crate::bench::clock::Clock;
use crate::bench::stats::{FEWEST, Summary};
use crate::error::Result;
use crate::step::{Replay, Step};
use std::time::Instant;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Enough when the interval of every median reaches no further than this part of it.
    pub uncertainty: f64,
    /// Seconds for all kernels of a race together, warm-up apart.
    pub seconds: f64,
    /// Seconds a sample should take.
    pub sample: f64,
    /// A kernel whose run takes more seconds than this is left out: it would use up the time of
    /// all others, and the device counts as lost after a run of two minutes.
    pub run: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { uncertainty: 0.02, seconds: 5.0, sample: 0.02, run: 20.0 }
    }
}

/// What a race found about one kernel.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Seconds of one run, a value for each sample.
    pub samples: Vec<f64>,
    /// Runs in a sample.
    pub repeats: usize,
    /// Seconds the first run took longer than the second: many drivers compile there.
    pub first: f64,
}

/// Fewest rounds and seconds after which the intervals are believed. What else a machine does
/// comes and goes in fractions of a second: a shorter race would see one state of it only.
const ROUNDS: usize = 10;
const SECONDS: f64 = 1.0;
/// Most rounds.
const MOST_ROUNDS: usize = 500;
/// Most repeats of a run in a sample.
const MOST_REPEATS: usize = 1 << 16;
/// A race of very slow kernels may outlast its time this often to come by an interval at all.
const PATIENCE: f64 = 4.0;

/// Times replays, given with the seconds of their first run, against each other. Also says why it
/// stopped, in words for a table.
///
/// # Errors
/// When the device is lost.
pub fn race(
    step: &Step,
    replays: &[(&Replay, f64)],
    clock: &Clock,
    limits: Limits,
) -> Result<(Vec<Timing>, String)> {
    let mut timings = Vec::with_capacity(replays.len());
    for &(replay, first) in replays {
        timings.push(warm_up(step, replay, first, clock, limits.sample)?);
    }
    let start = Instant::now();
    let order: Vec<usize> = (0..replays.len()).collect();
    for round in 1..=MOST_ROUNDS {
        let turn = |i: usize| if round % 2 == 0 { order.len() - 1 - i } else { i };
        for i in (0..order.len()).map(turn) {
            let repeats = timings[i].repeats;
            let seconds = clock.time(step, replays[i].0, repeats)?;
            timings[i].samples.push(seconds / repeats as f64);
        }
        let worst =
            timings.iter().map(|t| Summary::of(&t.samples).uncertainty()).fold(0.0, f64::max);
        let elapsed = start.elapsed().as_secs_f64();
        let seen = round >= ROUNDS && elapsed >= SECONDS.min(limits.seconds);
        if seen && worst <= limits.uncertainty {
            return Ok((timings, format!("within {:.1} %", 100.0 * limits.uncertainty)));
        }
        if round >= FEWEST && elapsed > limits.seconds {
            return Ok((timings, format!("time limit of {} s", limits.seconds)));
        }
        if elapsed > PATIENCE * limits.seconds {
            let why = format!("time limit of {} s; too few samples for 95 %", limits.seconds);
            return Ok((timings, why));
        }
    }
    Ok((timings, format!("{MOST_ROUNDS} rounds")))
}

/// Runs a kernel until it is warm and the number of repeats that fill a sample is known.
fn warm_up(step: &Step, replay: &Replay, first: f64, clock: &Clock, sample: f64) -> Result<Timing> {
    let second = step.time(replay, 1, None)?.wall;
    let mut repeats = 1usize;
    let mut one = clock.time(step, replay, 1)?;
    for _ in 0..6 {
        let wanted = ((sample / one.max(1e-9)).ceil() as usize).clamp(1, MOST_REPEATS);
        // The first estimates hold what a submission costs, so they are too small by far for
        // quick kernels: grow until it no longer matters.
        if wanted <= repeats + repeats / 4 {
            break;
        }
        repeats = wanted.min(16 * repeats);
        one = clock.time(step, replay, repeats)? / repeats as f64;
    }
    Ok(Timing { samples: Vec::new(), repeats, first: (first - second).max(0.0) })
}
