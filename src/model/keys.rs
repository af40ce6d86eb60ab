//! Reads the keys of a `config.json` and collects what is wrong with them, so that all problems
//! are told at once. The families share it.

use serde_json::{Map, Value};

use crate::error::Problem;

/// Larger sizes are mistakes in the file, not models; the bound also keeps products in range.
const LARGEST_SIZE: usize = 1 << 24;
const MOST_LAYERS: usize = 4096;
const LARGEST_WIDTH: usize = 1 << 20;

/// The keys of a `config.json`, and what was wrong with those read so far.
///
/// After a problem a reader returns a harmless value: the configuration is refused anyway, and
/// later checks must not repeat the problem in other words.
pub struct Keys<'a> {
    place: &'a str,
    map: &'a Map<String, Value>,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<String>,
}

impl<'a> Keys<'a> {
    /// The keys of `map`; `place` names the file in messages.
    pub(super) fn new(place: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { place, map, problems: Vec::new(), notes: Vec::new() }
    }

    /// Something is wrong with `key`.
    pub fn problem(&mut self, key: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(format!("{}: {key}", self.place), what));
    }

    /// True if nothing was wrong so far.
    pub fn sound(&self) -> bool {
        self.problems.is_empty()
    }

    /// The value of `key`; None if it is missing or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// True if `key` is in the file, null or not.
    pub fn named(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A whole number from 1 to 2^24 that must be there.
    pub fn size(&mut self, key: &str) -> usize {
        let problem = match self.get(key) {
            None => "is missing".to_string(),
            Some(v) => match v.as_u64() {
                Some(n) if (1..=LARGEST_SIZE as u64).contains(&n) => return n as usize,
                _ => format!("is {v}; it must be a whole number from 1 to {LARGEST_SIZE}"),
            },
        };
        self.problem(key, problem);
        0
    }

    /// A size that has a default.
    pub fn size_or(&mut self, key: &str, default: usize) -> usize {
        if self.get(key).is_some() { self.size(key) } else { default }
    }

    /// A number of layers.
    pub fn layers(&mut self, key: &str) -> usize {
        let layers = self.size(key);
        if layers > MOST_LAYERS {
            self.problem(key, format!("is {layers}; more than {MOST_LAYERS} is not a model"));
        }
        layers
    }

    /// Refuses a width that no model has.
    pub fn check_width(&mut self, key: &str, width: usize) {
        if width > LARGEST_WIDTH {
            self.problem(
                key,
                format!("asks for a width of {width}; more than {LARGEST_WIDTH} is not a model"),
            );
        }
    }

    /// Refuses heads that are wider together than any model.
    pub fn check_heads(&mut self, key: &str, heads: usize, head_dim: usize) {
        let width = heads.saturating_mul(head_dim);
        if width > LARGEST_WIDTH {
            self.problem(
                key,
                format!("is {heads} and head_dim {head_dim}, together a width of {width}; more than {LARGEST_WIDTH} is not a model"),
            );
        }
    }

    /// The width of a head where no key names it: `hidden` / `heads`.
    pub fn head_of(&mut self, key: &str, hidden: usize, heads_key: &str, heads: usize) -> usize {
        if heads > 0 && !hidden.is_multiple_of(heads) {
            self.problem(key, format!("is {hidden}, which {heads_key} {heads} does not divide"));
        }
        hidden.checked_div(heads).unwrap_or(0)
    }

    /// A positive number that f32 can hold.
    pub fn positive(&mut self, key: &str, default: f64) -> f64 {
        match self.get(key) {
            None => default,
            Some(value) => match value.as_f64() {
                Some(v) if v as f32 > 0.0 && (v as f32).is_finite() => v,
                _ => {
                    let what =
                        format!("is {value}; it must be a positive number that f32 can hold");
                    self.problem(key, what);
                    default
                }
            },
        }
    }

    /// True or false.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.get(key) {
            None => default,
            Some(Value::Bool(b)) => *b,
            Some(value) => {
                self.problem(key, format!("is {value}; it must be true or false"));
                default
            }
        }
    }

    /// A token id or a list of them; -1 is how some folders say "none".
    pub fn ids(&mut self, key: &str, vocab_size: usize) -> Vec<u32> {
        let values = match self.get(key) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut ids = Vec::new();
        for value in values {
            match value.as_i64() {
                Some(-1) => {}
                Some(id) if id >= 0 && (vocab_size == 0 || (id as u64) < vocab_size as u64) => {
                    ids.push(id as u32);
                }
                _ => self.problem(
                    key,
                    format!("is {value}; it must be a token id below vocab_size {vocab_size}"),
                ),
            }
        }
        ids
    }

    /// The name of the activation function, which must be one of `known`.
    pub fn activation(&mut self, key: &str, known: &[&str]) {
        if let Some(value) = self.get(key)
            && !known.iter().any(|k| value == k)
        {
            self.problem(key, format!("is {value}; only \"{}\" is supported", known[0]));
        }
    }

    /// Settings that would change the model's output and that it does not have: each must be
    /// missing, null, or the harmless value.
    pub fn refuse_unless(&mut self, harmless: &[(&str, Value)]) {
        for (key, harmless) in harmless {
            let Some(value) = self.get(key) else { continue };
            let same = match (value.as_f64(), harmless.as_f64()) {
                (Some(a), Some(b)) => a == b,
                _ => value == harmless,
            };
            if !same {
                let meant = if harmless.is_null() { "null".into() } else { harmless.to_string() };
                self.problem(key, format!("is {value}, which is not supported; only {meant} is"));
            }
        }
    }

    /// `layer_types`: one of `known` for each layer; None if it is missing.
    pub fn layer_types(&mut self, layers: usize, known: &[&str]) -> Option<Vec<&'a str>> {
        let value = self.get("layer_types")?;
        let types: Vec<&str> =
            value.as_array().map_or(&[][..], |t| t).iter().filter_map(Value::as_str).collect();
        let right = types.len() == layers || layers == 0;
        if !(right && types.iter().all(|t| known.contains(t))) {
            let known = known.join("\" or \"");
            let what = format!(
                "is {value}; only \"{known}\" for each of the {layers} layers (num_hidden_layers) is supported"
            );
            self.problem("layer_types", what);
        }
        Some(types)
    }

    /// Dropout rates: nothing here drops out, which a training run is told.
    pub fn without_dropout(&mut self, keys: &[&str]) {
        for key in keys {
            if let Some(rate) = self.get(key).filter(|v| v.as_f64() != Some(0.0)) {
                self.notes.push(format!(
                    "{}: {key} is {rate}, and this program trains without dropout",
                    self.place
                ));
            }
        }
    }
}
