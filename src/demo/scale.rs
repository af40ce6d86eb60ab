//! How much a demo computes: by the size of its model, the kind of adapter, and `--quick`.

use crate::error::Result;
use crate::train::recipe::Recipe;

/// Models with at least so many parameters get LoRA's recipe, smaller ones train all their weights.
const LORA_FROM: usize = 20_000_000;

/// A recipe of both runs and its name in messages.
type Source = (&'static str, &'static str);

const WHOLE: Source = (include_str!("../../models/nano/demo.toml"), "models/nano/demo.toml");
const LORA: Source = (include_str!("../../models/smollm2/demo.toml"), "models/smollm2/demo.toml");

/// What `--quick` changes in [`WHOLE`].
const WHOLE_QUICK: &[&str] = &["train.max_steps=32", "train.eval_every=8", "train.save_every=16"];
/// What a software adapter changes in [`LORA`]. An evaluation takes as long as two steps: there is none
/// on the way, and the held-out rows are judged before and after.
const LORA_SOFTWARE: &[&str] = &[
    "optim.learning_rate=1e-3",
    "batch.size=8",
    "batch.stream_tokens=256",
    "train.max_steps=12",
    "train.eval_every=0",
    "train.save_every=4",
];
/// What `--quick` changes in that.
const LORA_SOFTWARE_QUICK: &[&str] = &[
    "optim.learning_rate=1e-3",
    "batch.size=8",
    "batch.stream_tokens=256",
    "train.max_steps=4",
    "train.eval_every=0",
    "train.save_every=0",
];
/// What `--quick` changes in [`LORA`].
const LORA_QUICK: &[&str] = &["train.max_steps=16", "train.eval_every=8", "train.save_every=0"];

/// How much is trained, judged and shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    source: Source,
    changes: &'static [&'static str],
    /// Held-out rows of rules that are trained on which are judged at most.
    pub known: usize,
    /// Held-out rows of one other rule file which are judged at most. One file has half of them all.
    pub per_rule: usize,
    /// Of the judged sentences of each kind, those that are corrected at most.
    pub corrected: usize,
    /// Corrections that the page shows.
    pub shown: usize,
}

impl Scale {
    pub fn of(parameters: usize, software: bool, quick: bool) -> Self {
        let all = usize::MAX;
        let (source, changes, [known, per_rule, corrected, shown]) =
            match (parameters >= LORA_FROM, software, quick) {
                (false, _, false) => (WHOLE, &[][..], [all, 8, all, 24]),
                (false, _, true) => (WHOLE, WHOLE_QUICK, [48, 3, all, 8]),
                (true, false, false) => (LORA, &[][..], [all, 8, all, 24]),
                (true, false, true) => (LORA, LORA_QUICK, [48, 3, all, 8]),
                (true, true, false) => (LORA, LORA_SOFTWARE, [32, 1, 10, 20]),
                (true, true, true) => (LORA, LORA_SOFTWARE_QUICK, [8, 1, 2, 4]),
            };
        Self { source, changes, known, per_rule, corrected, shown }
    }

    /// The recipe of both runs, with `set` on top.
    ///
    /// # Errors
    /// Settings that are none.
    pub fn recipe(&self, set: impl IntoIterator<Item = String>) -> Result<Recipe> {
        let (text, name) = self.source;
        let changes = self.changes.iter().map(|change| change.to_string());
        Recipe::parse(name, text, &changes.chain(set).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_scales_by_model_device_and_hurry() {
        let recipe = |parameters, software, quick| {
            Scale::of(parameters, software, quick).recipe([]).unwrap()
        };
        let steps = |recipe: &Recipe| recipe.train.max_steps.unwrap();
        for software in [true, false] {
            let [nano, smollm2] = [1_000_000, 134_515_008].map(|n| recipe(n, software, false));
            assert!(nano.lora.is_none() && smollm2.lora.is_some());
            for parameters in [1_000_000, 134_515_008] {
                let quick = recipe(parameters, software, true);
                assert!(steps(&quick) < steps(&recipe(parameters, software, false)));
                let [few, all] = [true, false].map(|quick| Scale::of(parameters, software, quick));
                assert!(few.known < all.known && few.shown < all.shown);
            }
        }
        let [software, gpu] = [true, false].map(|software| recipe(134_515_008, software, false));
        let rows = |recipe: &Recipe| steps(recipe) * recipe.batch.size as u64;
        assert!(rows(&software) * 10 < rows(&gpu));
        let set = ["train.max_steps=7".to_owned()];
        let own = Scale::of(134_515_008, true, true).recipe(set).unwrap();
        assert_eq!(steps(&own), 7);
    }
}
