//! Rows of any layout that is read, as a file of rows in one layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::exports;
use super::files::{self, Source, Split};
use super::normalise::{Normal, normalise};
use super::rows::{Needs, ReadOptions, Text, put_given};
use crate::error::{Error, Problem, Result};
use crate::files::write_whole;

/// Rows that cannot be used before the reading stops.
const MOST_BAD: usize = 1_000;
/// Columns of an export that its rows keep.
const KEPT: [&str; 4] = ["margin", "choice", "answers", "who"];

/// Reads `paths` and writes to `to` a line for each row: `prompt`, `chosen`, `rejected` (or `completion`
/// and `label` where there is no pair), and of rows that another tool rated `margin`, `choice` (`tie`,
/// `skip`, `alone`), `answers` and `who`. Gives the rows by their `choice`, those that prefer an answer
/// under "preference".
///
/// # Errors
/// Files that cannot be read; every row that cannot be used, at once; a file that cannot be written.
/// Then `to` is as it was.
pub fn convert(paths: &[PathBuf], to: &Path, split: Split) -> Result<BTreeMap<String, usize>> {
    let options = ReadOptions { needs: Needs::Judgement, split, ..ReadOptions::default() };
    let mut counts = BTreeMap::new();
    let mut bad = Vec::new();
    let mut lines = Vec::new();
    for (path, format) in files::expand(paths, false, split)?.files {
        let mut each = |source: Source, record: files::JsonRow| {
            let made = record.and_then(|record| match exports::rows(&record) {
                Some(rows) => rows,
                None => Ok(vec![record]),
            });
            let made = made.and_then(|rows| {
                rows.iter()
                    .map(|row| of_row(row, &options))
                    .collect::<std::result::Result<Vec<_>, _>>()
            });
            match made {
                Err(reason) => bad.push(Problem::new(source.to_string(), reason)),
                Ok(rows) => {
                    for row in rows {
                        let choice = row.get("choice").and_then(Value::as_str);
                        let kind = choice.filter(|c| matches!(*c, "tie" | "skip" | "alone"));
                        *counts.entry(kind.unwrap_or("preference").to_owned()).or_default() += 1;
                        lines.push(row);
                    }
                }
            }
            bad.len() < MOST_BAD
        };
        let broken = files::read_records(&path, format, &mut each)?;
        bad.extend(broken);
    }
    if !bad.is_empty() {
        return Err(Error::input("these rows cannot be converted", bad));
    }
    if lines.is_empty() {
        return Err(Error::input("there is no row to convert", Vec::new()));
    }
    write_whole(to, &mut |file| {
        for line in &lines {
            let line = Value::Object(line.clone()).to_string() + "\n";
            file.write_all(line.as_bytes()).map_err(|e| Error::io("write", to, e))?;
        }
        Ok(())
    })?;
    Ok(counts)
}

fn of_row(
    row: &exports::Record,
    options: &ReadOptions,
) -> std::result::Result<exports::Record, String> {
    let kept = row.iter().filter(|(name, _)| KEPT.contains(&name.as_str()));
    let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
    if matches!(row.get("choice").and_then(Value::as_str), Some("tie" | "skip")) {
        let prompt = row.get("prompt").map(|prompt| ("prompt".to_owned(), prompt.clone()));
        return Ok(prompt.into_iter().chain(kept).collect());
    }
    let Normal { triple: (prompt, chosen, rejected), desirable, given } =
        normalise(row, options, &mut Default::default())?;
    let mut made = Map::new();
    made.insert("prompt".into(), value(&prompt));
    match (rejected, desirable) {
        (Some(rejected), _) => {
            made.insert("chosen".into(), value(&chosen));
            made.insert("rejected".into(), value(&rejected));
        }
        (None, desirable) => {
            made.insert("completion".into(), value(&chosen));
            made.extend(desirable.map(|label| ("label".to_owned(), label.into())));
        }
    }
    put_given(&mut made, &given);
    made.extend(kept);
    Ok(made)
}

fn value(text: &Text) -> Value {
    match text {
        Text::Plain(text) => text.as_str().into(),
        Text::Messages(list) => serde_json::json!(list),
    }
}
