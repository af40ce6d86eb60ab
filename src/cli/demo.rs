//! `oddgrad demo`

use super::DeviceArgs;
use super::display::Display;
use super::import::model_folder;
use super::interrupt::stop_on_signal;
use super::working;
use crate::demo::pairs::fetch_pairs;
use crate::demo::{self, DemoOptions, DemoOutcome, Ends, Event};
use crate::error::Result;
use crate::page::report::Sample;
use crate::train::trainer;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments of `oddgrad demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Train for a shorter time: under two minutes in all on two CPU cores.
    #[arg(long)]
    quick: bool,
    /// Folder for both runs and the report.
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    output: PathBuf,
    /// Folder of the fetched pairs; they are used offline after the first time.
    #[arg(long, value_name = "DIR", default_value = ".cache")]
    cache: PathBuf,
    /// The model to start from, a Hugging Face folder or a GGUF file.
    #[arg(long, value_name = "DIR", default_value = "models/nano")]
    model: PathBuf,
    /// Replace a setting of the recipe of both runs: `--set loss.lambda=0.5`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on with a stopped demo in the output folder.
    #[arg(long)]
    resume: bool,
    /// Only fetch the pairs and say where their rows are; nothing is trained.
    #[arg(long, conflicts_with_all = ["quick", "output", "model", "set", "resume"])]
    rows_only: bool,
}

/// Corrections that are printed; the report shows them all.
const PRINTED: usize = 6;

pub(super) fn run(args: &DemoArgs, device: &DeviceArgs) -> Result<()> {
    if args.rows_only {
        return rows_only(&args.cache);
    }
    let options = DemoOptions {
        model: model_folder(&args.model)?,
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
    options.check_start()?;
    let gpu = device.open()?;
    let options = DemoOptions { stop: stop_on_signal("this step")?, ..options };
    let mut shown = Shown::default();
    working::on("fetching and reading pairs");
    let outcome = demo::run(&gpu, &options, &mut |event| shown.show(event));
    shown.finish();
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

fn rows_only(cache: &Path) -> Result<()> {
    working::on("fetching and reading pairs");
    let pairs = fetch_pairs(cache);
    working::done();
    let pairs = pairs?;
    for (file, rows, what) in [
        (&pairs.train, pairs.train_rows, "to train on"),
        (&pairs.known, pairs.known_rows, "held out, of rules that are trained on"),
        (&pairs.heldout, pairs.heldout_rows, "held out, of other rules"),
    ] {
        outln!("{:<28} {rows:>5} rows {what}", file.display().to_string());
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
                errln!("{text}");
            }
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
        ("chosen log-prob", "logps/chosen"),
        ("rejected log-prob", "logps/rejected"),
        ("log odds ratio", "log_odds_chosen"),
        ("accuracy", "rewards/accuracies"),
        ("NLL", "nll_loss"),
    ];
    let cell = |ends: &Ends, key: &str| {
        let show = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.4}"));
        format!("{:>9} -> {:>9}", show(ends.before.get(key)), show(ends.after.get(key)))
    };
    outln!();
    outln!(
        "Held-out rows of rules that were trained on, before -> after {} steps",
        outcome.ends[0].after.step
    );
    out!("{:<18}", "");
    outcome.ends.iter().for_each(|ends| out!("  {:^22}", ends.name));
    outln!();
    for (name, key) in rows {
        out!("{name:<18}");
        outcome.ends.iter().for_each(|ends| out!("  {}", cell(ends, key)));
        outln!();
    }
}
