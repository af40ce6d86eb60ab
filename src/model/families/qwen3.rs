//! Qwen3: Yang et al., arXiv:2505.09388. Llama with a norm over each query head and each key head
//! before the rotary positions; `head_dim` times heads need not be the hidden size.

use std::sync::Arc;

use super::sizes::{Reading, Sizes, layer_windows};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear, RmsNorm};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};

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
        c.pre_norm_decoder(g, s, rows, |g, layer, at, rope| {
            let mut attention = c.attention(g, at, rope, Linear::new);
            attention.norms = Some(
                ["q_norm", "k_norm"]
                    .map(|name| RmsNorm::new(g, &format!("{at}.{name}"), c.head_dim, c.eps)),
            );
            attention.window = self.windows[layer];
            attention
        })
    }
}
