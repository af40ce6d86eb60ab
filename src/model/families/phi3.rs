//! Phi-3: Abdin et al., arXiv:2404.14219. Llama whose files hold queries, keys and values in one tensor,
//! `qkv_proj`, and the two inner projections of the feed-forward in another, `gate_up_proj`; perhaps
//! with a sliding window, and with heads of which only a part turns. Here each projection is a
//! parameter; they are joined again when the model is saved.

use std::sync::Arc;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline, Place};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear};
use crate::model::keys::Keys;
use crate::model::rotary;
use crate::model::stream::{BatchInputs, HeadRows};

#[derive(Debug)]
struct Phi3 {
    sizes: Sizes,
    window: Option<usize>,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let reading = Reading {
        eps: 1e-5,
        partial: Some(1.0),
        // transformers takes the other names for "longrope" here.
        rope_types: rotary::PLAIN,
        ..Reading::LLAMA
    };
    let sizes = Sizes::read(keys, &reading);
    let window = keys.get("sliding_window").map(|_| keys.size("sliding_window"));
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    keys.layer_types(sizes.layers, &[kind]);
    let window = sizes.cuts(window);
    Arc::new(Phi3 { sizes, window })
}

impl Decoder for Phi3 {
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

    fn place(&self, parameter: &str) -> Place {
        let c = &self.sizes;
        let (q, kv, f) = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.intermediate);
        let fused = [
            ("self_attn.q_proj", "self_attn.qkv_proj", 0, q + 2 * kv),
            ("self_attn.k_proj", "self_attn.qkv_proj", q, q + 2 * kv),
            ("self_attn.v_proj", "self_attn.qkv_proj", q + kv, q + 2 * kv),
            ("mlp.gate_proj", "mlp.gate_up_proj", 0, 2 * f),
            ("mlp.up_proj", "mlp.gate_up_proj", f, 2 * f),
        ];
        for (part, tensor, start, outputs) in fused {
            if let Some(at) = parameter.strip_suffix(&format!(".{part}.weight")) {
                return Place::slice(format!("{at}.{tensor}.weight"), start, outputs);
            }
        }
        Place::whole(parameter)
    }
}
