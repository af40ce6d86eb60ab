//! The held-out rows of a demo: which of them are taken, and the file both runs are judged by.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Problem, Result};
use crate::files::write_atomically;

/// A held-out row in the layout of [`fetch_pairs`].
#[derive(Debug, Clone)]
pub(super) struct HeldOutRow {
    pub(super) line: String,
    pub(super) source: String,
    pub(super) prompt: String,
    pub(super) right: String,
    pub(super) wrong: String,
}

pub(super) fn read_rows(path: &Path) -> Result<Vec<HeldOutRow>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match row(line) {
            Some(row) => rows.push(row),
            None => problems.push(Problem::new(
                format!("{}:{}", path.display(), number + 1),
                "is not a row of the demo: prompt, chosen and rejected of one message, and source",
            )),
        }
    }
    match problems.is_empty() {
        true if rows.is_empty() => Err(Error::file(path, "has no rows")),
        true => Ok(rows),
        false => Err(Error::input("the held-out rows cannot be used", problems)),
    }
}

fn row(line: &str) -> Option<HeldOutRow> {
    let value: Value = serde_json::from_str(line).ok()?;
    let content = |side: &str| Some(value[side][0]["content"].as_str()?.to_owned());
    Some(HeldOutRow {
        line: line.to_owned(),
        source: value["source"].as_str()?.to_owned(),
        prompt: content("prompt")?,
        right: content("chosen")?,
        wrong: content("rejected")?,
    })
}

/// At most `per_rule` rows of every rule file, evenly spaced within it, rule file after rule file.
pub(super) fn spread(rows: Vec<HeldOutRow>, per_rule: usize) -> Vec<HeldOutRow> {
    let mut by_rule: BTreeMap<String, Vec<HeldOutRow>> = BTreeMap::new();
    for row in rows {
        by_rule.entry(row.source.clone()).or_default().push(row);
    }
    let even = |rows: Vec<HeldOutRow>| -> Vec<HeldOutRow> {
        let count = rows.len().min(per_rule);
        (0..count).map(|at| rows[at * rows.len() / count].clone()).collect()
    };
    by_rule.into_values().flat_map(even).collect()
}

/// At most `count` rows, evenly spaced.
pub(super) fn every(rows: Vec<HeldOutRow>, count: usize) -> Vec<HeldOutRow> {
    let count = rows.len().min(count);
    (0..count).map(|at| rows[at * rows.len() / count].clone()).collect()
}

/// Writes the rows that both runs are evaluated on. Where they are already, they must be the same:
/// a resumed demo with other settings would compare what cannot be compared.
pub(super) fn write_heldout(path: &Path, rows: &[HeldOutRow]) -> Result<()> {
    let text: String = rows.iter().map(|row| format!("{}\n", row.line)).collect();
    if path.exists() {
        let found = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        return match found == text.as_bytes() {
            true => Ok(()),
            false => Err(Error::file(
                path,
                "belongs to a demo with other settings. Resume with the settings it was started \
                 with, or choose another --output.",
            )),
        };
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    }
    write_atomically(path, text.as_bytes())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::demo) fn rows(counts: &[(&str, usize)]) -> Vec<HeldOutRow> {
        let one = |source: &str, n: usize| {
            let text = format!("sentence {n} of {source}");
            HeldOutRow {
                line: format!("{source} {n}"),
                source: source.into(),
                prompt: text.clone(),
                right: text.clone(),
                wrong: text,
            }
        };
        counts.iter().flat_map(|&(source, count)| (0..count).map(move |n| one(source, n))).collect()
    }

    #[test]
    fn demo_evaluates_every_rule_file_and_none_too_often() {
        let chosen = spread(rows(&[("b", 249), ("a", 2), ("c", 5)]), 4);
        let lines: Vec<_> = chosen.iter().map(|row| row.line.as_str()).collect();
        assert_eq!(
            lines,
            ["a 0", "a 1", "b 0", "b 62", "b 124", "b 186", "c 0", "c 1", "c 2", "c 3"]
        );
    }

    #[test]
    fn demo_resumes_on_the_same_held_out_rows_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/heldout.jsonl");
        let few = rows(&[("a", 2)]);
        write_heldout(&path, &few).unwrap();
        write_heldout(&path, &few).unwrap();
        let error = write_heldout(&path, &rows(&[("a", 3)])).unwrap_err().to_string();
        assert!(error.contains("other settings"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a 0\na 1\n");
    }
}
