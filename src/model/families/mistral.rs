//! Mistral: Jiang et al., arXiv:2310.06825. Llama whose layers attend through a sliding window: a
//! token sees itself and the `sliding_window - 1` tokens before it.

use std::sync::Arc;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, head_rows};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;

#[derive(Debug)]
struct Mistral {
    sizes: Sizes,
    window: Option<usize>,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let sizes = Sizes::read(keys, &Reading { optional: &["head_dim"], ..Reading::LLAMA });
    // A missing key means 4096 to transformers, null means none.
    let window = match keys.named("sliding_window") && keys.get("sliding_window").is_none() {
        true => None,
        false => Some(keys.size_or("sliding_window", 4096)),
    };
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    keys.layer_types(sizes.layers, &[kind]);
    let window = sizes.cuts(window);
    Arc::new(Mistral { sizes, window })
}

impl Decoder for Mistral {
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
            attention.window = self.window;
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
