//! Gemma 3, text: Gemma team, arXiv:2503.19786. Norms, of weight 1 + w, before and behind attention and
//! feed-forward and over each query and key head; a gelu gate; embeddings times sqrt(D); scores times
//! 1 / sqrt(`query_pre_attn_scalar`). Most layers attend through a window and have a rotary base of
//! their own, every sixth by default attends to everything.

use std::sync::Arc;

use serde_json::json;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, RmsNorm, Rope, head_rows, times};
use crate::model::keys::Keys;
use crate::model::rotary::{self, Asked, Rotary};
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;
use crate::ops::gelu_mul::gelu_mul;

#[derive(Debug)]
struct Gemma3 {
    sizes: Sizes,
    /// Positions of layers with a window.
    local: Rotary,
    /// Length of the window.
    window: Option<usize>,
    /// Layers that attend through it.
    slides: Vec<bool>,
    /// Scores are divided by its root.
    query_scalar: f64,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let reading = Reading {
        optional: &[],
        own: &["hidden_act"],
        theta: 1_000_000.0,
        tied: true,
        nested_rope: Some("full_attention"),
        ..Reading::LLAMA
    };
    let sizes = Sizes::read(keys, &reading);
    keys.activation("hidden_activation", &["gelu_pytorch_tanh", "gelu_new"]);
    keys.refuse_unless(&[("use_bidirectional_attention", json!(false))]);
    let asked =
        Asked { head_dim: sizes.head_dim, theta: 10_000.0, types: rotary::ALL, partial: None };
    let local = Rotary::read_of(keys, asked, "sliding_attention", false, "rope_local_base_freq");
    let (window, slides) = sliding_layers(keys, &sizes, 6);
    let query_scalar = keys.positive("query_pre_attn_scalar", 256.0);
    Arc::new(Gemma3 { sizes, local, window, slides, query_scalar })
}

/// The window, and the layers that have it: by `layer_types`, or else all but every `pattern`th.
pub(super) fn sliding_layers(
    keys: &mut Keys,
    sizes: &Sizes,
    pattern: usize,
) -> (Option<usize>, Vec<bool>) {
    let pattern = keys.size_or("sliding_window_pattern", pattern).max(1);
    let types = keys.layer_types(sizes.layers, &["full_attention", "sliding_attention"]);
    let slides = |layer: usize| match &types {
        Some(types) => types.get(layer) == Some(&"sliding_attention"),
        None => !(layer + 1).is_multiple_of(pattern),
    };
    let slides: Vec<bool> = (0..sizes.layers).map(slides).collect();
    if slides.contains(&true)
        && keys.named("sliding_window")
        && keys.get("sliding_window").is_none()
    {
        keys.problem("sliding_window", "is null, but some layers attend through a window");
    }
    let window = keys.size_or("sliding_window", 4096);
    (sizes.cuts(Some(window)), slides)
}

impl Decoder for Gemma3 {
    fn outline(&self) -> Outline {
        self.sizes.outline()
    }

    fn rope_by_layer_type(&self) -> bool {
        true
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let c = &self.sizes;
        let global = c.rope(g, s);
        let local = Rope::new(g, s, c.max_positions, &self.local);
        let norm = |g: &mut Graph, name: &str, width| RmsNorm::plus_one(g, name, width, c.eps);
        let embedded = c.embedding(g).of_tokens(g, s);
        let mut x = times(g, embedded, (c.hidden as f64).sqrt());
        for layer in 0..c.layers {
            let at = format!("model.layers.{layer}");
            let (rope, window) = match self.slides[layer] {
                true => (local, self.window),
                false => (global, None),
            };
            let mut attention = c.attention(g, &format!("{at}.self_attn"), rope, Linear::new);
            attention.norms = Some(
                ["q_norm", "k_norm"].map(|n| norm(g, &format!("{at}.self_attn.{n}"), c.head_dim)),
            );
            attention.scale = Some((c.head_dim as f64 / self.query_scalar).sqrt());
            attention.window = window;
            let mut mlp = c.mlp(g, &format!("{at}.mlp"));
            mlp.gated = gelu_mul;
            let norms = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
                .map(|n| norm(g, &format!("{at}.{n}_layernorm"), c.hidden));

            let h = norms[0].apply(g, x);
            let h = attention.apply(g, s, layer, h);
            let h = norms[1].apply(g, h);
            x = add(g, x, h);
            let h = norms[2].apply(g, x);
            let h = mlp.apply(g, h);
            let h = norms[3].apply(g, h);
            x = add(g, x, h);
        }
        let x = head_rows(g, x, rows);
        Head { input: norm(g, "model.norm", c.hidden).apply(g, x), weight: c.head(g), cap: None }
    }
}
