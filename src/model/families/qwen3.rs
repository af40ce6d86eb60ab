//! Qwen3: Yang et al., arXiv:2505.09388. Llama with a norm over each query head and each key head
//! before the rotary positions; `head_dim` times heads need not be the hidden size.

use std::sync::Arc;

use super::sizes::{Reading, Sizes, layer_windows};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, RmsNorm, head_rows};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;

#[derive(Debug)]
struct Qwen3 {
    sizes: Sizes,
    /// By layer.
    windows: Vec<Option<usize>>,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let sizes = Sizes::read(keys, &Reading { optional: &[], ..Reading::LLAMA });
    let windows = layer_windows(keys, &sizes);
    Arc::new(Qwen3 { sizes, windows })
}

impl Decoder for Qwen3 {
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
            attention.norms =
                Some(["q_norm", "k_norm"].map(|name| {
                    RmsNorm::new(g, &format!("{at}.self_attn.{name}"), c.head_dim, c.eps)
                }));
            attention.window = self.windows[layer];
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
