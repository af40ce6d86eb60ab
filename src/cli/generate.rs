//! `oddgrad generate MODEL --prompt TEXT`

use super::DeviceArgs;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::generate::Sampling;
use crate::model::weights::FolderWeights;
use crate::program::Store;
use crate::train::learner::check_weights;
use crate::train::sampler::{Sampler, encode_prompts};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `oddgrad generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// A Hugging Face model folder, or a checkpoint.
    model: PathBuf,
    /// A prompt; may be repeated. Rendered by the model's chat template if it has one.
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// Most new tokens per prompt.
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the most probable token; above 0 tokens are drawn.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(super) fn run(args: &GenerateArgs, device: &DeviceArgs) -> Result<()> {
    let sampling =
        Sampling { max_tokens: args.max_tokens, temperature: args.temperature, seed: args.seed };
    let problems = sampling.problems();
    if !problems.is_empty() {
        return Err(Error::input("nothing can be generated with these settings", problems));
    }
    let config = ModelConfig::load(&args.model)?;
    let tokenizer = Tokenizer::from_folder(&args.model)?;
    encode_prompts(&tokenizer, &config, &args.prompt, args.max_tokens)?;
    let weights = FolderWeights::open(&args.model, &config)?;
    let gpu = device.open()?;
    check_weights(gpu.target(), weights.stored_bytes())?;
    let store = Store::new(&gpu);
    weights.put(&store)?;
    let sampler = Sampler::new(&gpu, &store, &config, tokenizer, &args.prompt, args.max_tokens)?;
    for text in sampler.run(&sampling)? {
        println!("{text}");
    }
    Ok(())
}
