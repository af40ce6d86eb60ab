//! The rotary positions that a `config.json` asks for: base, how much of a head turns, and how
//! frequencies are scaled for contexts longer than those of pretraining.
//!
//! transformers 5 writes `rope_parameters`, transformers 4 wrote `rope_theta`,
//! `partial_rotary_factor` and `rope_scaling`. All are read, and what is written back holds both
//! spellings ([`write_both`]).
//!
//! Sources of the scaled types: `linear`, Chen et al., arXiv:2306.15595; `yarn`, Peng et al.,
//! arXiv:2309.00071, section 3; `llama3`, Llama 3.1's published code; `dynamic` (NTK), which
//! stretches sequences beyond `max_position_embeddings` only, and so is plain rope wherever this
//! program runs. The formulas are those of transformers.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use crate::model::keys::Keys;
use crate::ops::rope::rope_frequencies;

/// Every type of scaling that is known.
pub const ALL: &[&str] = &["default", "linear", "dynamic", "llama3", "yarn"];
/// No scaling.
pub const PLAIN: &[&str] = &["default"];

/// Where files keep the parameters.
const HOLDERS: [&str; 2] = ["rope_parameters", "rope_scaling"];

/// Rotary positions of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head that turn.
    pub width: usize,
    /// How the frequencies are scaled.
    pub scaling: Scaling,
}

/// Scaling of frequencies, in transformers' terms.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// None; `dynamic` too, up to `max_position_embeddings`.
    Plain,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low ones divided, high ones kept, those between blended by their wavelength.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths beyond `original` / this are low frequencies.
        low: f64,
        /// Wavelengths below `original` / this are high ones.
        high: f64,
        /// Positions of pretraining.
        original: f64,
    },
    /// The same with a ramp over the pairs, and cosines and sines multiplied.
    Yarn {
        /// What low frequencies are divided by.
        factor: f64,
        /// Turns over `original` positions from which a pair is kept, and up to which it is divided.
        turns: [f64; 2],
        /// Positions of pretraining.
        original: f64,
        /// Ends of the ramp at whole pairs.
        truncate: bool,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
}

/// What a family takes of the keys.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Elements of a head.
    pub head_dim: usize,
    /// `rope_theta` where the file has none.
    pub theta: f64,
    /// Types of scaling that the family knows.
    pub types: &'static [&'static str],
    /// `partial_rotary_factor` where the file has none; None: the family turns whole heads.
    pub partial: Option<f64>,
}

impl Rotary {
    /// Reads the parameters of all layers.
    pub fn read(keys: &mut Keys, asked: Asked) -> Self {
        let holders = HOLDERS.map(|name| (name.to_owned(), object(keys, name)));
        read_from(keys, asked, &holders, "rope_theta")
    }

    /// Reads those of layers of `layer_type`: nested in `rope_parameters` by that name, or else from
    /// `rope_scaling`, if `scaled`, and the base at `theta_key`.
    pub fn read_of(
        keys: &mut Keys,
        asked: Asked,
        layer_type: &str,
        scaled: bool,
        theta_key: &str,
    ) -> Self {
        let nested = object(keys, HOLDERS[0]).and_then(|parameters| parameters.get(layer_type));
        let at = format!("{}.{layer_type}", HOLDERS[0]);
        if scaled && let Some(parameters) = object(keys, HOLDERS[0]) {
            for (key, value) in parameters.iter().filter(|(_, v)| !v.is_object() && !v.is_null()) {
                let what = format!("is {value}; this family's parameters stand by layer type");
                keys.problem(&format!("{}.{key}", HOLDERS[0]), what);
            }
        }
        let inner = nested.filter(|v| !v.is_null()).and_then(|v| as_object(keys, &at, v));
        let scaling = if scaled { object(keys, HOLDERS[1]) } else { None };
        read_from(keys, asked, &[(at, inner), (HOLDERS[1].to_owned(), scaling)], theta_key)
    }

    /// Radians that each pair turns by from one position to the next.
    pub fn frequencies(&self) -> Vec<f64> {
        let plain = rope_frequencies(self.width, self.theta);
        match self.scaling {
            Scaling::Plain => plain,
            Scaling::Linear { factor } => plain.iter().map(|f| f / factor).collect(),
            Scaling::Llama3 { factor, low, high, original } => plain
                .iter()
                .map(|f| {
                    let turns = original * f / TAU;
                    if turns < low {
                        f / factor
                    } else if turns > high {
                        *f
                    } else {
                        let kept = (turns - low) / (high - low);
                        (1.0 - kept) * f / factor + kept * f
                    }
                })
                .collect(),
            Scaling::Yarn { factor, turns, original, truncate, .. } => {
                // The pair that makes so many turns, as a real number.
                let width = self.width as f64;
                let pair =
                    |turns: f64| width * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln());
                let [mut from, mut to] = turns.map(pair);
                if truncate {
                    (from, to) = (from.floor(), to.ceil());
                }
                let (from, mut to) = (from.max(0.0), to.min(width - 1.0));
                if from == to {
                    to += 0.001;
                }
                let divided = |i: usize| ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                let scaled =
                    |(i, f): (usize, &f64)| divided(i) * f / factor + (1.0 - divided(i)) * f;
                plain.iter().enumerate().map(scaled).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn amplitude(&self) -> f64 {
        match self.scaling {
            Scaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }
}

type Object<'a> = Option<&'a Map<String, Value>>;

fn object<'a>(keys: &mut Keys<'a>, name: &str) -> Object<'a> {
    let value = keys.get(name)?;
    as_object(keys, name, value)
}

fn as_object<'a>(keys: &mut Keys, name: &str, value: &'a Value) -> Object<'a> {
    if !value.is_object() {
        keys.problem(name, format!("is {value}, not an object"));
    }
    value.as_object()
}

fn read_from(
    keys: &mut Keys,
    asked: Asked,
    holders: &[(String, Object)],
    theta_key: &str,
) -> Rotary {
    let mut thetas = Vec::new();
    let mut factors = Vec::new();
    let mut scalings: Vec<(&str, Scaling)> = Vec::new();
    for (name, inner) in holders.iter().filter_map(|(name, o)| Some((name, (*o)?))) {
        let mut holder = Holder { keys: &mut *keys, name, inner };
        thetas.extend(holder.number("rope_theta"));
        factors.extend(holder.number("partial_rotary_factor"));
        scalings.extend(holder.scaling(asked.types).map(|scaling| (name.as_str(), scaling)));
    }
    for (key, found) in [(theta_key, &mut thetas), ("partial_rotary_factor", &mut factors)] {
        if let Some(value) = keys.get(key) {
            match value.as_f64() {
                Some(number) => found.push((key.to_owned(), number)),
                None => keys.problem(key, format!("is {value}, not a number")),
            }
        }
    }
    let theta = agreed(keys, &thetas).map_or(asked.theta, |(place, theta)| {
        if !(theta as f32 > 0.0 && (theta as f32).is_finite()) {
            let what = format!("is {theta}; it must be a positive number that f32 can hold");
            keys.problem(&place, what);
        }
        theta
    });
    let width = match (agreed(keys, &factors), asked.partial) {
        (None, None) => asked.head_dim,
        (None, Some(part)) => (asked.head_dim as f64 * part) as usize,
        (Some((place, part)), partial) => turning(keys, asked.head_dim, &place, part, partial),
    };
    if let [(first, a), (second, b)] = &scalings[..]
        && a != b
    {
        keys.problem(second, format!("differs from {first}; remove one of them"));
    }
    let scaling = scalings.into_iter().next().map_or(Scaling::Plain, |(_, scaling)| scaling);
    let rotary = Rotary { theta, width, scaling };
    let computed = rotary.frequencies();
    if keys.sound() && !computed.iter().all(|f| f.is_finite() && *f > 0.0) {
        let what =
            format!("is {theta}, which the scaling makes frequencies of that are not above 0");
        keys.problem(theta_key, what);
    }
    rotary
}

/// Elements of a head that turn by `partial_rotary_factor`.
fn turning(
    keys: &mut Keys,
    head_dim: usize,
    place: &str,
    part: f64,
    partial: Option<f64>,
) -> usize {
    if partial.is_none() && part != 1.0 {
        keys.problem(place, format!("is {part}, which is not supported; only 1 is"));
        return head_dim;
    }
    let width = (head_dim as f64 * part) as usize;
    if !(part > 0.0 && part <= 1.0 && width > 0 && width.is_multiple_of(2)) {
        let what = format!(
            "is {part}; it must be above 0, at most 1, and turn an even number of the {head_dim} elements of a head"
        );
        keys.problem(place, what);
        return head_dim;
    }
    width
}

/// The first value; a problem for each that differs from it.
fn agreed(keys: &mut Keys, found: &[(String, f64)]) -> Option<(String, f64)> {
    let (first, value) = found.first()?;
    for (place, other) in found[1..].iter().filter(|(_, other)| other != value) {
        let what = format!("is {other} but {first} is {value}; remove one of them");
        keys.problem(place, what);
    }
    Some((first.clone(), *value))
}

/// An object with rotary parameters.
struct Holder<'k, 'a, 'h> {
    keys: &'k mut Keys<'a>,
    name: &'h str,
    inner: &'h Map<String, Value>,
}

impl Holder<'_, '_, '_> {
    /// The number at `key`, with its place; None if it is missing or none.
    fn number(&mut self, key: &str) -> Option<(String, f64)> {
        let value = self.inner.get(key).filter(|v| !v.is_null())?;
        let place = format!("{}.{key}", self.name);
        let number = value.as_f64();
        if number.is_none() {
            self.keys.problem(&place, format!("is {value}, not a number"));
        }
        Some((place, number?))
    }

    /// A number of at least `least` that f32 can hold.
    fn at_least(&mut self, key: &str, least: f64, default: Option<f64>) -> f64 {
        match (self.number(key), default) {
            (Some((place, number)), _) => {
                if !(number >= least && number > 0.0 && (number as f32).is_finite()) {
                    let what = format!(
                        "is {number}; it must be above 0, at least {least}, and a number that f32 can hold"
                    );
                    self.keys.problem(&place, what);
                    return 1.0;
                }
                number
            }
            (None, Some(default)) => default,
            (None, None) => {
                // One that is no number is told already.
                if self.inner.get(key).is_none_or(Value::is_null) {
                    self.keys.problem(&format!("{}.{key}", self.name), "is missing");
                }
                1.0
            }
        }
    }

    /// Positions of pretraining, by default as many as the model has.
    fn original(&mut self) -> f64 {
        const KEY: &str = "original_max_position_embeddings";
        let inside = self.number(KEY).is_some();
        let outside = self.keys.get(KEY).and_then(Value::as_f64);
        let most = self.keys.get("max_position_embeddings").and_then(Value::as_f64);
        let value = self.at_least(KEY, 1.0, outside.or(most).or(Some(1.0)));
        if let Some(outside) = outside.filter(|o| inside && *o != value) {
            let place = format!("{}.{KEY}", self.name);
            let what = format!("is {value} but {KEY} is {outside}; remove one of them");
            self.keys.problem(&place, what);
        }
        value
    }

    /// The scaling it names; None if it names no type.
    fn scaling(&mut self, types: &[&str]) -> Option<Scaling> {
        let get = |key: &str| self.inner.get(key).filter(|v| !v.is_null());
        let kind = match (get("rope_type"), get("type")) {
            (Some(a), Some(b)) if a != b => {
                let what = format!("has rope_type {a} and type {b}; remove one of them");
                self.keys.problem(self.name, what);
                return None;
            }
            (a, b) => a.or(b).cloned().unwrap_or_else(|| json!("default")),
        };
        let Some(kind) = kind.as_str().filter(|kind| types.contains(kind)) else {
            let (last, others) = types.split_last().expect("every family has a type");
            let list = match others {
                [] => format!("only \"{last}\" is"),
                _ => format!("{} and {last} are", others.join(", ")),
            };
            let what = format!("has rope_type {kind}, which is not supported here; {list}");
            self.keys.problem(self.name, what);
            return None;
        };
        let own: &[&str] = match kind {
            "linear" | "dynamic" => &["factor"],
            "llama3" => &[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ],
            "yarn" => &[
                "factor",
                "original_max_position_embeddings",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ],
            _ => &[],
        };
        const COMMON: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        for (key, value) in self.inner.iter().filter(|(_, value)| !value.is_null()) {
            if !COMMON.contains(&key.as_str()) && !own.contains(&key.as_str()) {
                let place = format!("{}.{key}", self.name);
                let what = format!("is {value}, which is not supported with rope_type {kind}");
                self.keys.problem(&place, what);
            }
        }
        match kind {
            "linear" => Some(Scaling::Linear { factor: self.at_least("factor", 1.0, None) }),
            "dynamic" => {
                self.at_least("factor", 1.0, None);
                Some(Scaling::Plain)
            }
            "llama3" => Some(self.llama3()),
            "yarn" => Some(self.yarn()),
            _ => get("rope_type").or(get("type")).map(|_| Scaling::Plain),
        }
    }

    fn llama3(&mut self) -> Scaling {
        let factor = self.at_least("factor", 1.0, None);
        let low = self.at_least("low_freq_factor", 0.0, None);
        let high = self.at_least("high_freq_factor", 0.0, None);
        if high <= low && self.keys.sound() {
            let place = format!("{}.high_freq_factor", self.name);
            self.keys.problem(&place, format!("is {high}; it must be above low_freq_factor {low}"));
        }
        Scaling::Llama3 { factor, low, high, original: self.original() }
    }

    fn yarn(&mut self) -> Scaling {
        let original = self.original();
        let most = self.keys.get("max_position_embeddings").and_then(Value::as_f64);
        // Null means the ratio of the lengths; a missing key is a mistake.
        let ratio = self.inner.get("factor").and(most).map(|most| most / original);
        let factor = self.at_least("factor", 1.0, ratio);
        let fast = self.at_least("beta_fast", 0.0, Some(32.0));
        let slow = self.at_least("beta_slow", 0.0, Some(1.0));
        let truncate = match self.inner.get("truncate").filter(|v| !v.is_null()) {
            None => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(value) => {
                let place = format!("{}.truncate", self.name);
                self.keys.problem(&place, format!("is {value}; it must be true or false"));
                true
            }
        };
        let mscale = |scale: f64| match factor > 1.0 {
            true => 0.1 * scale * factor.ln() + 1.0,
            false => 1.0,
        };
        // Zero means as much as a missing one.
        let [of_head, of_all] = ["mscale", "mscale_all_dim"]
            .map(|key| self.number(key).map(|(_, scale)| scale).filter(|scale| *scale != 0.0));
        let inferred = match (of_head, of_all) {
            (Some(head), Some(all)) => mscale(head) / mscale(all),
            _ => mscale(1.0),
        };
        let attention_factor = self.at_least("attention_factor", 0.0, Some(inferred));
        Scaling::Yarn { factor, turns: [fast, slow], original, truncate, attention_factor }
    }
}

/// Puts both spellings of the rotary parameters into a `config.json`, whose `rope_parameters` stand by
/// layer type or not.
pub fn write_both(out: &mut Map<String, Value>, by_layer_type: bool) {
    let inner = |out: &Map<String, Value>, key: &str| match out.get(key) {
        Some(Value::Object(inner)) => inner.clone(),
        _ => Map::new(),
    };
    let [mut new, old] = HOLDERS.map(|key| inner(out, key));
    let scaled = |o: &Map<String, Value>| {
        let kind = o.get("rope_type").or_else(|| o.get("type")).filter(|v| !v.is_null());
        kind.is_some_and(|kind| kind != "default")
    };
    if by_layer_type {
        // Version 4's spelling, with a scaling of the full layers alone, is one that 5 reads.
        if new.is_empty() {
            return;
        }
        let full = inner(&new, "full_attention");
        let local = inner(&new, "sliding_attention");
        for (key, from) in [("rope_theta", &full), ("rope_local_base_freq", &local)] {
            if let Some(theta) = from.get("rope_theta") {
                out.insert(key.into(), theta.clone());
            }
        }
        let scaling = if scaled(&full) { Value::Object(full) } else { Value::Null };
        out.entry(HOLDERS[1]).or_insert(scaling);
        return;
    }
    for (key, value) in old {
        new.entry(key).or_insert(value);
    }
    for key in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = new.get(key).or_else(|| out.get(key)).cloned() {
            new.insert(key.into(), value.clone());
            out.insert(key.into(), value);
        }
    }
    if !new.contains_key("rope_theta") {
        return;
    }
    let kind = new.remove("type").unwrap_or_else(|| json!("default"));
    new.entry("rope_type").or_insert(kind);
    let scaling = if scaled(&new) { Value::Object(new.clone()) } else { Value::Null };
    out.insert(HOLDERS[1].into(), scaling);
    out.insert(HOLDERS[0].into(), Value::Object(new));
}
