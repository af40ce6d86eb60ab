//! OLMo 2: OLMo team, arXiv:2501.00656. Llama with its norms behind attention and feed-forward instead
//! of before, and a norm over all queries of a token together and over all keys.

use std::sync::Arc;

use serde_json::Value;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, RmsNorm, head_rows};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;

#[derive(Debug)]
struct Olmo2 {
    sizes: Sizes,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let sizes = Sizes::read(keys, &Reading { eps: 1e-5, ..Reading::LLAMA });
    keys.layer_types(sizes.layers, &["full_attention"]);
    keys.refuse_unless(&[("sliding_window", Value::Null), ("clip_qkv", Value::Null)]);
    Arc::new(Olmo2 { sizes })
}

impl Decoder for Olmo2 {
    fn outline(&self) -> Outline {
        self.sizes.outline()
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let c = &self.sizes;
        let rope = c.rope(g, s);
        let mut x = c.embedding(g).of_tokens(g, s);
        for layer in 0..c.layers {
            let at = format!("model.layers.{layer}");
            let mut attention = c.attention(g, &format!("{at}.self_attn"), rope, Linear::new);
            let widths = [("q_norm", c.heads), ("k_norm", c.kv_heads)];
            attention.norms = Some(widths.map(|(name, heads)| {
                RmsNorm::new(g, &format!("{at}.self_attn.{name}"), heads * c.head_dim, c.eps)
            }));
            let mlp = c.mlp(g, &format!("{at}.mlp"));
            let norm_1 = c.norm(g, &format!("{at}.post_attention_layernorm"));
            let norm_2 = c.norm(g, &format!("{at}.post_feedforward_layernorm"));

            let h = attention.apply(g, s, layer, x);
            let h = norm_1.apply(g, h);
            x = add(g, x, h);
            let h = mlp.apply(g, x);
            let h = norm_2.apply(g, h);
            x = add(g, x, h);
        }
        let x = head_rows(g, x, rows);
        let norm = c.norm(g, "model.norm");
        Head { input: norm.apply(g, x), weight: c.head(g), cap: None }
    }
}
