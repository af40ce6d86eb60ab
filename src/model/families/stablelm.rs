//! StableLM: Bellagente et al., arXiv:2402.17834. Llama with layer norms, perhaps a bias on queries, keys
//! and values, and heads of which a part turns, by default a quarter. Parallel residuals and norms of
//! queries and keys are refused.

use std::sync::Arc;

use serde_json::json;

use super::sizes::{Reading, Sizes};
use super::{Decoder, Outline};
use crate::graph::Graph;
use crate::model::blocks::{Head, LayerNorm, Linear, head_rows};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;

#[derive(Debug)]
struct StableLm {
    sizes: Sizes,
    eps: f64,
    biased: bool,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let reading = Reading { optional: &["head_dim"], partial: Some(0.25), ..Reading::LLAMA };
    let sizes = Sizes::read(keys, &reading);
    keys.layer_types(sizes.layers, &["full_attention"]);
    let head_dim = sizes.hidden.checked_div(sizes.heads).unwrap_or(0);
    keys.refuse_unless(&[
        ("head_dim", json!(head_dim)),
        ("use_parallel_residual", json!(false)),
        ("qk_layernorm", json!(false)),
    ]);
    let eps = keys.positive("layer_norm_eps", 1e-5);
    let biased = keys.flag("use_qkv_bias", false);
    Arc::new(StableLm { sizes, eps, biased })
}

impl Decoder for StableLm {
    fn outline(&self) -> Outline {
        self.sizes.outline()
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let c = &self.sizes;
        let rope = c.rope(g, s);
        let project = if self.biased { Linear::biased } else { Linear::new };
        let norm = |g: &mut Graph, name: &str| LayerNorm::new(g, name, c.hidden, self.eps);
        let mut x = c.embedding(g).of_tokens(g, s);
        for layer in 0..c.layers {
            let at = format!("model.layers.{layer}");
            let attention = c.attention(g, &format!("{at}.self_attn"), rope, project);
            let mlp = c.mlp(g, &format!("{at}.mlp"));
            let norm_1 = norm(g, &format!("{at}.input_layernorm"));
            let norm_2 = norm(g, &format!("{at}.post_attention_layernorm"));

            let h = norm_1.apply(g, x);
            let h = attention.apply(g, s, layer, h);
            x = add(g, x, h);
            let h = norm_2.apply(g, x);
            let h = mlp.apply(g, h);
            x = add(g, x, h);
        }
        let x = head_rows(g, x, rows);
        let norm = norm(g, "model.norm");
        Head { input: norm.apply(g, x), weight: c.head(g), cap: None }
    }
}
