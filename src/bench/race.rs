//! Kernels timed in turns on the same buffers.
//!
//! Each round takes one sample of every kernel, and every other round in the opposite order, so
//! that heat, clocks and other work on the machine meet all of them alike. A sample repeats the
//! kernel until it is long enough for the clock. Rounds come in blocks, and intervals are taken over
//! blocks ([`Summary`] says why).

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
    /// Seconds of one run: blocks of samples, in the order they were taken.
    pub blocks: Vec<Vec<f64>>,
    /// Runs in a sample.
    pub repeats: usize,
    /// Seconds the first run took longer than the second: many drivers compile there.
    pub first: f64,
}

/// A race should have this many blocks when its time is over: enough that one or two that met other
/// work lie outside the interval.
const BLOCKS: f64 = 12.0;
/// Fewest seconds after which the intervals are believed. What else a machine does comes and goes
/// in fractions of a second: a shorter race would see one state of it only.
const SECONDS: f64 = 1.0;
/// Most blocks.
const MOST_BLOCKS: usize = 200;
/// Most repeats of a run in a sample.
const MOST_REPEATS: usize = 1 << 16;
/// A race of very slow kernels may outlast its time this often to come by an interval at all.
const PATIENCE: f64 = 4.0;

/// Kernels timed against each other, a block of rounds at a time.
///
/// Where a kernel's buffers lie in memory changes its time by per cents, and stays for as long as
/// they do. So whoever can gives every block fresh ones.
pub struct Race<'a> {
    clock: &'a Clock,
    limits: Limits,
    /// One for each kernel.
    pub timings: Vec<Timing>,
    /// Rounds of a block, once the first has shown how many.
    rounds: Option<usize>,
    /// All rounds so far.
    round: usize,
    seconds: f64,
}

impl<'a> Race<'a> {
    /// A race that has not begun.
    pub fn new(clock: &'a Clock, limits: Limits) -> Self {
        Self { clock, limits, timings: Vec::new(), rounds: None, round: 0, seconds: 0.0 }
    }

    /// The first block, of `replays` with the seconds of their first run. Says why the race is
    /// over, in words for a table, once it is.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn start(&mut self, step: &Step, replays: &[(&Replay, f64)]) -> Result<Option<String>> {
        for &(replay, first) in replays {
            self.timings.push(warm_up(step, replay, first, self.clock, self.limits.sample)?);
        }
        let replays: Vec<&Replay> = replays.iter().map(|r| r.0).collect();
        self.block(step, &replays)
    }

    /// Another block of the same kernels, on `step`.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn go_on(&mut self, step: &Step, replays: &[&Replay]) -> Result<Option<String>> {
        for (replay, timing) in replays.iter().zip(&self.timings) {
            // One long run warms up as it goes; a short one may meet a device that has cooled.
            if timing.repeats > 1 {
                self.clock.time(step, replay, timing.repeats)?;
            }
        }
        self.block(step, replays)
    }

    fn block(&mut self, step: &Step, replays: &[&Replay]) -> Result<Option<String>> {
        let start = Instant::now();
        self.timings.iter_mut().for_each(|t| t.blocks.push(Vec::new()));
        let mut rounds = 0;
        loop {
            let backwards = self.round % 2 == 1;
            for turn in 0..replays.len() {
                let i = if backwards { replays.len() - 1 - turn } else { turn };
                let timing = &mut self.timings[i];
                let seconds = self.clock.time(step, replays[i], timing.repeats)?;
                let block = timing.blocks.last_mut().expect("just pushed");
                block.push(seconds / timing.repeats as f64);
            }
            self.round += 1;
            rounds += 1;
            let enough = match self.rounds {
                Some(n) => rounds >= n,
                None => start.elapsed().as_secs_f64() >= self.limits.seconds / BLOCKS,
            };
            if enough {
                break;
            }
        }
        self.rounds = Some(rounds);
        self.seconds += start.elapsed().as_secs_f64();
        Ok(self.verdict())
    }

    fn verdict(&self) -> Option<String> {
        let Limits { uncertainty, seconds, .. } = self.limits;
        let blocks = self.timings.first().map_or(MOST_BLOCKS, |t| t.blocks.len());
        let worst = self.timings.iter().map(|t| Summary::of(&t.blocks).uncertainty());
        let certain = worst.fold(0.0, f64::max) <= uncertainty;
        if blocks >= FEWEST && certain && self.seconds >= SECONDS.min(seconds) {
            return Some(format!("within {:.1} %", 100.0 * uncertainty));
        }
        if blocks >= FEWEST && self.seconds >= seconds {
            return Some(format!("time limit of {seconds} s"));
        }
        if self.seconds > PATIENCE * seconds {
            return Some(format!("time limit of {seconds} s; too few blocks for 95 %"));
        }
        (blocks >= MOST_BLOCKS).then(|| format!("{MOST_BLOCKS} blocks"))
    }
}

/// A whole race on the buffers of one step, of replays with the seconds of their first run. Also
/// says why it stopped.
///
/// # Errors
/// When the device is lost.
pub fn race(
    step: &Step,
    replays: &[(&Replay, f64)],
    clock: &Clock,
    limits: Limits,
) -> Result<(Vec<Timing>, String)> {
    let mut race = Race::new(clock, limits);
    let mut over = race.start(step, replays)?;
    let replays: Vec<_> = replays.iter().map(|r| r.0).collect();
    loop {
        match over {
            Some(why) => return Ok((race.timings, why)),
            None => over = race.go_on(step, &replays)?,
        }
    }
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
    Ok(Timing { blocks: Vec::new(), repeats, first: (first - second).max(0.0) })
}
