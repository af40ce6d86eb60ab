//! The learning rate of every step.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Straight down to 0.
    Linear,
    /// Half a cosine down to 0.
    Cosine,
    /// Stays where it is.
    Constant,
}

impl Schedule {
    /// The learning rate of the 0-based step `k` of `total`, of which the first `warmup` rise:
    ///
    /// ```text
    /// k < W:     peak k / W                 (the first step has learning rate 0)
    /// constant:  peak
    /// linear:    peak (N - k) / (N - W)
    /// cosine:    peak (1 + cos(pi (k - W) / (N - W))) / 2
    /// ```
    ///
    /// This is transformers' schedule, so that curves can be laid over TRL's. Past the end the
    /// falling schedules stay at 0.
    pub fn learning_rate(self, peak: f64, step: u64, warmup: u64, total: u64) -> f64 {
        if step < warmup {
            return peak * step as f64 / warmup as f64;
        }
        // No step falls when the warm-up takes the whole run.
        let falling = total.saturating_sub(warmup).max(1) as f64;
        let left = total.saturating_sub(step) as f64;
        match self {
            Self::Constant => peak,
            Self::Linear => peak * (left / falling),
            Self::Cosine if left == 0.0 => 0.0,
            Self::Cosine => {
                let progress = (step - warmup) as f64 / falling;
                peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule::{self, *};

    fn curve(schedule: Schedule, warmup: u64, total: u64) -> Vec<f64> {
        (0..=total).map(|k| schedule.learning_rate(2.0, k, warmup, total)).collect()
    }

    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-15, "{got:?} {want:?}");
        }
    }

    #[test]
    fn small_curves_by_hand() {
        close(&curve(Constant, 0, 3), &[2.0, 2.0, 2.0, 2.0]);
        close(&curve(Constant, 2, 3), &[0.0, 1.0, 2.0, 2.0]);
        close(&curve(Linear, 0, 4), &[2.0, 1.5, 1.0, 0.5, 0.0]);
        close(&curve(Linear, 2, 6), &[0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
        let s = 0.5f64.sqrt();
        close(&curve(Cosine, 0, 4), &[2.0, 1.0 + s, 1.0, 1.0 - s, 0.0]);
        close(&curve(Cosine, 1, 3), &[0.0, 2.0, 1.0, 0.0]);
    }

    #[test]
    fn degenerate_lengths_stay_finite() {
        for schedule in [Linear, Cosine, Constant] {
            for (warmup, total) in [(0, 0), (0, 1), (1, 1), (5, 2)] {
                for k in 0..10 {
                    let lr = schedule.learning_rate(1.0, k, warmup, total);
                    assert!((0.0..=1.0).contains(&lr), "{schedule:?} {k} {warmup} {total}: {lr}");
                }
            }
        }
        assert_eq!(Linear.learning_rate(1.0, 9, 2, 6), 0.0);
        assert_eq!(Cosine.learning_rate(1.0, 9, 2, 6), 0.0);
    }

    /// A recorded TRL run: linear, 2 of 20 steps warm-up, peak 1e-3 (tests/golden/schedule.json).
    #[test]
    fn a_recorded_run() {
        let text = include_str!("../../tests/golden/schedule.json");
        let recorded: Vec<f64> = serde_json::from_str(text).unwrap();
        assert_eq!(recorded.len(), 20);
        for (k, want) in recorded.iter().enumerate() {
            let got = Linear.learning_rate(1e-3, k as u64, 2, 20);
            assert!((got - want).abs() <= 1e-18, "step {k}: {got} {want}");
        }
    }
}
