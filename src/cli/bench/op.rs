//! `oddgrad bench OP`

use super::super::display::Progress;
use super::super::{DeviceArgs, seconds};
use super::compare::percent;
use crate::bench::block;
use crate::bench::candidate::{find_case, find_passes};
use crate::bench::child::{ask, asked, end_with_parent, supervise};
use crate::bench::comparison::{Block, BlockRequest, Limits};
use crate::bench::op::{Own, Request, bench_op};
use crate::bench::report::{BenchReport, between_markers};
use crate::bench::{chart, facts, shapes};
use crate::error::{Error, Problem, Result};
use crate::files::{check_creatable, write_atomically};
use crate::kernel::VariantId;
use clap::Args;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Args)]
pub(super) struct OpArgs {
    /// Operation whose kernels are compared; without one, lists all.
    op: Option<String>,
    /// Only this pass: `forward`, `nt`, …
    #[arg(long)]
    pass: Option<String>,
    /// Only these variants, by number, or by number and tile.
    #[arg(long, value_delimiter = ',', value_name = "1,3,11/128x64,…")]
    variants: Vec<VariantId>,
    /// Sets of shapes (nano, smollm2, and what `oddgrad bench` lists) and shapes such as 512x512x512.
    #[arg(long, value_name = "SET|SHAPE,…")]
    shapes: Option<String>,
    /// Compare a kernel of your own with ours; needs a pass.
    #[arg(long, value_name = "FILE.wgsl")]
    with: Option<PathBuf>,
    /// Outputs of one workgroup of your kernel along x, y, z [default: those of the first variant].
    #[arg(long, value_name = "XxYxZ", value_parser = tile, requires = "with")]
    tile: Option<[u32; 3]>,
    /// Stop your kernel when nothing happened for so many seconds.
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    timeout: f64,
    /// Print what a kernel of your own is given and must do.
    #[arg(long)]
    contract: bool,
    /// Stop when the 99 % interval of every median is within this. 1 % is always added to it for what
    /// changes from run to run, so less than that means: use all the seconds.
    #[arg(long, default_value = "3%", value_name = "PERCENT", value_parser = percent)]
    within: f64,
    /// Stop comparing the kernels at one shape after so many seconds.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    seconds: f64,
    /// Seed of the random inputs [default: the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Write the report with every sample.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table as Markdown.
    #[arg(long, value_name = "FILE")]
    md: Option<PathBuf>,
    /// Draw bars as SVG: every shape with a bar for each kernel.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace the table between the markers in shaders/OP/README.md.
    #[arg(long)]
    readme: bool,
    /// Set by the program for the process in which someone's kernel runs.
    #[arg(long, hide = true)]
    worker: bool,
    /// Set by the program for a process that times a block.
    #[arg(long, hide = true)]
    block: bool,
}

impl OpArgs {
    /// What was asked of an operation that was not named.
    fn without_operation(&self) -> Vec<Problem> {
        let given = [
            ("--pass", self.pass.is_some()),
            ("--variants", !self.variants.is_empty()),
            ("--shapes", self.shapes.is_some()),
            ("--with", self.with.is_some()),
            ("--contract", self.contract),
            ("--seed", self.seed.is_some()),
            ("--json", self.json.is_some()),
            ("--md", self.md.is_some()),
            ("--svg", self.svg.is_some()),
            ("--readme", self.readme),
        ];
        let what = "is for one operation; name it, as in `oddgrad bench softmax --pass forward`";
        given.iter().filter(|(_, on)| *on).map(|(flag, _)| Problem::new(*flag, what)).collect()
    }
}

fn tile(text: &str) -> std::result::Result<[u32; 3], String> {
    let parts: Option<Vec<u32>> =
        text.split('x').map(|p| p.parse().ok().filter(|&n| n > 0)).collect();
    parts.and_then(|p| p.try_into().ok()).ok_or_else(|| "write three numbers, as in 64x8x1".into())
}

pub(super) fn run(args: &OpArgs, device: &DeviceArgs) -> Result<()> {
    let Some(op) = &args.op else {
        let problems = args.without_operation();
        if problems.is_empty() {
            list();
            return Ok(());
        }
        let summary = "there is no operation to measure; `oddgrad bench` alone lists them";
        return Err(Error::input(summary, problems));
    };
    let case = find_case(op)?;
    if args.contract {
        for pass in find_passes(&case, args.pass.as_deref())? {
            outln!("{}", facts::contract(pass));
        }
        return Ok(());
    }
    if args.with.is_some() && !args.worker && !args.block {
        return in_child(args);
    }
    let request = Request {
        op: op.clone(),
        pass: args.pass.clone(),
        variants: args.variants.clone(),
        shapes: args.shapes.clone(),
        seed: args.seed.unwrap_or_else(clock_seed),
        limits: Limits { uncertainty: args.within, seconds: args.seconds, ..Limits::default() },
        with: args.with.clone().map(|path| Own { path, tile: args.tile }),
        command: std::env::args().skip(1).filter(|a| a != WORKER).collect::<Vec<_>>().join(" "),
    };
    if args.block {
        let wanted = serde_json::from_str(&asked()?)
            .map_err(|e| Error::Mismatch(format!("--block is for the program itself: {e}")))?;
        end_with_parent();
        let mut show = Progress::new(true);
        let blocks = block::run(&device.open_untuned()?, &request, &wanted, &mut |l| show.line(l))?;
        outln!("{}", serde_json::to_string(&blocks).expect("numbers"));
        return Ok(());
    }
    check_outputs(args, op)?;
    let gpu = device.open_untuned()?;
    let mut show = Progress::new(args.worker);
    let report = bench_op(&gpu, &request, &mut block_in_child, &mut |line| show.line(line))?;
    show.clear();
    out!("{}", report.table());
    write(args, op, &report)?;
    let failed = report.gates.iter().filter(|g| g.fault.is_some() && g.trials > 0).count();
    if failed > 0 {
        let s = if failed == 1 { "" } else { "s" };
        return Err(Error::Mismatch(format!("{failed} kernel{s} failed the gate")));
    }
    Ok(())
}

fn list() {
    outln!("operations, their passes and what a shape means");
    for case in crate::ops::cases() {
        let passes: Vec<_> = case.passes.iter().map(|p| p.name).collect();
        let sets: Vec<_> = shapes::sets(&case).into_iter().map(|(name, _)| name).collect();
        outln!("  {:<14} {}", case.op, passes.join(", "));
        outln!("{:17}shape {}; sets {}", "", shapes::legend(&case), sets.join(", "));
    }
    outln!("`oddgrad bench OP` compares the kernels of one; `oddgrad bench --help` says more");
}

fn clock_seed() -> u64 {
    // Any number will do; whole seconds are short enough to type again.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

const WORKER: &str = "--worker";

/// This program, and its arguments with one more.
fn again(flag: &str) -> Result<(PathBuf, Vec<OsString>)> {
    let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?;
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    words.push(flag.into());
    Ok((program, words))
}

/// A process that times a block is given up after so long without a word. A sample may be a run of
/// [`Limits::run`], and making the inputs of a large shape takes its time too.
const SILENCE: Duration = Duration::from_secs(600);

/// Times blocks in a process of its own.
fn block_in_child(wanted: &BlockRequest, progress: &mut dyn FnMut(&str)) -> Result<Vec<Block>> {
    let (program, words) = again("--block")?;
    let line = serde_json::to_string(wanted).expect("numbers and strings");
    let answer = ask(&program, &words, &line, SILENCE, progress)?;
    serde_json::from_str(&answer).map_err(|e| {
        Error::Mismatch(format!("a process that timed a block answered `{answer}`: {e}"))
    })
}

fn in_child(args: &OpArgs) -> Result<()> {
    let (program, words) = again(WORKER)?;
    let silence = Duration::from_secs_f64(args.timeout);
    let mut show = Progress::new(false);
    let outcome = supervise(&program, &words, silence, &mut |line| show.line(line));
    show.clear();
    outcome
}

/// The README of an operation's kernels, below the current folder.
fn readme_of(op: &str) -> PathBuf {
    Path::new("shaders").join(op).join("README.md")
}

/// Minutes of measuring must not end at a file that cannot be written.
fn check_outputs(args: &OpArgs, op: &str) -> Result<()> {
    let mut problems = Vec::new();
    for (flag, path) in [("--json", &args.json), ("--md", &args.md), ("--svg", &args.svg)] {
        let Some(path) = path else { continue };
        let folder = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
        let problem = if path.is_dir() {
            Some("is a folder; name a file in it".into())
        } else if !folder.is_dir() {
            Some(format!(
                "cannot be written: there is no folder {}; make it first",
                folder.display()
            ))
        } else {
            check_creatable(folder).err().map(|e| e.to_string())
        };
        let name = format!("{flag} {}", path.display());
        problems.extend(problem.map(|what| Problem::new(name, what)));
    }
    if args.readme {
        let path = readme_of(op);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e));
        if let Err(e) = text.and_then(|text| between_markers(&path, &text, "")) {
            let hint = "--readme is for a checkout of oddgrad, from its root";
            problems.push(Problem::new("--readme", format!("{e}; {hint}")));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input("nowhere to write the results", problems))
}

fn write(args: &OpArgs, op: &str, report: &BenchReport) -> Result<()> {
    let save = |path: &Option<PathBuf>, text: fn(&BenchReport) -> String| match path {
        Some(path) => write_atomically(path, text(report).as_bytes()),
        None => Ok(()),
    };
    save(&args.json, BenchReport::json)?;
    save(&args.md, BenchReport::markdown)?;
    save(&args.svg, chart::bars)?;
    if args.readme {
        let path = readme_of(op);
        let old = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let new = between_markers(&path, &old, &report.markdown())?;
        write_atomically(&path, new.as_bytes())?;
    }
    Ok(())
}
