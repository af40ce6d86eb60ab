//! The report of a run beside its control: one HTML file that opens offline.
//!
//! Curves are SVG inside the page, the style sheet too; nothing is loaded from anywhere. Figures
//! are printed as they were recorded: every sentence about them is derived from them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::files::write_atomically;
use crate::page::chart::{Chart, Hue, Line, Unit, number, thousands};
use crate::page::words::{Side, marked};
use crate::page::{document, escape, facts};
use crate::train::metrics::{MetricsRecord, Split};
use crate::train::objectives::{self, Better, Metric};

/// Everything the page shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReportPage {
    /// The page's headline.
    pub title: String,
    /// The run the page is about (solid lines), then those it is compared with (dashed lines).
    pub runs: Vec<RunCurves>,
    /// The objective's figures; the page shows those that the runs have.
    pub metrics: &'static [Metric],
    /// What the figures come to, in words: a sentence a paragraph.
    pub verdict: Vec<String>,
    /// Further figures, before the curves.
    pub tables: Vec<Table>,
    /// Corrections before and after training; the page says that those which got better come first.
    pub samples: Vec<Sample>,
    /// What the model made of prompts at the beginning and now.
    pub continuations: Vec<Continuation>,
    /// How far the run is; empty where that is not of interest.
    pub state: String,
    /// A browser loads the page again after so many seconds; None for a page that is finished.
    pub refresh: Option<u64>,
    /// Names and values for "About this run": adapter, driver, command, recipe, date. Values of
    /// several lines are set as they are.
    pub facts: Vec<(String, String)>,
}

/// The records of one training run, with TRL's keys, as `metrics.jsonl` holds them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunCurves {
    /// What the run is called on the page.
    pub name: String,
    /// Training records: `step`, `loss`, `tokens_per_second` and more.
    pub train: Vec<BTreeMap<String, f64>>,
    /// Records of the held-out rows: `step`, `eval_loss`, `eval_logps/chosen` and more.
    pub eval: Vec<BTreeMap<String, f64>>,
}

impl RunCurves {
    /// A run from the records of its `metrics.jsonl`.
    pub fn new(name: &str, records: &[MetricsRecord]) -> Self {
        let mut run = Self { name: name.to_owned(), ..Self::default() };
        for record in records {
            let (side, prefix) = match record.split {
                Split::Train => (&mut run.train, ""),
                Split::Eval => (&mut run.eval, "eval_"),
            };
            let mut values: BTreeMap<String, f64> =
                record.values.iter().map(|(key, v)| (format!("{prefix}{key}"), *v)).collect();
            values.insert("step".into(), record.step as f64);
            values.insert("epoch".into(), record.epoch);
            side.push(values);
        }
        run
    }
}

/// Figures that are no curves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Its headline.
    pub title: String,
    /// What it is of.
    pub note: String,
    /// Heads of the columns behind the first.
    pub columns: Vec<String>,
    /// Names and values.
    pub rows: Vec<(String, Vec<String>)>,
}

/// One sentence before and after training.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// The sentence to correct.
    pub wrong: String,
    /// What is made of it by the base model, then by the model of every run in their order.
    pub outputs: Vec<String>,
    /// The expected correction.
    pub right: String,
}

/// A prompt and what follows it, each with the step after which it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Continuation {
    /// As the recipe has it.
    pub prompt: String,
    /// The first text.
    pub first: (u64, String),
    /// The latest one.
    pub last: (u64, String),
}

/// Writes the page to `path`, replacing what is there only when the whole page is on the disk.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn write_report(path: &Path, report: &ReportPage) -> Result<()> {
    write_atomically(path, page(report).as_bytes())
}

fn show(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Share => format!("{:.1} %", value * 100.0),
        Unit::Rate => thousands(value),
        Unit::Number => number(value, 3),
    }
}

fn unit(metric: &Metric) -> Unit {
    match metric.unit {
        objectives::Unit::Number => Unit::Number,
        objectives::Unit::Share => Unit::Share,
    }
}

/// The metrics of every chart. A chart of several comes first: it is the one to look at.
fn groups(metrics: &'static [Metric]) -> Vec<(&'static str, Vec<&'static Metric>)> {
    let mut groups: Vec<(&str, Vec<&Metric>)> = Vec::new();
    for metric in metrics {
        let Some(chart) = metric.chart else { continue };
        match groups.iter_mut().find(|(name, _)| *name == chart) {
            Some((_, group)) => group.push(metric),
            None => groups.push((chart, vec![metric])),
        }
    }
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.len()));
    groups
}

/// (step, value) of every record that has a finite value under `key`, by rising step.
fn series(records: &[BTreeMap<String, f64>], key: &str) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = records
        .iter()
        .filter_map(|record| Some((*record.get("step")?, *record.get(key)?)))
        .filter(|(step, value)| step.is_finite() && value.is_finite())
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// A metric on the held-out rows.
fn heldout(run: &RunCurves, metric: &Metric) -> Vec<(f64, f64)> {
    series(&run.eval, &format!("eval_{}", metric.key))
}

/// First and last value of a metric on the held-out rows.
fn ends(run: &RunCurves, metric: &Metric) -> Option<(f64, f64)> {
    let points = heldout(run, metric);
    Some((points.first()?.1, points.last()?.1))
}

fn page(report: &ReportPage) -> String {
    let mut html = String::new();
    if !report.state.is_empty() {
        html.push_str(&format!("<p class=\"soft\">{}</p>\n", escape(&report.state)));
    }
    if report.verdict.is_empty() {
        html.push_str(&lead(report));
    }
    for sentence in &report.verdict {
        html.push_str(&format!("<p class=\"verdict\">{}</p>\n", escape(sentence)));
    }
    report.tables.iter().for_each(|table| html.push_str(&figures_table(table)));
    html.push_str(&tiles(report));
    html.push_str(&charts(report));
    html.push_str(&samples(report));
    html.push_str(&continuations(report));
    html.push_str(&figures(report));
    html.push_str(&facts(&report.facts));
    document(&report.title, &html, report.refresh)
}

/// What the first chart's figures say, in one sentence per run.
fn lead(report: &ReportPage) -> String {
    let moved = |(first, last): (f64, f64)| match last - first {
        change if change > 0.0005 => "rose",
        change if change < -0.0005 => "fell",
        _ => "stayed",
    };
    let groups = groups(report.metrics);
    let Some((_, metrics)) = groups.first() else { return String::new() };
    let mut html = String::new();
    for run in &report.runs {
        let parts: Vec<String> = metrics
            .iter()
            .filter_map(|metric| {
                let ends = ends(run, metric)?;
                let change = (ends.1 - ends.0).abs();
                Some(format!("{} {} by {change:.3}", metric.title, moved(ends)))
            })
            .collect();
        if !parts.is_empty() {
            let (name, parts) = (escape(&run.name), parts.join("; "));
            html.push_str(&format!("<p><strong>{name}</strong>, on held-out rows: {parts}.</p>\n"));
        }
    }
    html
}

fn tiles(report: &ReportPage) -> String {
    let Some((main, others)) = report.runs.split_first() else { return String::new() };
    let mut html = String::new();
    let of_interest = |m: &&Metric| m.label.is_some() && m.chart.is_some();
    for metric in report.metrics.iter().filter(of_interest) {
        let Some((first, last)) = ends(main, metric) else { continue };
        html.push_str(&format!(
            "<div class=\"tile\"><div class=\"name\">{}</div>\n<div class=\"value\">\
             <span class=\"from\">{} \u{2192}</span> {}</div>\n",
            metric.title,
            show(unit(metric), first),
            show(unit(metric), last)
        ));
        for run in others {
            if let Some((first, last)) = ends(run, metric) {
                html.push_str(&format!(
                    "<div class=\"other\">{}: {} \u{2192} {}</div>\n",
                    escape(&run.name),
                    show(unit(metric), first),
                    show(unit(metric), last)
                ));
            }
        }
        html.push_str("</div>\n");
    }
    match html.is_empty() {
        true => html,
        false => format!(
            "<div class=\"tiles\">\n{html}</div>\n<p class=\"soft\">Held-out rows, before \u{2192} \
             after training; the large figures are {}.</p>\n",
            escape(&main.name)
        ),
    }
}

/// Lines of one quantity, one per run: the first run solid, the others dashed.
fn lines(
    runs: &[RunCurves],
    of: impl Fn(&RunCurves) -> Vec<(f64, f64)>,
    label: &str,
    hue: Option<Hue>,
) -> Vec<Line> {
    let mut lines = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        let points = of(run);
        if !points.is_empty() {
            lines.push(Line {
                label: if label.is_empty() {
                    run.name.clone()
                } else {
                    format!("{}, {label}", run.name)
                },
                hue: hue.unwrap_or(if at == 0 { Hue::Main } else { Hue::Control }),
                dashed: at > 0,
                points,
            });
        }
    }
    lines
}

/// The chart of the metrics that belong together. Of several each has a colour of its own.
fn metric_chart(runs: &[RunCurves], title: &str, metrics: &[&Metric]) -> Chart {
    let mut drawn = Vec::new();
    for (at, metric) in metrics.iter().enumerate() {
        let (label, hue) = match metrics.len() {
            1 => ("", None),
            _ => (metric.label.unwrap_or(metric.title), [Hue::Chosen, Hue::Rejected].get(at)),
        };
        drawn.extend(lines(runs, |run| heldout(run, metric), label, hue.copied()));
    }
    let notes = metrics.iter().map(|metric| {
        let better = match metric.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        };
        format!("{}: {better} is better.", metric.title)
    });
    Chart {
        title: format!("{title}, held out"),
        note: notes.collect::<Vec<_>>().join(" "),
        axis: title.to_lowercase(),
        unit: unit(metrics[0]),
        smooth: false,
        lines: drawn,
    }
}

fn charts(report: &ReportPage) -> String {
    let runs = &report.runs;
    let trained = |key: &'static str| move |run: &RunCurves| series(&run.train, key);
    let groups = groups(report.metrics);
    let mut all: Vec<Chart> =
        groups.iter().map(|(title, metrics)| metric_chart(runs, title, metrics)).collect();
    all.push(Chart {
        title: "Training loss".into(),
        note: "Each run's own objective. Faint: every step; strong: running mean.".into(),
        axis: "loss".into(),
        unit: Unit::Number,
        smooth: true,
        lines: lines(runs, trained("loss"), "", None),
    });
    all.push(Chart {
        title: "Speed".into(),
        note: "Tokens of the packed stream per second, on the adapter named below.".into(),
        axis: "tokens/s".into(),
        unit: Unit::Rate,
        smooth: true,
        lines: lines(runs, trained("tokens_per_second"), "", None),
    });
    let drawn: Vec<&Chart> = all.iter().filter(|chart| !chart.lines.is_empty()).collect();
    if drawn.is_empty() {
        return "<p class=\"soft\">No records, so no curves.</p>\n".into();
    }
    // The first chart is wide; an odd one at the end would leave a hole beside it.
    let figures = drawn.iter().enumerate().map(|(at, chart)| {
        let wide = at == 0 || (at + 1 == drawn.len() && at % 2 == 1);
        figure(chart, wide)
    });
    format!("<h2>Curves</h2>\n<div class=\"charts\">\n{}</div>\n", figures.collect::<String>())
}

fn figure(chart: &Chart, wide: bool) -> String {
    let height = if chart.unit == Unit::Rate { 240 } else { 380 };
    let (class, size) = if wide { (" class=\"wide\"", (1120, height)) } else { ("", (560, 320)) };
    let keys = chart.lines.iter().map(|line| {
        let dash = if line.dashed { " stroke-dasharray=\"7 5\"" } else { "" };
        let (first, last) = (line.points[0].1, line.points[line.points.len() - 1].1);
        format!(
            "<li><svg viewBox=\"0 0 34 10\" aria-hidden=\"true\"><line x1=\"0\" y1=\"5\" x2=\"34\" \
             y2=\"5\" style=\"stroke:var(--{})\"{dash}/></svg>{} <b>{} \u{2192} {}</b></li>\n",
            line.hue.name(),
            escape(&line.label),
            show(chart.unit, first),
            show(chart.unit, last)
        )
    });
    format!(
        "<figure{class}>\n<figcaption><h3>{}</h3><p>{}</p></figcaption>\n<ul class=\"legend\">\n{}\
         </ul>\n<div class=\"plot\">{}</div>\n</figure>\n",
        chart.title,
        chart.note,
        keys.collect::<String>(),
        chart.svg(size)
    )
}

fn figures_table(table: &Table) -> String {
    let heads = table.columns.iter().map(|name| format!("<th>{}</th>", escape(name)));
    let row = |(name, values): &(String, Vec<String>)| {
        let cells: String = values.iter().map(|v| format!("<td>{}</td>", escape(v))).collect();
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(name))
    };
    format!(
        "<h2>{}</h2>\n<p class=\"soft\">{}</p>\n<div class=\"card\"><table class=\"figures\">\n\
         <thead><tr><th></th>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table></div>\n",
        escape(&table.title),
        escape(&table.note),
        heads.collect::<String>(),
        table.rows.iter().map(row).collect::<String>()
    )
}

fn samples(report: &ReportPage) -> String {
    let samples = &report.samples;
    if samples.is_empty() {
        return String::new();
    }
    let names = report.runs.iter().map(|run| escape(&run.name));
    let columns: Vec<String> = std::iter::once("Base model".into()).chain(names).collect();
    let mut html = "<h2>Corrections</h2>\n<p class=\"soft\">Held-out sentences; first those that the first \
         run corrects and the base model does not. Red words are not in the right sentence, green ones \
         not in the given one.</p>\n<div class=\"card\"><table class=\"samples\">\n<thead><tr><th>Sentence</th>"
        .to_owned();
    for name in &columns {
        html.push_str(&format!("<th>{name}</th>"));
    }
    html.push_str("<th>Right</th></tr></thead>\n<tbody>\n");
    for sample in samples {
        let wrong = marked(&sample.wrong, &sample.right, Side::Wrong);
        html.push_str(&format!("<tr><td data-label=\"Sentence\"><div>{wrong}</div></td>"));
        for (name, output) in columns.iter().zip(&sample.outputs) {
            html.push_str(&output_cell(name, output, sample));
        }
        let right = marked(&sample.right, &sample.wrong, Side::Right);
        html.push_str(&format!("<td data-label=\"Right\"><div>{right}</div></td></tr>\n"));
    }
    html.push_str("</tbody>\n</table></div>\n");
    html
}

fn continuations(report: &ReportPage) -> String {
    let Some(first) = report.continuations.first() else { return String::new() };
    let mut html = format!(
        "<h2>Samples</h2>\n<div class=\"card\"><table class=\"samples\">\n<thead><tr><th>Prompt</th>\
         <th>After step {}</th><th>After step {}</th></tr></thead>\n<tbody>\n",
        first.first.0, first.last.0
    );
    for Continuation { prompt, first, last } in &report.continuations {
        html.push_str("<tr>");
        for (name, text) in [("Prompt", prompt), ("First", &first.1), ("Latest", &last.1)] {
            let text = escape(text);
            html.push_str(&format!("<td data-label=\"{name}\"><div>{text}</div></td>"));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table></div>\n");
    html
}

fn output_cell(column: &str, output: &str, sample: &Sample) -> String {
    let (text, tag) = if output.trim().is_empty() {
        (String::new(), "<span class=\"tag\">no answer</span>")
    } else if output.trim() == sample.right.trim() {
        let text = marked(output, &sample.wrong, Side::Right);
        (text, "<span class=\"tag good\">\u{2713} right</span>")
    } else if output.trim() == sample.wrong.trim() {
        (marked(output, &sample.right, Side::Wrong), "<span class=\"tag\">copied</span>")
    } else {
        (marked(output, &sample.right, Side::Wrong), "<span class=\"tag\">something else</span>")
    };
    format!("<td data-label=\"{column}\"><div>{text}{tag}</div></td>")
}

fn figures(report: &ReportPage) -> String {
    let runs = &report.runs;
    let mut rows = String::new();
    for metric in report.metrics {
        let cells: Vec<_> = runs.iter().map(|run| ends(run, metric)).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        rows.push_str(&format!("<tr><th scope=\"row\">{}</th>", metric.title));
        for cell in cells {
            let text = cell.map_or("\u{2013}".into(), |(first, last)| {
                format!("{} \u{2192} {}", show(unit(metric), first), show(unit(metric), last))
            });
            rows.push_str(&format!("<td>{text}</td>"));
        }
        rows.push_str("</tr>\n");
    }
    let speed = |run: &RunCurves| {
        let mut rates: Vec<f64> =
            series(&run.train, "tokens_per_second").iter().map(|p| p.1).collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    };
    if runs.iter().any(|run| speed(run).is_some()) {
        rows.push_str("<tr><th scope=\"row\">Tokens per second, median</th>");
        for run in runs {
            let text = speed(run).map_or("\u{2013}".into(), thousands);
            rows.push_str(&format!("<td>{text}</td>"));
        }
        rows.push_str("</tr>\n");
    }
    if rows.is_empty() {
        return rows;
    }
    let names = runs.iter().map(|run| format!("<th>{}</th>", escape(&run.name)));
    format!(
        "<h2>Figures</h2>\n<p class=\"soft\">Held-out rows, first \u{2192} last evaluation.</p>\n\
         <div class=\"card\"><table class=\"figures\">\n<thead><tr><th></th>{}</tr></thead>\n<tbody>\n\
         {rows}</tbody>\n</table></div>\n",
        names.collect::<String>()
    )
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
