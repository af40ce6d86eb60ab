//! `oddgrad verify FOLDER…`

use super::DeviceArgs;
use super::import::model_folder;
use crate::error::{Error, Problem, Result};
use crate::model::gguf::is_gguf;
use crate::train::verify::{Comparison, Reference};
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `oddgrad verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Folders with reference values: a model with golden.json, or a recorded run with log.json; or a
    /// GGUF file beside the golden.json of its model.
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Multiply every bar by this.
    #[arg(long, default_value_t = 1.0)]
    tolerance: f64,
    /// Compare the parameters after this many steps of AdamW instead, as many as the folders record
    /// (2).
    #[arg(long)]
    steps: Option<usize>,
    /// Print every gradient tensor, not only the worst one.
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: &VerifyArgs, device: &DeviceArgs) -> Result<()> {
    if !(args.tolerance > 0.0 && args.tolerance.is_finite()) {
        let problem = Problem::new("--tolerance", "must be a finite number above 0");
        return Err(Error::input("cannot verify", vec![problem]));
    }
    let references = args.folders.iter().map(|f| load(f)).collect::<Result<Vec<_>>>()?;
    let gpu = device.open()?;
    outln!("adapter {}\n", gpu.describe());
    let mut failed = Vec::new();
    for (folder, reference) in args.folders.iter().zip(references) {
        let rows = match args.steps {
            None => reference.compare(&gpu, args.tolerance)?,
            Some(steps) => reference.compare_steps(&gpu, steps, args.tolerance)?,
        };
        outln!("{}", folder.display());
        outln!("  {:<58} {:>8} {:>10} {:>10}", "compared", "values", "largest", "allowed");
        let worst = worst_gradient(&rows);
        for (i, row) in rows.iter().enumerate() {
            if args.all || !row.passed() || !row.what.starts_with("gradient ") || Some(i) == worst {
                print(row);
            }
            if !row.passed() {
                failed.push(Problem::new(
                    folder.display().to_string(),
                    format!("{} is off by {:.1e}", row.what, row.difference),
                ));
            }
        }
        let gradients = rows.iter().filter(|r| r.what.starts_with("gradient ")).count();
        if gradients > 0 && !args.all {
            outln!(
                "  ({gradients} gradient tensors compared, the worst one shown; --all shows every one)"
            );
        }
        outln!();
    }
    if failed.is_empty() {
        outln!("everything within its bar");
        return Ok(());
    }
    Err(Error::input(format!("{} comparisons failed", failed.len()), failed))
}

fn load(place: &Path) -> Result<Reference> {
    if !is_gguf(place)? {
        return Reference::load(place);
    }
    let folder = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.join("golden.json").is_file() {
        let what = "lies in a folder without golden.json, the expected values of its model";
        return Err(Error::file(place, what));
    }
    Reference::of_model(folder, &model_folder(place)?)
}

fn worst_gradient(rows: &[Comparison]) -> Option<usize> {
    let gradients = rows.iter().enumerate().filter(|(_, r)| r.what.starts_with("gradient "));
    gradients.max_by(|a, b| a.1.difference.total_cmp(&b.1.difference)).map(|(i, _)| i)
}

fn print(row: &Comparison) {
    let verdict = if row.passed() { "" } else { "  FAILED" };
    outln!(
        "  {:<58} {:>8} {:>10.1e} {:>10.1e}  {}{verdict}",
        row.what,
        row.values,
        row.difference,
        row.bar,
        row.measure
    );
}
