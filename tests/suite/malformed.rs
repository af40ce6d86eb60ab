//! Property tests of everything that is read from a file: whatever the bytes, a reader answers or
//! refuses. It does not panic, hang or ask for memory without end.
//!
//! Each test takes files that are right and damages them at random, a few hundred times;
//! `ODDGRAD_FUZZ_SECONDS=600 cargo nextest run --no-capture malformed` goes on for so long, or to ten
//! million, and tells how many it tried. The input of a case that takes the process down is in the folder that the test
//! names, `target/tmp/malformed`. With `ODDGRAD_FUZZ_CORPUS` each test writes into that folder what a
//! fuzzer starts from (`scripts/fuzz.sh`).

use crate::formats::{FORMATS, WHOLE_STATE};
use crate::golden;
use fastrand::Rng;
use oddgrad::model::config::ModelConfig;
use oddgrad::model::folder::save_model_folder;
use oddgrad::model::gguf::blocks::BlockType;
use oddgrad::model::gguf::export::export;
use oddgrad::model::weights::init_weights;
use oddgrad::ops;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// With `ODDGRAD_FUZZ_SECONDS` no test tries more.
const MANY: u64 = 10_000_000;
/// A case may take no longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that all cases together may make the process grow by.
#[cfg(target_os = "linux")]
const MEMORY: u64 = 1 << 30;

/// Numbers and marks that readers trip over.
const PIECES: [&str; 30] = [
    "0",
    "-1",
    "1e400",
    "18446744073709551615",
    "9223372036854775808",
    "4294967296",
    "null",
    "NaN",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[",
    "{{",
    "{%",
    "%}",
    "}}",
    "\0",
    "\u{fffd}",
    "\r\n",
    "\\u0000",
    "\\ud800",
    "\u{202e}",
    "99999999999999999999999999",
    "\"a\":",
    ",",
    ":",
    "<|im_start|>",
    "é",
    "- 1",
];

fn damaged(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.usize(1..=4) {
        if bytes.is_empty() {
            return bytes;
        }
        // Headers are where lengths and offsets are.
        let end = if rng.bool() { bytes.len() } else { bytes.len().min(600) };
        let at = rng.usize(0..end);
        let to = (at + rng.usize(1..=32)).min(bytes.len());
        match rng.u8(0..8) {
            0 => bytes[at] ^= 1 << rng.u8(0..8),
            1 => bytes[at] = rng.u8(..),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..to)),
            4 => {
                let copy = bytes[at..to].repeat(rng.usize(1..4));
                bytes.splice(at..at, copy);
            }
            5 => drop(bytes.splice(at..at, PIECES[rng.usize(0..PIECES.len())].bytes())),
            6 => drop(bytes.splice(at..to, PIECES[rng.usize(0..PIECES.len())].bytes())),
            _ => {
                // A number becomes another.
                let digit = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()).unwrap_or(at);
                let last = (digit..bytes.len()).find(|&i| !bytes[i].is_ascii_digit());
                let piece = PIECES[rng.usize(0..6)].bytes();
                bytes.splice(digit..last.unwrap_or(bytes.len()), piece);
            }
        }
    }
    bytes
}

/// Kibibytes that this process had in memory at its peak.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
}

/// Damages `seeds` and hands each result, written to the format's file in a folder that `prepare`
/// fills, to the format's reader.
fn hammer(name: &str, seeds: Vec<Vec<u8>>, prepare: impl Fn(&Path)) {
    let format = FORMATS.iter().find(|format| format.name == name).unwrap();
    if let Some(corpus) = std::env::var_os("ODDGRAD_FUZZ_CORPUS") {
        return write_corpus(&Path::new(&corpus).join(name), &seeds, prepare);
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("malformed").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    prepare(&folder);
    let seconds = std::env::var("ODDGRAD_FUZZ_SECONDS").ok();
    let seconds = seconds.map(|s| s.parse::<f64>().expect("ODDGRAD_FUZZ_SECONDS is a number"));
    #[cfg(target_os = "linux")]
    let before = peak();
    let start = Instant::now();
    let enough = move |count: u64, seeds: usize| match seconds {
        None => count >= 200 + seeds as u64,
        Some(seconds) => {
            count >= MANY || (count.is_multiple_of(64) && start.elapsed().as_secs_f64() > seconds)
        }
    };
    let path = folder.join(format.file);
    let (to, at) = (path.clone(), folder.clone());
    let done = Arc::new(AtomicU64::new(0));
    let counter = done.clone();
    let worker = std::thread::spawn(move || {
        let mut rng = Rng::with_seed(7);
        let mut count = 0;
        while !enough(count, seeds.len()) {
            let seed = &seeds[count as usize % seeds.len()];
            // As is, nothing is wrong with them.
            let whole = count < seeds.len() as u64;
            let bytes = if whole { seed.clone() } else { damaged(seed, &mut rng) };
            std::fs::write(&to, &bytes).unwrap();
            (format.read)(&at, &bytes);
            count += 1;
            counter.store(count, Ordering::Release);
        }
    });
    // No count may stand for longer than a case may take.
    let (mut count, mut since) = (0, Instant::now());
    while !worker.is_finished() {
        std::thread::sleep(Duration::from_millis(10));
        let now = done.load(Ordering::Acquire);
        if now != count {
            (count, since) = (now, Instant::now());
        }
        let hangs = since.elapsed() > PATIENCE;
        assert!(!hangs, "{name}: case {count} hangs; its bytes are {}", path.display());
    }
    let panics = worker.join().is_err();
    count = done.load(Ordering::Acquire);
    assert!(!panics, "{name}: case {count} panics; its bytes are {}", path.display());
    #[cfg(target_os = "linux")]
    {
        let grown = (peak() - before) << 10;
        assert!(grown < MEMORY, "{name}: {grown} bytes more in memory");
    }
    println!("{name}: {count} inputs in {:.0} s", start.elapsed().as_secs_f64());
    let _ = std::fs::remove_dir_all(&folder);
}

/// The seeds, and beside them the other files of their folder.
fn write_corpus(corpus: &Path, seeds: &[Vec<u8>], prepare: impl Fn(&Path)) {
    let [files, inputs] = ["files", "inputs"].map(|name| corpus.join(name));
    for folder in [&files, &inputs] {
        std::fs::create_dir_all(folder).unwrap();
    }
    prepare(&files);
    for (i, seed) in seeds.iter().enumerate() {
        std::fs::write(inputs.join(format!("seed-{i}")), seed).unwrap();
    }
}

fn nothing(_: &Path) {}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap()
}

/// Copies files of a golden folder.
fn copied(from: &'static str, files: &'static [&'static str]) -> impl Fn(&Path) {
    move |folder| {
        for file in files {
            std::fs::write(folder.join(file), bytes(&format!("{from}/{file}"))).unwrap();
        }
    }
}

#[test]
fn malformed_safetensors() {
    let seeds = vec![bytes("lora_llama_untied/adapter_model.safetensors")];
    hammer("safetensors", seeds, nothing);
}

/// A tokenizer of 34 tokens: damage to a large one is mostly damage to its list of words.
fn small_tokenizer() -> Vec<u8> {
    let mut json: Value = serde_json::from_slice(&bytes("llama_tied/tokenizer.json")).unwrap();
    let special = json["added_tokens"].as_array().unwrap().iter().map(|token| &token["content"]);
    let special: Vec<String> = special.map(|text| text.as_str().unwrap().to_owned()).collect();
    let letters = ('a'..='z').map(String::from).chain(["\u{120}".to_owned(), "ab".to_owned()]);
    let vocab: Map<String, Value> =
        special.into_iter().chain(letters).zip((0..).map(Value::from)).collect();
    json["model"]["vocab"] = vocab.into();
    json["model"]["merges"] = json!([["a", "b"]]);
    serde_json::to_vec(&json).unwrap()
}

/// A model of one layer with that tokenizer in a folder below `dir`: some kilobytes.
fn small_model(dir: &Path, width: usize) -> PathBuf {
    let tokenizer = dir.join("tokenizer");
    std::fs::create_dir_all(&tokenizer).unwrap();
    copied("llama_tied", &["tokenizer_config.json"])(&tokenizer);
    std::fs::write(tokenizer.join("tokenizer.json"), small_tokenizer()).unwrap();
    let mut json: Value = serde_json::from_slice(&bytes("llama_tied/config.json")).unwrap();
    json["vocab_size"] = 34.into();
    for (key, value) in [
        ("hidden_size", width),
        ("intermediate_size", width),
        ("head_dim", width / 2),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("num_hidden_layers", 1),
    ] {
        json[key] = value.into();
    }
    let config = ModelConfig::from_json("config.json", &json).unwrap();
    let weights = init_weights(&config, 7);
    let folder = dir.join("model");
    let read = |name: &str| Ok(weights[name].data.clone());
    save_model_folder(&folder, Some(&tokenizer), None, &config, &read).unwrap();
    folder
}

#[test]
fn malformed_weights_of_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_model(dir.path(), 8);
    let seeds = vec![std::fs::read(model.join("model.safetensors")).unwrap()];
    hammer("weights", seeds, |folder| {
        std::fs::copy(model.join("config.json"), folder.join("config.json")).unwrap();
    });
}

#[test]
fn malformed_gguf() {
    let dir = tempfile::tempdir().unwrap();
    // Rows of as many elements as a block has.
    let model = small_model(dir.path(), 32);
    let seeds = [BlockType::F16, BlockType::Q8_0].map(|kind| {
        let path = dir.path().join("m.gguf");
        export(&model, &path, kind).unwrap();
        std::fs::read(&path).unwrap()
    });
    hammer("gguf", seeds.to_vec(), nothing);
}

#[test]
fn malformed_configurations() {
    let folders = ["llama_tied", "qwen3_tied", "gpt2", "mistral_window", "opt", "qwen2_window"];
    let seeds = folders.map(|f| bytes(&format!("{f}/config.json"))).to_vec();
    hammer("config", seeds, nothing);
}

#[test]
fn malformed_adapters() {
    let seeds = vec![bytes("lora_llama_untied/adapter_config.json")];
    let with = copied("lora_llama_untied", &["adapter_model.safetensors"]);
    hammer("adapter", seeds, with);
}

#[test]
fn malformed_tokenizers() {
    let seeds = vec![bytes("llama_tied/tokenizer.json"), small_tokenizer()];
    let with = copied("llama_tied", &["tokenizer_config.json"]);
    hammer("tokenizer", seeds, with);
}

#[test]
fn malformed_templates() {
    let seeds = vec![b"{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}".to_vec(), b"{% for m in messages %}{% if m['role'] == 'user' %}{{ '<u>' + m['content'] | trim }}{% elif loop.last %}{{ raise_exception('no') }}{% endif %}{{ strftime_now('%Y-%d') }}{% endfor %}{{ '%s' % 4 }}{% set ns = namespace(x=1) %}{{ range(3) | list }}".to_vec()];
    hammer("template", seeds, |folder| {
        copied("llama_tied", &["tokenizer_config.json"])(folder);
        std::fs::write(folder.join("tokenizer.json"), small_tokenizer()).unwrap();
    });
}

#[test]
fn malformed_recipes() {
    let seeds = vec![
        b"objective = \"orpo\"\nmodel = \"m\"\noutput = \"o\"\nseed = 3\n[data]\ntrain = [\"a.jsonl\"]\nmap = { chosen = \"good\" }\n[loss]\nlambda = 0.1\n[lora]\nrank = 8\ntargets = [\"q_proj\"]\n[optim]\nlearning_rate = 1e-3\nwarmup_ratio = 0.1\n[batch]\nsize = 2\n[train]\nepochs = 1.5\nsave_minutes = 2\n".to_vec(),
        b"objective = \"dpo\"\nmodel = \"m\"\noutput = \"o\"\ndata.train = \"x\"\noptim.learning_rate = 1e-3\nloss.type = \"ipo\"\nloss.beta = 0.5\nsample.every = 5\nsample.prompts = [\"a\"]\n".to_vec(),
    ];
    hammer("recipe", seeds, nothing);
}

#[test]
fn malformed_rows() {
    let seeds = ["prefs_plain", "prefs_chat", "prefs_chat_implicit"];
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|s| bytes(&format!("data/{s}.jsonl"))).collect();
    let lines =
        |seed: &Vec<u8>| seed.split_inclusive(|&b| b == b'\n').take(3).collect::<Vec<_>>().concat();
    let seeds: Vec<Vec<u8>> = seeds.iter().map(lines).collect();
    hammer("jsonl", seeds.clone(), nothing);
    let array = seeds.iter().map(|s| {
        let rows: Vec<serde_json::Value> = s
            .split(|&b| b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        serde_json::to_vec_pretty(&rows).unwrap()
    });
    hammer("json", array.collect(), nothing);
    let zipped = seeds.iter().map(|s| {
        let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zip.write_all(s).unwrap();
        zip.finish().unwrap()
    });
    hammer("gz", zipped.collect(), nothing);
}

/// Two rows of three columns of text.
fn parquet(compression: parquet::basic::Compression) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    let schema = "message schema { required binary prompt (UTF8); required binary chosen (UTF8); required binary rejected (UTF8); }";
    let schema = parquet::schema::parser::parse_message_type(schema).unwrap();
    let properties =
        parquet::file::properties::WriterProperties::builder().set_compression(compression).build();
    let mut bytes = Vec::new();
    let mut writer = parquet::file::writer::SerializedFileWriter::new(
        &mut bytes,
        schema.into(),
        properties.into(),
    )
    .unwrap();
    let mut group = writer.next_row_group().unwrap();
    for values in [["Hi", "Ho"], ["Yes", "Ja"], ["No", "Nein"]] {
        let mut column = group.next_column().unwrap().unwrap();
        let values = values.map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn malformed_parquet() {
    use parquet::basic::Compression::{SNAPPY, UNCOMPRESSED};
    let seeds = vec![parquet(UNCOMPRESSED), parquet(SNAPPY)];
    hammer("parquet", seeds, nothing);
}

#[test]
fn malformed_states_of_checkpoints() {
    let p = crate::place::Place::new();
    let done = p.run("train r.toml --set train.max_steps=1");
    assert_eq!(done.code, Some(0), "{}", done.err);
    let from = p.path("run/checkpoint-00000001");
    let seeds = vec![std::fs::read(from.join("state.json")).unwrap()];
    let copy = |folder: &Path| {
        crate::place::copy_folder(&from, folder);
        std::fs::copy(from.join("state.json"), folder.join(WHOLE_STATE)).unwrap();
    };
    hammer("state", seeds, copy);
}

#[test]
fn malformed_tuner_caches() {
    let mut seed =
        b"adapter = \"llvmpipe\"\ndriver = \"llvmpipe Mesa\"\nbackend = \"Vulkan\"\n".to_vec();
    seed.extend(b"[[choices]]\npass = \"matmul.nt\"\nreads_below = 1024\nwrites_below = 64\ncolumns_below = 64\nvariant = 3\ntile = \"\"\ndtype = \"f32\"\nkernels = \"00\"\nseconds = 1e-3\nbaseline = 2e-3\n");
    hammer("tuner", vec![seed], nothing);
}

#[test]
fn malformed_kernels() {
    let case = ops::softmax::case();
    let seeds = case.passes[0].variants.iter().map(|v| v.source.as_bytes().to_vec()).collect();
    hammer("wgsl", seeds, nothing);
}
