//! Medians, spreads and intervals that assume nothing about how times are distributed.

use serde::{Deserialize, Serialize};

/// What samples taken in blocks say.
///
/// Samples that follow each other share what the machine does just then and where the buffers lie,
/// so a hundred of them are not a hundred findings. Blocks have buffers of their own, and each
/// counts as one finding: its median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Samples of all blocks.
    pub n: usize,
    /// The middle one of the blocks' medians.
    pub median: f64,
    /// Median distance of the samples from the median.
    pub mad: f64,
    /// 5 of 100 samples are below.
    pub p5: f64,
    /// 5 of 100 samples are above.
    pub p95: f64,
    /// Lower end of the interval of the median, see [`interval_ranks`] and [`DRIFT`].
    pub low: f64,
    /// Upper end of the interval of the median.
    pub high: f64,
}

impl Summary {
    /// Sums up blocks of samples, which need not be sorted.
    ///
    /// # Panics
    /// When there are none, or none in one of them.
    pub fn of(blocks: &[Vec<f64>]) -> Self {
        assert!(!blocks.is_empty(), "a summary of no samples");
        let middle = |block: &Vec<f64>| quantile(&sorted(block), 0.5);
        let medians = sorted(&blocks.iter().map(middle).collect::<Vec<_>>());
        let median = quantile(&medians, 0.5);
        let (low, high) = interval_ranks(medians.len());
        let samples = sorted(&blocks.concat());
        let distances: Vec<f64> = samples.iter().map(|v| (v - median).abs()).collect();
        Self {
            n: samples.len(),
            median,
            mad: quantile(&sorted(&distances), 0.5),
            p5: quantile(&samples, 0.05),
            p95: quantile(&samples, 0.95),
            low: (1.0 - DRIFT) * medians[low],
            high: (1.0 + DRIFT) * medians[high],
        }
    }

    /// How far the interval reaches from the median, as a part of it.
    pub fn uncertainty(&self) -> f64 {
        (self.high - self.median).max(self.median - self.low) / self.median
    }
}

/// Fewest blocks for which an interval of 99 % exists.
pub const FEWEST: usize = 8;

/// What changes between two runs and not within one (clocks, neighbours, seconds to minutes apart)
/// moved medians by up to this part beyond their intervals on a shared machine: of 42 pairs of runs
/// three disagreed, by 0.6 to 0.7 %. Every interval is wider by it.
pub const DRIFT: f64 = 0.01;

/// The probability that the true median lies below a 99 % interval, and the same above it. Another
/// run's median has an error of its own as large, and lies within in 19 runs out of 20; intervals of
/// 95 % would miss one in eight.
const TAIL: f64 = 0.005;

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value below which a part `q` of the sorted samples lies, between two of them in proportion.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, part) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + part * (sorted[above] - sorted[below])
}

/// Positions of the two sorted samples between which the median of the distribution lies with at
/// least 99 %.
///
/// The number of samples below the true median is binomial with p = 1/2, whatever the
/// distribution, so the samples at ranks k and n - 1 - k enclose it with probability
/// 1 - 2 P(B(n, 1/2) <= k). Fewer than [`FEWEST`] samples give all they have, which is less than
/// 99 %.
pub fn interval_ranks(n: usize) -> (usize, usize) {
    let mut k = 0;
    let mut term = 0.5f64.powi(n as i32); // P(B = 0)
    let mut below = term;
    // Beyond 1,000 samples the first terms vanish; the benchmark stops long before.
    loop {
        term *= (n - k) as f64 / (k + 1) as f64;
        below += term;
        if below > TAIL || k + 1 > (n - 1) / 2 {
            break;
        }
        k += 1;
    }
    (k, n - 1 - k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn stats_of_known_samples() {
        let s = Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0, 100.0, 6.0].map(|v| vec![v]));
        assert_eq!((s.n, s.median, s.mad), (7, 4.0, 2.0));
        assert_eq!((s.low, s.high), (0.99, 101.0));
        assert!((s.p95 - (6.0 + 0.7 * 94.0)).abs() < 1e-9, "{}", s.p95);
        assert!((s.p5 - 1.3).abs() < 1e-9, "{}", s.p5);
        assert_eq!(s.uncertainty(), 24.25);
    }

    #[test]
    fn stats_a_block_counts_once_however_many_samples_it_has() {
        let blocks = [vec![9.0; 50], vec![2.0, 1.0, 3.0], vec![4.0; 3], vec![6.0], vec![5.0; 7]];
        let s = Summary::of(&blocks);
        // The medians are 2, 4, 5, 6 and 9.
        assert_eq!((s.n, s.median, s.p95), (64, 5.0, 9.0));
        assert_eq!((s.low, s.high), (0.99 * 2.0, 1.01 * 9.0));
    }

    /// Ranks of the usual tables (counted from zero): n = 8 gives the extremes, n = 20 the 4th and
    /// 17th, n = 30 the 8th and 23rd, n = 100 the 37th and 64th.
    #[test]
    fn stats_interval_ranks_are_those_of_the_tables() {
        assert_eq!(interval_ranks(1), (0, 0));
        assert_eq!(interval_ranks(2), (0, 1));
        assert_eq!(interval_ranks(8), (0, 7));
        assert_eq!(interval_ranks(12), (1, 10));
        assert_eq!(interval_ranks(20), (3, 16));
        assert_eq!(interval_ranks(30), (7, 22));
        assert_eq!(interval_ranks(100), (36, 63));
    }

    /// What a run prints, and how often another run's median lies in it.
    #[test]
    fn stats_intervals_hold_the_median_of_another_run_19_times_of_20() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (mut true_median, mut other_median) = (0, 0);
        let mut run = || {
            // Skewed, as times are: the square of a uniform has its median at 1/4. What a block
            // shares moves all its samples.
            let mut block = || {
                let shared = rng.random::<f64>().powi(2);
                (0..5).map(|_| shared + 0.02 * rng.random::<f64>() - 0.01).collect()
            };
            Summary::of(&(0..15).map(|_| block()).collect::<Vec<_>>())
        };
        for _ in 0..2000 {
            let (a, b) = (run(), run());
            true_median += usize::from(a.low <= 0.25 && 0.25 <= a.high);
            other_median += usize::from(a.low <= b.median && b.median <= a.high);
        }
        assert!((1970..2000).contains(&true_median), "{true_median} of 2000");
        assert!((1860..1980).contains(&other_median), "{other_median} of 2000");
    }
}
