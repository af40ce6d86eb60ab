//! `oddgrad generate MODEL --prompt TEXT`

use super::DeviceArgs;
use super::import::model_folder;
use super::working;
use crate::data::form::Form;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::model::adapter::tokenizer_folder;
use crate::model::config::ModelConfig;
use crate::model::folder::recorded_form;
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
    /// A Hugging Face model folder, a checkpoint, the folder of a LoRA adapter, or a GGUF file.
    model: PathBuf,
    /// A prompt; may be repeated.
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// How the prompts reach the model. Without it: as it was trained, if its folder says so; else
    /// by its chat template, if it has one.
    #[arg(long, value_enum)]
    form: Option<Form>,
    /// Most new tokens per prompt.
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the most probable token; above 0 tokens are drawn.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw among the so many most probable tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw among the fewest most probable tokens that have this share of the probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Draw among tokens with at least this part of the largest probability.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that are in the text already less probable, as transformers does; 1 for not.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(super) fn run(args: &GenerateArgs, device: &DeviceArgs) -> Result<()> {
    let sampling = Sampling {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    let problems = sampling.problems();
    if !problems.is_empty() {
        return Err(Error::input("nothing can be generated with these settings", problems));
    }
    working::on("reading the model");
    let model = &model_folder(&args.model)?;
    let config = ModelConfig::load(model)?;
    let tokenizer = Tokenizer::from_folder(&tokenizer_folder(model)?)?;
    let has_template = tokenizer.has_template();
    let recorded = recorded_form(model)?;
    let form = args.form.or(recorded).unwrap_or(Form::of_template(has_template));
    let prompts = (&args.prompt[..], form);
    encode_prompts(&tokenizer, &config, prompts, args.max_tokens)?;
    let weights = FolderWeights::open(model, &config)?;
    let gpu = device.open()?;
    check_weights(gpu.target(), weights.stored_bytes())?;
    working::on("reading weights");
    let store = Store::new(&gpu);
    weights.put(&store)?;
    let sampler = Sampler::new(&gpu, &store, &config, tokenizer, prompts, args.max_tokens)?;
    if has_template {
        let why = match (args.form, recorded) {
            (Some(_), _) => "by --form",
            (None, Some(_)) => "as the model was trained; --form changes it",
            (None, None) => "as the model has a template; --form changes it",
        };
        errln!("prompts    {form} ({why})");
    }
    working::on("generating");
    for text in sampler.run(&sampling)? {
        outln!("{text}");
    }
    Ok(())
}
