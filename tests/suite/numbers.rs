//! Numbers that nobody means: whatever a recipe or a config.json says, it is read, planned or
//! refused by its key, and nothing panics on the way.

use crate::golden;
use oddgrad::error::Error;
use oddgrad::kernel::{Class, Target};
use oddgrad::model::config::ModelConfig;
use oddgrad::model::generate::{Room, plan_generator};
use oddgrad::train::learner::memory_plan;
use oddgrad::train::prepare::capacity;
use oddgrad::train::program::Placement;
use oddgrad::train::recipe::Recipe;
use serde_json::Value;

/// The least that an adapter binds, and the most.
fn targets() -> [Target; 2] {
    let small = Target::baseline(Class::Discrete);
    let most = u32::MAX.into();
    let large = Target { binding_bytes: most, buffer_bytes: most, ..small.clone() };
    [small, large]
}

/// A number as TOML and JSON write it: huge, small, negative or broken.
fn number(rng: &mut fastrand::Rng) -> String {
    match rng.u32(0..10) {
        0 => rng.choice(["0", "-1", "1", "2", "3", "0.5", "-0.5", "1.5"]).unwrap().to_owned(),
        1 => rng
            .choice(["1e308", "-1e308", "1e-320", "1e39", "1e-46", "16777216", "16777217"])
            .unwrap()
            .to_owned(),
        2 => i64::MAX.to_string(),
        3 => i64::MIN.to_string(),
        4 => (rng.u64(..) >> rng.u32(1..64)).to_string(),
        5 => format!("{:e}", rng.f64() * 10f64.powi(rng.i32(-300..300))),
        // About a power of two, where products of two leave 32 or 64 bits.
        // Most of them in the range of sizes that are read.
        i => ((1i64 << rng.u32(0..if i == 6 { 63 } else { 27 })) + rng.i64(-1..=1)).to_string(),
    }
}

/// The paths of all numbers in a JSON value.
fn numbers_of(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(path.to_owned()),
        Value::Object(map) => {
            map.iter().for_each(|(k, v)| numbers_of(v, &format!("{path}/{k}"), found));
        }
        _ => {}
    }
}

/// Plans training and generation, or is refused for its limits.
fn plan(target: &Target, config: &ModelConfig, recipe: &Recipe) -> Result<(), Error> {
    let objective = &*recipe.loss.objective;
    let room = Room { sequences: 16, length: recipe.sample.max_tokens };
    memory_plan(target, config, capacity(recipe), objective, &Placement::all(), None)?;
    plan_generator(target, config, room, || Placement::all().inference_graph(target))?;
    Ok(())
}

const RECIPE: &str =
    "model = \"m\"\noutput = \"o\"\noptim.learning_rate = 1e-3\n[data]\ntrain = \"rows.jsonl\"\n";

#[test]
fn no_number_in_a_recipe_panics() {
    let config = ModelConfig::load(&golden("llama_tied")).unwrap();
    let recipe = Recipe::parse("r.toml", RECIPE, &[]).unwrap();
    let defaults: toml::Value = toml::from_str(&recipe.to_toml()).unwrap();
    let defaults = serde_json::to_value(defaults).unwrap();
    let mut keys = Vec::new();
    numbers_of(&defaults, "", &mut keys);
    let mut keys: Vec<String> = keys.iter().map(|k| k[1..].replace('/', ".")).collect();
    keys.extend(["train.max_steps", "optim.warmup_ratio"].map(str::to_owned));
    assert!(keys.len() > 20, "{keys:?}");
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut refused, mut planned, mut limited) = (0, 0, 0);
    for round in 0..1000 {
        let key = &keys[round % keys.len()];
        let value = number(&mut rng);
        let set = format!("{key}={value}");
        match Recipe::parse("r.toml", RECIPE, std::slice::from_ref(&set)) {
            Err(error) => {
                assert!(error.to_string().contains(key.as_str()), "{set}: {error}");
                refused += 1;
            }
            Ok(recipe) => {
                let total = recipe.train.total_steps(rng.u64(..) >> rng.u32(0..64));
                let step = rng.u64(0..=total.min(1 << 40));
                let rate = recipe.optim.learning_rate_at(step, total);
                assert!(rate.is_finite(), "{set}: {rate} at {step} of {total}");
                recipe.fingerprint();
                for target in targets() {
                    match plan(&target, &config, &recipe) {
                        Ok(()) => planned += 1,
                        Err(Error::Limit(_)) => limited += 1,
                        Err(other) => panic!("{set}: {other}"),
                    }
                }
            }
        }
    }
    assert!(refused > 200 && planned > 200 && limited > 5, "{refused} {planned} {limited}");
}

#[test]
fn no_number_in_a_config_panics() {
    let recipe = Recipe::parse("r.toml", RECIPE, &["sample.max_tokens=16".into()]).unwrap();
    let mut rng = fastrand::Rng::with_seed(8);
    let (mut refused, mut planned, mut limited) = (0, 0, 0);
    for family in ["gpt2", "llama_tied", "mistral_window", "opt", "qwen2_window", "qwen3_tied"] {
        let text = std::fs::read_to_string(golden(family).join("config.json")).unwrap();
        let whole: Value = serde_json::from_str(&text).unwrap();
        let mut paths = Vec::new();
        numbers_of(&whole, "", &mut paths);
        assert!(paths.len() > 8, "{paths:?}");
        for round in 0..300 {
            let mut config = whole.clone();
            // One key by itself, or several whose product counts.
            let mut changed = Vec::new();
            for i in 0..=round % 3 {
                let path = match i {
                    0 => &paths[round % paths.len()],
                    _ => rng.choice(&paths).unwrap(),
                };
                let mut value: Value = serde_json::from_str(&number(&mut rng)).unwrap();
                // Thousands of layers are planned, and take seconds.
                if path.contains("layer") && value.as_u64().is_some_and(|n| n > 64 && n < 5000) {
                    value = 64.into();
                }
                *config.pointer_mut(path).unwrap() = value;
                changed.push(path.rsplit('/').next().unwrap().to_owned());
            }
            match ModelConfig::from_json("config.json", &config) {
                Err(error) => {
                    let text = error.to_string();
                    assert!(changed.iter().any(|k| text.contains(k)), "{config}: {text}");
                    refused += 1;
                }
                Ok(config) => {
                    for target in targets() {
                        match plan(&target, &config, &recipe) {
                            Ok(()) => planned += 1,
                            Err(Error::Limit(_)) => limited += 1,
                            Err(other) => panic!("{changed:?}: {other}"),
                        }
                    }
                }
            }
        }
    }
    assert!(refused > 50 && planned > 50 && limited > 5, "{refused} {planned} {limited}");
}
