//! `oddgrad plan recipe.toml`

use super::DeviceArgs;
use super::import::model_folder;
use crate::data::form::Form;
use crate::data::tokenize::Tokenizer;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::weights::{FolderWeights, ParameterValues, Storage};
use crate::train::learner::memory_plan;
use crate::train::prepare::capacity;
use crate::train::program::micro_graph;
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
    let mut recipe = recipe::load(&args.recipe, &args.set)?;
    recipe.model = model_folder(&recipe.model)?;
    let config = ModelConfig::load(&recipe.model)?;
    let config = recipe.adapted(config)?;
    // What trains is F32 whatever the file holds.
    let storage = match recipe.lora {
        None => Storage::new(),
        Some(_) => FolderWeights::open(&recipe.model, &config)?.storage(),
    };
    let placement = recipe.placement(&config, storage);
    let gpu = device.open()?;
    let capacity = capacity(&recipe);
    let objective = &*recipe.loss.objective;
    let tokenizer = Tokenizer::from_folder(&recipe.model)?;
    // The rows are not read, and the longer form is the chat template's.
    let form = recipe.sample.form.unwrap_or(Form::of_template(tokenizer.has_template()));
    let room = sampler::room(&tokenizer, &config, &recipe.sample, form)?;
    let plan = memory_plan(gpu.target(), &config, capacity, objective, &placement, room)?;
    let mib = |bytes: u64| format!("{:>10.2} MiB", bytes as f64 / 1048576.0);
    outln!("adapter                          {}", gpu.describe());
    outln!("parameters                       {:>10}", config.parameter_count());
    outln!("weights, gradients, moments      {}", mib(plan.state));
    outln!("forward and backward             {}", mib(plan.micro.temporaries()));
    outln!("  without sharing memory         {}", mib(plan.micro.unshared));
    outln!("evaluation                       {}", mib(plan.eval.temporaries()));
    outln!("shared by all programs           {}", mib(plan.pool.sizes().iter().sum()));
    outln!("inputs and what is read back     {}", mib(plan.exchanged()));
    outln!("keys and values of the prompts   {}", mib(plan.cache()));
    outln!("total                            {}", mib(plan.total()));
    if args.listing {
        let graph = placement.training_graph(gpu.target());
        let (graph, _) = micro_graph(graph, &config, capacity, objective);
        out!("\n{}", graph.listing());
    }
    Ok(())
}
