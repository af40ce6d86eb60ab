//! Reads typed values out of a TOML table, collecting every problem instead of stopping at the
//! first, and knows which keys the program does not.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use toml::{Table, Value};

use crate::error::Problem;

/// The GPU computes in f32: a value that becomes infinite there is out of range here.
pub(super) fn single(x: f64) -> bool {
    (x as f32).is_finite()
}

pub(super) const POSITIVE: &str = "a positive number that f32 can hold";
pub(super) const NOT_NEGATIVE: &str = "0 or a positive number that f32 can hold";

/// Names other tools use for what is called otherwise here.
const ELSEWHERE: [(&str, &str); 12] = [
    ("beta", "loss.lambda"),
    ("alpha", "loss.lambda"),
    ("lr", "optim.learning_rate"),
    ("adam_beta1", "optim.beta1"),
    ("adam_beta2", "optim.beta2"),
    ("adam_epsilon", "optim.eps"),
    ("lr_scheduler_type", "optim.schedule"),
    ("batch_size", "batch.size"),
    ("num_train_epochs", "train.epochs"),
    ("steps", "train.max_steps"),
    ("model_name_or_path", "model"),
    ("output_dir", "output"),
];

/// The recipe has no keys deeper than this.
const DEEPEST: usize = 4;

/// The leaves of a table by dotted key, and what has been found wrong so far.
pub(super) struct Settings {
    file: String,
    /// Tables of the file, which may be empty.
    sections: BTreeSet<String>,
    values: BTreeMap<String, Value>,
    overridden: BTreeSet<String>,
    known: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Settings {
    /// `tables` are read whole by [`Settings::strings_by_name`]; all others are taken apart.
    pub(super) fn new(file: &str, table: Table, tables: &[&str]) -> Self {
        let mut values = BTreeMap::new();
        let sections = table.iter().filter(|(_, v)| v.is_table()).map(|(k, _)| k.clone()).collect();
        flatten(String::new(), table, tables, &mut values);
        let file = file.to_string();
        Self {
            file,
            sections,
            values,
            overridden: BTreeSet::new(),
            known: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// Applies `dotted.key=value`. The value is TOML; what is not TOML is a plain string, so that
    /// paths need no quotes.
    pub(super) fn set(&mut self, text: &str, tables: &[&str]) {
        let place = format!("--set {}", text.chars().take(60).collect::<String>());
        let Some((key, value)) = text.split_once('=') else {
            self.problems
                .push(Problem::new(place, "write key=value, for example optim.learning_rate=1e-4"));
            return;
        };
        let key = key.trim();
        let parts: Vec<&str> = key.split('.').collect();
        if parts.iter().any(|p| p.trim().is_empty()) || parts.len() > DEEPEST {
            self.problems.push(Problem::new(place, "is not a key of a recipe"));
            return;
        }
        let parsed = toml::from_str::<Table>(&format!("value = {}", value.trim())).ok();
        let value = match parsed {
            // A line break in the text could have smuggled in more than one key.
            Some(mut table) if table.len() == 1 => table.remove("value"),
            _ => None,
        }
        .unwrap_or_else(|| Value::String(value.trim().to_string()));
        if let Some((table, name)) =
            tables.iter().find_map(|t| Some((*t, key.strip_prefix(*t)?.strip_prefix('.')?)))
        {
            let entry =
                self.values.entry(table.to_string()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = entry {
                inner.insert(name.to_string(), value);
                self.overridden.insert(table.to_string());
                return;
            }
        }
        // A whole section given inline replaces only the keys it names.
        let mut leaves = BTreeMap::new();
        match value {
            Value::Table(inner) if !tables.contains(&key) => {
                flatten(format!("{key}."), inner, tables, &mut leaves)
            }
            leaf => {
                leaves.insert(key.to_string(), leaf);
            }
        }
        self.overridden.extend(leaves.keys().cloned());
        self.values.extend(leaves);
    }

    /// Of two keys that exclude each other, the one set on the command line wins over the file's.
    pub(super) fn exclusive(&mut self, a: &str, b: &str) {
        if !(self.values.contains_key(a) && self.values.contains_key(b)) {
            return;
        }
        match (self.overridden.contains(a), self.overridden.contains(b)) {
            (true, false) => drop(self.values.remove(b)),
            (false, true) => drop(self.values.remove(a)),
            _ => self.problem(a, format!("excludes {b}; keep one of the two")),
        }
    }

    pub(super) fn problem(&mut self, key: &str, what: impl Into<String>) {
        let place = if self.overridden.contains(key) { "--set" } else { self.file.as_str() };
        self.problems.push(Problem::new(format!("{place}: {key}"), what));
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        self.values.contains_key(key) || self.known.contains(key)
    }

    /// Whether there is a section of this name, or a setting in it.
    pub(super) fn has_section(&self, name: &str) -> bool {
        let inside = |key: &String| key.strip_prefix(name).is_some_and(|k| k.starts_with('.'));
        self.sections.contains(name) || self.values.keys().any(inside)
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.known.insert(key.to_string());
        self.values.remove(key)
    }

    fn wrong(&mut self, key: &str, value: &Value, wanted: &str) {
        // 1e300 in full would fill the terminal.
        let shown = match value {
            Value::Float(x) if x.is_finite() => format!("{x:?}"),
            other => other.to_string(),
        };
        let shown = match shown.char_indices().nth(80) {
            Some((end, _)) => format!("{}…", &shown[..end]),
            None => shown,
        };
        self.problem(key, format!("is {shown}; it must be {wanted}"));
    }

    /// A number that `accept` takes; `wanted` says which those are.
    pub(super) fn number(
        &mut self,
        key: &str,
        wanted: &str,
        accept: impl Fn(f64) -> bool,
    ) -> Option<f64> {
        let value = self.take(key)?;
        let number = match value {
            Value::Float(x) => Some(x),
            Value::Integer(x) => Some(x as f64),
            _ => None,
        };
        let good = number.filter(|x| accept(*x));
        if good.is_none() {
            self.wrong(key, &value, wanted);
        }
        good
    }

    /// A whole number from `least` to `most`.
    pub(super) fn whole(&mut self, key: &str, least: u64, most: u64) -> Option<u64> {
        let value = self.take(key)?;
        let good = value
            .as_integer()
            .and_then(|x| u64::try_from(x).ok())
            .filter(|x| (least..=most).contains(x));
        if good.is_none() {
            let wanted = match most {
                u64::MAX => format!("a whole number, at least {least}"),
                _ => format!("a whole number from {least} to {most}"),
            };
            self.wrong(key, &value, &wanted);
        }
        good
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.take(key)?;
        if value.as_bool().is_none() {
            self.wrong(key, &value, "true or false");
        }
        value.as_bool()
    }

    /// Text that is not empty.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.take(key)?;
        let good = value.as_str().filter(|s| !s.trim().is_empty()).map(str::to_string);
        if good.is_none() {
            self.wrong(key, &value, "text, not empty");
        }
        good
    }

    /// A list of texts; a single text is a list of one.
    pub(super) fn texts(&mut self, key: &str) -> Vec<String> {
        let list = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        let mut texts = Vec::new();
        for value in list {
            match value.as_str().filter(|s| !s.is_empty()) {
                Some(s) => texts.push(s.to_string()),
                None => self.wrong(key, &value, "text, not empty"),
            }
        }
        texts
    }

    /// A table of texts.
    pub(super) fn strings_by_name(&mut self, key: &str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        match self.take(key) {
            None => {}
            Some(Value::Table(table)) => {
                for (name, value) in table {
                    match value.as_str().filter(|s| !s.is_empty()) {
                        Some(s) => drop(map.insert(name, s.to_string())),
                        None => self.problem(
                            key,
                            format!("{name} is {value}; it must be the name of a column"),
                        ),
                    }
                }
            }
            Some(value) => self.wrong(key, &value, "a table, such as { chosen = \"good\" }"),
        }
        map
    }

    /// One of `all`, written as serde writes it.
    pub(super) fn choice<T: Copy + Serialize>(&mut self, key: &str, all: &[T]) -> Option<T> {
        let value = self.take(key)?;
        let name = |t: &T| {
            Value::try_from(t).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
        };
        let found = all.iter().find(|t| value.as_str() == Some(&name(t))).copied();
        if found.is_none() {
            let names: Vec<String> = all.iter().map(|t| format!("\"{}\"", name(t))).collect();
            self.wrong(key, &value, &format!("one of {}", names.join(", ")));
        }
        found
    }

    /// Every problem, unknown keys included.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        for (key, value) in std::mem::take(&mut self.values) {
            let section = self.known.iter().any(|k| k.starts_with(&format!("{key}.")));
            let what = match value {
                Value::Table(_) if section => continue,
                _ if section => format!("is a section; write its keys under [{key}]"),
                _ => match suggestion(&key, &self.known) {
                    Some(known) => format!("is not a key of a recipe; did you mean {known}?"),
                    None => "is not a key of a recipe; remove it".to_string(),
                },
            };
            self.problem(&key, what);
        }
        self.problems
    }
}

/// The leaves of `table` by dotted key; those in `tables` stay whole.
pub(super) fn flatten(
    prefix: String,
    table: Table,
    tables: &[&str],
    into: &mut BTreeMap<String, Value>,
) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            // An empty section stays, so that a misspelled one is noticed.
            Value::Table(inner) if !inner.is_empty() && !tables.contains(&key.as_str()) => {
                flatten(format!("{key}."), inner, tables, into);
            }
            leaf => drop(into.insert(key, leaf)),
        }
    }
}

/// The known key that was most likely meant: the same name in another section, another tool's
/// name for it, or the nearest spelling.
fn suggestion(key: &str, known: &BTreeSet<String>) -> Option<String> {
    let last = |k: &str| k.rsplit('.').next().unwrap_or_default().to_string();
    let name = last(key);
    if let Some(same) = known.iter().find(|k| last(k) == name) {
        return Some(same.clone());
    }
    if let Some((_, ours)) = ELSEWHERE.iter().find(|(theirs, _)| *theirs == name) {
        return Some((*ours).to_string());
    }
    let distance = |k: &str| {
        strsim::normalized_damerau_levenshtein(key, k)
            .max(strsim::normalized_damerau_levenshtein(&name, &last(k)))
    };
    known
        .iter()
        .map(|k| (distance(k), k))
        .filter(|(near, _)| *near >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k.clone())
}
