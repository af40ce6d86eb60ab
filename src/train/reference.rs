//! Reference files of [`verify`](super::verify) as values: numbers, and rows of token ids.

use crate::data::example::{Example, Sequence};
use crate::data::mismatch::mismatch;
use crate::error::{Error, Problem, Result};
use crate::train::schedule::Schedule;
use serde_json::Value;
use std::path::Path;

/// A JSON file.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("is not JSON: {e}")))
}

/// A number at a path of keys.
pub(super) fn number(path: &Path, value: &Value, keys: &[&str]) -> Result<f64> {
    let found = keys.iter().try_fold(value, |v, k| v.get(k));
    found
        .and_then(Value::as_f64)
        .ok_or_else(|| Error::file(path, format!("has no number at {}", keys.join("."))))
}

/// A whole number of at least 1 at a path of keys.
pub(super) fn count(path: &Path, value: &Value, keys: &[&str]) -> Result<usize> {
    let found = number(path, value, keys)?;
    if found >= 1.0 && found <= f64::from(u32::MAX) && found.fract() == 0.0 {
        return Ok(found as usize);
    }
    let what = format!("has {found} at {}; it must be a whole number above 0", keys.join("."));
    Err(Error::file(path, what))
}

fn ids(value: Option<&Value>, what: &str) -> std::result::Result<Vec<i64>, String> {
    let list = value.and_then(Value::as_array);
    let list = list.and_then(|l| l.iter().map(Value::as_i64).collect::<Option<Vec<_>>>());
    list.ok_or_else(|| format!("has no list of whole numbers at {what}"))
}

/// A sequence from its ids, mask and labels (-100 where not response).
fn sequence(
    ids: &[i64],
    mask: &[i64],
    labels: &[i64],
    vocab: usize,
) -> std::result::Result<Sequence, String> {
    if ids.len() != mask.len() || ids.len() != labels.len() {
        return Err(format!(
            "has {} ids, {} mask values and {} labels; there must be as many of each",
            ids.len(),
            mask.len(),
            labels.len()
        ));
    }
    let length = mask.iter().filter(|&&m| m == 1).count();
    if mask[..length].iter().any(|&m| m != 1) {
        return Err("has padding before its end; only padding on the right is known".into());
    }
    if let Some(at) = ids[..length].iter().position(|&id| id < 0 || id >= vocab as i64) {
        return Err(format!(
            "has token id {} at position {at}; the model's vocabulary has 0 to {}",
            ids[at],
            vocab - 1
        ));
    }
    match labels.iter().position(|&l| l != -100).filter(|&start| start < length) {
        Some(start) => {
            let ids = ids[..length].iter().map(|&id| id as u32).collect();
            Ok(Sequence { ids, response_start: start })
        }
        None => Err("has no response: every label is -100".into()),
    }
}

/// A schedule by transformers' name.
pub(super) fn schedule_of_trl(name: &str) -> Option<Schedule> {
    match name {
        "constant" | "constant_with_warmup" => Some(Schedule::Constant),
        "linear" => Some(Schedule::Linear),
        "cosine" => Some(Schedule::Cosine),
        _ => None,
    }
}

/// Examples of a `batch.json`: a list of rows at `tokenized`.
pub(super) fn read_batch(path: &Path, vocab: usize) -> Result<Vec<Example>> {
    let tokenized = read_json(path)?;
    let rows = tokenized
        .get("tokenized")
        .and_then(Value::as_array)
        .ok_or_else(|| Error::file(path, "has no list at `tokenized`"))?;
    let mut columns = serde_json::Map::new();
    for key in ["input_ids", "attention_mask", "labels"]
        .iter()
        .flat_map(|k| [format!("chosen_{k}"), format!("rejected_{k}")])
    {
        let column = rows.iter().map(|r| r.get(&key).cloned().unwrap_or(Value::Null)).collect();
        columns.insert(key, Value::Array(column));
    }
    batch_examples(path, &Value::Object(columns), vocab)
}

/// Examples of one tokenized batch: column-wise (`{chosen_input_ids: [[…], …]}`, or
/// `{input_ids: [[…], …], desirable: [true, …]}` of labelled rows).
pub(super) fn batch_examples(path: &Path, batch: &Value, vocab: usize) -> Result<Vec<Example>> {
    let column = |key: &str| {
        batch
            .get(key)
            .and_then(Value::as_array)
            .ok_or_else(|| Error::file(path, format!("has no list at {key}")))
    };
    let mut problems = Vec::new();
    let mut side = |side: &str| -> Result<Vec<Sequence>> {
        let prefix = if side.is_empty() { String::new() } else { format!("{side}_") };
        let names = ["input_ids", "attention_mask", "labels"].map(|k| format!("{prefix}{k}"));
        let [a, m, l] = [column(&names[0])?, column(&names[1])?, column(&names[2])?];
        let mut sequences = Vec::with_capacity(a.len());
        for i in 0..a.len() {
            let read = || {
                let [a, m, l] = [
                    ids(a.get(i), &names[0])?,
                    ids(m.get(i), &names[1])?,
                    ids(l.get(i), &names[2])?,
                ];
                sequence(&a, &m, &l, vocab)
            };
            match read() {
                Ok(sequence) => sequences.push(sequence),
                Err(what) => {
                    let place = format!("{}: row {}", path.display(), i + 1);
                    let place = if side.is_empty() { place } else { format!("{place}, {side}") };
                    problems.push(Problem::new(place, what));
                }
            }
        }
        Ok(sequences)
    };
    let labels = batch.get("desirable").map(|_| column("desirable")).transpose()?;
    let (chosen, others) = match labels {
        Some(_) => (side("")?, Vec::new()),
        None => (side("chosen")?, side("rejected")?),
    };
    if !problems.is_empty() {
        return Err(Error::input("the reference rows cannot be used", problems));
    }
    if chosen.is_empty() {
        return Err(Error::file(path, "has a batch without rows: there is nothing to compare"));
    }
    let Some(labels) = labels else {
        if chosen.len() != others.len() {
            return Err(Error::file(path, "has more rows on one side than on the other"));
        }
        let pairs = chosen.into_iter().zip(others).enumerate();
        let pair = |(row, (chosen, rejected))| Example {
            row,
            chosen,
            rejected: Some(rejected),
            desirable: None,
        };
        return Ok(pairs.map(pair).collect());
    };
    let labels: Option<Vec<bool>> = labels.iter().map(Value::as_bool).collect();
    let labels = labels.filter(|labels| labels.len() == chosen.len()).ok_or_else(|| {
        Error::file(path, "has no label, true or false, for each of its rows at desirable")
    })?;
    let rows = chosen.into_iter().zip(labels).enumerate();
    let row =
        |(row, (chosen, label))| Example { row, chosen, rejected: None, desirable: Some(label) };
    Ok(rows.map(row).collect())
}

/// The reference model's mean log-prob of a row in one of the lists of a `golden.json`.
pub(super) fn reference_logp(path: &Path, golden: &Value, key: &str, row: usize) -> Result<f32> {
    let list = golden.get("reference").and_then(|r| r.get(key));
    let value = list.and_then(|l| l.get(row)).and_then(Value::as_f64);
    let missing = || Error::file(path, format!("has no reference.{key}[{row}]"));
    value.map(|v| v as f32).ok_or_else(missing)
}

/// The rows of a batch with the answers of others, cut at `most` tokens.
pub(super) fn mismatched_rows(
    examples: &[Example],
    most: usize,
    path: &Path,
) -> Result<Vec<Example>> {
    let other = |found: Option<Example>| {
        found.ok_or_else(|| Error::file(path, "has a row whose prompt no other row's answer fits"))
    };
    mismatch(examples, most).into_iter().map(other).collect()
}

/// Every pair as two labelled rows: all chosen answers, then all rejected ones.
pub(super) fn unpaired(pairs: Vec<Example>) -> Vec<Example> {
    let (mut rows, mut undesirable) = (Vec::new(), Vec::new());
    for Example { chosen, rejected, .. } in pairs {
        let one =
            |chosen, label| Example { row: 0, chosen, rejected: None, desirable: Some(label) };
        rows.push(one(chosen, true));
        undesirable.extend(rejected.map(|rejected| one(rejected, false)));
    }
    rows.append(&mut undesirable);
    rows.iter_mut().enumerate().for_each(|(row, example)| example.row = row);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_that_do_not_fit_are_all_named() {
        let batch = json!({
            "chosen_input_ids": [[1, 2, 99], [1, -5, 3], [1, 2], [1, 2], [], [1, 2, 3]],
            "chosen_attention_mask": [[1, 1, 1], [1, 1, 1], [1], [1, 1], [], [0, 1, 1]],
            "chosen_labels": [[-100, 2, 99], [-100, 2, 3], [-100, 2], [-100, -100], [], [1, 2, 3]],
            "rejected_input_ids": ["x"],
            "rejected_attention_mask": [[1]],
            "rejected_labels": [[1]],
        });
        let text = batch_examples(Path::new("b.json"), &batch, 10).unwrap_err().to_string();
        for part in [
            "row 1, chosen: has token id 99 at position 2",
            "row 2, chosen: has token id -5",
            "row 3, chosen: has 2 ids, 1 mask",
            "row 4, chosen: has no response",
            "row 5, chosen: has no response",
            "row 6, chosen: has padding before its end",
            "row 1, rejected: has no list of whole numbers",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let none = json!({"chosen_input_ids": [], "chosen_attention_mask": [], "chosen_labels": [],
            "rejected_input_ids": [], "rejected_attention_mask": [], "rejected_labels": []});
        let text = batch_examples(Path::new("b.json"), &none, 10).unwrap_err().to_string();
        assert!(text.contains("without rows"), "{text}");
    }
}
