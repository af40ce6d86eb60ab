//! A report as a chart of bars.

use crate::bench::report::{BenchReport, BenchRow, digits};
use crate::page::svg::{self, Area, Drawn, GRID, INK, SERIES as BARS};
use plotters::prelude::*;

/// What a chart of no rows says.
const NOTHING: &str = "nothing was timed";

/// Pixels of a bar with its space, of the words left of it, and of a whole chart.
const BAR: i32 = 22;
const WORDS: i32 = 230;
const WIDTH: i32 = 900;

/// What a bar's length is: operations where they are counted, bytes otherwise.
fn rate(row: &BenchRow) -> (f64, &'static str) {
    row.gflops().map_or_else(|| (row.gbs(), "GB/s"), |g| (g, "GFLOP/s"))
}

/// Every shape with a bar for each kernel, as an SVG text. A thin line at the end of a bar spans
/// the interval of the median.
pub fn bars(report: &BenchReport) -> String {
    let mut groups: Vec<(String, Vec<&BenchRow>)> = Vec::new();
    for row in &report.rows {
        let title = format!("{}  {}", row.pass, row.dims());
        match groups.iter_mut().find(|(t, _)| *t == title) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((title, vec![row])),
        }
    }
    let height: i32 = groups.iter().map(|(_, rows)| 42 + BAR * rows.len() as i32).sum();
    picture(report, height, |root| draw(root, &groups))
}

/// Pixels of the lines that every chart begins with.
const HEADING: i32 = 66;

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// An SVG text with the device on top and what `body` draws in the `height` pixels below.
fn picture(
    report: &BenchReport,
    height: i32,
    body: impl for<'a> Fn(&Area<'a>) -> Drawn<'a>,
) -> String {
    let size = (WIDTH as u32, (HEADING + height.max(34)) as u32);
    svg::picture(size, |root| {
        heading(root, report)?;
        body(root)
    })
}

fn heading<'a>(root: &Area<'a>, report: &BenchReport) -> Drawn<'a> {
    root.fill(&WHITE)?;
    root.draw(&Text::new(report.device(), (12, 14), font(15)))?;
    let c = &report.ceilings;
    let line = format!(
        "{}; ceilings {} GFLOP/s, {} GB/s",
        report.clock,
        digits(1e-9 * c.flops),
        digits(1e-9 * c.bytes)
    );
    root.draw(&Text::new(line, (12, 36), font(13)))?;
    if report.rows.is_empty() {
        root.draw(&Text::new(NOTHING, (12, HEADING), font(15)))?;
    }
    Ok(())
}

fn draw<'a>(root: &Area<'a>, groups: &[(String, Vec<&BenchRow>)]) -> Drawn<'a> {
    let mut y = HEADING;
    for (title, rows) in groups {
        root.draw(&Text::new(title.clone(), (12, y), font(15)))?;
        y += 22;
        let most = rows.iter().map(|r| rate(r).0).fold(1e-12, f64::max);
        let room = f64::from(WIDTH - WORDS - 190);
        let end = |rate: f64| WORDS + (room * rate / most).round() as i32;
        root.draw(&PathElement::new([(WORDS, y), (WORDS, y + BAR * rows.len() as i32)], GRID))?;
        for (i, row) in rows.iter().enumerate() {
            let (value, unit) = rate(row);
            let colour = BARS[i % BARS.len()];
            root.draw(&Text::new(row.kernel.clone(), (24, y + 4), font(13)))?;
            let bar = [(WORDS, y + 2), (end(value), y + BAR - 4)];
            root.draw(&Rectangle::new(bar, colour.filled()))?;
            let s = &row.seconds;
            let middle = y + BAR / 2 - 1;
            let [slow, fast] = [s.high, s.low].map(|t| end((value * s.median / t).min(1.1 * most)));
            root.draw(&PathElement::new([(slow, middle), (fast, middle)], INK))?;
            let label = format!("{} {unit}", digits(value));
            root.draw(&Text::new(label, (end(value).max(fast) + 8, y + 4), font(13)))?;
            y += BAR;
        }
        y += 20;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::report;

    /// Opening and closing tags match, and every coordinate is a number.
    fn assert_svg(svg: &str) {
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for tag in ["svg", "text"] {
            let ends =
                [format!("<{tag} "), format!("</{tag}>")].map(|end| svg.matches(&end).count());
            assert_eq!(ends[0], ends[1], "{tag}: {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("2147483647"), "{svg}");
    }

    /// Two kernels at eight sizes, and a pass whose operations are not counted.
    fn many() -> BenchReport {
        let mut report = report(&[1e-3, 2e-3, 1.5e-3]);
        let row = report.rows[0].clone();
        report.rows.clear();
        for size in 0..8 {
            for (kernel, speed) in [("1 naive", 1.0), ("2 <b>.wgsl", 3.0)] {
                let mut row = row.clone();
                let work = 4f64.powi(size);
                row.kernel = kernel.into();
                row.shape = vec![1 << size, 7];
                row.flops = Some(1e4 * work * work);
                row.bytes = 4e4 * work;
                row.seconds.median = 1e-6 * work / speed;
                report.rows.push(row.clone());
                row.pass = "scale.sum".into();
                row.flops = None;
                report.rows.push(row);
            }
        }
        report
    }

    #[test]
    fn bench_chart_has_a_bar_for_each_row() {
        let mut report = report(&[1e-3, 2e-3, 1.5e-3]);
        let mut second = report.rows[0].clone();
        second.kernel = "2 span".into();
        second.flops = None;
        report.rows.push(second);
        let svg = bars(&report);
        assert_svg(&svg);
        for part in ["1 naive", "2 span", "GFLOP/s", "GB/s", "1000x2"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
    }

    #[test]
    fn bench_chart_draws_no_row_one_row_and_many() {
        let mut none = report(&[1e-3]);
        none.rows.clear();
        let svg = bars(&none);
        assert_svg(&svg);
        assert!(svg.contains(NOTHING), "{svg}");
        let svg = bars(&report(&[1e-3]));
        assert_svg(&svg);
        assert!(svg.contains("1 naive") && !svg.contains(NOTHING), "{svg}");
        let svg = bars(&many());
        assert_svg(&svg);
        assert!(svg.contains("2 &lt;b&gt;.wgsl") && !svg.contains("<b>"), "{svg}");
    }

    /// A clock that stood still, ceilings that were not measured, sizes of nothing.
    #[test]
    fn bench_chart_copes_with_what_is_not_finite() {
        for value in [0.0, f64::NAN, f64::INFINITY, 1e-300, 1e300] {
            let mut odd = many();
            odd.ceilings.flops = value;
            odd.rows[3].flops = Some(value);
            odd.rows[4].bytes = value;
            odd.rows[5].seconds.median = value;
            bars(&odd);
            odd.rows.truncate(1);
            odd.rows[0].seconds.median = value;
            odd.ceilings.bytes = value;
            bars(&odd);
        }
    }
}
