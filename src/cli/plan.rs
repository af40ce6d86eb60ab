//! `oddgrad plan recipe.toml`

use super::DeviceArgs;
use super::hub::bring_rows;
use super::import::model_folder;
use super::working;
use crate::error::{Error, Problem, Result};
use crate::kernel::Target;
use crate::train::forecast::{Forecast, forecast};
use crate::train::prepare::capacity;
use crate::train::program::micro_graph;
use crate::train::recipe;
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `oddgrad plan`.
#[derive(Args)]
pub struct PlanArgs {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// Replace a setting of the recipe; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Plan for so much memory instead of what this adapter has.
    #[arg(long, value_name = "GIB")]
    memory: Option<f64>,
    /// Print every dispatch of forward and backward.
    #[arg(long)]
    listing: bool,
}

fn mib(bytes: u64) -> String {
    format!("{:>10.2} MiB", bytes as f64 / 1048576.0)
}

pub(super) fn run(args: &PlanArgs, device: &DeviceArgs) -> Result<()> {
    let mut recipe = recipe::load(&args.recipe, &args.set)?;
    recipe.model = model_folder(&recipe.model)?;
    bring_rows(recipe.data.train.iter().chain(&recipe.data.eval))?;
    let gpu = device.open()?;
    let mut target = gpu.target().clone();
    if let Some(gib) = args.memory {
        if !(gib > 0.0 && gib < 1e6) {
            let problem = Problem::new("--memory", format!("is {gib}; write gibibytes, as in 8"));
            return Err(Error::input("there is nothing to plan for", vec![problem]));
        }
        target.memory = Some((gib * (1u64 << 30) as f64) as u64);
    }
    outln!("adapter                          {}", gpu.describe());
    match target.memory {
        Some(bytes) => outln!("memory                           {}", mib(bytes)),
        None => outln!("memory                           not known"),
    }
    let found = match forecast(&recipe, &target) {
        Ok(found) => found,
        Err(error @ Error::Limit(_)) => {
            alternatives(args, &recipe.model, &target);
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    let Forecast { config, placement, memory: plan } = found;
    outln!("parameters                       {:>10}", config.parameter_count());
    outln!("weights, gradients, moments      {}", mib(plan.state));
    outln!("forward and backward             {}", mib(plan.micro.temporaries()));
    if placement.recompute {
        outln!("                                 blocks are computed again for the derivative");
    }
    outln!("  without sharing memory         {}", mib(plan.micro.unshared));
    outln!("evaluation                       {}", mib(plan.eval.temporaries()));
    outln!("shared by all programs           {}", mib(plan.pool.sizes().iter().sum()));
    outln!("inputs and what is read back     {}", mib(plan.exchanged()));
    outln!("keys and values of the prompts   {}", mib(plan.cache()));
    outln!("total                            {}", mib(plan.total()));
    alternatives(args, &recipe.model, &target);
    if args.listing {
        let graph = placement.training_graph(&target);
        let (graph, _) = micro_graph(graph, &config, capacity(&recipe), &*recipe.loss.objective);
        out!("\n{}", graph.listing());
    }
    Ok(())
}

/// What other settings would take, and the longest stream that fits.
fn alternatives(args: &PlanArgs, model: &Path, target: &Target) {
    // Without a limit, so that what does not fit is told with its size.
    let unbounded = Target { memory: None, ..target.clone() };
    let with = |settings: &[&str], target: &Target| {
        let set: Vec<String> =
            args.set.iter().cloned().chain(settings.iter().map(|s| (*s).to_owned())).collect();
        let mut recipe = recipe::load(&args.recipe, &set)?;
        recipe.model = model.to_owned();
        forecast(&recipe, target)
    };
    outln!("other settings");
    let choices: [&[&str]; 6] = [
        &["batch.recompute=none"],
        &["batch.recompute=block"],
        &["lora.rank=16", "lora.base=stored"],
        &["lora.rank=16", "lora.base=bf16"],
        &["lora.rank=16", "lora.base=q8_0"],
        &["lora.rank=16", "lora.base=q4_0"],
    ];
    for settings in choices {
        working::on("planning other settings");
        let name = settings.join(" ");
        match with(settings, &unbounded) {
            Ok(found) => {
                let total = found.memory.total();
                let fits = match target.memory {
                    Some(there) if total > there => "  does not fit",
                    _ => "",
                };
                outln!("  {name:<30} {}{fits}", mib(total));
            }
            Err(Error::Limit(why)) => outln!("  {name:<30} does not fit: {why}"),
            // An adapter's own folder, or a model that is not trained further so.
            Err(_) => {}
        }
    }
    if let Some(tokens) = longest(&|tokens| {
        working::on("planning longer streams");
        with(&[&format!("batch.stream_tokens={tokens}")], target).is_ok()
    }) {
        outln!("longest batch.stream_tokens      {tokens:>10}");
    }
}

/// The largest stream that fits, to 64 tokens below 1,024 and to an eighth above; None if none does.
fn longest(fits: &dyn Fn(usize) -> bool) -> Option<usize> {
    const MOST: usize = 1 << 17;
    let mut fitting = None;
    let mut step = 64;
    while step <= MOST && fits(step) {
        fitting = Some(step);
        step *= 2;
    }
    let mut fitting = fitting?;
    let mut between = fitting / 2;
    while step <= MOST && between >= 64.max(fitting / 8) {
        if fits(fitting + between) {
            fitting += between;
        }
        between /= 2;
    }
    Some(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stream_is_found() {
        for most in [64, 100, 900, 1024, 5000, 70_000] {
            let found = longest(&|tokens| tokens <= most).unwrap();
            assert!(found <= most && most - found <= 64.max(most / 6), "{most}: {found}");
        }
        assert_eq!(longest(&|_| false), None);
        assert_eq!(longest(&|_| true), Some(1 << 17));
    }
}
