//! The families as GGUF has them: names of architectures and tensors, and the order of the rows of
//! queries and keys.

/// A `general.architecture`.
#[derive(Debug)]
pub(super) struct Architecture {
    /// Its name, which its keys begin with.
    pub name: &'static str,
    /// The `model_type`s that are written as it; the first is what it is read as.
    pub model_types: &'static [&'static str],
    /// transformers' class, for `architectures` of `config.json`.
    pub class: &'static str,
    /// In Hugging Face's files the layers' modules begin with this and the layer's number.
    layers: &'static str,
    /// Modules of Hugging Face's files and of GGUF's; those of layers without their beginning.
    modules: &'static [(&'static str, &'static str)],
    /// GGUF has the two numbers of each rotary pair beside each other, Hugging Face in the two halves
    /// of a head.
    pub paired: bool,
    /// GGUF's norms multiply by their weights, Hugging Face's by 1 + theirs.
    pub plus_one: bool,
    /// Scalings of rotary positions that llama.cpp knows of it, by Hugging Face's names.
    pub rope_types: &'static [&'static str],
}

/// The divisors of rotary frequencies that Llama 3's scaling is in a file.
pub(super) const DIVISORS: &str = "rope_freqs.weight";
const SCALED: &[&str] = &["default", "dynamic", "linear", "yarn"];
const WITH_DIVISORS: &[&str] = &["default", "dynamic", "linear", "yarn", "llama3"];

/// Llama's modules, which those after it kept.
const LLAMA: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

const PHI3: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Norms before and behind attention and feed-forward, as far as a family has them.
const SANDWICHED: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

const GPT2: &[(&str, &str)] = &[
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", POSITIONS),
    ("transformer.ln_f", "output_norm"),
    ("lm_head", "output"),
    ("ln_1", "attn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_2", "ffn_norm"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];

/// Learned positions.
pub(super) const POSITIONS: &str = "position_embd";

/// Of OPT llama.cpp knows nothing.
static ARCHITECTURES: [Architecture; 11] = [
    Architecture {
        name: "llama",
        model_types: &["llama", "mistral"],
        class: "LlamaForCausalLM",
        layers: "model.layers.",
        modules: LLAMA,
        paired: true,
        plus_one: false,
        rope_types: WITH_DIVISORS,
    },
    Architecture {
        name: "qwen2",
        model_types: &["qwen2"],
        class: "Qwen2ForCausalLM",
        layers: "model.layers.",
        modules: LLAMA,
        paired: false,
        plus_one: false,
        rope_types: SCALED,
    },
    Architecture {
        name: "qwen3",
        model_types: &["qwen3"],
        class: "Qwen3ForCausalLM",
        layers: "model.layers.",
        modules: LLAMA,
        paired: false,
        plus_one: false,
        rope_types: SCALED,
    },
    Architecture {
        name: "phi3",
        model_types: &["phi3"],
        class: "Phi3ForCausalLM",
        layers: "model.layers.",
        modules: PHI3,
        paired: false,
        plus_one: false,
        rope_types: &["default"],
    },
    Architecture {
        name: "gemma2",
        model_types: &["gemma2"],
        class: "Gemma2ForCausalLM",
        layers: "model.layers.",
        modules: SANDWICHED,
        paired: false,
        plus_one: true,
        rope_types: SCALED,
    },
    Architecture {
        name: "gemma3",
        model_types: &["gemma3_text"],
        class: "Gemma3ForCausalLM",
        layers: "model.layers.",
        modules: SANDWICHED,
        paired: false,
        plus_one: true,
        rope_types: &["default", "dynamic", "linear"],
    },
    Architecture {
        name: "olmo2",
        model_types: &["olmo2"],
        class: "Olmo2ForCausalLM",
        layers: "model.layers.",
        modules: SANDWICHED,
        paired: false,
        plus_one: false,
        rope_types: SCALED,
    },
    Architecture {
        name: "granite",
        model_types: &["granite"],
        class: "GraniteForCausalLM",
        layers: "model.layers.",
        modules: LLAMA,
        paired: true,
        plus_one: false,
        rope_types: WITH_DIVISORS,
    },
    Architecture {
        name: "smollm3",
        model_types: &["smollm3"],
        class: "SmolLM3ForCausalLM",
        layers: "model.layers.",
        modules: LLAMA,
        paired: true,
        plus_one: false,
        rope_types: SCALED,
    },
    Architecture {
        name: "stablelm",
        model_types: &["stablelm"],
        class: "StableLmForCausalLM",
        layers: "model.layers.",
        modules: LLAMA,
        paired: false,
        plus_one: false,
        rope_types: SCALED,
    },
    Architecture {
        name: "gpt2",
        model_types: &["gpt2"],
        class: "GPT2LMHeadModel",
        layers: "transformer.h.",
        modules: GPT2,
        paired: false,
        plus_one: false,
        rope_types: &[],
    },
];

/// How the layers of a GGUF file begin.
const BLOCKS: &str = "blk.";

impl Architecture {
    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|a| a.name == name)
    }

    /// The one that models of this `model_type` are written as.
    pub fn of_model(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|a| a.model_types.contains(&model_type))
    }

    /// The names that [`Architecture::named`] knows, in words.
    pub fn names() -> String {
        ARCHITECTURES.each_ref().map(|a| a.name).join(", ")
    }

    /// The types that [`Architecture::of_model`] knows, in words.
    pub fn model_types() -> String {
        ARCHITECTURES.each_ref().map(|a| a.model_types.join(", ")).join(", ")
    }

    /// GGUF's name of a tensor that Hugging Face's file calls `name`.
    pub fn gguf_name(&self, name: &str) -> Option<String> {
        self.renamed(name, (self.layers, BLOCKS), |(hugging_face, gguf)| (hugging_face, gguf))
    }

    /// Hugging Face's name of a tensor that a GGUF file calls `name`.
    pub fn folder_name(&self, name: &str) -> Option<String> {
        self.renamed(name, (BLOCKS, self.layers), |(hugging_face, gguf)| (gguf, hugging_face))
    }

    fn renamed(
        &self,
        name: &str,
        (from_layers, to_layers): (&str, &str),
        direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
    ) -> Option<String> {
        let (path, kind) = name.rsplit_once('.')?;
        let of = |module: &str| {
            let pairs = self.modules.iter().map(|pair| direction(*pair));
            pairs.into_iter().find(|(from, _)| *from == module).map(|(_, to)| to)
        };
        let Some(layer) = path.strip_prefix(from_layers) else {
            return Some(format!("{}.{kind}", of(path)?));
        };
        let (number, module) = layer.split_once('.')?;
        number.parse::<u32>().ok()?;
        Some(format!("{to_layers}{number}.{}.{kind}", of(module)?))
    }

    /// True for the rows of queries and keys, where they are in another order than Hugging Face's.
    pub fn reorders(&self, gguf_name: &str) -> bool {
        let rows = [".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias"];
        self.paired && rows.iter().any(|end| gguf_name.ends_with(end))
    }

    /// What is added to a tensor's values of Hugging Face's in GGUF.
    pub fn added(&self, gguf_name: &str) -> f32 {
        if self.plus_one && gguf_name.ends_with("norm.weight") { 1.0 } else { 0.0 }
    }
}

/// Rows `[heads * head_dim, columns]` in Hugging Face's order, of those in GGUF's.
pub(super) fn halves(values: &[f32], rows: usize, head_dim: usize) -> Vec<f32> {
    // Row i of half s of a head is number s of pair i.
    reordered(values, rows, head_dim, |row| row % (head_dim / 2) * 2 + row / (head_dim / 2))
}

/// Rows in GGUF's order, of those in Hugging Face's.
pub(super) fn pairs(values: &[f32], rows: usize, head_dim: usize) -> Vec<f32> {
    reordered(values, rows, head_dim, |row| row % 2 * (head_dim / 2) + row / 2)
}

/// Rows of which each head's are taken from where `from` says.
fn reordered(
    values: &[f32],
    rows: usize,
    head_dim: usize,
    from: impl Fn(usize) -> usize,
) -> Vec<f32> {
    let columns = values.len() / rows;
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let source = row / head_dim * head_dim + from(row % head_dim);
        out.extend_from_slice(&values[source * columns..][..columns]);
    }
    out
}

/// A matrix `[rows, columns]` as `[columns, rows]`.
pub(super) fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |c: usize| values.iter().skip(c).step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_two_names() {
        let llama = Architecture::of_model("mistral").unwrap();
        for (hugging_face, gguf) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.11.self_attn.k_proj.weight", "blk.11.attn_k.weight"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ] {
            assert_eq!(llama.gguf_name(hugging_face).as_deref(), Some(gguf));
            assert_eq!(llama.folder_name(gguf).as_deref(), Some(hugging_face));
        }
        for none in ["rope_freqs.weight", "blk.x.attn_k.weight", "blk.0.attn_k", "blk.0.x.weight"] {
            assert_eq!(llama.folder_name(none), None, "{none}");
        }
        let gpt2 = Architecture::named("gpt2").unwrap();
        assert_eq!(
            gpt2.gguf_name("transformer.h.3.attn.c_attn.bias").as_deref(),
            Some("blk.3.attn_qkv.bias")
        );
        assert!(llama.reorders("blk.0.attn_q.weight") && !llama.reorders("blk.0.attn_v.weight"));
        assert!(!gpt2.reorders("blk.0.attn_q.weight"));
        let gemma = Architecture::of_model("gemma3_text").unwrap();
        for (hugging_face, gguf) in [
            ("model.layers.1.post_attention_layernorm.weight", "blk.1.post_attention_norm.weight"),
            ("model.layers.1.pre_feedforward_layernorm.weight", "blk.1.ffn_norm.weight"),
            ("model.layers.1.self_attn.k_norm.weight", "blk.1.attn_k_norm.weight"),
        ] {
            assert_eq!(gemma.gguf_name(hugging_face).as_deref(), Some(gguf));
            assert_eq!(gemma.folder_name(gguf).as_deref(), Some(hugging_face));
            assert_eq!(gemma.added(gguf), 1.0);
        }
        assert_eq!(gemma.added("blk.0.ffn_up.weight"), 0.0);
        assert_eq!(gemma.added("output_norm.weight"), 1.0);
        assert_eq!(llama.added("output_norm.weight"), 0.0);
    }

    #[test]
    fn halves_and_pairs_undo_each_other() {
        // Two heads of four rows of two columns; a row's values tell where it was.
        let values: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let rows = |values: &[f32]| -> Vec<usize> {
            values.chunks(2).map(|row| row[0] as usize / 2).collect()
        };
        assert_eq!(rows(&pairs(&values, 8, 4)), [0, 2, 1, 3, 4, 6, 5, 7]);
        let wide: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let there = pairs(&wide, 6, 6);
        assert_eq!(rows(&there), [0, 3, 1, 4, 2, 5]);
        assert_eq!(rows(&halves(&there, 6, 6)), [0, 1, 2, 3, 4, 5]);
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
