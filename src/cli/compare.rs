//! `oddgrad compare-objectives recipe.toml --objectives sft,dpo,orpo,sft+dpo`

use super::DeviceArgs;
use super::display::Display;
use super::hub::bring_rows;
use super::import::model_folder;
use super::interrupt::stop_on_signal;
use super::working;
use crate::compare::{CompareEvent, CompareOptions, compare};
use crate::error::{Error, Result};
use crate::files::cache_folder;
use crate::page::report::Table;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `oddgrad compare-objectives`.
#[derive(Args)]
pub struct CompareArgs {
    /// The recipe, a TOML file: model, rows, order, seed and length of all runs. Its [loss] is that of
    /// its own objective.
    recipe: PathBuf,
    /// What is compared: names of objectives, or two in a row, as in sft,dpo,orpo,sft+dpo.
    #[arg(long, value_delimiter = ',', required = true)]
    objectives: Vec<String>,
    /// Folder for the runs and the page.
    #[arg(long)]
    output: PathBuf,
    /// Replace a setting of the recipe: KEY=VALUE in all runs, OBJECTIVE:KEY=VALUE in those of one; may
    /// be repeated.
    #[arg(long, value_name = "[OBJECTIVE:]KEY=VALUE")]
    set: Vec<String>,
    /// Go on with what is in the output folder.
    #[arg(long)]
    resume: bool,
}

pub(super) fn run(args: &CompareArgs, device: &DeviceArgs) -> Result<()> {
    let text =
        std::fs::read_to_string(&args.recipe).map_err(|e| Error::io("read", &args.recipe, e))?;
    let options = CompareOptions {
        text: with_model_folder(text)?,
        place: args.recipe.display().to_string(),
        objectives: args.objectives.clone(),
        set: args.set.clone(),
        output: args.output.clone(),
        cache: cache_folder(),
        resume: args.resume,
        stop: stop_on_signal("this step")?,
    };
    let mut current: Option<(String, Display)> = None;
    let mut show = |event: CompareEvent| {
        let (name, event) = match event {
            CompareEvent::Run(name, event) => (name, event),
            CompareEvent::Working(what) => {
                if let Some((_, display)) = current.take() {
                    display.finish();
                }
                return working::on(&what);
            }
        };
        if current.as_ref().is_none_or(|(shown, _)| shown != name) {
            if let Some((_, display)) = current.take() {
                display.finish();
            }
            current = Some((name.to_owned(), Display::new(name)));
        }
        if let Some((_, display)) = &mut current {
            display.show(event);
        }
    };
    let done = compare(&|| device.open(), &options, &mut show);
    if let Some((_, display)) = current.take() {
        display.finish();
    }
    working::done();
    let (page, tables) = done?;
    tables.iter().for_each(print);
    outln!("report     {}", page.display());
    Ok(())
}

/// The recipe with its model as a folder, where it names one of the hub or a GGUF file; rows that it
/// names on the hub are fetched. What is no recipe is told later.
pub(super) fn with_model_folder(text: String) -> Result<String> {
    let Ok(mut table) = toml::from_str::<toml::Table>(&text) else { return Ok(text) };
    for key in ["train", "eval"] {
        let named = table.get("data").and_then(|data| data.get(key));
        let one = named.and_then(toml::Value::as_str);
        let list = named.and_then(toml::Value::as_array).into_iter().flatten();
        let paths = one.into_iter().chain(list.filter_map(toml::Value::as_str));
        bring_rows(&paths.map(PathBuf::from).collect::<Vec<_>>())?;
    }
    let Some(model) = table.get("model").and_then(toml::Value::as_str) else { return Ok(text) };
    let folder = model_folder(model.as_ref())?.display().to_string();
    table.insert("model".into(), folder.into());
    Ok(table.to_string())
}

fn print(table: &Table) {
    outln!("{} ({})", table.title, table.note.trim_end_matches('.'));
    let width = |column: usize| {
        let cells = table.rows.iter().map(|(_, cells)| &cells[column]);
        cells.chain([&table.columns[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    let names = table.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line = |name: &str, cells: &[String]| {
        let cells = cells.iter().zip(&widths).map(|(cell, &width)| format!("  {cell:>width$}"));
        outln!("  {name:<names$}{}", cells.collect::<String>());
    };
    line("", &table.columns);
    table.rows.iter().for_each(|(name, cells)| line(name, cells));
    outln!("");
}
