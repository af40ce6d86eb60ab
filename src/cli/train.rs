//! `oddgrad train recipe.toml`

use super::DeviceArgs;
use super::display::Display;
use super::hub::bring_rows;
use super::import::model_folder;
use super::interrupt::stop_on_signal;
use super::working;
use crate::error::{Error, Result};
use crate::files::cache_folder;
use crate::page::live::LiveReport;
use crate::train::best::Best;
use crate::train::prepare::prepare;
use crate::train::recovery::run_recovering;
use crate::train::trainer::TrainEvent;
use crate::train::{recipe, trainer};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of `oddgrad train`.
#[derive(Args)]
pub struct TrainArgs {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// Replace a setting of the recipe: `--set optim.learning_rate=1e-4`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on without rows that cannot be used.
    #[arg(long)]
    skip_bad_rows: bool,
    /// Go on from the newest checkpoint in the output folder.
    #[arg(long)]
    resume: bool,
    /// What to do when the device is lost (a reset of its driver, a watchdog): stop, or go on from the
    /// last checkpoint on a new one.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnDeviceLost::Stop)]
    on_device_lost: OnDeviceLost,
    /// For tests: loses the device at this submission, the next device at the next number, and so on.
    #[arg(long, hide = true, value_name = "N,…", value_delimiter = ',')]
    lose_device_at: Vec<u64>,
}

/// What happens when the device is lost.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnDeviceLost {
    /// The run ends with an error.
    Stop,
    /// The run goes on from its last checkpoint.
    Resume,
}

pub(super) fn run(args: &TrainArgs, device: &DeviceArgs) -> Result<()> {
    let mut set = args.set.clone();
    if args.skip_bad_rows {
        set.push("data.skip_bad_rows=true".into());
    }
    let mut recipe = recipe::load(&args.recipe, &set)?;
    if args.resume && !recipe.output.exists() {
        return Err(Error::file(
            &recipe.output,
            "does not exist, so there is nothing to resume. Check `output`, or leave --resume out to start.",
        ));
    }
    recipe.model = model_folder(&recipe.model)?;
    bring_rows(recipe.data.train.iter().chain(&recipe.data.eval))?;
    working::on("reading the model and the rows");
    let prepared = prepare(&recipe, args.resume)?;
    let mut losses = args.lose_device_at.iter();
    let mut open = || {
        let gpu = device.open()?;
        losses.next().iter().for_each(|&&n| gpu.lose_at(n));
        working::on("reading weights");
        Ok(gpu)
    };
    let prepared = prepared.stop_when(stop_on_signal("this step")?).cache_in(cache_folder());
    let mut display = Display::new("");
    let mut report = LiveReport::new(&recipe);
    // A page that cannot be written ends no run; it is told once.
    let mut failed = false;
    let mut show = |event: TrainEvent| {
        let written = report.hear(&event);
        display.show(event);
        if let Err(error) = written
            && !std::mem::replace(&mut failed, true)
        {
            display.show(TrainEvent::Note(format!("the report is not kept up: {error}")));
        }
    };
    let outcome = match args.on_device_lost {
        OnDeviceLost::Stop => trainer::run(prepared, &open()?, &mut show).map_err(say_how_to_go_on),
        OnDeviceLost::Resume => run_recovering(prepared, &mut open, &mut show),
    };
    display.finish();
    let written = report.finish();
    let outcome = outcome?;
    outln!("model      {}", outcome.model.display());
    match written {
        Ok(()) => outln!("report     {}", report.path().display()),
        Err(error) => errln!("the report could not be written: {error}"),
    }
    if let Some((best, folder)) = outcome.best {
        let Best { step, metric, value } = best;
        outln!("best       {} (step {step}, eval {metric} {value:.4})", folder.display());
    }
    Ok(())
}

fn say_how_to_go_on(error: Error) -> Error {
    match error {
        Error::Lost(text) => Error::Lost(format!(
            "{text} Go on from the last checkpoint with --resume; with --on-device-lost resume a run does so itself."
        )),
        other => other,
    }
}
