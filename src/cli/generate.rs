//! `oddgrad generate MODEL --prompt TEXT`

use super::DeviceArgs;
use super::import::model_folder;
use super::output;
use super::sampling::SamplingArgs;
use super::working;
use crate::data::form::Form;
use crate::data::prompts::{PromptRow, read_prompt_rows};
use crate::data::rows::{Source, Text};
use crate::error::{Error, Problem, Result};
use crate::feedback::asked::ModelFiles;
use crate::feedback::comparison::value;
use crate::model::folder::recorded_form;
use crate::program::Store;
use crate::train::learner::check_weights;
use crate::train::sampler::Sampler;
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Arguments of `oddgrad generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// A Hugging Face model folder, a checkpoint, the folder of a LoRA adapter, or a GGUF file.
    model: PathBuf,
    /// A prompt; may be repeated.
    #[arg(long, required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// A file of prompts: rows with "prompt" or "messages", text or a conversation (.jsonl, .jsonl.gz,
    /// .json, .parquet), or one on each line (.txt).
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
    let mut all: Vec<(String, PromptRow)> = args.prompt.iter().enumerate().map(given).collect();
    if let Some(path) = &args.prompts {
        let rows = read_prompt_rows(path)?.into_iter();
        all.extend(rows.map(|row| (row.source.to_string(), row)));
    }
    if args.stream && all.len() > 1 {
        let what = "prints one text as it comes; give one prompt, or leave it out";
        let problem = Problem::new("--stream", what);
        return Err(Error::input("the texts cannot be told apart", vec![problem]));
    }
    working::on("reading the model");
    let model = &model_folder(&args.model)?;
    let recorded = recorded_form(model)?;
    let files = ModelFiles::open(model, args.form.or(recorded))?;
    let asked: Vec<Value> = all.iter().map(|(_, row)| value(&row.prompt)).collect();
    let prompts = encode(&files, all, args.max_tokens)?;
    let gpu = device.open()?;
    check_weights(gpu.target(), files.weights.stored_bytes())?;
    working::on("reading weights");
    let store = Store::new(&gpu);
    files.weights.put(&store)?;
    let ModelFiles { config, tokenizer, form, .. } = files;
    let has_template = tokenizer.has_template();
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
            for (prompt, text) in asked.iter().zip(texts) {
                outln!("{}", json!({"prompt": prompt, "text": text}));
            }
        }
    }
    Ok(())
}

/// A prompt of the command line, and what messages call it.
fn given((at, text): (usize, &String)) -> (String, PromptRow) {
    let source = Source { file: "--prompt".into(), line: at + 1 };
    let prompt = Text::Plain(text.clone());
    let row = PromptRow { source, prompt, given: Map::new(), answers: Vec::new() };
    (format!("prompt {}", at + 1), row)
}

/// The tokens of all prompts; what is wrong with any of them is told at once.
fn encode(
    files: &ModelFiles,
    all: Vec<(String, PromptRow)>,
    max_tokens: usize,
) -> Result<Vec<Vec<u32>>> {
    let (mut prompts, mut problems) = (Vec::new(), Vec::new());
    for (place, mut row) in all {
        // A template would hide that nothing was asked.
        let found = match row.prompt.is_blank() {
            true => Err("is empty; write what is to be continued".to_owned()),
            false => files.prompt(&mut row, max_tokens),
        };
        match found {
            Ok(ids) => prompts.push(ids),
            Err(what) => problems.push(Problem::new(place, what)),
        }
    }
    if problems.is_empty() {
        return Ok(prompts);
    }
    Err(Error::input("these prompts cannot be continued", problems))
}
