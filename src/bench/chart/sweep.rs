//! Rates over problem sizes.

use super::panel::{Look, Panel, Series, drawable, panels};
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

/// The rows for which there is a point, by pass and kernel, and by size.
fn lines(report: &Report, point: impl Fn(&Row) -> Option<(f64, f64)>) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for row in &report.rows {
        let Some(point) = point(row).filter(|&p| drawable(p)) else { continue };
        let label = format!("{} {}", row.pass, row.kernel);
        let at = lines.iter().position(|s| s.label == label).unwrap_or_else(|| {
            lines.push(Series { label, points: Vec::new(), look: Look::Line(lines.len()) });
            lines.len() - 1
        });
        lines[at].points.push(point);
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}
