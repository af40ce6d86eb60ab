//! `oddgrad eval MODEL DATA…`

use super::DeviceArgs;
use super::hub::bring_rows;
use super::import::model_folder;
use super::working;
use crate::data::form::Form;
use crate::data::rows::Split;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::model::adapter::tokenizer_folder;
use crate::model::config::ModelConfig;
use crate::model::weights::FolderWeights;
use crate::train::dataset::Dataset;
use crate::train::evaluation::{
    Estimate, FIGURES, ScoredRow, ScoredRows, estimates, keep_common, score,
};
use crate::train::learner::check_weights;
use crate::train::objectives::RowKind;
use crate::train::recipe::DataSettings;
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `oddgrad eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// A Hugging Face model folder, a checkpoint, the folder of a LoRA
    /// adapter, or a GGUF file.
    model: PathBuf,
    /// Files or folders of rows it was not trained on; a rejected answer is read where there is
    /// one, and so is a label (true or false) of an answer.
    #[arg(required = true)]
    data: Vec<PathBuf>,
    /// Another model, on the same rows: its figures and the difference to the first.
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// Longest sequence in tokens; longer rows are left out and counted.
    #[arg(long, default_value_t = 1024)]
    max_length: usize,
    /// Tokens of a stream; more where a row needs them.
    #[arg(long, default_value_t = 1024)]
    stream_tokens: usize,
    /// Draws of rows for the 95 % intervals.
    #[arg(long, default_value_t = 2000)]
    resamples: usize,
    /// Seed of these draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on without rows that cannot be used.
    #[arg(long)]
    skip_bad_rows: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &EvalArgs, device: &DeviceArgs) -> Result<()> {
    let limits = [
        ("--resamples", args.resamples, 100, 1_000_000),
        ("--max-length", args.max_length, 2, 1 << 24),
        ("--stream-tokens", args.stream_tokens, 2, 1 << 24),
    ];
    let wrong = limits.into_iter().filter(|(_, n, least, most)| !(least..=most).contains(&n));
    let problems: Vec<Problem> = wrong
        .map(|(flag, n, least, most)| {
            Problem::new(flag, format!("is {n}; it must be from {least} to {most}"))
        })
        .collect();
    if !problems.is_empty() {
        return Err(Error::input("nothing can be evaluated with these settings", problems));
    }
    bring_rows(&args.data)?;
    let mut models = vec![evaluate(&args.model, args, device)?];
    if let Some(other) = &args.against {
        models.push(evaluate(other, args, device)?);
    }
    for left_out in keep_common(&mut models)?.into_iter().filter(|&n| n > 0) {
        errln!("{left_out} rows are left out: the other model cannot take them");
    }
    let rows = models[0].len();
    let found = estimates(&models, args.resamples, args.seed);
    if args.json {
        let figures = FIGURES.iter().zip(&found).filter_map(|(figure, found)| {
            let found = found.as_ref()?;
            let value = serde_json::json!({"models": found.models, "difference": found.difference});
            Some((figure.key.to_owned(), value))
        });
        let figures: serde_json::Map<_, _> = figures.collect();
        let names = [Some(&args.model), args.against.as_ref()];
        let names: Vec<String> =
            names.into_iter().flatten().map(|path| path.display().to_string()).collect();
        outln!("{}", serde_json::json!({"rows": rows, "models": names, "figures": figures}));
        return Ok(());
    }
    let count = |of: fn(&ScoredRow) -> bool| models[0].values().filter(|row| of(row)).count();
    let pairs = count(|row| row.chosen.is_some() && row.rejected.is_some());
    let undesirable = match count(|row| row.chosen.is_none()) {
        0 => String::new(),
        n => format!(", {n} with label false, whose answers count as rejected"),
    };
    outln!(
        "{rows} rows, {pairs} of them pairs{undesirable}; in brackets 95 % of {} draws of rows",
        args.resamples
    );
    let mut head = format!("{:<50}{:>27}", "", named(&args.model));
    if let Some(other) = &args.against {
        head += &format!("{:>27}{:>27}", named(other), "second less first");
    }
    outln!("{head}");
    for (figure, found) in FIGURES.iter().zip(&found) {
        let Some(found) = found else { continue };
        let columns: String = found.models.iter().chain(&found.difference).map(column).collect();
        outln!("{:<50}{columns}", figure.title);
    }
    Ok(())
}

/// The last part of a folder's name that tells it.
fn named(path: &Path) -> String {
    let name = path.display().to_string();
    let from = name.char_indices().rev().nth(24).map_or(0, |(at, _)| at);
    name[from..].to_owned()
}

fn column(Estimate { value, interval: [low, high] }: &Estimate) -> String {
    format!("{value:>9.4} [{low:>7.3},{high:>7.3}]")
}

fn evaluate(model: &Path, args: &EvalArgs, device: &DeviceArgs) -> Result<ScoredRows> {
    working::on("reading the model");
    let model = &model_folder(model)?;
    let config = ModelConfig::load(model)?;
    let tokenizer = Tokenizer::from_folder(&tokenizer_folder(model)?)?;
    let weights = FolderWeights::open(model, &config)?;
    working::on("reading rows");
    let settings = DataSettings {
        max_length: args.max_length,
        skip_bad_rows: args.skip_bad_rows,
        ..DataSettings::default()
    };
    let rows =
        Dataset::load(&settings, RowKind::Judged, &tokenizer, &args.data, Split::Validation)?;
    rows.notes.iter().for_each(|note| errln!("{}: {note}", model.display()));
    if rows.form == Form::Plain && tokenizer.has_template() {
        errln!("{}: has a chat template, and the rows are plain text", model.display());
    }
    errln!("{}: {}", model.display(), rows.counts);
    let gpu = device.open()?;
    check_weights(gpu.target(), weights.stored_bytes())?;
    working::on("reading weights");
    let total = rows.examples.len();
    let mut progress = |done| working::on(&format!("scored {done} of {total} rows"));
    score(&gpu, &config, &weights, &tokenizer, &rows, args.stream_tokens, &mut progress)
}
