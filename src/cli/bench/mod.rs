//! `oddgrad bench`

mod compare;
mod op;
mod step;

use super::DeviceArgs;
use crate::error::Result;
use clap::{Args, Subcommand};

/// Arguments of `oddgrad bench`: an operation, or one of the subcommands.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    op: op::OpArgs,
}

#[derive(Subcommand)]
enum What {
    /// Forward, backward and AdamW of a model on full streams: tokens/s and time per operation.
    Step(step::StepArgs),
    /// Compare two JSON reports of an operation. Exit code 0: no regression past the limit; 1: one, or
    /// reports that cannot be compared; 3: inconclusive, the intervals are too wide to tell.
    Compare(compare::CompareArgs),
}

pub(super) fn run(args: &BenchArgs, device: &DeviceArgs) -> Result<()> {
    match &args.what {
        Some(What::Step(args)) => step::run(args, device),
        Some(What::Compare(args)) => compare::run(args),
        None => op::run(&args.op, device),
    }
}
