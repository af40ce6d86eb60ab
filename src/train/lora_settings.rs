//! Section `[lora]` of a recipe, and what of it follows from the model: an adapter that is trained
//! further is what it was, anything else gets fresh additions.

use serde::Serialize;

use super::recipe::{InitialWeights, Recipe};
use super::settings::{POSITIVE, Settings, single};
use crate::error::{Error, Problem, Result};
use crate::model::config::ModelConfig;
use crate::model::lora::{Base, Lora, Targets};

/// Low-rank additions, and how the model under them is kept. What is None is the adapter's own where
/// one is trained further, and else the default of fresh additions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraSettings {
    /// [`Lora::rank`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// [`Lora::alpha`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// [`Lora::targets`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
    /// [`Lora::rslora`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rslora: Option<bool>,
    /// How the model's matrices are kept.
    pub base: Base,
}

impl LoraSettings {
    /// Those of these additions, with nothing left open.
    fn of(lora: &Lora, base: Base) -> Self {
        let Lora { rank, alpha, rslora, targets } = lora.clone();
        let (rank, alpha) = (Some(rank), Some(alpha));
        Self { rank, alpha, targets: Some(targets), rslora: Some(rslora), base }
    }

    /// Fresh additions.
    fn fresh(&self) -> Lora {
        Lora {
            rank: self.rank.unwrap_or(16),
            alpha: self.alpha.unwrap_or(32.0),
            rslora: self.rslora.unwrap_or(false),
            targets: self.targets.clone().unwrap_or(Targets::AllLinear),
        }
    }

    /// What an adapter has otherwise, each by its key.
    fn clashes(&self, own: &Lora, adapted: &ModelConfig) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut clash = |key: &str, given: String, own: String| {
            let what = format!(
                "is {given}, but the adapter that is to be trained further has {own}; leave the key out, or merge the adapter into its model (`oddgrad merge`) and train that"
            );
            problems.push(Problem::new(format!("lora.{key}"), what));
        };
        if let Some(rank) = self.rank.filter(|&rank| rank != own.rank) {
            clash("rank", rank.to_string(), own.rank.to_string());
        }
        if let Some(alpha) = self.alpha.filter(|&alpha| alpha != own.alpha) {
            clash("alpha", alpha.to_string(), own.alpha.to_string());
        }
        if let Some(rslora) = self.rslora.filter(|&rslora| rslora != own.rslora) {
            clash("rslora", rslora.to_string(), own.rslora.to_string());
        }
        if let Some(targets) = &self.targets
            && !adapted.has_additions_on(targets)
        {
            clash("targets", shown(targets), shown(&own.targets));
        }
        problems
    }
}

fn shown(targets: &Targets) -> String {
    match targets {
        Targets::AllLinear => "all".into(),
        Targets::Named(names) => names.join(", "),
    }
}

impl Recipe {
    /// The recipe with its section `[lora]` filled in, and its model with these additions: an adapter
    /// is trained further as it is, with a section or without; any other model gets fresh ones if there
    /// is a section.
    ///
    /// # Errors
    /// A model that cannot be used; settings that its adapter has otherwise, by key; targets that it
    /// has no layer for.
    pub fn resolve(&self) -> Result<(Self, ModelConfig)> {
        let model = ModelConfig::load(&self.model)?;
        let (settings, model) = match (model.lora(), &self.lora) {
            (None, None) => return Ok((self.clone(), model)),
            (None, Some(settings)) => {
                let lora = settings.fresh();
                (LoraSettings::of(&lora, settings.base), model.adapted(&lora)?)
            }
            (Some(own), settings) => {
                let mut problems =
                    settings.as_ref().map_or_else(Vec::new, |s| s.clashes(own, &model));
                if self.init == InitialWeights::Random {
                    let what = "is \"random\", but the model is an adapter, which is trained further from its values; leave the key out";
                    problems.push(Problem::new("init", what));
                }
                if !problems.is_empty() {
                    let summary = format!("{} cannot be trained further so", self.model.display());
                    return Err(Error::input(summary, problems));
                }
                let base = settings.as_ref().map_or(Base::Stored, |settings| settings.base);
                (LoraSettings::of(own, base), model)
            }
        };
        Ok((Self { lora: Some(settings), ..self.clone() }, model))
    }
}

pub(super) fn read_lora(s: &mut Settings) -> Option<LoraSettings> {
    if !s.has_section("lora") {
        return None;
    }
    const ALL: &str = "all";
    const TARGETS: &str = "lora.targets";
    let given = s.is_set(TARGETS);
    let targets = s.texts(TARGETS);
    if given && targets.is_empty() {
        s.problem(TARGETS, "names no layer; name some, or \"all\"");
    }
    use Base::{BF16, F16, Q4_0, Q8_0, Stored};
    let base = s.choice("lora.base", &[Stored, F16, BF16, Q8_0, Q4_0]).unwrap_or(Stored);
    Some(LoraSettings {
        rank: s.whole("lora.rank", 1, 1 << 16).map(|rank| rank as usize),
        alpha: s.number("lora.alpha", POSITIVE, |x| x > 0.0 && single(x)),
        rslora: s.flag("lora.rslora"),
        targets: given.then(|| match targets.iter().any(|name| name == ALL) {
            true => Targets::AllLinear,
            false => Targets::Named(targets),
        }),
        base,
    })
}
