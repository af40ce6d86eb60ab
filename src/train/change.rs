//! In what two recipes differ, and whether a run may go on under the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::recipe::{Recipe, TABLES};
use super::settings::flatten;

/// A setting in which two recipes differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Its dotted key.
    pub key: String,
    /// Its value before, as TOML; None if it was not set.
    pub before: Option<String>,
    /// Its value now.
    pub now: Option<String>,
}

impl Change {
    /// Whether a run may go on under it: it says how long the run is or what happens on the way, and
    /// the steps that were done stay right.
    pub fn is_harmless(&self) -> bool {
        let key = self.key.as_str();
        ["train.", "sample."].iter().any(|section| key.starts_with(section))
            || ["output", "data.eval", "batch.recompute"].contains(&key)
    }

    /// Whether it changes the number of steps.
    pub fn is_of_length(&self) -> bool {
        ["train.epochs", "train.max_steps"].contains(&self.key.as_str())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
        write!(f, "{} -> {}", show(&self.before), show(&self.now))
    }
}

impl Recipe {
    /// In what this recipe differs from an earlier one's [`Recipe::to_toml`], by key; None if that
    /// is no recipe.
    pub fn changes_since(&self, before: &str) -> Option<Vec<Change>> {
        let leaves = |text: &str| {
            let mut leaves = BTreeMap::new();
            flatten(String::new(), toml::from_str(text).ok()?, &TABLES, &mut leaves);
            Some(leaves)
        };
        let (before, now) = (leaves(before)?, leaves(&self.to_toml())?);
        let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        let changed = keys.into_iter().filter(|key| before.get(*key) != now.get(*key));
        let show = |leaves: &BTreeMap<String, toml::Value>, key: &str| {
            leaves.get(key).map(ToString::to_string)
        };
        let change = |key: &String| Change {
            before: show(&before, key),
            now: show(&now, key),
            key: key.clone(),
        };
        Some(changed.map(change).collect())
    }
}
