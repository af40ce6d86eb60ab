//! `oddgrad generate MODEL --prompt TEXT`

use super::DeviceArgs;
use super::import::model_folder;
use super::output;
use super::sampling::SamplingArgs;
use super::working;
use crate::data::form::Form;
use crate::data::prompts::read_prompts;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::model::adapter::tokenizer_folder;
use crate::model::config::ModelConfig;
use crate::model::folder::recorded_form;
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
    #[arg(long, required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// A file of prompts: rows with a column "prompt" (.jsonl, .jsonl.gz, .json, .parquet), or a prompt
    /// on each line (.txt).
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// How the prompts reach the model. Without it: as it was trained, if its folder says so; else
    /// by its chat template, if it has one.
    #[arg(long, value_enum)]
    form: Option<Form>,
    /// Most new tokens per prompt.
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print the text as it comes; for one prompt.
    #[arg(long, conflicts_with_all = ["prompts", "json"])]
    stream: bool,
    /// Print a line of JSON for each prompt: {"prompt": …, "text": …}.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &GenerateArgs, device: &DeviceArgs) -> Result<()> {
    let (sampling, stops) = args.sampling.read(args.max_tokens)?;
    let mut all = args.prompt.clone();
    if let Some(path) = &args.prompts {
        all.extend(read_prompts(path)?);
    }
    if args.stream && all.len() > 1 {
        let what = "prints one text as it comes; give one prompt, or leave it out";
        let problem = Problem::new("--stream", what);
        return Err(Error::input("the texts cannot be told apart", vec![problem]));
    }
    working::on("reading the model");
    let model = &model_folder(&args.model)?;
    let config = ModelConfig::load(model)?;
    let tokenizer = Tokenizer::from_folder(&tokenizer_folder(model)?)?;
    let has_template = tokenizer.has_template();
    let recorded = recorded_form(model)?;
    let form = args.form.or(recorded).unwrap_or(Form::of_template(has_template));
    let prompts = (&all[..], form);
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
    let mut hear = |_: usize, piece: &str| {
        if args.stream && !piece.is_empty() {
            out!("{piece}");
            output::flush();
        }
    };
    let texts = sampler.run(&sampling, stops, &mut hear)?;
    match (args.stream, args.json) {
        (true, _) => outln!(""),
        (false, false) => texts.iter().for_each(|text| outln!("{text}")),
        (false, true) => {
            for (prompt, text) in all.iter().zip(texts) {
                outln!("{}", serde_json::json!({"prompt": prompt, "text": text}));
            }
        }
    }
    Ok(())
}
