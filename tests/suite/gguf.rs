//! GGUF out and in again: the same weights to their type's error, the same tokens; and what a person
//! can get wrong with it.

use crate::golden;
use crate::place::{Place, copy_folder};
use oddgrad::data::tokenize::Tokenizer;
use oddgrad::dtype::DType;
use oddgrad::model::config::ModelConfig;
use oddgrad::model::folder::save_model_folder;
use oddgrad::model::gguf::blocks::BlockType;
use oddgrad::model::gguf::export::export;
use oddgrad::model::gguf::file::GgufFile;
use oddgrad::model::gguf::import::import;
use oddgrad::model::weights::{FolderWeights, Tensor, collect, init_weights};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every family that GGUF is written and read for.
const FAMILIES: [&str; 6] =
    ["llama_tied", "llama_untied", "mistral_window", "qwen2_window", "qwen3_tied", "gpt2"];

/// A golden model with the tokenizer of one.
fn model(name: &str, dir: &Path) -> PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    for (from, file) in [
        (name, "config.json"),
        (name, "model.safetensors"),
        ("llama_tied", "tokenizer.json"),
        ("llama_tied", "tokenizer_config.json"),
    ] {
        std::fs::write(folder.join(file), std::fs::read(golden(from).join(file)).unwrap()).unwrap();
    }
    folder
}

fn weights(folder: &Path) -> BTreeMap<String, Tensor> {
    let config = ModelConfig::load(folder).unwrap();
    collect(&FolderWeights::open(folder, &config).unwrap()).unwrap()
}

/// Exports and imports, and gives the new folder.
fn there_and_back(folder: &Path, kind: BlockType, dtype: Option<DType>) -> (PathBuf, Vec<String>) {
    let [file, back] = ["gguf", "back"].map(|end| folder.with_extension(format!("{kind:?}.{end}")));
    let notes = export(folder, &file, kind).unwrap();
    import(&file, &back, dtype).unwrap();
    (back, notes)
}

#[test]
fn every_family_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let folder = model(name, dir.path());
        let (back, notes) = there_and_back(&folder, BlockType::F32, None);
        assert_eq!(notes.is_empty(), !name.ends_with("_window"), "{name}: {notes:?}");
        assert_eq!(weights(&back), weights(&folder), "{name}");
        let [was, is] = [&folder, &back].map(|f| ModelConfig::load(f).unwrap().to_json());
        let mut keys = vec!["vocab_size", "tie_word_embeddings", "eos_token_id", "pad_token_id"];
        keys.extend(match name {
            "gpt2" => &["n_embd", "n_head", "n_layer", "n_positions", "layer_norm_epsilon"][..],
            _ => &["hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_parameters"],
        });
        for key in keys.iter().filter(|key| **key != "tie_word_embeddings" || !was[**key].is_null())
        {
            // The tokenizer is another model's.
            if was["eos_token_id"] != 0 || !key.ends_with("_id") {
                assert_eq!(was[*key], is[*key], "{name}: {key}");
            }
        }
        if name.ends_with("_window") {
            // llama.cpp would look further back.
            assert_eq!(is["max_position_embeddings"], 8, "{name}");
            assert!(notes[0].contains("sliding window, 8 tokens"), "{notes:?}");
        }
    }
}

/// A model of a golden folder's shape with this vocabulary's tokenizer, changed by `edit`; its weights
/// are drawn.
fn drawn(name: &str, dir: &Path, edit: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
    let text = std::fs::read_to_string(golden(name).join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    // What GGUF does not know.
    json["vocab_size"] = 512.into();
    json["initializer_range"] = 0.02.into();
    edit(&mut json);
    let config = ModelConfig::from_json(name, &json).unwrap();
    let weights = init_weights(&config, 7);
    let folder = dir.join(name);
    let tokenizer = golden("llama_tied");
    let read = |name: &str| Ok(weights[name].data.clone());
    save_model_folder(&folder, Some(&tokenizer), None, &config, &read).unwrap();
    folder
}

/// The families that came later, and scaled rotary positions: what is in the file is what the decoder
/// is made of.
#[test]
fn decoders_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "phi3",
        "olmo2",
        "smollm3",
        "granite",
        "stablelm",
        "gemma2",
        "gemma3_text",
        "llama_rope_linear",
        "llama_rope_dynamic",
        "llama_rope_llama3",
        "llama_rope_yarn",
    ] {
        let folder = drawn(name, dir.path(), |json| match name {
            "phi3" => json["sliding_window"] = serde_json::Value::Null,
            "gemma2" | "gemma3_text" => json["query_pre_attn_scalar"] = 16.into(),
            "smollm3" => {
                json["num_hidden_layers"] = 4.into();
                json["no_rope_layers"] = serde_json::json!([1, 1, 1, 0]);
                json["use_sliding_window"] = false.into();
                json["layer_types"] = serde_json::Value::Null;
            }
            "llama_rope_yarn" => {
                let rope = json["rope_parameters"].as_object_mut().unwrap();
                rope.retain(|key, _| !key.starts_with("beta_"));
                rope.insert("attention_factor".into(), 1.5.into());
            }
            _ => {}
        });
        let (back, notes) = there_and_back(&folder, BlockType::F32, None);
        assert_eq!(notes.len(), usize::from(name == "llama_rope_dynamic"), "{name}: {notes:?}");
        let [was, is] = [&folder, &back].map(|folder| ModelConfig::load(folder).unwrap());
        let shown = |config: &ModelConfig| format!("{:?}", config.decoder);
        if name == "llama_rope_yarn" {
            // Its amplitude went through f32.
            let cut = |text: String| text.split("attention_factor").next().unwrap().to_owned();
            assert_eq!(cut(shown(&was)), cut(shown(&is)));
        } else {
            assert_eq!(shown(&was), shown(&is), "{name}");
        }
        let (was, is) = (weights(&folder), weights(&back));
        assert_eq!(was.len(), is.len(), "{name}");
        for (name, tensor) in &was {
            // Norms of Gemma went through 1 + w.
            let most = if name.ends_with("norm.weight") { 1.2e-7 } else { 0.0 };
            let pairs = tensor.data.iter().zip(&is[name].data);
            assert!(pairs.clone().all(|(a, b)| (a - b).abs() <= most), "{name}");
        }
    }
}

#[test]
fn what_llama_cpp_computes_otherwise_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    type Edit = fn(&mut serde_json::Value);
    let cases: [(&str, Edit, &str); 9] = [
        ("gemma2", |_| (), "query_pre_attn_scalar: is 4; llama.cpp takes 16"),
        (
            "gemma2",
            |json| json["final_logit_softcapping"] = serde_json::Value::Null,
            "final_logit_softcapping: is null",
        ),
        ("gemma3_text", |_| (), "query_pre_attn_scalar: is 4"),
        ("smollm3", |_| (), "no_rope_layers: are others than every fourth"),
        ("olmo2", |json| json["tie_word_embeddings"] = true.into(), "tie_word_embeddings: is true"),
        ("olmo2", |json| json["head_dim"] = 8.into(), "head_dim: is 8; llama.cpp takes"),
        ("stablelm", |json| json["tie_word_embeddings"] = true.into(), "tie_word_embeddings"),
        ("llama_rope_yarn", |_| (), "rope_parameters.beta_fast: is 2; llama.cpp takes 32"),
        (
            "qwen3_tied",
            |json| {
                json["rope_parameters"] = serde_json::json!({
                    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                });
            },
            "has rope_type \"llama3\", which llama.cpp does not know of qwen3",
        ),
    ];
    for (number, (name, edit, phrase)) in cases.into_iter().enumerate() {
        let place = dir.path().join(number.to_string());
        let folder = drawn(name, &place, edit);
        let file = place.join("m.gguf");
        let error = export(&folder, &file, BlockType::F32).unwrap_err().to_string();
        assert!(error.contains(phrase), "{name}: {error}");
        assert!(!file.exists());
    }
    // Phi-3's window is no window in llama.cpp: then the context ends with it.
    let folder = drawn("phi3", dir.path(), |_| ());
    let (back, notes) = there_and_back(&folder, BlockType::F32, None);
    assert!(notes[0].contains("sliding window, 9 tokens"), "{notes:?}");
    assert_eq!(ModelConfig::load(&back).unwrap().max_positions, 9);
}

/// Rows of 172 fill no blocks: those matrices stay F16.
#[test]
fn narrow_types_come_back_to_their_error() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model("llama_tied", dir.path());
    let was = weights(&folder);
    // Half a step of the integers, and the rounding of their scale.
    for (kind, step) in [(BlockType::F16, 5e-4), (BlockType::Q8_0, 0.57 / 127.0)] {
        let (back, notes) = there_and_back(&folder, kind, None);
        let config = ModelConfig::load(&back).unwrap();
        let open = FolderWeights::open(&back, &config).unwrap();
        let is = collect(&open).unwrap();
        let mut moved = 0;
        for (name, tensor) in &was {
            let matrix = tensor.shape.len() > 1;
            let step = if matrix { step } else { 0.0 };
            for (a, b) in tensor.data.chunks(32).zip(is[name].data.chunks(32)) {
                let most = a.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                // f16's error is of each value, but one of the largest bounds it.
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= step * most), "{name}");
                moved += usize::from(a != b);
            }
        }
        assert!(moved > 100, "{kind:?} is not f32");
        match kind {
            BlockType::Q8_0 => assert!(notes[0].starts_with("2 matrices are F16"), "{notes:?}"),
            _ => assert!(notes.is_empty(), "{notes:?}"),
        }
        let text = std::fs::read_to_string(back.join("config.json")).unwrap();
        let dtype = if kind == BlockType::F16 { "float16" } else { "float32" };
        assert!(text.contains(&format!("\"dtype\": \"{dtype}\"")), "{text}");
    }
}

#[test]
fn an_import_writes_the_type_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model("llama_tied", dir.path());
    let (back, _) = there_and_back(&folder, BlockType::Q8_0, Some(DType::BF16));
    let bytes = std::fs::metadata(back.join("model.safetensors")).unwrap().len();
    let values = ModelConfig::load(&back).unwrap().parameter_count() as u64;
    assert!((2 * values..2 * values + 8192).contains(&bytes), "{bytes} bytes of {values} values");
    weights(&back);
}

#[test]
fn tokens_and_template_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano");
    for from in [golden("llama_tied"), nano] {
        let folder = dir.path().join(from.file_name().unwrap());
        copy_folder(&from, &folder);
        let (back, _) = there_and_back(&folder, BlockType::F16, None);
        let [was, is] = [&folder, &back].map(|f| Tokenizer::from_folder(f).unwrap());
        for text in [
            "He have a dog.",
            "  two\n\nlines\tand 12345 digits; don't",
            "\u{e9}\u{4f60}\u{597d} \u{1f999} <|im_start|>user\nHi<|im_end|></s><pad>",
        ] {
            let ids = was.encode(text).unwrap();
            assert_eq!(is.encode(text).unwrap(), ids);
            for skip in [true, false] {
                assert_eq!(is.decode(&ids, skip).unwrap(), was.decode(&ids, skip).unwrap());
            }
        }
        assert_eq!(is.template_source(), was.template_source());
        assert_eq!((is.bos(), is.eos(), is.pad()), (was.bos(), was.eos(), was.pad()));
        assert_eq!(is.ends(), was.ends());
        assert_eq!(is.vocab_size(), was.vocab_size());
    }
}

/// The numbers and names in a file are those of the format, whoever reads it.
#[test]
fn a_file_says_what_llama_cpp_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model("qwen3_tied", dir.path());
    let path = dir.path().join("m.gguf");
    export(&folder, &path, BlockType::F16).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let text = |key: &str| file.metadata.get(key).map(ToString::to_string).unwrap_or_default();
    for (key, want) in [
        ("general.architecture", "\"qwen3\""),
        ("general.file_type", "1"),
        ("qwen3.block_count", "2"),
        ("qwen3.embedding_length", "64"),
        ("qwen3.feed_forward_length", "172"),
        ("qwen3.attention.head_count", "4"),
        ("qwen3.attention.head_count_kv", "2"),
        ("qwen3.attention.key_length", "16"),
        ("qwen3.attention.layer_norm_rms_epsilon", "0.000001"),
        ("qwen3.rope.freq_base", "1000000"),
        ("qwen3.context_length", "256"),
        ("tokenizer.ggml.model", "\"gpt2\""),
        ("tokenizer.ggml.pre", "\"gpt-2\""),
        ("tokenizer.ggml.tokens", "an array of 512"),
        ("tokenizer.ggml.token_type", "an array of 512"),
        ("tokenizer.ggml.bos_token_id", "3"),
        ("tokenizer.ggml.eos_token_id", "4"),
        ("tokenizer.ggml.padding_token_id", "5"),
    ] {
        assert_eq!(text(key), want, "{key}");
    }
    assert!(text("tokenizer.chat_template").contains("im_start"));
    let kinds: Vec<(&str, BlockType)> =
        file.tensors().iter().map(|(name, t)| (name.as_str(), t.kind)).collect();
    assert!(kinds.contains(&("blk.1.attn_q_norm.weight", BlockType::F32)), "{kinds:?}");
    assert!(kinds.contains(&("blk.0.ffn_down.weight", BlockType::F16)), "{kinds:?}");
    assert!(kinds.contains(&("token_embd.weight", BlockType::F16)), "{kinds:?}");
    assert!(!kinds.iter().any(|(name, _)| *name == "output.weight"), "{kinds:?}");
}

#[test]
fn commands_make_files_and_folders_and_take_files_for_models() {
    let p = Place::new();
    let run = |args: &str| {
        let answer = p.run(args);
        assert_eq!(answer.code, Some(0), "oddgrad {args}: {}", answer.err);
        answer
    };
    run("export model --gguf f32 --out m.gguf");
    run("import m.gguf back");
    let prompt = "--prompt Say --form plain --max-tokens 8";
    let of_model = run(&format!("generate model {prompt}"));
    assert_eq!(run(&format!("generate back {prompt}")).out, of_model.out);

    let cached = |args: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_oddgrad"));
        let answer =
            p.command(command.args(args.split_whitespace()).env("ODDGRAD_CACHE", p.path("cache")));
        assert_eq!(answer.code, Some(0), "oddgrad {args}: {}", answer.err);
        answer
    };
    let first = cached(&format!("generate m.gguf {prompt}"));
    assert!(first.err.contains("m.gguf, imported to"), "{}", first.err);
    assert_eq!(first.out, of_model.out);
    let second = cached("train r.toml --set model=m.gguf --set train.max_steps=1");
    assert!(second.err.contains("m.gguf, imported before to"), "{}", second.err);
    assert!(p.path("run/model/tokenizer.json").is_file());
    assert!(cached("doctor m.gguf").out.contains("512 rows"));

    // Against the expected values beside it.
    run("export model --gguf f32 --out model/m.gguf");
    let verified = cached("verify model/m.gguf");
    assert!(verified.out.contains("everything within its bar"), "{}", verified.out);
    run("export model --gguf q8_0 --out model/q.gguf");
    let rounded = p.run("verify model/q.gguf");
    assert_eq!(rounded.code, Some(1), "{}", rounded.out);
    assert!(rounded.err.contains("comparisons failed"), "{}", rounded.err);
    p.refused("verify m.gguf", &["m.gguf: lies in a folder without golden.json"]);
}

#[test]
fn what_cannot_be_exported_or_imported_is_refused_and_leaves_nothing() {
    let p = Place::new();
    assert_eq!(p.run("export model --gguf q8_0 --out m.gguf").code, Some(0));
    let bytes = std::fs::read(p.path("m.gguf")).unwrap();
    p.write("cut.gguf", &bytes[..bytes.len() - 1000]);
    p.write("foreign.gguf", "GIF89a");
    p.write("headless.gguf", &bytes[..4]);
    let renamed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    p.write("family.gguf", renamed("llama", "bloom"));
    p.write("key.gguf", renamed("llama.rope.freq_base", "llama.rope.freq_bose"));
    p.write("pre.gguf", renamed("gpt-2", "gpt-9"));
    p.write("tensor.gguf", renamed("blk.1.attn_q.weight", "blk.1.attn_x.weight"));
    p.write("tokens.gguf", renamed("tokenizer.ggml.tokens", "tokenizer.ggml.takens"));
    copy_folder(&golden("lora_llama_untied"), &p.path("adapter"));
    p.edit("adapter/adapter_config.json", |c| c["base_model_name_or_path"] = "model".into());
    for name in ["opt", "shape", "split", "full"] {
        p.model(name);
    }
    let opt = std::fs::read(golden("opt/config.json")).unwrap();
    p.write("opt/config.json", opt);
    p.write("opt/model.safetensors", std::fs::read(golden("opt/model.safetensors")).unwrap());
    p.edit("split/tokenizer.json", |t| t["pre_tokenizer"]["add_prefix_space"] = true.into());
    let weights = std::fs::read(golden("llama_tied/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut large = weights;
    large[8 + header..12 + header].copy_from_slice(&1e6f32.to_le_bytes());
    p.write("full/model.safetensors", large);
    p.edit("shape/config.json", |c| c["intermediate_size"] = 100.into());
    for (args, phrases) in [
        ("import nowhere.gguf new", &["nowhere.gguf"][..]),
        ("import model new", &["model: is a folder"]),
        ("import m.gguf model", &["model: exists already"]),
        ("import cut.gguf new", &["cut.gguf", "cut short", "download it again"]),
        ("import foreign.gguf new", &["foreign.gguf: is not a GGUF file"]),
        ("import family.gguf new", &["general.architecture: is \"bloom\"; llama, qwen2"]),
        ("import key.gguf new", &["llama.rope.freq_bose: is 10000, which is not supported"]),
        ("import pre.gguf new", &["pre-tokenizer is \"gpt-9\"; gpt-2"]),
        (
            "import tensor.gguf new",
            &[
                "tensor.gguf: blk.1.attn_x.weight: with shape [64, 64] has no place",
                "self_attn.q_proj.weight: is missing",
            ],
        ),
        ("import tokens.gguf new", &["tokenizer.ggml.tokens: is missing"]),
        ("generate headless.gguf --prompt x", &["headless.gguf", "cut short"]),
        ("train r.toml --set model=cut.gguf", &["cut.gguf", "cut short"]),
        ("export nowhere --gguf f16 --out new.gguf", &["nowhere: is not a model folder"]),
        ("export model --gguf f16 --out m.gguf", &["m.gguf: exists already"]),
        ("export model --gguf f16 --out nowhere/m.gguf", &["nowhere"]),
        (
            "export adapter --gguf f16 --out new.gguf",
            &["adapter: is a LoRA adapter", "oddgrad merge"],
        ),
        ("export opt --gguf f16 --out new.gguf", &["model_type: is `opt`; llama, mistral"]),
        ("export shape --gguf f16 --out new.gguf", &["has shape [172, 64]"]),
        (
            "export split --gguf f16 --out new.gguf",
            &["split/tokenizer.json: it splits texts as none"],
        ),
        (
            "export full --gguf f16 --out new.gguf",
            &["has 1 values beyond 65504, the largest that F16 holds; write f32"],
        ),
    ] {
        p.refused(args, phrases);
    }
    assert_eq!(p.run("export full --gguf q8_0 --out new.gguf").code, Some(0));
    let phrase = "has 1 values beyond 65504, the largest that f16 holds";
    assert_eq!(p.run("export full --gguf f32 --out full.gguf").code, Some(0));
    p.refused("import full.gguf new --dtype f16", &[phrase]);
    assert_eq!(p.run("export model --gguf q4_0 --out x.gguf").code, Some(2));
}
