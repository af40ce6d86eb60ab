//! Which dispatches are submitted together. A driver's watchdog ends a submission that takes too long
//! (2 s on Windows), and the device is lost with it; each submission costs the host some time too.

use std::ops::Range;
use std::sync::Arc;

/// Dispatches of a submission at most: many enough to hide the cost of one.
const MOST: usize = 48;
/// Seconds that a submission should take at most. Work grows with what the rows hold, so it lies far
/// below the watchdogs'.
const LONGEST: f64 = 0.1;

/// Dispatches that are submitted together.
pub(super) struct Submission {
    /// Their positions.
    pub dispatches: Range<usize>,
    /// The operations in it, in words.
    pub what: Arc<str>,
}

/// Splits dispatches that take `seconds` each, in their order. One that takes longer than the bound
/// is alone. `label` names the kernel of a dispatch.
pub(super) fn split(seconds: &[f64], label: impl Fn(usize) -> String) -> Vec<Submission> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut sum = 0.0;
    for (i, &time) in seconds.iter().enumerate() {
        sum += time;
        match ranges.last_mut() {
            Some(last) if last.len() < MOST && sum <= LONGEST => last.end = i + 1,
            _ => {
                ranges.push(i..i + 1);
                sum = time;
            }
        }
    }
    let submission = |dispatches: Range<usize>| {
        let what = describe(&dispatches, seconds.len(), &label).into();
        Submission { dispatches, what }
    };
    ranges.into_iter().map(submission).collect()
}

/// "dispatches 1 to 3 of 9: matmul.nt_11 (2), add.forward_2"
fn describe(range: &Range<usize>, of: usize, label: &dyn Fn(usize) -> String) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for name in range.clone().map(label) {
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let names = counts.into_iter().map(|(name, count)| match count {
        1 => name,
        _ => format!("{name} ({count})"),
    });
    let names = names.collect::<Vec<_>>().join(", ");
    format!("dispatches {} to {} of {of}: {names}", range.start + 1, range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(seconds: &[f64]) -> Vec<Range<usize>> {
        split(seconds, |_| String::new()).into_iter().map(|s| s.dispatches).collect()
    }

    #[test]
    fn every_dispatch_is_in_one_submission_and_none_takes_long() {
        assert!(ranges(&[]).is_empty());
        assert_eq!(ranges(&[0.0; 100]), [0..48, 48..96, 96..100]);
        // A long one is alone; what follows begins anew.
        assert_eq!(ranges(&[0.01, 5.0, 0.06, 0.03, 0.02, 0.01]), [0..1, 1..2, 2..4, 4..6]);
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let n = rng.usize(0..300);
            let seconds: Vec<f64> = (0..n).map(|_| 0.2 * rng.f64().powi(6)).collect();
            let found = ranges(&seconds);
            assert_eq!(
                found.iter().flat_map(Clone::clone).collect::<Vec<_>>(),
                (0..n).collect::<Vec<_>>()
            );
            for range in found {
                let sum: f64 = seconds[range.clone()].iter().sum();
                assert!(range.len() == 1 || (sum <= LONGEST && range.len() <= MOST), "{range:?}");
            }
        }
    }

    #[test]
    fn a_submission_is_told_by_its_kernels() {
        let names = ["a", "b", "a", "c"];
        let found = split(&[0.0, 0.0, 0.0, 1.0], |i| names[i].to_owned());
        assert_eq!(&*found[0].what, "dispatches 1 to 3 of 4: a (2), b");
        assert_eq!(&*found[1].what, "dispatches 4 to 4 of 4: c");
    }
}
