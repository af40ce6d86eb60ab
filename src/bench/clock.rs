//! Which clock to believe: the device's own if it passes a test against the wall, else the wall's.

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Stopwatch};
use crate::program::{Program, Replay, Time};

/// The clock a benchmark reads.
pub struct Clock {
    watch: Option<Stopwatch>,
    /// Which one it is, and why if it is the wall's.
    pub name: String,
}

/// A sample this long hides what a submission costs the host.
const LONG: f64 = 0.02;

impl Clock {
    /// Wall-clock time from encoding until the device is idle.
    pub fn wall(why: &str) -> Self {
        Self { watch: None, name: format!("wall clock ({why})") }
    }

    /// The device's timestamps, if they agree with the wall clock on `replay`: above zero, not
    /// longer than the wall clock, most of it in a long sample, and twice as long for twice the
    /// work. One of three tries is enough, since other work on the machine stretches the wall's.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn choose(gpu: &Gpu, program: &Program, replay: &Replay) -> Result<Self> {
        // Good ones or not, they would come and go with the load of the machine.
        if gpu.is_software() {
            return Ok(Self::wall("a software adapter has no clock of its own"));
        }
        let Some(watch) = Stopwatch::new(gpu) else {
            return Ok(Self::wall("the adapter has no timestamps"));
        };
        let mut iterations = 1;
        while program.time(replay, iterations, None)?.wall < LONG && iterations < 1 << 16 {
            iterations *= 2;
        }
        let mut pairs = Vec::new();
        for _ in 0..3 {
            let once = program.time(replay, iterations, Some(&watch))?;
            let twice = program.time(replay, 2 * iterations, Some(&watch))?;
            pairs.push((once, twice));
        }
        let doubts: Option<Vec<String>> =
            pairs.iter().map(|(once, twice)| doubt(*once, *twice)).collect();
        match doubts.and_then(|d| d.into_iter().next()) {
            Some(why) => Ok(Self::wall(&why)),
            None => Ok(Self { watch: Some(watch), name: "GPU timestamps".into() }),
        }
    }

    /// True for the device's own.
    pub fn is_device(&self) -> bool {
        self.watch.is_some()
    }

    /// The clock that another process has chosen on this adapter.
    ///
    /// # Errors
    /// When the adapter has no timestamps now.
    pub fn again(gpu: &Gpu, timestamps: bool) -> Result<Self> {
        if !timestamps {
            return Ok(Self::wall("chosen before"));
        }
        let gone = || Error::Device("the adapter has no timestamps any more".into());
        let watch = Stopwatch::new(gpu).ok_or_else(gone)?;
        Ok(Self { watch: Some(watch), name: "GPU timestamps".into() })
    }

    /// Seconds that `iterations` runs of a replay take.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn time(&self, program: &Program, replay: &Replay, iterations: usize) -> Result<f64> {
        let time = program.time(replay, iterations, self.watch.as_ref())?;
        Ok(time.device.unwrap_or(time.wall))
    }
}

/// Why the device's time of a sample, and of one twice as long, cannot be believed.
fn doubt(once: Time, twice: Time) -> Option<String> {
    let (Some(a), Some(b)) = (once.device, twice.device) else {
        return Some("no timestamps came".into());
    };
    if !(a > 0.0 && b > 0.0) {
        return Some("the adapter's timestamps are zero".into());
    }
    if a > 1.05 * once.wall || a < 0.5 * once.wall {
        let part = 100.0 * a / once.wall;
        return Some(format!("the adapter's timestamps are {part:.0} % of the wall clock"));
    }
    // As far as the wall clock doubles too: other work on the machine disturbs both.
    let ratio = (b / a) / (twice.wall / once.wall);
    if !(0.7..1.4).contains(&ratio) {
        return Some("the adapter's timestamps do not grow with the work".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(wall: f64, device: f64) -> Time {
        Time { wall, device: Some(device) }
    }

    #[test]
    fn clock_doubts_timestamps_that_cannot_be() {
        assert_eq!(doubt(time(1.0, 0.98), time(2.0, 1.97)), None);
        for (once, twice, word) in [
            (time(1.0, 0.0), time(2.0, 0.0), "zero"),
            (time(1.0, -3.0), time(2.0, 1.9), "zero"),
            (time(1.0, 1e-4), time(2.0, 2e-4), "0 %"),
            (time(1.0, 9.0), time(2.0, 18.0), "900 %"),
            (time(1.0, 0.9), time(2.0, 0.9), "grow"),
        ] {
            let why = doubt(once, twice).unwrap();
            assert!(why.contains(word), "{why}");
        }
    }
}
