//! Llama: Touvron et al., arXiv:2302.13971 and 2307.09288. Per layer
//! `x += o(attention(rope(q), rope(k), v))` and `x += down(silu(gate) * up)`, each behind an RMS
//! norm; a final norm and a linear head.

use std::sync::Arc;

use serde_json::Value;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, head_rows};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;

#[derive(Debug)]
struct Llama {
    sizes: Sizes,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let sizes = Sizes::read(keys, &Reading::LLAMA);
    keys.layer_types(sizes.layers, &["full_attention"]);
    keys.refuse_unless(&[("sliding_window", Value::Null)]);
    Arc::new(Llama { sizes })
}

impl Decoder for Llama {
    fn outline(&self) -> Outline {
        self.sizes.outline()
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let c = &self.sizes;
        let rope = c.rope(g, s);
        let mut x = c.embedding(g).of_tokens(g, s);
        for layer in 0..c.layers {
            let at = format!("model.layers.{layer}");
            let attention = c.attention(g, &format!("{at}.self_attn"), rope, Linear::new);
            let mlp = c.mlp(g, &format!("{at}.mlp"));
            let norm_1 = c.norm(g, &format!("{at}.input_layernorm"));
            let norm_2 = c.norm(g, &format!("{at}.post_attention_layernorm"));

            let h = norm_1.apply(g, x);
            let h = attention.apply(g, s, layer, h);
            x = add(g, x, h);
            let h = norm_2.apply(g, x);
            let h = mlp.apply(g, h);
            x = add(g, x, h);
        }
        let x = head_rows(g, x, rows);
        let norm = c.norm(g, "model.norm");
        Head { input: norm.apply(g, x), weight: c.head(g), cap: None }
    }
}
