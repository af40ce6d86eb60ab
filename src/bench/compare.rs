//! Two reports side by side: what changed beyond the noise.

use crate::bench::report::{BenchReport, BenchRow, time};
use crate::error::{Error, Problem, Result};
use std::fmt::Write as _;

/// A row that both reports have.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Pass, shape and kernel.
    pub name: String,
    /// Seconds before.
    pub before: f64,
    /// Seconds after.
    pub after: f64,
    /// Change of the median as a part: 0.1 is 10 % slower.
    pub change: f64,
    /// Lower end of the change's interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The kernel's text is another one.
    pub edited: bool,
}

/// What a change is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The interval holds zero, and ends before the limit.
    Noise,
    /// The interval holds both zero and the limit: no change and a regression look alike.
    Inconclusive,
    /// Less time.
    Faster,
    /// More time, within the limit.
    Slower,
    /// More time than the limit allows.
    Regression,
}

impl Change {
    fn of(name: String, a: &BenchRow, b: &BenchRow) -> Self {
        let (before, after) = (&a.seconds, &b.seconds);
        Self {
            name,
            before: before.median,
            after: after.median,
            change: after.median / before.median - 1.0,
            // Both medians at the far ends of their intervals: wider than 99 %, which leaves room
            // for what differs between two runs and not within one.
            low: after.low / before.high - 1.0,
            high: after.high / before.low - 1.0,
            edited: a.hash != b.hash,
        }
    }

    /// The verdict with a limit given as a part.
    pub fn verdict(&self, limit: f64) -> Verdict {
        if self.low <= 0.0 && self.high > limit {
            Verdict::Inconclusive
        } else if self.low <= 0.0 && self.high >= 0.0 {
            Verdict::Noise
        } else if self.change < 0.0 {
            Verdict::Faster
        } else if self.change > limit {
            Verdict::Regression
        } else {
            Verdict::Slower
        }
    }
}

/// All rows of two reports, matched by pass, shape and kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    /// Rows of both.
    pub changes: Vec<Change>,
    /// Rows of the first only.
    pub gone: Vec<String>,
    /// Rows of the second only.
    pub new: Vec<String>,
    /// Kernels that failed the gate in the second and not in the first.
    pub broken: Vec<String>,
}

fn name(row: &BenchRow) -> String {
    format!("{} {} {}", row.pass, row.dims(), row.kernel)
}

/// Compares two reports of one adapter and driver, or of any two if `any_adapter`.
///
/// # Errors
/// Another adapter, driver, backend or clock; no row in common.
pub fn compare(a: &BenchReport, b: &BenchReport, any_adapter: bool) -> Result<Changes> {
    let mut problems = Vec::new();
    let kind = |clock: &str| clock.split(" (").next().unwrap_or_default().to_owned();
    for (what, before, after) in [
        ("adapter", a.adapter.clone(), b.adapter.clone()),
        ("driver", a.driver.clone(), b.driver.clone()),
        ("backend", a.backend.clone(), b.backend.clone()),
        ("clock", kind(&a.clock), kind(&b.clock)),
    ] {
        if before != after {
            problems.push(Problem::new(what, format!("{before} before, {after} after")));
        }
    }
    if !problems.is_empty() && !any_adapter {
        let summary =
            "the reports are not of the same conditions; --any-adapter compares them anyway";
        return Err(Error::input(summary, problems));
    }
    let (mut changes, mut gone) = (Vec::new(), Vec::new());
    for row in &a.rows {
        let name = name(row);
        match b.rows.iter().find(|r| self::name(r) == name) {
            Some(after) => changes.push(Change::of(name, row, after)),
            None => gone.push(name),
        }
    }
    let known = |n: &String| a.rows.iter().any(|r| name(r) == *n);
    let new = b.rows.iter().map(name).filter(|n| !known(n)).collect();
    if changes.is_empty() {
        return Err(Error::Mismatch("the reports have no row in common".into()));
    }
    let failed = |r: &BenchReport| -> Vec<String> {
        let bad = r.gates.iter().filter(|g| g.fault.is_some());
        bad.map(|g| format!("{} {}", g.pass, g.kernel)).collect()
    };
    let before = failed(a);
    let broken = failed(b).into_iter().filter(|n| !before.contains(n)).collect();
    Ok(Changes { changes, gone, new, broken })
}

impl Changes {
    /// Rows with this verdict under a limit given as a part.
    pub fn count(&self, verdict: Verdict, limit: f64) -> usize {
        self.changes.iter().filter(|c| c.verdict(limit) == verdict).count()
    }

    /// For the terminal.
    pub fn table(&self, limit: f64) -> String {
        let width = self.changes.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for c in &self.changes {
            let says = match c.verdict(limit) {
                Verdict::Noise => "no difference within noise",
                Verdict::Inconclusive => "inconclusive",
                Verdict::Faster => "faster",
                Verdict::Slower => "slower, within the limit",
                Verdict::Regression => "REGRESSION",
            };
            let edited = if c.edited { " (kernel changed)" } else { "" };
            let _ = writeln!(
                text,
                "{:<width$}  {:>9} -> {:>9}  {:>+7.1} % ({:+.1} .. {:+.1})  {says}{edited}",
                c.name,
                time(c.before),
                time(c.after),
                100.0 * c.change,
                100.0 * c.low,
                100.0 * c.high,
            );
        }
        for (what, names) in [
            ("only before", &self.gone),
            ("only after", &self.new),
            ("fails the gate now", &self.broken),
        ] {
            for name in names {
                let _ = writeln!(text, "{what}: {name}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::report;

    fn verdict(before: [f64; 7], after: [f64; 7]) -> Verdict {
        compare(&report(&before), &report(&after), false).unwrap().changes[0].verdict(0.05)
    }

    /// Seven samples within 1 % around `middle`.
    fn around(middle: f64) -> [f64; 7] {
        [-1.0, -0.6, -0.3, 0.0, 0.2, 0.7, 1.0].map(|p| middle * (1.0 + 0.01 * p))
    }

    #[test]
    fn compare_tells_noise_from_change() {
        assert_eq!(verdict(around(1.0), around(1.0)), Verdict::Noise);
        let close = compare(&report(&around(1.0)), &report(&around(1.01)), false).unwrap();
        assert_eq!(close.changes[0].verdict(0.1), Verdict::Noise);
        let tight = compare(&report(&around(1.0)), &report(&around(1.0)), false).unwrap();
        assert_eq!(tight.changes[0].verdict(0.001), Verdict::Inconclusive);
        assert_eq!(verdict(around(1.0), around(1.045)), Verdict::Slower);
        assert_eq!(verdict(around(1.0), around(1.2)), Verdict::Regression);
        assert_eq!(verdict(around(1.0), around(0.9)), Verdict::Faster);
        // Ten per cent slower, but so scattered that it says nothing.
        let scattered = [0.5, 0.8, 0.9, 1.1, 1.3, 1.5, 2.0];
        assert_eq!(verdict(around(1.0), scattered), Verdict::Inconclusive);
        assert_eq!(verdict(scattered, scattered), Verdict::Inconclusive);
    }

    #[test]
    fn compare_refuses_other_conditions() {
        let a = report(&around(1.0));
        for change in [
            |r: &mut BenchReport| r.driver = "driver 2".into(),
            |r: &mut BenchReport| r.adapter = "another".into(),
            |r: &mut BenchReport| r.clock = "GPU timestamps".into(),
        ] {
            let mut b = a.clone();
            change(&mut b);
            assert!(compare(&a, &b, false).unwrap_err().to_string().contains("--any-adapter"));
            assert_eq!(compare(&a, &b, true).unwrap().count(Verdict::Regression, 0.05), 0);
        }
    }

    #[test]
    fn compare_lists_what_has_no_partner() {
        let a = report(&around(1.0));
        let mut b = a.clone();
        b.rows.push(BenchRow { kernel: "2 span".into(), ..b.rows[0].clone() });
        b.rows[0].hash = "01".into();
        b.gates[0].fault = Some("wrong".into());
        let c = compare(&a, &b, false).unwrap();
        assert!(c.changes[0].edited && c.gone.is_empty());
        assert_eq!(c.new, ["scale.forward 1000x2 2 span"]);
        assert_eq!(c.broken, ["scale.forward 1 naive"]);
        assert!(c.table(0.05).contains("no difference within noise (kernel changed)"));
        b.rows.remove(0);
        assert!(compare(&a, &b, false).unwrap_err().to_string().contains("no row in common"));
    }
}
