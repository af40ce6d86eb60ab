//! Lines and marks over a logarithmic axis, with a legend beside them.

use super::{Area, BARS, Drawn, GRID, HEADING, INK, WIDTH, font, picture};
use crate::bench::report::{Report, Row};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Pixels of a panel, of a line of its legend, and of the legend's width.
const HEIGHT: i32 = 420;
const ENTRY: i32 = 20;
const LEGEND: u32 = 250;
/// Letters of a legend's line that fit there.
const LETTERS: usize = 38;

/// Points with one name.
pub(super) struct Series {
    pub(super) label: String,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) look: Look,
}

/// How a series is drawn. Series with a number count through colours, then through marks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// A line without marks in the colour of the axes.
    Roof,
    /// Marks only.
    Marks(usize),
    /// Marks joined by a line.
    Line(usize),
}

impl Look {
    fn colour(self) -> RGBColor {
        match self {
            Look::Roof => INK,
            Look::Marks(i) | Look::Line(i) => BARS[i % BARS.len()],
        }
    }
}

/// Series with their axes.
pub(super) struct Panel {
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    /// The vertical axis is logarithmic too; otherwise it starts at zero.
    pub(super) y_log: bool,
    pub(super) series: Vec<Series>,
}

/// Can it be placed on a logarithmic axis?
pub(super) fn drawable((x, y): (f64, f64)) -> bool {
    [x, y].iter().all(|v| (1e-30..1e30).contains(v))
}

/// The rows for which there is a point, by pass and kernel.
pub(super) fn by_kernel(
    report: &Report,
    point: impl Fn(&Row) -> Option<(f64, f64)>,
    look: fn(usize) -> Look,
) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for row in &report.rows {
        let Some(point) = point(row).filter(|&p| drawable(p)) else { continue };
        let label = format!("{} {}", row.pass, row.kernel);
        let at = all.iter().position(|s| s.label == label).unwrap_or_else(|| {
            all.push(Series { label, points: Vec::new(), look: look(all.len()) });
            all.len() - 1
        });
        all[at].points.push(point);
    }
    all
}

/// The panels below one another as an SVG text. Where no point can be drawn it says `empty`.
pub(super) fn panels(report: &Report, panels: &[Panel], empty: &str) -> String {
    let height = |p: &Panel| HEIGHT.max(70 + ENTRY * p.series.len() as i32);
    let total = panels.iter().map(height).sum();
    picture(report, total, |root| {
        if panels.is_empty() && !report.rows.is_empty() {
            root.draw(&Text::new(empty.to_owned(), (12, HEADING), font(15)))?;
        }
        let mut rest = root.split_vertically(HEADING).1;
        for panel in panels {
            let (area, below) = rest.split_vertically(height(panel));
            let points = || panel.series.iter().flat_map(|s| &s.points);
            let x = decades(points().map(|p| p.0)).log_scale();
            if panel.y_log {
                paint(&area, panel, x, decades(points().map(|p| p.1)).log_scale())?;
            } else {
                let most = points().map(|p| p.1).fold(0.0, f64::max);
                paint(&area, panel, x, 0.0..1.08 * most)?;
            }
            rest = below;
        }
        Ok(())
    })
}

/// The powers of ten around `values`, never the same, so that no mark lies on an axis.
fn decades(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min((v.log10() - 0.05).floor()), high.max((v.log10() + 0.05).ceil()))
    });
    // A little more than the power, so that rounding does not cost the last mark of the axis.
    10f64.powf(low) * (1.0 - 1e-9)..10f64.powf(high.max(low + 1.0)) * (1.0 + 1e-9)
}

/// A number of an axis, which may have many digits or many zeros.
fn axis_label(value: &f64) -> String {
    match value.abs() {
        v if v == 0.0 || (0.0099..9_999.0).contains(&v) => {
            let text = format!("{value:.2}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.0e}"),
    }
}

fn paint<'a, X, Y>(area: &Area<'a>, panel: &Panel, x: X, y: Y) -> Drawn<'a>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let (plot, legend) = area.split_horizontally(WIDTH as u32 - LEGEND);
    let mut chart = ChartBuilder::on(&plot)
        .margin(10)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK.mix(0.5))
        // Up to nine, plotters marks powers of ten only.
        .x_labels(8)
        .y_labels(8)
        .label_style(font(13))
        .axis_desc_style(font(13))
        .x_desc(panel.x)
        .y_desc(panel.y)
        .x_label_formatter(&axis_label)
        .y_label_formatter(&axis_label)
        .draw()?;
    for (i, series) in panel.series.iter().enumerate() {
        let colour = series.look.colour();
        let middle = 22 + ENTRY * i as i32;
        if !matches!(series.look, Look::Marks(_)) {
            let line = colour.stroke_width(2);
            chart.draw_series(LineSeries::new(series.points.iter().copied(), line))?;
            let key = [(6, middle), (24, middle)];
            legend.draw(&PathElement::new(key, colour.stroke_width(3)))?;
        }
        let points = series.points.iter().copied();
        // Circles for the first kernels; other marks when the colours have all been used.
        match series.look {
            Look::Roof => {}
            Look::Marks(n) | Look::Line(n) => match n / BARS.len() % 3 {
                0 => {
                    chart.draw_series(points.map(|p| Circle::new(p, 4, colour.filled())))?;
                    legend.draw(&Circle::new((15, middle), 4, colour.filled()))?;
                }
                1 => {
                    let mark = |p| TriangleMarker::new(p, 6, colour.filled());
                    chart.draw_series(points.map(mark))?;
                    legend.draw(&TriangleMarker::new((15, middle), 6, colour.filled()))?;
                }
                _ => {
                    let line = colour.stroke_width(2);
                    chart.draw_series(points.map(|p| Cross::new(p, 4, line)))?;
                    legend.draw(&Cross::new((15, middle), 4, line))?;
                }
            },
        }
        legend.draw(&Text::new(shortened(&series.label), (32, middle - 7), font(13)))?;
    }
    Ok(())
}

/// A name that would leave the picture ends in dots.
fn shortened(label: &str) -> String {
    if label.chars().count() <= LETTERS {
        return label.to_owned();
    }
    label.chars().take(LETTERS - 1).chain(['…']).collect()
}
