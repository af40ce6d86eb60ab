//! Granite: IBM Granite team, "Granite 3.0 Language Models" (2024). Llama with four multipliers: of the
//! embedding, of the scores (instead of 1 / sqrt(d)), of what each block adds to the residual stream,
//! and a divisor of the logits.

use std::sync::Arc;

use serde_json::Value;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, head_rows, times};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;

#[derive(Debug)]
struct Granite {
    sizes: Sizes,
    embedding: f64,
    attention: f64,
    residual: f64,
    logits: f64,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let own = &["embedding_multiplier", "residual_multiplier", "logits_scaling"];
    let sizes = Sizes::read(keys, &Reading { own, ..Reading::LLAMA });
    keys.layer_types(sizes.layers, &["full_attention"]);
    keys.refuse_unless(&[("sliding_window", Value::Null)]);
    Arc::new(Granite {
        sizes,
        embedding: keys.positive("embedding_multiplier", 1.0),
        attention: keys.positive("attention_multiplier", 1.0),
        residual: keys.positive("residual_multiplier", 1.0),
        logits: keys.positive("logits_scaling", 1.0),
    })
}

impl Decoder for Granite {
    fn outline(&self) -> Outline {
        self.sizes.outline()
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let c = &self.sizes;
        let rope = c.rope(g, s);
        let embedded = c.embedding(g).of_tokens(g, s);
        let mut x = times(g, embedded, self.embedding);
        for layer in 0..c.layers {
            let at = format!("model.layers.{layer}");
            let mut attention = c.attention(g, &format!("{at}.self_attn"), rope, Linear::new);
            attention.scale = Some(self.attention * (c.head_dim as f64).sqrt());
            let mlp = c.mlp(g, &format!("{at}.mlp"));
            let norm_1 = c.norm(g, &format!("{at}.input_layernorm"));
            let norm_2 = c.norm(g, &format!("{at}.post_attention_layernorm"));

            let h = norm_1.apply(g, x);
            let h = attention.apply(g, s, layer, h);
            let h = times(g, h, self.residual);
            x = add(g, x, h);
            let h = norm_2.apply(g, x);
            let h = mlp.apply(g, h);
            let h = times(g, h, self.residual);
            x = add(g, x, h);
        }
        let x = head_rows(g, x, rows);
        let norm = c.norm(g, "model.norm");
        let x = norm.apply(g, x);
        // Logits are linear in the head's input.
        Head { input: times(g, x, 1.0 / self.logits), weight: c.head(g), cap: None }
    }
}
