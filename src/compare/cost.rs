//! What the runs of a comparison took.

use std::path::Path;
use std::rc::Rc;

use super::{Finished, names_of};
use crate::data::pack::footprint;
use crate::data::rows::Split;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::adapter::tokenizer_folder;
use crate::page::report::Table;
use crate::train::dataset::Dataset;
use crate::train::forecast::forecast;
use crate::train::metrics::{MetricsRecord, step_seconds};

/// What each entry took.
pub(super) fn cost(gpu: &Rc<Gpu>, finished: &[Finished]) -> Result<Table> {
    let target = gpu.target();
    let mut rows: Vec<(String, Vec<String>)> = [
        "runs in a row",
        "optimizer steps",
        "tokens, forward and backward",
        "tokens of the reference model, forward, once",
        "seconds in optimizer steps",
        "memory planned, the largest run, MiB",
        "files, MiB",
    ]
    .map(|name| (name.to_owned(), Vec::new()))
    .into();
    for run in finished {
        let last = |records: &[MetricsRecord], name: &str| {
            records.iter().rev().find_map(|record| record.get(name)).unwrap_or(0.0)
        };
        let steps: u64 = run.records.iter().filter_map(|r| r.last()).map(|r| r.step).sum();
        let tokens: f64 = run.records.iter().map(|r| last(r, "num_tokens")).sum();
        let seconds: f64 = run.records.iter().map(|r| step_seconds(r)).sum();
        let (mut memory, mut bytes, mut referred) = (0, 0, 0);
        for recipe in &run.recipes {
            memory = memory.max(forecast(recipe, target)?.memory.total());
            bytes += size_of(&recipe.output)?;
            if recipe.loss.objective.has_reference() {
                let tokenizer = Tokenizer::from_folder(&tokenizer_folder(&recipe.model)?)?;
                for paths in [&recipe.data.train, &recipe.data.eval] {
                    let kind = recipe.loss.objective.rows();
                    let rows = Dataset::load(&recipe.data, kind, &tokenizer, paths, Split::Train)?;
                    let tokens = |e| footprint(e).tokens;
                    let mismatched = rows.mismatched.iter().flat_map(|rows| &rows.examples);
                    referred += rows.examples.iter().chain(mismatched).map(tokens).sum::<usize>();
                }
            }
        }
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / 1048576.0);
        let cells = [
            run.recipes.len().to_string(),
            steps.to_string(),
            format!("{tokens:.0}"),
            referred.to_string(),
            format!("{seconds:.1}"),
            mib(memory),
            mib(bytes),
        ];
        rows.iter_mut().zip(cells).for_each(|(row, cell)| row.1.push(cell));
    }
    Ok(Table {
        title: "Cost".into(),
        note: "Tokens of packed streams; the memory is that of the plan; files with their checkpoints."
            .into(),
        columns: names_of(finished),
        rows,
    })
}

/// Bytes of the files below a folder.
fn size_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
        let entry = entry.map_err(|e| Error::io("read", folder, e))?;
        let meta = entry.metadata().map_err(|e| Error::io("read", entry.path(), e))?;
        bytes += if meta.is_dir() { size_of(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}
