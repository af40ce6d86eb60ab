//! How near every kernel comes to what the adapter can do at its intensity.
//!
//! Williams, Waterman, Patterson: Roofline, an insightful visual performance model for multicore
//! architectures. Communications of the ACM 52(4), 2009.

use super::NOTHING;
use super::panel::{Look, Panel, Series, by_kernel, drawable, panels};
use crate::bench::report::{Report, Row};

/// Every row whose operations are counted as a mark at (operations per byte, GFLOP/s), both axes
/// logarithmic, under the roof min(multiply-adds, intensity * copied bytes) of the measured
/// ceilings; as an SVG text. A mark above the slope moved its bytes in a cache.
pub fn roofline(report: &Report) -> String {
    let marks = by_kernel(report, mark, Look::Marks);
    if marks.is_empty() {
        let why = "operations are not counted for what was timed: there is no roofline";
        return panels(report, &[], if report.rows.is_empty() { NOTHING } else { why });
    }
    let mut series: Vec<Series> = roof(report, &marks).into_iter().collect();
    series.extend(marks);
    let panel = Panel { x: "operations per byte", y: "GFLOP/s", y_log: true, series };
    panels(report, &[panel], NOTHING)
}

/// (operations per byte, GFLOP/s) of a row.
fn mark(row: &Row) -> Option<(f64, f64)> {
    Some((row.flops? / row.bytes, row.gflops()?))
}

/// The roof over all marks, its ridge included; None without ceilings.
fn roof(report: &Report, marks: &[Series]) -> Option<Series> {
    let c = &report.ceilings;
    let ridge = c.flops / c.bytes;
    let at = |intensity: f64| (intensity, 1e-9 * c.flops.min(intensity * c.bytes));
    let intensities = || marks.iter().flat_map(|s| &s.points).map(|p| p.0).chain([ridge]);
    // Half a decade further on both sides, so that slope and level are seen.
    let first = intensities().fold(f64::INFINITY, f64::min) / 3.0;
    let last = intensities().fold(0.0, f64::max) * 3.0;
    let points = vec![at(first), at(ridge), at(last)];
    let known = points.iter().all(|&p| drawable(p));
    known.then(|| Series { label: "roof (measured ceilings)".into(), points, look: Look::Roof })
}
