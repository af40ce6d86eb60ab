//! GGUF out and in again: the same weights to their type's error, the same tokens; and what a person
//! can get wrong with it.

use crate::golden;
use crate::place::{Place, copy_folder};
use oddgrad::data::tokenize::Tokenizer;
use oddgrad::dtype::DType;
use oddgrad::model::config::ModelConfig;
use oddgrad::model::gguf::blocks::BlockType;
use oddgrad::model::gguf::export::export;
use oddgrad::model::gguf::file::GgufFile;
use oddgrad::model::gguf::import::import;
use oddgrad::model::weights::{FolderWeights, Tensor, collect};
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
