//! Scaled rotary positions: GGUF's keys and divisors of frequencies, and the parameters of a
//! `config.json`. What is here follows llama.cpp, which takes 32 and 1 for the ends of YaRN's ramp
//! whatever a file of these architectures says.

use std::f64::consts::TAU;

use serde_json::{Map, Value as Json, json};

use super::architecture::{Architecture, DIVISORS};
use super::file::GgufFile;
use super::metadata::{Reading, Value};
use crate::error::Result;
use crate::model::keys::Keys;
use crate::model::rotary::{Rotary, Scaling};
use crate::ops::rope::rope_frequencies;

/// Keys of an architecture that are read here, without its name.
pub(super) const READ: [&str; 9] = [
    TYPE,
    FACTOR,
    OLD_FACTOR,
    ORIGINAL,
    AMPLITUDE,
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
];
const TYPE: &str = "rope.scaling.type";
const FACTOR: &str = "rope.scaling.factor";
const OLD_FACTOR: &str = "rope.scale_linear";
/// Positions of pretraining.
pub(super) const ORIGINAL: &str = "rope.scaling.original_context_length";
/// Multiplies cosines and sines, beside what YaRN does itself.
const AMPLITUDE: &str = "rope.scaling.attn_factor";
/// Turns at the ends of YaRN's ramp.
const TURNS: [f64; 2] = [32.0, 1.0];

/// What YaRN multiplies cosines and sines by where nothing else is said.
fn yarn_amplitude(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

/// The `rope_parameters` of a file's layers, of whose heads `width` elements turn.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn parameters(
    read: &mut Reading,
    architecture: &Architecture,
    file: &GgufFile,
    theta: f64,
    width: u64,
    context: u64,
) -> Result<Map<String, Json>> {
    let at = |key: &str| format!("{}.{key}", architecture.name);
    let factor = read.number(&at(FACTOR)).or_else(|| read.number(&at(OLD_FACTOR)));
    let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
    let kind = match read.text(&at(TYPE)) {
        Some("none") => "default",
        // llama.cpp takes it for linear where none is named.
        Some("linear") | None if factor == 1.0 => "default",
        Some("linear") | None => "linear",
        Some("yarn") => "yarn",
        Some(other) => {
            let what = format!("is {other:?}, which is not supported; none, linear and yarn are");
            read.problem(&at(TYPE), what);
            "default"
        }
    };
    if !architecture.rope_types.contains(&kind) {
        read.problem(&at(TYPE), format!("is {kind}, which is not supported here"));
    }
    let mut only = |key: &str, wanted: &[f64]| {
        let found = read.number(&at(key));
        if let Some(found) = found.filter(|found| wanted.iter().all(|w| (w - found).abs() > 1e-6)) {
            let what = format!("is {found}, which is not supported; only {} is", wanted[0]);
            read.problem(&at(key), what);
        }
    };
    let mut parameters = Map::new();
    parameters.insert("rope_theta".into(), theta.into());
    parameters.insert("rope_type".into(), kind.into());
    if kind == "yarn" {
        // -1 is llama.cpp's word for none.
        only("rope.scaling.yarn_beta_fast", &[TURNS[0]]);
        only("rope.scaling.yarn_beta_slow", &[TURNS[1]]);
        only("rope.scaling.yarn_ext_factor", &[1.0, -1.0]);
        only("rope.scaling.yarn_attn_factor", &[1.0, yarn_amplitude(factor)]);
        let more = read.number(&at(AMPLITUDE)).unwrap_or(1.0);
        let original = read.whole(&at(ORIGINAL)).unwrap_or(context);
        parameters.insert("original_max_position_embeddings".into(), original.into());
        parameters.insert("attention_factor".into(), (more * yarn_amplitude(factor)).into());
        parameters.insert("beta_fast".into(), TURNS[0].into());
        parameters.insert("beta_slow".into(), TURNS[1].into());
    } else {
        only(AMPLITUDE, &[1.0]);
    }
    if ["linear", "yarn"].contains(&kind) {
        parameters.insert("factor".into(), factor.into());
    }
    if file.tensors().contains_key(DIVISORS) {
        if kind != "default" || !architecture.rope_types.contains(&"llama3") {
            let what =
                "are in the file, which are not supported here beside or instead of its keys";
            read.problem(DIVISORS, what);
            return Ok(parameters);
        }
        let mut divisors = Vec::new();
        file.read(DIVISORS, &mut divisors)?;
        match llama3(theta, width as usize, &divisors) {
            Some(found) => parameters.extend(found),
            None => read.problem(
                DIVISORS,
                "are no divisors that Llama 3's scaling of rotary positions gives; take the Hugging Face folder",
            ),
        }
    }
    if file.tensors().keys().any(|name| name.starts_with("rope_factors")) {
        let what =
            "are in the file: rotary positions that are scaled by LongRoPE are not supported";
        read.problem("rope_factors_long.weight", what);
    }
    Ok(parameters)
}

/// Llama 3's parameters that give these divisors of the frequencies. The three lengths among them are
/// known up to a common factor: those of Meta's models, where they fit, and else a `low_freq_factor` of
/// 1.
fn llama3(theta: f64, width: usize, divisors: &[f32]) -> Option<Map<String, Json>> {
    // A file may say any width, and there is memory for as many frequencies as it has divisors.
    if divisors.len() != width / 2 {
        return None;
    }
    let plain = rope_frequencies(width, theta);
    let factor = divisors.iter().fold(1.0f64, |most, &d| most.max(f64::from(d)));
    let gives = |low: f64, high: f64, original: f64| {
        let scaling = Scaling::Llama3 { factor, low, high, original };
        let scaled = Rotary { theta, width, scaling }.frequencies();
        let same = |((p, s), &d): ((&f64, &f64), &f32)| (p / s / f64::from(d) - 1.0).abs() < 2e-6;
        high > low && original >= 1.0 && plain.iter().zip(&scaled).zip(divisors).all(same)
    };
    // Of those that are neither kept nor divided by the whole factor: how much is kept is linear in the
    // frequency.
    let between: Vec<(f64, f64)> = plain
        .iter()
        .zip(divisors)
        .map(|(&f, &d)| (f, (1.0 / f64::from(d) - 1.0 / factor) / (1.0 - 1.0 / factor)))
        .filter(|(_, kept)| (1e-6..1.0 - 1e-6).contains(kept))
        .collect();
    let mut candidates = vec![(1.0, 4.0, 8192.0)];
    match &between[..] {
        [] => {}
        [(f, kept)] => candidates.push((1.0, 4.0, (1.0 + 3.0 * kept) * TAU / f)),
        [first, .., last] => {
            let slope = (first.1 - last.1) / (first.0 - last.0);
            let width = 1.0 / (slope * first.0 - first.1);
            candidates.push((1.0, 1.0 + width, slope * TAU * width));
        }
    }
    let round = |(low, high, original): (f64, f64, f64)| {
        (low, (high * 100.0).round() / 100.0, original.round())
    };
    let all = candidates.iter().flat_map(|&candidate| [round(candidate), candidate]);
    let (low, high, original) = all.into_iter().find(|&(l, h, o)| gives(l, h, o))?;
    let found = json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    });
    let Json::Object(found) = found else { unreachable!("it is written as one") };
    Some(found)
}

/// How scaled positions are written.
#[derive(Default)]
pub(super) struct Written {
    /// Keys without the architecture's name.
    pub keys: Vec<(&'static str, Value)>,
    /// Values of [`DIVISORS`].
    pub divisors: Option<Vec<f32>>,
}

/// What a file says of these positions; a problem of `read` for what llama.cpp could not do.
pub(super) fn written(read: &mut Keys, architecture: &Architecture, rotary: &Rotary) -> Written {
    const HOLDER: &str = "rope_parameters";
    let kind = match rotary.scaling {
        Scaling::Plain => return Written::default(),
        Scaling::Linear { .. } => "linear",
        Scaling::Llama3 { .. } => "llama3",
        Scaling::Yarn { .. } => "yarn",
    };
    if !architecture.rope_types.contains(&kind) {
        let what = format!(
            "has rope_type \"{kind}\", which llama.cpp does not know of {}; {} are written",
            architecture.name,
            architecture.rope_types.join(", ")
        );
        read.problem(HOLDER, what);
    }
    let float = |x: f64| Value::Float(x);
    let name = |name: &str| Value::Text(name.into());
    match rotary.scaling {
        Scaling::Plain => Written::default(),
        Scaling::Linear { factor } => {
            Written { keys: vec![(TYPE, name("linear")), (FACTOR, float(factor))], divisors: None }
        }
        Scaling::Llama3 { .. } => {
            let plain = rope_frequencies(rotary.width, rotary.theta);
            let pairs = plain.iter().zip(rotary.frequencies());
            let divisors = pairs.map(|(plain, scaled)| (plain / scaled) as f32).collect();
            Written { keys: Vec::new(), divisors: Some(divisors) }
        }
        Scaling::Yarn { factor, turns, original, truncate, attention_factor } => {
            for (key, is, wanted) in
                [("beta_fast", turns[0], TURNS[0]), ("beta_slow", turns[1], TURNS[1])]
            {
                if is != wanted {
                    let what = format!("is {is}; llama.cpp takes {wanted}, whatever a file says");
                    read.problem(&format!("{HOLDER}.{key}"), what);
                }
            }
            if !truncate {
                let what = "is false; llama.cpp puts the ends of the ramp at whole pairs";
                read.problem(&format!("{HOLDER}.truncate"), what);
            }
            let mut keys = vec![
                (TYPE, name("yarn")),
                (FACTOR, float(factor)),
                (ORIGINAL, Value::Unsigned(original as u64)),
            ];
            let more = attention_factor / yarn_amplitude(factor);
            if (more - 1.0).abs() > 1e-9 {
                keys.push((AMPLITUDE, float(more)));
            }
            Written { keys, divisors: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_in_divisors() {
        let divisors = |theta, width, [factor, low, high, original]: [f64; 4]| -> Vec<f32> {
            let scaling = Scaling::Llama3 { factor, low, high, original };
            let scaled = Rotary { theta, width, scaling }.frequencies();
            let plain = rope_frequencies(width, theta);
            plain.iter().zip(scaled).map(|(p, s)| (p / s) as f32).collect()
        };
        let found = |theta, width, parameters| -> Vec<f64> {
            let found = llama3(theta, width, &divisors(theta, width, parameters)).unwrap();
            let keys = ["factor", "low_freq_factor", "high_freq_factor"];
            let keys = keys.iter().chain(&["original_max_position_embeddings"]);
            keys.map(|key| found[*key].as_f64().unwrap()).collect()
        };
        // Llama 3.1 and 3.2, a small model, and one that is the same up to a common factor.
        assert_eq!(found(5e5, 128, [8.0, 1.0, 4.0, 8192.0]), [8.0, 1.0, 4.0, 8192.0]);
        assert_eq!(found(5e5, 64, [32.0, 1.0, 4.0, 8192.0]), [32.0, 1.0, 4.0, 8192.0]);
        assert_eq!(found(100.0, 16, [8.0, 1.0, 3.0, 32.0]), [8.0, 1.0, 3.0, 32.0]);
        assert_eq!(found(1e4, 64, [4.0, 2.0, 8.0, 4096.0]), [4.0, 1.0, 4.0, 2048.0]);
        let mut others = divisors(5e5, 128, [8.0, 1.0, 4.0, 8192.0]);
        others[40] *= 1.01;
        assert!(llama3(5e5, 128, &others).is_none());
        assert!(llama3(5e5, 128, &others[1..]).is_none());
        assert!(llama3(5e5, usize::MAX, &others).is_none());
        assert!(llama3(5e5, 8, &[0.0, f32::NAN, -1.0, 1.0]).is_none());
    }
}
