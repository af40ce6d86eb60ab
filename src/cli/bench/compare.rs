//! `oddgrad bench compare`

use crate::bench::compare::{Verdict, compare};
use crate::bench::report::BenchReport;
use crate::error::{Error, Result};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct CompareArgs {
    /// The report before, from `--json`.
    before: PathBuf,
    /// The report after.
    after: PathBuf,
    /// How much slower a row may become.
    #[arg(long, default_value = "5%", value_name = "PERCENT", value_parser = percent)]
    limit: f64,
    /// Compare reports of different adapters, drivers or clocks too.
    #[arg(long)]
    any_adapter: bool,
}

/// `5%` or `5` as 0.05.
pub(super) fn percent(text: &str) -> std::result::Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim().parse::<f64>().ok();
    number
        .filter(|p| p.is_finite() && *p >= 0.0)
        .map(|p| p / 100.0)
        .ok_or_else(|| "write a percentage, as in 5%".into())
}

pub(super) fn run(args: &CompareArgs) -> Result<()> {
    let (before, after) = (BenchReport::load(&args.before)?, BenchReport::load(&args.after)?);
    let comparison = compare(&before, &after, args.any_adapter)?;
    outln!("before    {}", before.device());
    outln!("after     {}", after.device());
    out!("\n{}", comparison.table(args.limit));
    let limit = 100.0 * args.limit;
    let slower = comparison.count(Verdict::Regression, args.limit);
    if slower > 0 || !comparison.broken.is_empty() {
        return Err(Error::Mismatch(format!(
            "{slower} rows are more than {limit} % slower, {} kernels fail the gate that passed before",
            comparison.broken.len()
        )));
    }
    let open = comparison.count(Verdict::Inconclusive, args.limit);
    if open > 0 {
        return Err(Error::Inconclusive(format!(
            "{open} of {} rows are too uncertain to tell no change from one of {limit} %; measure both reports longer (--seconds, --within) on an idle machine, or allow more (--limit)",
            comparison.changes.len()
        )));
    }
    outln!("no row is more than {limit} % slower beyond noise");
    Ok(())
}
