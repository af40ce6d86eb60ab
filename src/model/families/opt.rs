//! OPT: Zhang et al., arXiv:2205.01068, the small models of ORPO's paper. As GPT-2, with ReLU between
//! the two feed-forward layers, four projections of their own, and learned positions that start at
//! row 2 of their table. Variants that normalise behind the blocks (OPT-350M) are refused.

use std::sync::Arc;

use serde_json::json;

use super::{Decoder, Outline};
use crate::graph::{Graph, Init};
use crate::model::blocks::{Embedding, Head, LayerNorm, Linear, Mlp, SelfAttention, head_rows};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;
use crate::ops::relu::relu;

/// Rows of the table of positions that no position uses.
const OFFSET: usize = 2;
/// The second of them must end where a binding may begin, in 16 bits an element too.
const ALIGNED: usize = 64;
const EPS: f64 = 1e-5;

#[derive(Debug)]
struct Opt {
    outline: Outline,
    inner: usize,
    head_dim: usize,
    tied: bool,
    std: f64,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let (hidden, heads) = (keys.size("hidden_size"), keys.size("num_attention_heads"));
    let inner = keys.size("ffn_dim");
    keys.check_width("hidden_size", hidden);
    keys.check_width("ffn_dim", inner);
    if !hidden.is_multiple_of(ALIGNED) {
        keys.problem("hidden_size", format!("is {hidden}; it must be a multiple of {ALIGNED}"));
    }
    keys.activation("activation_function", &["relu"]);
    keys.without_dropout(&["dropout", "attention_dropout", "activation_dropout", "layerdrop"]);
    keys.refuse_unless(&[
        ("do_layer_norm_before", json!(true)),
        ("_remove_final_layer_norm", json!(false)),
        ("enable_bias", json!(true)),
        ("layer_norm_elementwise_affine", json!(true)),
        ("word_embed_proj_dim", json!(hidden)),
    ]);
    Arc::new(Opt {
        outline: Outline {
            vocab_size: keys.size("vocab_size"),
            hidden_size: hidden,
            kv_width: hidden,
            layers: keys.layers("num_hidden_layers"),
            max_positions: keys.size("max_position_embeddings"),
        },
        inner,
        head_dim: keys.head_of("hidden_size", hidden, "num_attention_heads", heads),
        tied: keys.flag("tie_word_embeddings", true),
        std: keys.positive("init_std", 0.02),
    })
}

impl Decoder for Opt {
    fn outline(&self) -> Outline {
        self.outline
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let Self { outline: c, inner: f, std, .. } = *self;
        let d = c.hidden_size;
        let (init, residual) = (Init::Normal(std), Init::residual(std, c.layers));
        let embed = Embedding::new(g, "model.decoder.embed_tokens", c.vocab_size, d, std);
        let table = c.max_positions + OFFSET;
        let table = Embedding::new(g, "model.decoder.embed_positions", table, d, std);
        let used = Embedding { weight: g.rows(table.weight, OFFSET, c.max_positions) };
        let (tokens, positions) = (embed.of_tokens(g, s), used.of_positions(g, s));
        let mut x = add(g, tokens, positions);
        for layer in 0..c.layers {
            let at = format!("model.decoder.layers.{layer}");
            let attention = SelfAttention {
                k: Linear::biased(g, &format!("{at}.self_attn.k_proj"), d, d, init),
                v: Linear::biased(g, &format!("{at}.self_attn.v_proj"), d, d, init),
                q: Linear::biased(g, &format!("{at}.self_attn.q_proj"), d, d, init),
                o: Linear::biased(g, &format!("{at}.self_attn.out_proj"), d, d, residual),
                head_dim: self.head_dim,
                norms: None,
                rope: None,
                scale: None,
                cap: None,
                window: None,
            };
            let norm_1 = LayerNorm::new(g, &format!("{at}.self_attn_layer_norm"), d, EPS);
            let mlp = Mlp {
                up: Linear::biased(g, &format!("{at}.fc1"), d, f, init),
                activation: relu,
                down: Linear::biased(g, &format!("{at}.fc2"), f, d, residual),
            };
            let norm_2 = LayerNorm::new(g, &format!("{at}.final_layer_norm"), d, EPS);

            let h = norm_1.apply(g, x);
            let h = attention.apply(g, s, layer, h);
            x = add(g, x, h);
            let h = norm_2.apply(g, x);
            let h = mlp.apply(g, h);
            x = add(g, x, h);
        }
        let x = head_rows(g, x, rows);
        let norm = LayerNorm::new(g, "model.decoder.final_layer_norm", d, EPS);
        let weight = match self.tied {
            true => embed.weight,
            false => Embedding::new(g, "lm_head", c.vocab_size, d, std).weight,
        };
        Head { input: norm.apply(g, x), weight, cap: None }
    }

    fn name_of(&self, tensor: &str) -> Option<String> {
        // The first files lack the prefix.
        let bare = tensor.starts_with("decoder.");
        Some(if bare { format!("model.{tensor}") } else { tensor.into() })
    }
}
