//! Llama: Touvron et al., arXiv:2302.13971 and 2307.09288. Per layer
//! `x += o(attention(rope(q), rope(k), v))` and `x += down(silu(gate) * up)`, each behind an RMS
//! norm; a final norm and a linear head.

use std::sync::Arc;

use serde_json::Value;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, Linear};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};

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
        c.pre_norm_decoder(g, s, rows, |g, _, at, rope| c.attention(g, at, rope, Linear::new))
    }
}
