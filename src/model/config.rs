//! A model's `config.json`: read by the family that its `model_type` names, and written back.
//!
//! Every setting is either handled, known to change nothing, or refused by name. The file is kept
//! as it was, so that writing it back loses nothing.
//!
//! transformers 5 writes `rope_parameters` and `dtype`; transformers 4 wrote `rope_theta`,
//! `rope_scaling` and `torch_dtype`. Both load, and what is written holds both spellings, so that
//! either version reads it.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::error::{Error, Problem, Result};
use crate::graph::{Graph, Parameter, Var};
use crate::kernel::{Class, Target};
use crate::model::adapter::Adapter;
use crate::model::families::{Decoder, FAMILIES, Outline, supported};
use crate::model::keys::Keys;
use crate::model::lora::{Adapted, Lora, Targets, module_of};
use crate::model::rotary::write_both;
use crate::model::stream::{BatchInputs, HeadRows};

/// A model's shape: what its `config.json` says.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// V: rows of the embedding and of the head.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// End-of-sequence ids; the first is the one written after a response. May be empty.
    pub eos_ids: Vec<u32>,
    /// What whoever trains the model ought to know.
    pub notes: Vec<String>,
    /// The forward pass, the parameters and their places in a file.
    pub decoder: Arc<dyn Decoder>,
    lora: Option<Lora>,
    /// The decoder without them, of an adapted model.
    base: Option<Arc<dyn Decoder>>,
    parameters: Vec<Parameter>,
    head: String,
    json: Map<String, Value>,
}

const SUMMARY: &str = "the model configuration cannot be used";

impl ModelConfig {
    /// Reads `config.json` in a model folder, or the base's of an adapter folder. All problems are
    /// reported at once.
    pub fn load(folder: &Path) -> Result<Self> {
        if let Some(adapter) = Adapter::of(folder)? {
            return adapter.config();
        }
        let path = folder.join("config.json");
        if !path.is_file() {
            return Err(Error::file(
                folder,
                "is not a model folder: it has no config.json. Name a folder that transformers' save_pretrained wrote, or a checkpoint of oddgrad.",
            ));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::file(&path, format!("is not JSON ({e}); a model folder needs the config.json that transformers writes")))?;
        Self::from_json(&path.display().to_string(), &value)
    }

    /// Reads the parsed `config.json`; `place` names it in messages.
    pub fn from_json(place: &str, value: &Value) -> Result<Self> {
        let Value::Object(map) = value else {
            return Err(Error::input(SUMMARY, vec![Problem::new(place, "is not a JSON object")]));
        };
        let mut keys = Keys::new(place, map);
        let found = match keys.get("model_type") {
            None => Err("is missing".to_owned()),
            Some(Value::String(name)) => FAMILIES
                .iter()
                .find(|(family, _)| family == name)
                .ok_or_else(|| format!("is `{name}`")),
            Some(other) => Err(format!("is {other}")),
        };
        // Another family's file uses other names: listing those as missing would not help.
        let (_, read) = match found {
            Ok(family) => family,
            Err(what) => {
                keys.problem("model_type", format!("{what}; {} are supported", supported()));
                return Err(Error::input(SUMMARY, keys.problems));
            }
        };
        keys.refuse_unless(&[
            ("quantization_config", Value::Null),
            ("is_encoder_decoder", json!(false)),
            ("add_cross_attention", json!(false)),
        ]);
        let decoder = read(&mut keys);
        let Outline { vocab_size, hidden_size, layers, max_positions, .. } = decoder.outline();
        keys.ids("bos_token_id", vocab_size);
        let eos_ids = keys.ids("eos_token_id", vocab_size);
        let Keys { problems, notes, .. } = keys;
        if !problems.is_empty() {
            return Err(Error::input(SUMMARY, problems));
        }
        let (parameters, head) = declared(decoder.as_ref());
        Ok(Self {
            vocab_size,
            hidden_size,
            layers,
            max_positions,
            eos_ids,
            notes,
            decoder,
            lora: None,
            base: None,
            parameters,
            head,
            json: map.clone(),
        })
    }

    /// The same model with low-rank additions.
    ///
    /// # Errors
    /// Targets that it has no linear layer for; additions to one that has some already.
    pub fn adapted(&self, lora: &Lora) -> Result<Self> {
        const SUMMARY: &str = "LoRA cannot be added to this model";
        if self.lora.is_some() {
            let what = "has an adapter already; make one model of both with `oddgrad merge`";
            return Err(Error::input(SUMMARY, vec![Problem::new("the model", what)]));
        }
        let modules = self.modules();
        let problems = lora.targets.problems(&modules);
        if !problems.is_empty() {
            return Err(Error::input(SUMMARY, problems));
        }
        let lora = Lora { targets: lora.targets.resolved(&modules), ..lora.clone() };
        let decoder = Arc::new(Adapted { base: self.decoder.clone(), lora: lora.clone() });
        let (parameters, head) = declared(&*decoder);
        let base = Some(self.decoder.clone());
        Ok(Self { decoder, lora: Some(lora), base, parameters, head, ..self.clone() })
    }

    /// Linear layers by their names in files.
    fn modules(&self) -> Vec<String> {
        let base = self.base.as_ref().unwrap_or(&self.decoder);
        let mut modules: Vec<String> =
            self.linear_layers().iter().map(|l| module_of(&**base, l)).collect();
        // The parts of a fused layer lie side by side.
        modules.dedup();
        modules
    }

    /// Whether additions to `targets` would be to the very layers that it has some on.
    pub fn has_additions_on(&self, targets: &Targets) -> bool {
        let modules = self.modules();
        let same = |lora: &Lora| modules.iter().all(|m| targets.hold(m) == lora.targets.hold(m));
        targets.problems(&modules).is_empty() && self.lora.as_ref().is_some_and(same)
    }

    /// The additions to the model, if it has some.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// The `config.json` of this model with weights in f32, readable by transformers 4 and 5.
    pub fn to_json(&self) -> Value {
        let mut out = self.json.clone();
        write_both(&mut out, self.decoder.rope_by_layer_type());
        for key in ["dtype", "torch_dtype"] {
            out.insert(key.into(), "float32".into());
        }
        Value::Object(out)
    }

    /// Every parameter of the model, in the order its graph declares them.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Names of the linear layers, the head aside: `{name}.weight` is a parameter.
    pub fn linear_layers(&self) -> Vec<String> {
        let seen: Rc<RefCell<Vec<String>>> = Rc::default();
        let list = seen.clone();
        let mut g = Graph::new(&Target::baseline(Class::Software));
        g.adapt(move |linear| {
            list.borrow_mut().push(linear.to_owned());
            None
        });
        let base = self.base.as_ref().unwrap_or(&self.decoder);
        shortest_pass(g, &**base);
        seen.take()
    }

    /// Whether it has a parameter of this name.
    pub fn has_parameter(&self, name: &str) -> bool {
        self.parameters.iter().any(|p| p.name == name)
    }

    /// Name of the parameter that is the head's weight: the embedding's when tied.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// Number of trained values: a tied head counts once.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(Parameter::len).sum()
    }
}

/// What a forward pass over one token declares: its parameters, and the name of the head's.
fn declared(decoder: &dyn Decoder) -> (Vec<Parameter>, String) {
    let (g, head) = shortest_pass(Graph::new(&Target::baseline(Class::Software)), decoder);
    (g.parameters().to_vec(), g.info(head).name.clone())
}

/// Appends a forward pass over one token; returns the head's weight too.
fn shortest_pass(mut g: Graph, decoder: &dyn Decoder) -> (Graph, Var) {
    let stream = BatchInputs::declare(&mut g, 1);
    let rows = HeadRows::declare(&mut g, 1, 1);
    let head = decoder.forward(&mut g, &stream, &rows).weight;
    (g, head)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
