//! Kernels timed in turns on the same buffers.
//!
//! Each round takes one sample of every kernel, and every other round in the opposite order, so
//! that heat, clocks and other work on the machine meet all of them alike. A sample repeats the
//! kernel until it is long enough for the clock. Rounds come in blocks, and intervals are taken over
//! blocks ([`Summary`] says why).

use crate::bench::clock::Clock;
use crate::bench::stats::{FEWEST, Summary};
use crate::error::Result;
use crate::program::{Program, Replay};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Enough when the interval of every median reaches no further than this part of it.
    pub uncertainty: f64,
    /// Seconds for all kernels of a comparison together, warm-up apart.
    pub seconds: f64,
    /// Seconds a sample should take.
    pub sample: f64,
    /// A kernel whose run takes more seconds than this is left out: it would use up the time of
    /// all others, and the device counts as lost after a run of two minutes.
    pub run: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { uncertainty: 0.03, seconds: 5.0, sample: 0.02, run: 20.0 }
    }
}

/// How a block of a comparison is timed, the same in all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockSize {
    /// Runs in a sample, for each kernel.
    pub iterations: Vec<usize>,
    /// Samples of each kernel.
    pub rounds: usize,
}

/// Samples of each kernel: seconds of one run, in the order they were taken.
pub type Block = Vec<Vec<f64>>;

/// What another process is to time, by [`block::run`](crate::bench::block::run).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockRequest {
    /// Seed of the inputs.
    pub seed: u64,
    /// Read the device's timestamps, else the wall clock.
    pub timestamps: bool,
    /// A block of each of these.
    pub comparisons: Vec<BlockOf>,
}

/// A comparison as another process can go on with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockOf {
    /// The pass, without its operation.
    pub pass: String,
    /// The shape's numbers.
    pub shape: Vec<usize>,
    /// Number and idea of each kernel, or a file's name.
    pub kernels: Vec<String>,
    /// Iterations and rounds.
    pub size: BlockSize,
    /// Start with the last kernel.
    pub backwards: bool,
}

/// A comparison should have this many blocks when its time is over: enough that three that met other
/// work lie outside the interval.
const BLOCKS: f64 = 18.0;
/// Fewest blocks after which a comparison that is certain may end before its time. The first few may
/// agree because all of them met the same state of the machine.
const EARLIEST: usize = 12;
/// Fewest seconds after which the intervals are believed. What else a machine does comes and goes
/// in fractions of a second: a shorter comparison would see one state of it only.
const SECONDS: f64 = 1.0;
/// Most blocks.
const MOST_BLOCKS: usize = 200;
/// Most iterations in a sample.
const MOST_ITERATIONS: usize = 1 << 16;
/// A comparison of very slow kernels may outlast its time this often to come by an interval at all.
const PATIENCE: f64 = 4.0;

/// Kernels timed against each other, a block at a time.
#[derive(Debug)]
pub struct Comparison {
    limits: Limits,
    /// How each block is timed.
    pub size: BlockSize,
    /// Seconds the first run of each kernel took longer than the second: many drivers compile there.
    pub first: Vec<f64>,
    /// Blocks of samples of each kernel.
    pub blocks: Vec<Vec<Vec<f64>>>,
    /// Seconds that all samples took.
    seconds: f64,
}

impl Comparison {
    /// Finds the size of blocks for `replays`, given with the seconds of their first run, and times the first
    /// block.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn start(
        program: &Program,
        replays: &[(&Replay, f64)],
        clock: &Clock,
        limits: Limits,
    ) -> Result<Self> {
        let (mut first, mut iterations) = (Vec::new(), Vec::new());
        for &(replay, seconds) in replays {
            let second = program.time(replay, 1, None)?.wall;
            first.push((seconds - second).max(0.0));
            iterations.push(warm_up(program, replay, clock, limits.sample)?);
        }
        let blocks = vec![Vec::new(); replays.len()];
        let mut comparison =
            Self { limits, size: BlockSize { iterations, rounds: 1 }, first, blocks, seconds: 0.0 };
        let replays: Vec<_> = replays.iter().map(|r| r.0).collect();
        let mut all = vec![Vec::new(); replays.len()];
        // Rounds until a block is as long as it should be.
        let mut rounds = 0;
        let start = Instant::now();
        while rounds == 0 || start.elapsed().as_secs_f64() < limits.seconds / BLOCKS {
            let round = time_block(
                program,
                &replays,
                clock,
                &comparison.size,
                rounds % 2 == 1,
                &mut || (),
            )?;
            all.iter_mut().zip(round).for_each(|(all, new)| all.extend(new));
            rounds += 1;
        }
        comparison.size.rounds = rounds;
        comparison.add(all);
        Ok(comparison)
    }

    /// Takes in another block.
    pub fn add(&mut self, block: Block) {
        for ((blocks, samples), iterations) in
            self.blocks.iter_mut().zip(block).zip(&self.size.iterations)
        {
            self.seconds += samples.iter().sum::<f64>() * *iterations as f64;
            blocks.push(samples);
        }
    }

    /// True if the next block should start with the last kernel.
    pub fn backwards(&self) -> bool {
        let blocks = self.blocks.first().map_or(0, Vec::len);
        blocks * self.size.rounds % 2 == 1
    }

    /// Why the comparison is over, in words for a table; None as long as it is not.
    pub fn over(&self) -> Option<String> {
        let Limits { uncertainty, seconds, .. } = self.limits;
        let blocks = self.blocks.first().map_or(MOST_BLOCKS, Vec::len);
        let worst = self.blocks.iter().map(|blocks| Summary::of(blocks).uncertainty());
        let certain = worst.fold(0.0, f64::max) <= uncertainty;
        if blocks >= EARLIEST && certain && self.seconds >= SECONDS.min(seconds) {
            return Some(format!("within {:.1} %", 100.0 * uncertainty));
        }
        if blocks >= FEWEST && self.seconds >= seconds {
            return Some(format!("time limit of {seconds} s"));
        }
        if self.seconds > PATIENCE * seconds {
            return Some(format!("time limit of {seconds} s; too few blocks for 99 %"));
        }
        (blocks >= MOST_BLOCKS).then(|| format!("{MOST_BLOCKS} blocks"))
    }
}

/// A block of samples of `replays`, which must be warm. `alive` is called about every second, so that
/// whoever watches this process knows that it is at work.
///
/// # Errors
/// When the device is lost.
pub fn time_block(
    program: &Program,
    replays: &[&Replay],
    clock: &Clock,
    size: &BlockSize,
    backwards: bool,
    alive: &mut dyn FnMut(),
) -> Result<Block> {
    let mut told = Instant::now();
    let mut samples = vec![Vec::new(); replays.len()];
    for round in 0..size.rounds {
        let from_the_end = backwards != (round % 2 == 1);
        for turn in 0..replays.len() {
            let i = if from_the_end { replays.len() - 1 - turn } else { turn };
            let iterations = size.iterations[i];
            samples[i].push(clock.time(program, replays[i], iterations)? / iterations as f64);
            // Not after each: that would wake the other process all the time.
            if told.elapsed().as_secs_f64() > 1.0 {
                alive();
                told = Instant::now();
            }
        }
    }
    Ok(samples)
}

/// A whole comparison on the buffers of one step, of replays with the seconds of their first run.
///
/// # Errors
/// When the device is lost.
pub fn compare_kernels(
    program: &Program,
    replays: &[(&Replay, f64)],
    clock: &Clock,
    limits: Limits,
) -> Result<Comparison> {
    let mut comparison = Comparison::start(program, replays, clock, limits)?;
    let replays: Vec<_> = replays.iter().map(|r| r.0).collect();
    while comparison.over().is_none() {
        let block = time_block(
            program,
            &replays,
            clock,
            &comparison.size,
            comparison.backwards(),
            &mut || (),
        )?;
        comparison.add(block);
    }
    Ok(comparison)
}

/// Runs a kernel until it is warm; gives the number of iterations that fill a sample.
fn warm_up(program: &Program, replay: &Replay, clock: &Clock, sample: f64) -> Result<usize> {
    let mut iterations = 1usize;
    let mut one = clock.time(program, replay, 1)?;
    for _ in 0..6 {
        let wanted = ((sample / one.max(1e-9)).ceil() as usize).clamp(1, MOST_ITERATIONS);
        // The first estimates hold what a submission costs, so they are too small by far for
        // quick kernels: grow until it no longer matters.
        if wanted <= iterations + iterations / 4 {
            break;
        }
        iterations = wanted.min(16 * iterations);
        one = clock.time(program, replay, iterations)? / iterations as f64;
    }
    Ok(iterations)
}
