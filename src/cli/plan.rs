//! `oddgrad plan recipe.toml`

use super::DeviceArgs;
use super::hub::bring_rows;
use super::import::model_folder;
use super::working;
use crate::error::{Error, Problem, Result};
use crate::kernel::Target;
use crate::train::forecast::{Alternative, Forecast, forecast, longest_stream, other_settings};
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
    let with = |settings: &[&str]| {
        let more = settings.iter().map(|s| (*s).to_owned());
        let mut recipe =
            recipe::load(&args.recipe, &args.set.iter().cloned().chain(more).collect::<Vec<_>>())?;
        recipe.model = model.to_owned();
        Ok(recipe)
    };
    outln!("other settings");
    let mut show = |Alternative { settings, needs }: Alternative| match needs {
        Ok(total) => {
            let there = target.memory.is_none_or(|there| total <= there);
            let fits = if there { "" } else { "  does not fit" };
            outln!("  {settings:<30} {}{fits}", mib(total));
        }
        Err(why) => outln!("  {settings:<30} does not fit: {why}"),
    };
    working::on("planning other settings");
    other_settings(&with, target, &mut show);
    working::on("planning longer streams");
    let longest = longest_stream(&with, target);
    working::done();
    if let Some(tokens) = longest {
        outln!("longest batch.stream_tokens      {tokens:>10}");
    }
}
