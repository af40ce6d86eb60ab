//! A report as bars: one chart of every shape, a bar for each kernel.

use crate::bench::report::{Report, Row, digits};
use plotters::prelude::*;

const INK: RGBColor = RGBColor(0x3A, 0x41, 0x4B);
const GRID: RGBColor = RGBColor(0xE4, 0xE7, 0xEB);
const BARS: [RGBColor; 6] = [
    RGBColor(0x33, 0x55, 0xC4),
    RGBColor(0x0B, 0x7A, 0x75),
    RGBColor(0xA8, 0x70, 0x1A),
    RGBColor(0xC0, 0x2D, 0x55),
    RGBColor(0x6B, 0x4F, 0xA0),
    RGBColor(0x5A, 0x7D, 0x2A),
];

/// Pixels of a bar with its space, of the words left of it, and of a whole chart.
const BAR: i32 = 22;
const WORDS: i32 = 230;
const WIDTH: i32 = 900;

/// What a bar's length is: operations where they are counted, bytes otherwise.
fn rate(row: &Row) -> (f64, &'static str) {
    row.gflops().map_or_else(|| (row.gbs(), "GB/s"), |g| (g, "GFLOP/s"))
}

/// The report as an SVG text. A thin line at the end of a bar spans the interval of the median.
pub fn bars(report: &Report) -> String {
    let mut groups: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in &report.rows {
        let title = format!("{}  {}", row.pass, row.dims());
        match groups.iter_mut().find(|(t, _)| *t == title) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((title, vec![row])),
        }
    }
    let height: i32 = 70 + groups.iter().map(|(_, rows)| 42 + BAR * rows.len() as i32).sum::<i32>();
    let mut text = String::new();
    {
        let root =
            SVGBackend::with_string(&mut text, (WIDTH as u32, height as u32)).into_drawing_area();
        // Drawing into a string has no way to fail but a mistake in here.
        draw(&root, report, &groups).expect("bars of finite length");
        root.present().expect("a string takes everything");
    }
    text
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw<'a>(
    root: &Area<'a>,
    report: &Report,
    groups: &[(String, Vec<&Row>)],
) -> Result<(), Box<dyn std::error::Error + 'a>> {
    root.fill(&WHITE)?;
    let font = |size: i32| ("sans-serif", size).into_font().color(&INK);
    root.draw(&Text::new(report.device(), (12, 14), font(15)))?;
    let c = &report.ceilings;
    let line = format!(
        "{}; ceilings {} GFLOP/s, {} GB/s",
        report.clock,
        digits(1e-9 * c.flops),
        digits(1e-9 * c.bytes)
    );
    root.draw(&Text::new(line, (12, 36), font(13)))?;
    let mut y = 66;
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

    #[test]
    fn chart_has_a_bar_for_each_row() {
        let mut report = report(&[1e-3, 2e-3, 1.5e-3]);
        let mut second = report.rows[0].clone();
        second.kernel = "2 span".into();
        second.flops = None;
        report.rows.push(second);
        let svg = bars(&report);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for part in ["1 naive", "2 span", "GFLOP/s", "GB/s", "1000x2"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
    }
}
