//! Gemma 2: Gemma team, arXiv:2408.00118. Norms, of weight 1 + w, before and behind attention and
//! feed-forward; a gelu gate; embeddings times sqrt(D); scores times 1 / sqrt(`query_pre_attn_scalar`)
//! and soft-capped, as are the logits. By default every second layer, from the first on, attends through
//! a window.

use std::sync::Arc;

use serde_json::json;

use super::gemma3::sliding_layers;
use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, RmsNorm, head_rows, times};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;
use crate::ops::gelu_mul::gelu_mul;

#[derive(Debug)]
struct Gemma2 {
    sizes: Sizes,
    /// Length of the window.
    window: Option<usize>,
    /// Layers that attend through it.
    slides: Vec<bool>,
    /// Scores are divided by its root.
    query_scalar: f64,
    /// Bound of the scores.
    score_cap: Option<f64>,
    /// Bound of the logits.
    logit_cap: Option<f64>,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let reading = Reading {
        optional: &[],
        own: &["hidden_act", "attn_logit_softcapping", "final_logit_softcapping"],
        tied: true,
        ..Reading::LLAMA
    };
    let sizes = Sizes::read(keys, &reading);
    keys.activation("hidden_activation", &["gelu_pytorch_tanh", "gelu_new"]);
    keys.refuse_unless(&[("use_bidirectional_attention", json!(false))]);
    let (window, slides) = sliding_layers(keys, &sizes, 2);
    let query_scalar = keys.positive("query_pre_attn_scalar", 256.0);
    // Null means none, a missing key the family's own default.
    let mut cap = |key: &str, default: f64| match keys.named(key) && keys.get(key).is_none() {
        true => None,
        false => Some(keys.positive(key, default)),
    };
    let score_cap = cap("attn_logit_softcapping", 50.0);
    let logit_cap = cap("final_logit_softcapping", 30.0);
    Arc::new(Gemma2 { sizes, window, slides, query_scalar, score_cap, logit_cap })
}

impl Decoder for Gemma2 {
    fn outline(&self) -> Outline {
        self.sizes.outline()
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let c = &self.sizes;
        let rope = c.rope(g, s);
        let norm = |g: &mut Graph, name: &str| RmsNorm::plus_one(g, name, c.hidden, c.eps);
        let embedded = c.embedding(g).of_tokens(g, s);
        let mut x = times(g, embedded, (c.hidden as f64).sqrt());
        for layer in 0..c.layers {
            let at = format!("model.layers.{layer}");
            let mut attention = c.attention(g, &format!("{at}.self_attn"), rope, Linear::new);
            attention.scale = Some((c.head_dim as f64 / self.query_scalar).sqrt());
            attention.cap = self.score_cap;
            attention.window = self.window.filter(|_| self.slides[layer]);
            let mut mlp = c.mlp(g, &format!("{at}.mlp"));
            mlp.gated = gelu_mul;
            let norms = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
                .map(|n| norm(g, &format!("{at}.{n}_layernorm")));

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
        Head {
            input: norm(g, "model.norm").apply(g, x),
            weight: c.head(g),
            cap: self.logit_cap.map(|cap| cap as f32),
        }
    }
}
