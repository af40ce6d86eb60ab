//! GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Learned
//! positions, layer norms with bias, and `x += c_proj(gelu(c_fc x))`. Its files hold every matrix
//! as [inputs, outputs], and queries, keys and values in one tensor, `c_attn`; here they are
//! three parameters `[outputs, inputs]`, joined again when the model is saved.

use std::sync::Arc;

use serde_json::json;

use super::{Decoder, Outline, Place};
use crate::graph::{Graph, Init};
use crate::model::blocks::{Embedding, Head, LayerNorm, Linear, Mlp, SelfAttention, head_rows};
use crate::model::keys::Keys;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;
use crate::ops::gelu::gelu;

#[derive(Debug)]
struct Gpt2 {
    outline: Outline,
    inner: usize,
    head_dim: usize,
    eps: f64,
    tied: bool,
    std: f64,
}

pub(super) fn read(keys: &mut Keys) -> Arc<dyn Decoder> {
    let (hidden, heads) = (keys.size("n_embd"), keys.size("n_head"));
    let inner = keys.size_or("n_inner", 4 * hidden);
    let named = if keys.get("n_inner").is_some() { "n_inner" } else { "n_embd" };
    keys.check_width("n_embd", hidden);
    keys.check_width(named, inner);
    // The names of one function in the tanh form.
    keys.activation("activation_function", &["gelu_new", "gelu_pytorch_tanh"]);
    keys.without_dropout(&["attn_pdrop", "embd_pdrop", "resid_pdrop"]);
    keys.refuse_unless(&[
        ("scale_attn_weights", json!(true)),
        ("scale_attn_by_inverse_layer_idx", json!(false)),
    ]);
    Arc::new(Gpt2 {
        outline: Outline {
            vocab_size: keys.size("vocab_size"),
            hidden_size: hidden,
            kv_width: hidden,
            layers: keys.layers("n_layer"),
            max_positions: keys.size("n_positions"),
        },
        inner,
        head_dim: keys.head_of("n_embd", hidden, "n_head", heads),
        eps: keys.positive("layer_norm_epsilon", 1e-5),
        tied: keys.flag("tie_word_embeddings", true),
        std: keys.positive("initializer_range", 0.02),
    })
}

impl Decoder for Gpt2 {
    fn outline(&self) -> Outline {
        self.outline
    }

    fn forward(&self, g: &mut Graph, s: &BatchInputs, rows: &HeadRows) -> Head {
        let Self { outline: c, inner: f, eps, std, .. } = *self;
        let d = c.hidden_size;
        let (init, residual) = (Init::Normal(std), Init::residual(std, c.layers));
        let wte = Embedding::new(g, "transformer.wte", c.vocab_size, d, std);
        let wpe = Embedding::new(g, "transformer.wpe", c.max_positions, d, std);
        let (tokens, positions) = (wte.of_tokens(g, s), wpe.of_positions(g, s));
        let mut x = add(g, tokens, positions);
        for layer in 0..c.layers {
            let at = format!("transformer.h.{layer}");
            let ln_1 = LayerNorm::new(g, &format!("{at}.ln_1"), d, eps);
            let attention = SelfAttention {
                q: Linear::biased(g, &format!("{at}.attn.q"), d, d, init),
                k: Linear::biased(g, &format!("{at}.attn.k"), d, d, init),
                v: Linear::biased(g, &format!("{at}.attn.v"), d, d, init),
                o: Linear::biased(g, &format!("{at}.attn.c_proj"), d, d, residual),
                head_dim: self.head_dim,
                norms: None,
                rope: None,
                scale: None,
                cap: None,
                window: None,
            };
            let ln_2 = LayerNorm::new(g, &format!("{at}.ln_2"), d, eps);
            let mlp = Mlp {
                up: Linear::biased(g, &format!("{at}.mlp.c_fc"), d, f, init),
                activation: gelu,
                down: Linear::biased(g, &format!("{at}.mlp.c_proj"), f, d, residual),
            };

            let h = ln_1.apply(g, x);
            let h = attention.apply(g, s, layer, h);
            x = add(g, x, h);
            let h = ln_2.apply(g, x);
            let h = mlp.apply(g, h);
            x = add(g, x, h);
        }
        let x = head_rows(g, x, rows);
        let ln_f = LayerNorm::new(g, "transformer.ln_f", d, eps);
        let weight = match self.tied {
            true => wte.weight,
            false => Embedding::new(g, "lm_head", c.vocab_size, d, std).weight,
        };
        Head { input: ln_f.apply(g, x), weight, cap: None }
    }

    fn place(&self, parameter: &str) -> Place {
        let d = self.outline.hidden_size;
        for (part, letter) in ["q", "k", "v"].into_iter().enumerate() {
            if let Some((at, kind)) = parameter.split_once(&format!(".attn.{letter}.")) {
                let place = Place::slice(format!("{at}.attn.c_attn.{kind}"), part * d, 3 * d);
                return if kind == "weight" { place.transposed() } else { place };
            }
        }
        let place = Place::whole(parameter);
        let matrix = ["c_proj.weight", "c_fc.weight"].iter().any(|end| parameter.ends_with(end));
        if matrix { place.transposed() } else { place }
    }

    fn name_of(&self, tensor: &str) -> Option<String> {
        // Causal masks of old files.
        if tensor.ends_with(".attn.bias") || tensor.ends_with(".attn.masked_bias") {
            return None;
        }
        let whole = tensor.starts_with("transformer.") || tensor.starts_with("lm_head.");
        Some(if whole { tensor.into() } else { format!("transformer.{tensor}") })
    }
}
