//! Mistral: Jiang et al., arXiv:2310.06825. Llama whose layers attend through a sliding window: a
//! token sees itself and the `sliding_window - 1` tokens before it.

use std::sync::Arc;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};

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
        c.pre_norm_decoder(g, s, rows, |g, _, at, rope| {
            let mut attention = c.attention(g, at, rope, Linear::new);
            attention.window = self.window;
            attention
        })
    }
}
