//! What a benchmark found, and how it is written down: table, JSON, Markdown.

use crate::bench::ceiling::Ceilings;
use crate::bench::machine::Machine;
use crate::bench::stats::Summary;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::Path;

/// What two columns of a table say.
pub(super) const FOOTNOTE: &str = "± is how far the 99 % interval of the median reaches, with 1 % for what changes from run to run; n is blocks (a process each) x samples x runs in each";

/// The layout of the JSON file.
pub const FORMAT: u32 = 3;

/// A whole run of `oddgrad bench OP`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of this program.
    pub version: String,
    /// Name of the adapter.
    pub adapter: String,
    /// Its driver with version.
    pub driver: String,
    /// Vulkan, Metal, …
    pub backend: String,
    /// The machine, and when; empty in reports of earlier versions.
    #[serde(default)]
    pub machine: Machine,
    /// Which clock was read.
    pub clock: String,
    /// Arguments that reproduce the run.
    pub command: String,
    /// Seed of the inputs.
    pub seed: u64,
    /// What the adapter itself can do.
    pub ceilings: Ceilings,
    /// How every kernel did at the gate.
    pub gates: Vec<Gate>,
    /// What was timed.
    pub rows: Vec<BenchRow>,
    /// What was not, though it passed the gate.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

/// A kernel at the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// `matmul.nt`.
    pub pass: String,
    /// Number and idea, or a file's name.
    pub kernel: String,
    /// Trials it went through.
    pub trials: usize,
    /// Why it is not ranked; None if it passed.
    pub fault: Option<String>,
}

/// A kernel that is not compared at a shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// `matmul.nt`.
    pub pass: String,
    /// Number and idea, or a file's name.
    pub kernel: String,
    /// The shape's numbers.
    pub shape: Vec<usize>,
    /// Why, with the seconds of the run.
    pub why: String,
}

impl LeftOut {
    /// Kernel, shape and reason in a line.
    pub(super) fn line(&self) -> String {
        format!("{} {} at {}: {}", self.pass, self.kernel, dims(&self.shape), self.why)
    }
}

/// A shape as text: `512x576x576`.
pub(super) fn dims(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// A kernel at a shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// `matmul.nt`.
    pub pass: String,
    /// Number and idea, or a file's name.
    pub kernel: String,
    /// BLAKE3 of the kernel's text, shortened.
    pub hash: String,
    /// The shape's numbers.
    pub shape: Vec<usize>,
    /// The set it belongs to.
    pub set: String,
    /// Seconds of one run.
    pub seconds: Summary,
    /// Blocks of samples, in the order they were taken.
    pub blocks: Vec<Vec<f64>>,
    /// Runs in a sample.
    pub iterations: usize,
    /// Why the comparison stopped.
    pub stopped: String,
    /// Floating-point operations of one run, where they are counted.
    pub flops: Option<f64>,
    /// Bytes one run must move.
    pub bytes: f64,
    /// Seconds from text to the end of the first run, a normal run taken off.
    pub compile: f64,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u64,
}

impl BenchRow {
    /// The shape as text: `512x576x576`.
    pub fn dims(&self) -> String {
        dims(&self.shape)
    }

    /// Samples in a block.
    fn rounds(&self) -> usize {
        self.blocks.first().map_or(0, Vec::len)
    }

    /// GFLOP/s at the median.
    pub fn gflops(&self) -> Option<f64> {
        Some(self.flops? / self.seconds.median * 1e-9)
    }

    /// GB/s at the median.
    pub fn gbs(&self) -> f64 {
        self.bytes / self.seconds.median * 1e-9
    }
}

impl BenchReport {
    /// Adapter, driver, backend.
    pub fn device(&self) -> String {
        format!("{} ({}, {})", self.adapter, self.driver, self.backend)
    }

    /// Reads a report from its JSON file.
    ///
    /// # Errors
    /// A file that cannot be read or is no report of this program.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let report: Self = serde_json::from_str(&text).map_err(|e| {
            Error::file(path, format!("is no report of `oddgrad bench OP --json`: {e}"))
        })?;
        if report.format != FORMAT {
            let what = format!("has layout {}; this version reads {FORMAT}", report.format);
            return Err(Error::file(path, what));
        }
        Ok(report)
    }

    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings") + "\n"
    }

    /// The lines above a table.
    fn head(&self) -> Vec<String> {
        let c = &self.ceilings;
        let mut lines = self.machine.lines(&self.version);
        lines.extend([
            format!("adapter   {}", self.device()),
            format!("clock     {}", self.clock),
            format!(
                "ceilings  {:.1} GFLOP/s (multiply-adds), {:.1} GB/s (copy)",
                1e-9 * c.flops,
                1e-9 * c.bytes
            ),
            format!("seed      {}", self.seed),
        ]);
        lines
    }

    /// The columns of every table, a list of cells for each row.
    pub(super) fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let names = vec![
            "pass", "shape", "kernel", "time", "±", "MAD", "p5", "p95", "GFLOP/s", "% fma", "GB/s",
            "% copy", "compile", "shared", "n",
        ];
        let percent = |part: f64| format!("{:.0}", 100.0 * part);
        let row = |r: &BenchRow| {
            let s = &r.seconds;
            vec![
                r.pass.clone(),
                r.dims(),
                r.kernel.clone(),
                time(s.median),
                format!("{:.1} %", 100.0 * s.uncertainty()),
                time(s.mad),
                time(s.p5),
                time(s.p95),
                r.gflops().map_or("-".into(), digits),
                r.gflops().map_or("-".into(), |g| percent(1e9 * g / self.ceilings.flops)),
                digits(r.gbs()),
                percent(1e9 * r.gbs() / self.ceilings.bytes),
                time(r.compile),
                format!("{} B", r.workgroup_bytes),
                format!("{} x {} x {}", r.blocks.len(), r.rounds(), r.iterations),
            ]
        };
        (names, self.rows.iter().map(row).collect())
    }

    /// Why comparisons stopped, each reason once with the number of rows.
    pub(super) fn stops(&self) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for r in &self.rows {
            match counts.iter_mut().find(|(why, _)| *why == r.stopped) {
                Some((_, n)) => *n += 1,
                None => counts.push((&r.stopped, 1)),
            }
        }
        let parts: Vec<_> = counts.iter().map(|(why, n)| format!("{why}: {n} rows")).collect();
        format!("stopped by {}", parts.join("; "))
    }

    /// For the terminal.
    pub fn table(&self) -> String {
        let mut text = self.head().join("\n") + "\n";
        let passed = self.gates.iter().filter(|g| g.fault.is_none()).count();
        let trials: usize = self.gates.iter().map(|g| g.trials).sum();
        let _ =
            writeln!(text, "gate      {passed} of {} kernels, {trials} trials", self.gates.len());
        for g in self.gates.iter().filter(|g| g.fault.is_some()) {
            let fault = g.fault.as_deref().unwrap_or_default();
            let _ = writeln!(text, "  not ranked: {} {}: {fault}", g.pass, g.kernel);
        }
        for l in &self.left_out {
            let _ = writeln!(text, "  not ranked: {}", l.line());
        }
        if self.rows.is_empty() {
            return text;
        }
        let (names, rows) = self.cells();
        let width = |i: usize| {
            let cells = rows.iter().map(|r| r[i].chars().count());
            cells.chain([names[i].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..names.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let mut line = String::new();
            for (i, cell) in cells.iter().enumerate() {
                let w = widths[i];
                let _ =
                    if i < 3 { write!(line, "{cell:<w$}  ") } else { write!(line, "{cell:>w$}  ") };
            }
            line.trim_end().to_owned() + "\n"
        };
        text += "\n";
        text += &line(names.clone());
        let mut last = "";
        for (row, r) in rows.iter().zip(&self.rows) {
            if !last.is_empty() && last != row[1] {
                text += "\n";
            }
            last = &row[1];
            debug_assert_eq!(r.dims(), row[1]);
            text += &line(row.iter().map(String::as_str).collect());
        }
        // As wide as a terminal.
        let _ = writeln!(text, "\n{}.", FOOTNOTE.replace("; ", ";\n"));
        text += "compile is quick where the driver kept the kernel from an earlier run.\n";
        text += &(self.stops() + "\n");
        text
    }

    /// As Markdown: where, how, and a table.
    pub fn markdown(&self) -> String {
        let (names, rows) = self.cells();
        let c = &self.ceilings;
        let mut text = format!(
            "{}, {}. Ceilings: {:.1} GFLOP/s (multiply-adds), {:.1} GB/s (copy). {FOOTNOTE}; {}. `oddgrad {}`\n\n",
            self.device(),
            self.clock,
            1e-9 * c.flops,
            1e-9 * c.bytes,
            self.stops(),
            self.command,
        );
        let _ = writeln!(text, "| {} |", names.join(" | "));
        let align: Vec<_> = (0..names.len()).map(|i| if i < 3 { "---" } else { "--:" }).collect();
        let _ = writeln!(text, "|{}|", align.join("|"));
        for row in rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        for g in self.gates.iter().filter(|g| g.fault.is_some()) {
            let fault = g.fault.as_deref().unwrap_or_default().replace('\n', " ");
            let _ = writeln!(text, "\nNot ranked: {} {}: {fault}", g.pass, g.kernel);
        }
        for l in &self.left_out {
            let _ = writeln!(text, "\nNot ranked: {}", l.line());
        }
        text
    }
}

/// First marker in a README.
pub const BEGIN: &str = "<!-- bench -->";
/// Second marker.
pub const END: &str = "<!-- /bench -->";

/// `readme` with `table` between its markers instead of what is there.
///
/// # Errors
/// Without a pair of markers: says what to add.
pub fn between_markers(path: &Path, readme: &str, table: &str) -> Result<String> {
    let found = readme.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
    });
    found.ok_or_else(|| {
        Error::file(
            path,
            format!(
                "has no markers; add a line {BEGIN} and a line {END} where the table shall stand"
            ),
        )
    })
}

/// Seconds with three digits and a unit.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (1e3 * s, "ms"),
        s if s >= 1e-6 => (1e6 * s, "us"),
        s => (1e9 * s, "ns"),
    };
    format!("{} {unit}", digits(value))
}

/// About three digits.
pub fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report of one row with the given samples, each a block.
    pub(crate) fn report(samples: &[f64]) -> BenchReport {
        BenchReport {
            format: FORMAT,
            version: "0".into(),
            adapter: "a \"GPU\"".into(),
            driver: "driver 1, build 2".into(),
            backend: "Vulkan".into(),
            machine: Machine::default(),
            clock: "wall clock (test)".into(),
            command: "bench scale".into(),
            seed: 1,
            ceilings: Ceilings { flops: 1e11, bytes: 1e10 },
            gates: vec![
                Gate {
                    pass: "scale.forward".into(),
                    kernel: "1 naive".into(),
                    trials: 5,
                    fault: None,
                },
                Gate {
                    pass: "scale.forward".into(),
                    kernel: "my.wgsl".into(),
                    trials: 1,
                    fault: Some("scale[3]: 1 instead of 2".into()),
                },
            ],
            rows: vec![BenchRow {
                pass: "scale.forward".into(),
                kernel: "1 naive".into(),
                hash: "00".into(),
                shape: vec![1000, 2],
                set: "".into(),
                seconds: Summary::of(&samples.iter().map(|&s| vec![s]).collect::<Vec<_>>()),
                blocks: samples.iter().map(|&s| vec![s]).collect(),
                iterations: 3,
                stopped: "within 2.0 %".into(),
                flops: Some(1e6),
                bytes: 4e6,
                compile: 0.25,
                workgroup_bytes: 64,
            }],
            left_out: vec![LeftOut {
                pass: "scale.forward".into(),
                kernel: "1 naive".into(),
                shape: vec![9000, 3],
                why: "too slow here".into(),
            }],
        }
    }

    #[test]
    fn report_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let report = report(&[1e-3, 1.5e-3, 1.1e-3]);
        std::fs::write(&path, report.json()).unwrap();
        assert_eq!(BenchReport::load(&path).unwrap(), report);
        std::fs::write(&path, "{}").unwrap();
        assert!(BenchReport::load(&path).unwrap_err().to_string().contains("no report"));
    }

    #[test]
    fn report_tables_say_the_same() {
        let report = report(&[1e-3; 7]);
        // 1e6 operations and 4e6 bytes in a millisecond.
        for text in [report.table(), report.markdown()] {
            for part in [
                "1000x2",
                "1.00 ms",
                "1.00",
                "4.00",
                " 40 ",
                "250 ms",
                "64 B",
                "my.wgsl",
                "instead of 2",
                "ot ranked: scale.forward 1 naive at 9000x3: too slow here",
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }

    #[test]
    fn report_replaces_only_what_stands_between_the_markers() {
        let path = Path::new("README.md");
        let readme = format!("# a\n{BEGIN}\nold\n{END}\nrest\n");
        let new = between_markers(path, &readme, "new\n").unwrap();
        assert_eq!(new, format!("# a\n{BEGIN}\nnew\n{END}\nrest\n"));
        assert!(between_markers(path, "# a", "new").is_err());
    }
}
