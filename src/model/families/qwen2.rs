//! Qwen2: Yang et al., arXiv:2407.10671. Llama with a bias on queries, keys and values, and
//! sliding windows in some layers if the configuration asks for them.

use std::sync::Arc;

use super::sizes::{Reading, Sizes, layer_windows};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};

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
        c.pre_norm_decoder(g, s, rows, |g, layer, at, rope| {
            let mut attention = c.attention(g, at, rope, Linear::biased);
            attention.window = self.windows[layer];
            attention
        })
    }
}
