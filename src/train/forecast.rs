//! What a run of a recipe will take, before anything is allocated.

use crate::data::form::Form;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::kernel::Target;
use crate::model::adapter::{Adapter, tokenizer_folder};
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
    let (recipe, config) = recipe.resolve()?;
    // What trains is F32 whatever the file holds.
    let storage = match recipe.lora {
        None => Storage::new(),
        Some(_) => FolderWeights::open(&recipe.model, &config)?.storage(),
    };
    let mut placement = recipe.placement(&config, storage);
    let tokenizer = Tokenizer::from_folder(&tokenizer_folder(&recipe.model)?)?;
    // The longer form is the chat template's.
    let form = recipe.sample.form.unwrap_or(Form::of_template(tokenizer.has_template()));
    let room = sampler::room(&tokenizer, &config, &recipe.sample, form)?;
    let memory = fitting_plan(
        target,
        &config,
        capacity(&recipe),
        &*recipe.loss.objective,
        &mut placement,
        room,
        recipe.batch.recompute,
    )?;
    Ok(Forecast { config, placement, memory })
}

/// What a run would take under other settings.
pub struct Alternative {
    /// `KEY=VALUE`, in a row.
    pub settings: String,
    /// Bytes, whatever the adapter has; or why no adapter of this kind could run it.
    pub needs: std::result::Result<u64, String>,
}

/// A recipe with these settings in place of its own.
pub type With<'a> = dyn Fn(&[&str]) -> Result<Recipe> + 'a;

/// Tells `show` what a recipe would take with and without recomputing, and with LoRA, or the adapter
/// that it trains further, over weights in several types. What the recipe cannot be under these settings is left out.
pub fn other_settings(with: &With, target: &Target, show: &mut dyn FnMut(Alternative)) {
    // Without a limit, so that what does not fit is told with its size.
    let unbounded = Target { memory: None, ..target.clone() };
    // An adapter has its rank.
    let further =
        with(&[]).and_then(|recipe| Adapter::of(&recipe.model)).is_ok_and(|a| a.is_some());
    let rank: &[&str] = if further { &[] } else { &["lora.rank=16"] };
    let recompute = ["batch.recompute=none", "batch.recompute=block"].map(|set| vec![set]);
    let base = ["lora.base=stored", "lora.base=bf16", "lora.base=q8_0", "lora.base=q4_0"]
        .map(|set| [rank, &[set]].concat());
    for settings in recompute.into_iter().chain(base) {
        let needs = match with(&settings).and_then(|recipe| forecast(&recipe, &unbounded)) {
            Ok(found) => Ok(found.memory.total()),
            Err(Error::Limit(why)) => Err(why),
            // A model that is not trained so.
            Err(_) => continue,
        };
        show(Alternative { settings: settings.join(" "), needs });
    }
}

/// The largest `batch.stream_tokens` with which a recipe fits the adapter, to 64 tokens below 1,024 and
/// to an eighth above; None if none does.
pub fn longest_stream(with: &With, target: &Target) -> Option<usize> {
    longest(&|tokens| {
        with(&[&format!("batch.stream_tokens={tokens}")])
            .is_ok_and(|recipe| forecast(&recipe, target).is_ok())
    })
}

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
