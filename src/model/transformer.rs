//! The decoder: one readable file for every family.
//!
//! Llama shape: token embedding, then per layer
//! `x += o_proj(attention(rope(q), rope(k), v))` and `x += down(silu(gate) * up)`, each behind an
//! RMS norm; a final norm and a linear head (its own weight, or the embedding's when tied).
//! Qwen2 differs by a bias on q, k and v. Parameter names are Hugging Face's.
//!
//! T tokens of the stream, D hidden size, H heads, K key/value heads, d head size, F feed-forward
//! size, V vocabulary, N rows that the head looks at.

use crate::graph::{Graph, Var};
use crate::model::config::ModelConfig;
use crate::model::stream::{HeadRows, StreamInputs};
use crate::ops::add::add;
use crate::ops::attention::Attention;
use crate::ops::embedding::embedding;
use crate::ops::gather_rows::gather_rows;
use crate::ops::matmul::linear;
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::{rope, rope_table};
use crate::ops::silu_mul::silu_mul;

fn weight(g: &mut Graph, name: &str, shape: &[usize]) -> Var {
    g.param(name, shape)
}

fn norm(g: &mut Graph, c: &ModelConfig, name: &str, x: Var) -> Var {
    let w = weight(g, &format!("{name}.weight"), &[c.hidden_size]);
    rms_norm(g, x, w, c.rms_norm_eps as f32)
}

/// The embedding matrix `[V, D]`.
fn embedding_weight(g: &mut Graph, c: &ModelConfig) -> Var {
    weight(g, "model.embed_tokens.weight", &[c.vocab_size, c.hidden_size])
}

/// The head's weight [V, D]: the embedding's when tied.
pub fn head_weight(g: &mut Graph, c: &ModelConfig) -> Var {
    if c.tied {
        return embedding_weight(g, c);
    }
    weight(g, "lm_head.weight", &[c.vocab_size, c.hidden_size])
}

/// Hidden states `[T, D]` after the last layer, before the final norm.
pub fn decoder(g: &mut Graph, c: &ModelConfig, s: &StreamInputs) -> Var {
    let t = g.shape(s.tokens)[0];
    // No position in a stream of T tokens reaches T.
    let positions = c.max_positions.min(t);
    let table = rope_table(positions, c.head_dim, c.rope_theta);
    let table = g.constant("rope table", &[positions, c.head_dim / 2, 2], &table);
    let embeddings = embedding_weight(g, c);
    let mut x = embedding(g, embeddings, s.tokens, s.index);
    for layer in 0..c.layers {
        x = self_attention(g, c, s, table, layer, x);
        x = feed_forward(g, c, layer, x);
    }
    x
}

fn self_attention(
    g: &mut Graph,
    c: &ModelConfig,
    s: &StreamInputs,
    table: Var,
    layer: usize,
    x: Var,
) -> Var {
    let at = format!("model.layers.{layer}");
    let h = norm(g, c, &format!("{at}.input_layernorm"), x);
    let project = |g: &mut Graph, which: &str, heads: usize| {
        let name = format!("{at}.self_attn.{which}_proj");
        let rows = heads * c.head_dim;
        let w = weight(g, &format!("{name}.weight"), &[rows, c.hidden_size]);
        let b = c.qkv_bias.then(|| weight(g, &format!("{name}.bias"), &[rows]));
        linear(g, h, w, b)
    };
    let q = project(g, "q", c.heads);
    let k = project(g, "k", c.kv_heads);
    let v = project(g, "v", c.kv_heads);
    let q = rope(g, q, s.position, table, c.head_dim);
    let k = rope(g, k, s.position, table, c.head_dim);
    let options = Attention { head_dim: c.head_dim, window: None };
    let o = s.attend(g, layer, q, k, v, options);
    let w =
        weight(g, &format!("{at}.self_attn.o_proj.weight"), &[c.hidden_size, c.heads * c.head_dim]);
    let o = linear(g, o, w, None);
    add(g, x, o)
}

fn feed_forward(g: &mut Graph, c: &ModelConfig, layer: usize, x: Var) -> Var {
    let at = format!("model.layers.{layer}");
    let h = norm(g, c, &format!("{at}.post_attention_layernorm"), x);
    let (d, f) = (c.hidden_size, c.intermediate_size);
    let gate = weight(g, &format!("{at}.mlp.gate_proj.weight"), &[f, d]);
    let up = weight(g, &format!("{at}.mlp.up_proj.weight"), &[f, d]);
    let down = weight(g, &format!("{at}.mlp.down_proj.weight"), &[d, f]);
    let gate = linear(g, h, gate, None);
    let up = linear(g, h, up, None);
    let h = silu_mul(g, gate, up);
    let h = linear(g, h, down, None);
    add(g, x, h)
}

/// The rows the head looks at, after the final norm `[N, D]`. Rows that no loss term uses never
/// get here.
pub fn head_input(g: &mut Graph, c: &ModelConfig, hidden: Var, rows: &HeadRows) -> Var {
    let h = gather_rows(g, hidden, rows.rows, rows.index);
    norm(g, c, "model.norm", h)
}

/// Logits `[N, V]` of the head's rows: for generation and `verify`. Training never makes them.
pub fn logits(g: &mut Graph, c: &ModelConfig, hidden: Var, rows: &HeadRows) -> Var {
    let h = head_input(g, c, hidden, rows);
    let w = head_weight(g, c);
    linear(g, h, w, None)
}
