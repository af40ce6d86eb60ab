//! What a run of a recipe will take, before anything is allocated.

use crate::data::form::Form;
use crate::data::tokenize::Tokenizer;
use crate::error::Result;
use crate::kernel::Target;
use crate::model::adapter::check_whole_model;
use crate::model::config::ModelConfig;
use crate::model::weights::{FolderWeights, ParameterValues, Storage};
use crate::train::learner::{MemoryPlan, fitting_plan};
use crate::train::prepare::capacity;
use crate::train::program::Placement;
use crate::train::recipe::Recipe;
use crate::train::sampler;

/// A recipe's model, how it will lie on the device, and the memory of all programs.
pub struct Forecast {
    /// The model, with the recipe's low-rank additions.
    pub config: ModelConfig,
    /// How it will lie on the device.
    pub placement: Placement,
    /// Bytes of everything.
    pub memory: MemoryPlan,
}

/// Plans a run. The rows are not read.
///
/// # Errors
/// A model or tokenizer that cannot be used; a plan that does not fit `target`.
pub fn forecast(recipe: &Recipe, target: &Target) -> Result<Forecast> {
    check_whole_model(&recipe.model)?;
    let config = recipe.adapted(ModelConfig::load(&recipe.model)?)?;
    // What trains is F32 whatever the file holds.
    let storage = match recipe.lora {
        None => Storage::new(),
        Some(_) => FolderWeights::open(&recipe.model, &config)?.storage(),
    };
    let mut placement = recipe.placement(&config, storage);
    let tokenizer = Tokenizer::from_folder(&recipe.model)?;
    // The longer form is the chat template's.
    let form = recipe.sample.form.unwrap_or(Form::of_template(tokenizer.has_template()));
    let room = sampler::room(&tokenizer, &config, &recipe.sample, form)?;
    let memory = fitting_plan(
        target,
        &config,
        capacity(recipe),
        &*recipe.loss.objective,
        &mut placement,
        room,
        recipe.batch.recompute,
    )?;
    Ok(Forecast { config, placement, memory })
}
