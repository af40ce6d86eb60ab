//! `oddgrad rounds recipe.toml`

use super::DeviceArgs;
use super::compare::with_model_folder;
use super::display::Display;
use super::import::model_folder;
use super::interrupt::stop_on_signal;
use super::judge::Progress;
use super::working;
use crate::error::{Error, Result};
use crate::feedback::run::JudgeEvent;
use crate::files::cache_folder;
use crate::rounds::{RESULTS, RoundEvent, RoundResult, RoundsRecipe, rounds};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `oddgrad rounds`.
#[derive(Args)]
pub struct RoundsArgs {
    /// The recipe, a TOML file: how each round trains, without data.train, and a section [rounds] with
    /// prompts, heldout and judge. The same command goes on with rounds that were stopped.
    recipe: PathBuf,
}

pub(super) fn run(args: &RoundsArgs, device: &DeviceArgs) -> Result<()> {
    let text =
        std::fs::read_to_string(&args.recipe).map_err(|e| Error::io("read", &args.recipe, e))?;
    let mut recipe =
        RoundsRecipe::parse(&args.recipe.display().to_string(), &with_model_folder(text)?)?;
    if let Some(model) = &mut recipe.rounds.judge.model {
        *model = model_folder(model)?;
    }
    let stop = stop_on_signal("this step, answer or comparison")?;
    let gpu = device.open()?;
    let mut shown: Option<(usize, Display)> = None;
    let mut progress = Progress::new();
    let mut show = |round: usize, event: RoundEvent| {
        if !matches!(event, RoundEvent::Train(_))
            && let Some((_, display)) = shown.take()
        {
            display.finish();
        }
        match event {
            RoundEvent::Judge(event @ (JudgeEvent::Answering(..) | JudgeEvent::Judging(..))) => {
                progress.show(event)
            }
            RoundEvent::Judge(JudgeEvent::Note(text)) | RoundEvent::Note(text) => {
                errln!("round {round}  {text}")
            }
            RoundEvent::Done(result) => {
                working::done();
                outln!("{}", line(result));
            }
            RoundEvent::Train(event) => {
                let (_, display) =
                    shown.get_or_insert_with(|| (round, Display::new(&format!("round {round}"))));
                display.show(event);
            }
        }
    };
    let done = rounds(&recipe, &gpu, &stop, cache_folder(), &mut show);
    if let Some((_, display)) = shown.take() {
        display.finish();
    }
    working::done();
    let results = done?;
    match results.best_round {
        0 => outln!("best       no round beats the model it started from"),
        best => outln!("best       round {best}: {}", results.best.display()),
    }
    outln!("written    {}", recipe.train.output.join(RESULTS).display());
    Ok(())
}

fn line(result: &RoundResult) -> String {
    let RoundResult {
        round, rows, won, tied, lost, unjudged, win_rate, interval: [low, high], ..
    } = result;
    let mut line = format!(
        "round {round}    win rate {:.1} % ({:.1} to {:.1}) against round 0: {won} won, {tied} tied, {lost} lost; {rows} rows",
        100.0 * win_rate,
        100.0 * low,
        100.0 * high
    );
    if *unjudged > 0 {
        line += &format!("; {unjudged} not judged");
    }
    line
}
