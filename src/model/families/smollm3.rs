//! SmolLM3: Hugging Face, "SmolLM3: smol, multilingual, long-context reasoner" (2025). Llama of which
//! some layers, by default every fourth, turn nothing by position ("NoPE", arXiv:2501.18795).

use std::sync::Arc;

use serde_json::Value;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};

#[derive(Debug)]
struct SmolLm3 {
    sizes: Sizes,
    /// By layer: its queries and keys turn.
    turns: Vec<bool>,
    /// By layer.
    windows: Vec<Option<usize>>,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let reading = Reading {
        optional: &["head_dim"],
        own: &["no_rope_layers"],
        theta: 2_000_000.0,
        tied: true,
        ..Reading::LLAMA
    };
    let sizes = Sizes::read(keys, &reading);
    let turns = layers_that_turn(keys, sizes.layers);
    let window =
        match keys.flag("use_sliding_window", false) && keys.get("sliding_window").is_some() {
            true => Some(keys.size("sliding_window")),
            false => None,
        };
    let known = ["full_attention", "sliding_attention"];
    let known = &known[..if window.is_some() { 2 } else { 1 }];
    let types = keys.layer_types(sizes.layers, known);
    let slides = |layer: usize| match &types {
        Some(types) => types.get(layer) == Some(&"sliding_attention"),
        None => turns.get(layer) == Some(&false),
    };
    let window = sizes.cuts(window);
    let windows = (0..sizes.layers).map(|layer| window.filter(|_| slides(layer))).collect();
    Arc::new(SmolLm3 { sizes, turns, windows })
}

/// `no_rope_layers`, in which 1 is a layer that turns, or every layer but each
/// `no_rope_layer_interval`th.
fn layers_that_turn(keys: &mut Keys, layers: usize) -> Vec<bool> {
    let Some(value) = keys.get("no_rope_layers") else {
        let interval = keys.size_or("no_rope_layer_interval", 4).max(1);
        return (1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect();
    };
    let flag = |v: &Value| match v.as_u64() {
        Some(n @ (0 | 1)) => Some(n == 1),
        _ => v.as_bool(),
    };
    let list = value.as_array().and_then(|l| l.iter().map(flag).collect::<Option<Vec<bool>>>());
    match list {
        Some(list) if list.len() >= layers => list,
        _ => {
            let what = format!(
                "is {value}; it must be a 1 (rope) or a 0 (none) for each of the {layers} layers (num_hidden_layers)"
            );
            keys.problem("no_rope_layers", what);
            vec![true; layers]
        }
    }
}

impl Decoder for SmolLm3 {
    fn outline(&self) -> Outline {
        self.sizes.outline()
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let c = &self.sizes;
        c.pre_norm_decoder(g, s, rows, |g, layer, at, rope| {
            let mut attention = c.attention(g, at, rope, Linear::new);
            attention.rope = Some(rope).filter(|_| self.turns[layer]);
            attention.window = self.windows[layer];
            attention
        })
    }
}
