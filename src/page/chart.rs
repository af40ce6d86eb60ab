//! One line chart as an SVG text, drawn by plotters.
//!
//! The chart draws lines, axes and numbers only. Title and legend are the page's, so that they
//! wrap with it and never lie over a line.

use super::svg::{Area, Drawn, GRID, INK, SERIES, inline, picture};
use plotters::prelude::*;

/// What a colour stands for, on every chart of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hue {
    /// Log-probabilities of the preferred answers.
    Chosen,
    /// Log-probabilities of the rejected answers.
    Rejected,
    /// The run the page is about.
    Main,
    /// The run it is compared with.
    Control,
}

impl Hue {
    /// Also the name of the style sheet's variable.
    pub(super) fn name(self) -> &'static str {
        match self {
            Hue::Chosen => "chosen",
            Hue::Rejected => "rejected",
            Hue::Main => "main",
            Hue::Control => "control",
        }
    }

    fn rgb(self) -> RGBColor {
        match self {
            Hue::Chosen => SERIES[1],
            Hue::Rejected => SERIES[3],
            Hue::Main => SERIES[0],
            Hue::Control => SERIES[2],
        }
    }
}

/// plotters places everything on whole pixels: drawn at twice the size it is shown at, lines are
/// smooth.
const SCALE: u32 = 2;

/// More points than this on one line are averaged in groups: no eye can tell them apart, and the
/// page stays small.
const MAX_POINTS: usize = 240;

/// Noise on a line of at least this many points gets a running mean drawn over it.
const SMOOTH_FROM: usize = 60;

/// One line of a chart.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) label: String,
    pub(super) hue: Hue,
    pub(super) dashed: bool,
    /// (step, value), finite, by rising step; never empty.
    pub(super) points: Vec<(f64, f64)>,
}

/// What the axis of a chart counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A plain number.
    Number,
    /// A part of one, shown in percent on an axis from 0 to 100.
    Share,
    /// A rate: the axis starts at zero.
    Rate,
}

/// A chart with its words.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) title: String,
    /// What to look at, in a sentence.
    pub(super) note: String,
    pub(super) axis: String,
    pub(super) unit: Unit,
    /// Are the lines noisy, so that a running mean helps?
    pub(super) smooth: bool,
    pub(super) lines: Vec<Line>,
}

impl Chart {
    /// The chart as an SVG element of the given size in page pixels; it scales with the page.
    pub(super) fn svg(&self, (width, height): (u32, u32)) -> String {
        let size = (width * SCALE, height * SCALE);
        let label = format!("{}, {} by step", self.title, self.axis);
        inline(&picture(size, |root| self.draw(root)), &label)
    }

    fn draw<'a>(&self, root: &Area<'a>) -> Drawn<'a> {
        let (x, y) = self.ranges();
        let font = |size: u32| ("sans-serif", size * SCALE).into_font().color(&INK);
        let decimals = decimals(y.1 - y.0);
        let y_label = |value: &f64| match self.unit {
            Unit::Share => format!("{:.0} %", value * 100.0),
            Unit::Rate => thousands(*value),
            Unit::Number => number(*value, decimals),
        };
        // The axis' name stands left of its labels, however long they are.
        let letters = [y.0, y.1].iter().map(|end| y_label(end).chars().count()).max().unwrap_or(0);
        let beside = (30 + 9 * letters as u32).max(66);
        let mut chart = ChartBuilder::on(root)
            .margin(6 * SCALE)
            .margin_right(18 * SCALE)
            .x_label_area_size(42 * SCALE)
            .y_label_area_size(beside * SCALE)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(SCALE))
            .axis_style(INK.mix(0.5).stroke_width(SCALE))
            .x_labels(7)
            .y_labels(6)
            .label_style(font(15))
            .axis_desc_style(font(15))
            .x_desc("step")
            .y_desc(&self.axis)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&y_label)
            .draw()?;
        if self.unit == Unit::Number && y.0 < 0.0 && y.1 > 0.0 {
            let zero = INK.mix(0.5).stroke_width(SCALE);
            chart.draw_series(LineSeries::new([(x.0, 0.0), (x.1, 0.0)], zero))?;
        }
        for line in &self.lines {
            let points = thinned(&line.points);
            let colour = line.hue.rgb();
            let smooth = self.smooth && points.len() >= SMOOTH_FROM;
            if smooth {
                let faint = colour.mix(0.25).stroke_width(SCALE);
                chart.draw_series(LineSeries::new(points.iter().copied(), faint))?;
            }
            let points = if smooth { running_mean(&points) } else { points };
            let style = colour.stroke_width(2 * SCALE);
            if let [point] = points[..] {
                chart.draw_series([Circle::new(point, 4 * SCALE, colour.filled())])?;
            } else if line.dashed {
                let (dash, gap) = (7 * SCALE, 5 * SCALE);
                chart.draw_series(DashedLineSeries::new(points, dash, gap, style))?;
            } else {
                chart.draw_series(LineSeries::new(points, style))?;
            }
        }
        Ok(())
    }

    /// The ends of both axes, never equal.
    fn ranges(&self) -> ((f64, f64), (f64, f64)) {
        let ends = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            })
        };
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let (first, last) = ends(&mut points().map(|p| p.0));
        let x = if first < last { (first, last) } else { (first - 1.0, first + 1.0) };
        let (low, high) = ends(&mut points().map(|p| p.1));
        let y = match self.unit {
            Unit::Share => (low.min(0.0), high.max(1.0)),
            Unit::Rate => (0.0, if high > 0.0 { high * 1.1 } else { 1.0 }),
            Unit::Number => {
                let pad = ((high - low) * 0.06).max(high.abs().max(low.abs()).max(1e-6) * 1e-3);
                (low - pad, high + pad)
            }
        };
        (x, y)
    }
}

/// Enough decimals to tell the marks of an axis of this length apart.
fn decimals(length: f64) -> usize {
    (1.3 - length.log10()).ceil().clamp(0.0, 8.0) as usize
}

/// A number with a real minus sign, and none before a zero.
pub(super) fn number(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let is_zero = text.chars().all(|c| c == '0' || c == '.');
    if value < 0.0 && !is_zero { format!("\u{2212}{text}") } else { text }
}

/// A whole number with thin spaces between thousands.
pub(super) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 && digits != "0" { "\u{2212}" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202F}');
        }
        text.push(digit);
    }
    text
}

/// Groups of points averaged until there are at most [`MAX_POINTS`]; the last point stays last.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let value = group.iter().map(|p| p.1).sum::<f64>() / group.len() as f64;
        (group[group.len() - 1].0, value)
    };
    points.chunks(group).map(mean).collect()
}

/// The mean over a window around each point, a twentieth of the line wide.
fn running_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 40).max(2);
    let mean = |at: usize| {
        // As far to one side as to the other, so that the ends are not dragged along a slope.
        let reach = reach.min(at).min(points.len() - 1 - at);
        let window = &points[at - reach..=at + reach];
        window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64
    };
    (0..points.len()).map(|at| (points[at].0, mean(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(unit: Unit, points: Vec<(f64, f64)>) -> Chart {
        let line = Line { label: "a".into(), hue: Hue::Main, dashed: true, points };
        Chart {
            title: "Title".into(),
            note: String::new(),
            axis: "axis".into(),
            unit,
            smooth: true,
            lines: vec![line],
        }
    }

    #[test]
    fn report_chart_draws_every_awkward_line() {
        for unit in [Unit::Number, Unit::Share, Unit::Rate] {
            for points in [
                vec![(3.0, 0.5)],
                vec![(0.0, 0.0), (1.0, 0.0)],
                vec![(0.0, -1e30), (1.0, 1e30)],
                vec![(0.0, 1e-9), (1.0, 2e-9)],
                (0..5000).map(|i| (f64::from(i), f64::from(i % 7))).collect(),
            ] {
                let svg = chart(unit, points).svg((600, 300));
                assert!(svg.starts_with("<svg role=\"img\"") && svg.trim_end().ends_with("</svg>"));
                assert!(svg.contains("#3355C4"), "no line drawn: {svg}");
                assert!(!svg.contains("NaN") && svg.len() < 200_000, "{}", svg.len());
            }
        }
    }

    #[test]
    fn report_chart_averages_keep_level_and_slope() {
        let points: Vec<_> = (0..1000).map(|i| (f64::from(i), f64::from(i) * 2.0)).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= MAX_POINTS);
        assert_eq!(thin[0], (4.0, 4.0));
        assert_eq!(thin.last().unwrap().0, 999.0);
        assert_eq!(running_mean(&points), points);
    }

    #[test]
    fn report_chart_numbers_are_readable() {
        assert_eq!(thousands(1234567.4), "1\u{202F}234\u{202F}567");
        assert_eq!(thousands(-999.6), "\u{2212}1\u{202F}000");
        assert_eq!(thousands(-0.2), "0");
        assert_eq!((number(-0.004, 2), number(-1.25, 1)), ("0.00".into(), "\u{2212}1.2".into()));
        assert_eq!((decimals(100.0), decimals(3.0), decimals(0.05)), (0, 1, 3));
    }
}
