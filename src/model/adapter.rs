//! Adapter folders as PEFT writes and reads them: `adapter_config.json` with what LoRA was and
//! where its base model is, `adapter_model.safetensors` with the factors.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::config::ModelConfig;
use super::keys::Keys;
use super::lora::{Lora, Targets, modules_of_adapter};
use super::source::{SafetensorsFile, WeightSource};
use crate::error::{Error, Result};
use crate::files::read_json;

/// What LoRA was, in an adapter's folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The factors, in an adapter's folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Larger than any adapter's configuration.
const LARGEST: usize = 1 << 22;

/// An adapter's folder, of which the configuration was read.
pub struct Adapter {
    /// The folder of its base model.
    pub base: PathBuf,
    /// The additions.
    pub lora: Lora,
    /// What whoever trains it further ought to know.
    notes: Vec<String>,
}

/// How factors may be drawn before training. The other ways take them out of the base's weights, which
/// PEFT changes when it loads such an adapter.
const BASE_KEEPING: [&str; 3] = ["gaussian", "eva", "orthogonal"];

impl Adapter {
    /// The adapter in `folder`; None if that is no folder, or holds none or whole weights beside it.
    ///
    /// # Errors
    /// A configuration that cannot be read or asks for what is not supported, all at once; a base
    /// model that is not there; an adapter without its factors.
    pub fn of(folder: &Path) -> Result<Option<Self>> {
        let whole = ["model.safetensors", "model.safetensors.index.json"];
        if !folder.is_dir() || whole.iter().any(|name| folder.join(name).exists()) {
            return Ok(None);
        }
        let path = folder.join(ADAPTER_CONFIG);
        let Some(value) = read_json(&path, LARGEST)? else { return Ok(None) };
        let Value::Object(map) = &value else {
            return Err(Error::file(&path, "is not a JSON object"));
        };
        let place = path.display().to_string();
        let mut keys = Keys::new(&place, map);
        if keys.get("peft_type").is_none() {
            keys.problem("peft_type", "is missing; only adapters of PEFT's LoRA are read");
        }
        keys.refuse_unless(&[
            ("peft_type", json!("LORA")),
            ("bias", json!("none")),
            ("lora_bias", json!(false)),
            ("use_dora", json!(false)),
            ("use_qalora", json!(false)),
            ("use_bdlora", Value::Null),
            ("rank_pattern", json!({})),
            ("alpha_pattern", json!({})),
            ("modules_to_save", Value::Null),
            ("trainable_token_indices", Value::Null),
            ("target_parameters", Value::Null),
            ("layer_replication", Value::Null),
            ("alora_invocation_tokens", Value::Null),
        ]);
        keys.without_dropout(&["lora_dropout"]);
        if let Some(Value::String(way)) = keys.get("init_lora_weights")
            && !BASE_KEEPING.contains(&way.as_str())
        {
            let what = format!(
                "is \"{way}\", with which PEFT changes the weights of the base; save it as an adapter of the base as it was (save_pretrained with path_initial_model_for_weight_conversion)"
            );
            keys.problem("init_lora_weights", what);
        }
        let rank = keys.size("r");
        let alpha = keys.positive("lora_alpha", 8.0);
        let rslora = keys.flag("use_rslora", false);
        let base = match keys.get("base_model_name_or_path").map(Value::as_str) {
            Some(Some(base)) if !base.is_empty() => PathBuf::from(base),
            _ => {
                keys.problem("base_model_name_or_path", "must name the folder of the base model");
                PathBuf::new()
            }
        };
        if !base.as_os_str().is_empty() && !base.join("config.json").is_file() {
            let what = format!(
                "is {}, and there is no model folder of that name here. Paths start at the current folder; change it to where the base model lies",
                base.display()
            );
            keys.problem("base_model_name_or_path", what);
        }
        let Keys { problems, notes, .. } = keys;
        if !problems.is_empty() {
            return Err(Error::input("the adapter cannot be used", problems));
        }
        let weights = folder.join(ADAPTER_WEIGHTS);
        if !weights.is_file() {
            let what = format!("holds an adapter's configuration, but no {ADAPTER_WEIGHTS}");
            return Err(Error::file(folder, what));
        }
        // `target_modules` may be a pattern; which layers it meant, the tensors say.
        let modules = modules_of_adapter(&SafetensorsFile::open(&weights)?.names());
        let lora = Lora { rank, alpha, rslora, targets: Targets::Named(modules) };
        Ok(Some(Self { base, lora, notes }))
    }

    /// Where its tokenizer is: in its own `folder`, where trainers put a copy, or in its base's.
    pub fn tokenizer_folder<'a>(&'a self, folder: &'a Path) -> &'a Path {
        if folder.join("tokenizer.json").is_file() { folder } else { &self.base }
    }

    /// The base model's configuration with the additions.
    ///
    /// # Errors
    /// A base that cannot be read, or that lacks layers which the adapter has factors for.
    pub fn config(&self) -> Result<ModelConfig> {
        let mut config = ModelConfig::load(&self.base)?.adapted(&self.lora)?;
        config.notes.extend_from_slice(&self.notes);
        Ok(config)
    }
}

/// `adapter_config.json` of `lora` on the model in `base`, as PEFT reads it.
pub(super) fn adapter_config(lora: &Lora, base: Option<&Path>) -> Value {
    let targets = match &lora.targets {
        // PEFT's word for it; a model's own additions are by name.
        Targets::AllLinear => json!("all-linear"),
        Targets::Named(names) => json!(names),
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.map(|path| path.display().to_string()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_dora": false,
    })
}

/// The folder that a model's tokenizer is in: its own, or the base's of an adapter without one.
///
/// # Errors
/// As [`Adapter::of`].
pub fn tokenizer_folder(folder: &Path) -> Result<PathBuf> {
    let adapter = Adapter::of(folder)?;
    Ok(adapter.as_ref().map_or(folder, |a| a.tokenizer_folder(folder)).to_owned())
}
