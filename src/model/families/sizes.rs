//! The sizes that the `config.json` of Llama and of most decoders since names alike, and the
//! blocks of these sizes.

use serde_json::{Value, json};

use super::Outline;
use crate::graph::{Graph, Init, Var};
use crate::model::blocks::{
    Embedding, GatedMlp, Head, Linear, RmsNorm, Rope, SelfAttention, head_rows,
};
use crate::model::keys::Keys;
use crate::model::rotary::{self, Asked, Rotary};
use crate::model::stream::{BatchInputs, HeadRows};
use crate::ops::add::add;
use crate::ops::silu_mul::silu_mul;

/// Sizes of a decoder with rotary positions, RMS norms and a gated feed-forward.
#[derive(Debug)]
pub(super) struct Sizes {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub max_positions: usize,
    pub eps: f64,
    pub rotary: Rotary,
    pub tied: bool,
    pub std: f64,
}

/// How a family reads the keys: what it takes for those that a file lacks, and what it has besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// Keys that may be missing: `num_key_value_heads` for as many as there are query heads,
    /// `head_dim` for hidden size / heads. Where a family has a default of its own, a missing key
    /// would silently be somebody else's model.
    pub optional: &'static [&'static str],
    /// Keys that other families must not have and that this one reads itself.
    pub own: &'static [&'static str],
    /// Scalings of rotary positions that it knows.
    pub rope_types: &'static [&'static str],
    /// `rope_theta`.
    pub theta: f64,
    /// Layers whose rotary parameters `rope_parameters` nests by this name; None: of all layers.
    pub nested_rope: Option<&'static str>,
    /// `partial_rotary_factor`; None: it turns whole heads.
    pub partial: Option<f64>,
    /// `rms_norm_eps`.
    pub eps: f64,
    /// `tie_word_embeddings`.
    pub tied: bool,
}

impl Reading {
    /// As Llama.
    pub const LLAMA: Self = Self {
        optional: &["num_key_value_heads", "head_dim"],
        own: &[],
        rope_types: rotary::ALL,
        theta: 10_000.0,
        nested_rope: None,
        partial: None,
        eps: 1e-6,
        tied: false,
    };
}

impl Sizes {
    /// Reads the sizes, and refuses what would change the output of such a decoder.
    pub fn read(keys: &mut Keys, reading: &Reading) -> Self {
        let Reading { optional, own, .. } = *reading;
        let hidden = keys.size("hidden_size");
        let intermediate = keys.size("intermediate_size");
        let heads = keys.size("num_attention_heads");
        let may_miss = |keys: &Keys, key| optional.contains(&key) && keys.get(key).is_none();
        let kv_heads = match may_miss(keys, "num_key_value_heads") {
            true => heads,
            false => keys.size("num_key_value_heads"),
        };
        let head_dim = match may_miss(keys, "head_dim") {
            true => keys.head_of("hidden_size", hidden, "num_attention_heads", heads),
            false => keys.size("head_dim"),
        };
        if kv_heads > 0 && !heads.is_multiple_of(kv_heads) {
            let what = format!("is {kv_heads}, which does not divide num_attention_heads {heads}");
            keys.problem("num_key_value_heads", what);
        }
        if !head_dim.is_multiple_of(2) {
            let from = match keys.get("head_dim") {
                None => "by hidden_size / num_attention_heads ",
                Some(_) => "",
            };
            let what = format!("is {from}{head_dim}; rotary positions need an even one");
            keys.problem("head_dim", what);
        }
        keys.check_width("hidden_size", hidden);
        keys.check_width("intermediate_size", intermediate);
        keys.check_heads("num_attention_heads", heads, head_dim);
        if !own.contains(&"hidden_act") {
            keys.activation("hidden_act", &["silu", "swish"]);
        }
        let harmless = [
            ("attention_bias", json!(false)),
            ("mlp_bias", json!(false)),
            ("attention_dropout", json!(0)),
            ("hidden_dropout", json!(0)),
            ("resid_pdrop", json!(0)),
            ("embd_pdrop", json!(0)),
            ("residual_multiplier", json!(1)),
            ("embedding_multiplier", json!(1)),
            ("logits_scaling", json!(1)),
            ("attn_logit_softcapping", Value::Null),
            ("final_logit_softcapping", Value::Null),
            ("no_rope_layers", Value::Null),
        ];
        let others = harmless.into_iter().filter(|(key, _)| !own.contains(key));
        keys.refuse_unless(&others.collect::<Vec<_>>());
        let Reading { theta, partial, rope_types: types, .. } = *reading;
        let asked = Asked { head_dim, theta, types, partial };
        let rotary = match reading.nested_rope {
            None => Rotary::read(keys, asked),
            Some(layer_type) => Rotary::read_of(keys, asked, layer_type, true, "rope_theta"),
        };
        Self {
            vocab: keys.size("vocab_size"),
            hidden,
            intermediate,
            layers: keys.layers("num_hidden_layers"),
            heads,
            kv_heads,
            head_dim,
            max_positions: keys.size("max_position_embeddings"),
            eps: keys.positive("rms_norm_eps", reading.eps),
            rotary,
            tied: keys.flag("tie_word_embeddings", reading.tied),
            std: keys.positive("initializer_range", 0.02),
        }
    }

    /// The sizes that any model has.
    pub fn outline(&self) -> Outline {
        Outline {
            vocab_size: self.vocab,
            hidden_size: self.hidden,
            kv_width: self.kv_heads * self.head_dim,
            layers: self.layers,
            max_positions: self.max_positions,
        }
    }

    /// Normal values of the configuration's width.
    pub fn init(&self) -> Init {
        Init::Normal(self.std)
    }

    /// As [`Sizes::init`], for a projection into the residual stream.
    pub fn residual(&self) -> Init {
        Init::residual(self.std, self.layers)
    }

    /// `model.embed_tokens.weight` `[V, D]`.
    pub fn embedding(&self, g: &mut Graph) -> Embedding {
        Embedding::new(g, "model.embed_tokens", self.vocab, self.hidden, self.std)
    }

    /// The head's weight `[V, D]`: the embedding's when tied.
    pub fn head(&self, g: &mut Graph) -> Var {
        match self.tied {
            true => self.embedding(g).weight,
            false => Embedding::new(g, "lm_head", self.vocab, self.hidden, self.std).weight,
        }
    }

    /// `{name}.weight` `[D]`.
    pub fn norm(&self, g: &mut Graph, name: &str) -> RmsNorm {
        RmsNorm::new(g, name, self.hidden, self.eps)
    }

    /// A window, unless it is so long that it never cuts anything off.
    pub fn cuts(&self, window: Option<usize>) -> Option<usize> {
        window.filter(|&w| w < self.max_positions)
    }

    /// The angles of all layers.
    pub fn rope(&self, g: &mut Graph, s: &BatchInputs) -> Rope {
        Rope::new(g, s, self.max_positions, &self.rotary)
    }

    /// Most families' decoder: per layer `x += attention(norm(x))` and `x += mlp(norm(x))`, a final
    /// norm and the head. `attention` makes that of a layer from its number, its parameters' name
    /// and the angles.
    pub fn pre_norm_decoder(
        &self,
        g: &mut Graph,
        s: &BatchInputs,
        rows: &HeadRows,
        attention: impl Fn(&mut Graph, usize, &str, Rope) -> SelfAttention,
    ) -> Head {
        let rope = self.rope(g, s);
        let mut x = self.embedding(g).of_tokens(g, s);
        for layer in 0..self.layers {
            let at = format!("model.layers.{layer}");
            let attention = attention(g, layer, &format!("{at}.self_attn"), rope);
            let mlp = self.mlp(g, &format!("{at}.mlp"));
            let norm_1 = self.norm(g, &format!("{at}.input_layernorm"));
            let norm_2 = self.norm(g, &format!("{at}.post_attention_layernorm"));

            let h = norm_1.apply(g, x);
            let h = attention.apply(g, s, layer, h);
            x = add(g, x, h);
            let h = norm_2.apply(g, x);
            let h = mlp.apply(g, h);
            x = add(g, x, h);
        }
        let x = head_rows(g, x, rows);
        let norm = self.norm(g, "model.norm");
        Head { input: norm.apply(g, x), weight: self.head(g), cap: None }
    }

    /// `{name}.{q,k,v,o}_proj`, of which `project` makes the first three.
    pub fn attention(
        &self,
        g: &mut Graph,
        name: &str,
        rope: Rope,
        project: fn(&mut Graph, &str, usize, usize, Init) -> Linear,
    ) -> SelfAttention {
        let (d, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        SelfAttention {
            q: project(g, &format!("{name}.q_proj"), d, q, self.init()),
            k: project(g, &format!("{name}.k_proj"), d, kv, self.init()),
            v: project(g, &format!("{name}.v_proj"), d, kv, self.init()),
            o: Linear::new(g, &format!("{name}.o_proj"), q, d, self.residual()),
            head_dim: self.head_dim,
            norms: None,
            rope: Some(rope),
            scale: None,
            cap: None,
            window: None,
        }
    }

    /// `{name}.{gate,up,down}_proj`.
    pub fn mlp(&self, g: &mut Graph, name: &str) -> GatedMlp {
        let (d, f) = (self.hidden, self.intermediate);
        GatedMlp {
            gate: Linear::new(g, &format!("{name}.gate_proj"), d, f, self.init()),
            up: Linear::new(g, &format!("{name}.up_proj"), d, f, self.init()),
            gated: silu_mul,
            down: Linear::new(g, &format!("{name}.down_proj"), f, d, self.residual()),
        }
    }
}

/// The sliding window of each layer, as Qwen2 and Qwen3 say it: none unless `use_sliding_window`;
/// then `layer_types` tells the layers that have one, or else `max_window_layers` how many at the
/// bottom have none.
pub(super) fn layer_windows(keys: &mut Keys, sizes: &Sizes) -> Vec<Option<usize>> {
    let window = match keys.flag("use_sliding_window", false) {
        true => Some(keys.size_or("sliding_window", 4096)),
        false => None,
    };
    let full = match keys.get("max_window_layers").map(Value::as_u64) {
        None => 28,
        Some(Some(n)) => n as usize,
        Some(None) => {
            keys.problem("max_window_layers", "must be a whole number");
            0
        }
    };
    let known = ["full_attention", "sliding_attention"];
    let known = &known[..if window.is_some() { 2 } else { 1 }];
    let types = keys.layer_types(sizes.layers, known);
    let slides = |layer: usize| match &types {
        Some(types) => types.get(layer) == Some(&"sliding_attention"),
        None => layer >= full,
    };
    let window = sizes.cuts(window);
    (0..sizes.layers).map(|layer| window.filter(|_| slides(layer))).collect()
}
