//! `oddgrad plan recipe.toml`

use super::DeviceArgs;
use crate::data::tokenize::Tokenizer;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::train::learner::memory_plan;
use crate::train::prepare::capacity;
use crate::train::program::{micro_graph, train_all, training_graph};
use crate::train::{recipe, sampler};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `oddgrad plan`.
#[derive(Args)]
pub struct PlanArgs {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// Replace a setting of the recipe; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print every dispatch of forward and backward.
    #[arg(long)]
    listing: bool,
}

pub(super) fn run(args: &PlanArgs, device: &DeviceArgs) -> Result<()> {
    let recipe = recipe::load(&args.recipe, &args.set)?;
    let config = ModelConfig::load(&recipe.model)?;
    let gpu = device.open()?;
    let capacity = capacity(&recipe);
    let objective = &*recipe.loss.objective;
    let tokenizer = Tokenizer::from_folder(&recipe.model)?;
    let room = sampler::room(&tokenizer, &config, &recipe.sample)?;
    let plan = memory_plan(gpu.target(), &config, capacity, objective, &train_all(), room)?;
    let mib = |bytes: u64| format!("{:>10.2} MiB", bytes as f64 / 1048576.0);
    println!("adapter                          {}", gpu.describe());
    println!("parameters                       {:>10}", config.parameter_count());
    println!("weights, gradients, moments      {}", mib(plan.state));
    println!("forward and backward             {}", mib(plan.micro.temporaries()));
    println!("  without sharing memory         {}", mib(plan.micro.unshared));
    println!("evaluation                       {}", mib(plan.eval.temporaries()));
    println!("shared by all programs           {}", mib(plan.pool.sizes().iter().sum()));
    println!("inputs and what is read back     {}", mib(plan.exchanged()));
    println!("keys and values of the prompts   {}", mib(plan.cache()));
    println!("total                            {}", mib(plan.total()));
    if args.listing {
        let graph = training_graph(gpu.target(), &train_all());
        let (graph, _) = micro_graph(graph, &config, capacity, objective);
        print!("\n{}", graph.listing());
    }
    Ok(())
}
