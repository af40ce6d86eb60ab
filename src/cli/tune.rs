//! `oddgrad tune`

use super::DeviceArgs;
use super::display::Progress;
use super::import::model_folder;
use crate::bench::report::time;
use crate::bench::tune::tune;
use crate::bench::tuned::{Choice, Factors, TunedFile, path_of};
use crate::error::{Error, Problem, Result};
use crate::files::check_creatable;
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `oddgrad tune`.
#[derive(Args)]
pub struct TuneArgs {
    /// A model folder (its config.json is enough) or a GGUF file: its training step is what is tuned.
    #[arg(long, default_value = "models/nano")]
    model: PathBuf,
    /// Tokens of a stream, as batch.stream_tokens of the recipe.
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Only these operations and passes: `matmul`, `matmul.nt`.
    #[arg(long, value_delimiter = ',', value_name = "OP|OP.PASS,…")]
    only: Vec<String>,
    /// Seconds for comparing the kernels of each kind of dispatch at most.
    #[arg(long, default_value = "2", value_name = "SECONDS", value_parser = super::seconds)]
    seconds: f64,
    /// Measure and print, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write here instead of the file that the other commands read.
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &TuneArgs, device: &DeviceArgs) -> Result<()> {
    if !device.kernel.is_empty() {
        let what = "pins a kernel, and tune looks for the fastest; leave it out";
        return Err(Error::input("nothing to tune", vec![Problem::new("--kernel", what)]));
    }
    let gpu = device.open_untuned()?;
    let path = match &args.out {
        _ if args.dry_run => None,
        Some(path) => Some(path.clone()),
        None => Some(path_of(&gpu).ok_or_else(|| {
            let what = "no cache folder is known on this system; set ODDGRAD_CACHE to one";
            Error::input("nowhere to write", vec![Problem::new("tune", what)])
        })?),
    };
    // Minutes of measuring must not end at a folder that cannot be written to.
    if let Some(folder) = path.as_deref().and_then(Path::parent) {
        check_creatable(folder)?;
    }
    let mut file = TunedFile::new(&gpu);
    // What was tuned before for other sizes stays, if it is of the same adapter and driver.
    let before = path.as_deref().map_or(Ok(None), TunedFile::load)?;
    if let Some(before) = before.filter(|b| {
        (&b.adapter, &b.driver, &b.backend) == (&file.adapter, &file.driver, &file.backend)
    }) {
        file.choices = before.choices;
    }
    let mut show = Progress::new(false);
    let tuning = tune(
        &gpu,
        &model_folder(&args.model)?,
        args.tokens,
        &args.only,
        device.f16,
        args.seconds,
        &mut |line| {
            show.line(line);
        },
    )?;
    show.clear();
    outln!("adapter   {}", gpu.describe());
    outln!("clock     {}", tuning.clock);
    for fault in &tuning.faults {
        outln!("not used: {fault}");
    }
    outln!(
        "\n{:<26} {:>11} {:>11} {:>5}  {:<26} {:>9} {:>9} {:>6}",
        "pass",
        "reads below",
        "writes",
        "calls",
        "kernel",
        "time",
        "default",
        "gain"
    );
    let (mut default, mut tuned, mut half) = (0.0, 0.0, 0.0);
    for f in &tuning.found {
        let calls = f.dispatches as f64;
        default += f.exact.default_us * calls;
        tuned += f.exact.us * calls;
        half += f.lossy.as_ref().unwrap_or(&f.exact).us * calls;
        row(&f.exact, f.dispatches);
        if let Some(lossy) = &f.lossy {
            row(lossy, f.dispatches);
        }
    }
    outln!(
        "\nof these dispatches a step has {} with the default kernels and {} with the tuned ones",
        time(1e-6 * default),
        time(1e-6 * tuned)
    );
    if device.f16 && tuning.found.iter().any(|f| f.lossy.is_some()) {
        outln!("with --f16, which other commands must be given too, it has {}", time(1e-6 * half));
    } else if device.f16 {
        outln!("no kernel that reads factors as f16 is faster than those that keep all digits");
    }
    if let Some(path) = path {
        let choices = tuning.found.into_iter().flat_map(|f| [Some(f.exact), f.lossy]).flatten();
        file.merge(choices.collect(), device.f16);
        file.save(&path)?;
        outln!("written   {} ({} choices)", path.display(), file.choices.len());
    }
    Ok(())
}

fn row(c: &Choice, calls: usize) {
    let lossy = if c.dtype == Factors::F16 { " (f16)" } else { "" };
    outln!(
        "{:<26} {:>11} {:>11} {:>5}  {:<26} {:>9} {:>9} {:>5.2}x",
        c.pass,
        bytes(c.reads_below),
        bytes(c.writes_below),
        calls,
        format!("{} {} {}", c.variant, c.idea, c.tile).trim_end().to_owned() + lossy,
        time(1e-6 * c.us),
        time(1e-6 * c.default_us),
        c.default_us / c.us
    );
}

/// A power of four in bytes.
fn bytes(n: u64) -> String {
    match n {
        n if n >= 1 << 30 => format!("{} GiB", n >> 30),
        n if n >= 1 << 20 => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}
