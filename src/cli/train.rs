//! `oddgrad train recipe.toml`

use super::DeviceArgs;
use super::display::Display;
use super::interrupt::stop_on_signal;
use super::working;
use crate::error::{Error, Result};
use crate::files::cache_folder;
use crate::train::prepare::prepare;
use crate::train::{recipe, trainer};
use clap::Args;
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
}

pub(super) fn run(args: &TrainArgs, device: &DeviceArgs) -> Result<()> {
    let mut set = args.set.clone();
    if args.skip_bad_rows {
        set.push("data.skip_bad_rows=true".into());
    }
    let recipe = recipe::load(&args.recipe, &set)?;
    if args.resume && !recipe.output.exists() {
        return Err(Error::file(
            &recipe.output,
            "does not exist, so there is nothing to resume. Check `output`, or leave --resume out to start.",
        ));
    }
    working::on("reading the model and the rows");
    let prepared = prepare(&recipe, args.resume)?;
    let gpu = device.open()?;
    working::on("reading weights");
    let prepared = prepared.stop_when(stop_on_signal()?).cache_in(cache_folder());
    let mut display = Display::new("");
    let outcome = trainer::run(prepared, &gpu, &mut |event| display.show(event));
    display.finish();
    let outcome = outcome?;
    outln!("model      {}", outcome.model.display());
    Ok(())
}
