//! Qwen2: Yang et al., arXiv:2407.10671. Llama with a bias on queries, keys and values, and
//! sliding windows in some layers if the configuration asks for them.

use std::sync::Arc;

use super::sizes::{Reading, Sizes, layer_windows};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, head_rows};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;

#[derive(Debug)]
struct Qwen2 {
    sizes: Sizes,
    /// By layer.
    windows: Vec<Option<usize>>,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let sizes = Sizes::read(keys, &Reading { optional: &["head_dim"], ..Reading::LLAMA });
    let windows = layer_windows(keys, &sizes);
    Arc::new(Qwen2 { sizes, windows })
}

impl Decoder for Qwen2 {
    fn outline(&self) -> Outline {
        self.sizes.outline()
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let c = &self.sizes;
        let rope = c.rope(g, s);
        let mut x = c.embedding(g).of_tokens(g, s);
        for layer in 0..c.layers {
            let at = format!("model.layers.{layer}");
            let mut attention = c.attention(g, &format!("{at}.self_attn"), rope, Linear::biased);
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
