//! A report as one HTML file that opens offline: style sheet and charts are inside.

use crate::bench::chart;
use crate::bench::report::{FOOTNOTE, Gate, Report, digits};
use crate::page::svg::inline;
use crate::page::{document, escape, facts};
use std::fmt::Write as _;

/// The whole page: the gate's verdicts, failed kernels first, then charts, table and conditions.
pub fn html(report: &Report) -> String {
    let body = [gate(report), charts(report), table(report), conditions(report)].concat();
    document(&format!("Kernel bench on {}", report.adapter), &body)
}

fn gate(report: &Report) -> String {
    let (failed, passed): (Vec<&Gate>, Vec<&Gate>) =
        report.gates.iter().partition(|g| g.fault.is_some());
    let mut html = format!(
        "<p><strong>{} of {} kernels</strong> passed the gate of correctness; only these are \
         ranked.</p>\n<h2>Gate</h2>\n<div class=\"card\"><table class=\"figures\">\n<thead><tr>\
         <th>pass</th><th>kernel</th><th>trials</th><th>verdict</th></tr></thead>\n<tbody>\n",
        passed.len(),
        report.gates.len()
    );
    for g in failed.into_iter().chain(passed) {
        let verdict = match &g.fault {
            Some(why) => format!("<mark class=\"wrong\">not ranked</mark> {}", escape(why)),
            None => "<mark class=\"right\">passed</mark>".to_owned(),
        };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{verdict}</td></tr>",
            escape(&g.pass),
            escape(&g.kernel),
            g.trials
        );
    }
    html += "</tbody>\n</table></div>\n";
    for l in &report.left_out {
        let _ = writeln!(html, "<p>Not ranked: {}</p>", escape(&l.line()));
    }
    html
}

fn charts(report: &Report) -> String {
    let all = [
        (
            "Kernels at each shape",
            "A bar for each kernel at its median; the thin line spans the 99 % interval.",
            chart::bars(report),
        ),
        (
            "Roofline",
            "The roof is what the adapter was measured to do: multiply-adds, or operations on \
             what a copy moves. Marks above the slope moved their bytes in a cache.",
            chart::roofline(report),
        ),
        (
            "Rate and size",
            "A line for each kernel across the shapes; bytes where operations are not counted.",
            chart::sweep(report),
        ),
    ];
    let figure = |(title, note, svg): &(&str, &str, String)| {
        format!(
            "<figure class=\"wide\">\n<figcaption><h3>{title}</h3><p>{note}</p></figcaption>\n\
             <div class=\"plot\">{}</div>\n</figure>\n",
            inline(svg, title)
        )
    };
    let figures: String = all.iter().map(figure).collect();
    format!("<h2>Charts</h2>\n<div class=\"charts\">\n{figures}</div>\n")
}

fn table(report: &Report) -> String {
    if report.rows.is_empty() {
        return "<h2>Times</h2>\n<p class=\"soft\">Nothing was timed.</p>\n".into();
    }
    let (names, rows) = report.cells();
    let line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = line("th", &mut names.into_iter());
    let body: String =
        rows.iter().map(|row| line("td", &mut row.iter().map(String::as_str))).collect();
    format!(
        "<h2>Times</h2>\n<p class=\"soft\">{FOOTNOTE}; {}.</p>\n<div class=\"card\">\
         <table class=\"figures\">\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n",
        escape(&report.stops())
    )
}

fn conditions(report: &Report) -> String {
    let c = &report.ceilings;
    let ceilings = format!(
        "{} GFLOP/s (multiply-adds), {} GB/s (copy)",
        digits(1e-9 * c.flops),
        digits(1e-9 * c.bytes)
    );
    let all = [
        ("Device", report.device()),
        ("Clock", report.clock.clone()),
        ("Ceilings", ceilings),
        ("Command", format!("oddgrad {}", report.command)),
        ("Seed", report.seed.to_string()),
        ("Version", report.version.clone()),
    ];
    facts(&all.map(|(name, value)| (name.to_owned(), value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::report;

    #[test]
    fn bench_page_has_every_part() {
        let html = html(&report(&[1e-3; 7]));
        for part in [
            "a &quot;GPU&quot; (driver 1, build 2, Vulkan)",
            "wall clock (test)",
            "100 GFLOP/s (multiply-adds), 10.0 GB/s (copy)",
            "oddgrad bench scale",
            "<dt>Seed</dt><dd>1</dd>",
            "1 of 2 kernels",
            "scale[3]: 1 instead of 2",
            "Not ranked: scale.forward 1 naive at 9000x3: too slow here",
            "<td>1000x2</td><td>1 naive</td><td>1.00 ms</td>",
            "stopped by within 2.0 %: 1 rows",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert_eq!(html.matches("<svg role=\"img\"").count(), 3);
        assert_eq!(html.matches("</svg>").count(), 3);
        // What failed comes first.
        assert!(html.find(">not ranked<").unwrap() < html.find(">passed<").unwrap());
        // The address in a chart's xmlns is a name only.
        for outside in ["href=", "src=", "<script", "<link", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}: {html}");
        }
    }

    #[test]
    fn bench_page_escapes_every_name() {
        let mut report = report(&[1e-3; 7]);
        let name = "<b>.wgsl";
        report.rows[0].kernel = name.into();
        report.rows[0].stopped = name.into();
        report.gates[1].kernel = name.into();
        report.gates[1].fault = Some("<b>\"&".into());
        report.left_out[0].kernel = name.into();
        for text in [
            &mut report.adapter,
            &mut report.driver,
            &mut report.backend,
            &mut report.clock,
            &mut report.command,
            &mut report.version,
            &mut report.rows[0].pass,
        ] {
            *text = name.into();
        }
        let html = html(&report);
        assert!(!html.contains("<b>"), "{html}");
        assert!(html.contains("&lt;b&gt;&quot;&amp;") && html.contains("<td>&lt;b&gt;.wgsl</td>"));
    }

    #[test]
    fn bench_page_of_nothing_says_so() {
        let mut report = report(&[1e-3]);
        report.rows.clear();
        let html = html(&report);
        // In each chart and instead of the table.
        assert_eq!(html.to_lowercase().matches("nothing was timed").count(), 4, "{html}");
        assert!(html.ends_with("</html>\n"));
    }
}
