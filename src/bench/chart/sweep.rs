//! Rates over problem sizes.

use super::panel::{Look, Panel, Series, by_kernel, panels};
use crate::bench::report::{Report, Row};

/// A line for every kernel of a pass across the shapes, as an SVG text: GFLOP/s over operations
/// and, in a panel of their own, GB/s over bytes for rows whose operations are not counted.
pub fn sweep(report: &Report) -> String {
    let counted = |r: &Row| Some((r.flops?, r.gflops()?));
    let uncounted = |r: &Row| r.flops.is_none().then(|| (r.bytes, r.gbs()));
    let all = [
        Panel {
            x: "operations of a run",
            y: "GFLOP/s",
            y_log: false,
            series: lines(report, counted),
        },
        Panel { x: "bytes of a run", y: "GB/s", y_log: false, series: lines(report, uncounted) },
    ];
    let drawn: Vec<Panel> = all.into_iter().filter(|p| !p.series.is_empty()).collect();
    panels(report, &drawn, "no time of a run is above zero")
}

/// Lines from the smallest size to the largest.
fn lines(report: &Report, point: impl Fn(&Row) -> Option<(f64, f64)>) -> Vec<Series> {
    let mut lines = by_kernel(report, point, Look::Line);
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}
