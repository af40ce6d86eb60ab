//! Every family: its file against its graph, saving, streaming; and training a part of a model.

use crate::{golden, gpu};
use oddgrad::data::example::{Example, Sequence};
use oddgrad::data::pack::{Capacity, pack};
use oddgrad::error::{Error, Result};
use oddgrad::gpu::Gpu;
use oddgrad::graph::{DType, GRAD};
use oddgrad::model::config::ModelConfig;
use oddgrad::model::folder::save_model_folder;
use oddgrad::model::layout::layout;
use oddgrad::model::save::{Unwritten, write_safetensors, write_weights};
use oddgrad::model::source::{SafetensorsFile, Tensor64, WeightSource, read_safetensors_f64};
use oddgrad::model::stream::{BatchInputs, HeadRows};
use oddgrad::model::weights::{FolderWeights, ParameterValues, Tensor, collect, init_weights};
use oddgrad::program::{Program, Store};
use oddgrad::train::evaluator::Evaluator;
use oddgrad::train::learner::{FIRST_MOMENT, Learner, LearnerOptions, SECOND_MOMENT, memory_plan};
use oddgrad::train::objectives::{LOGP, Loss};
use oddgrad::train::program::{Placement, TrainedSet, train_all};
use oddgrad::train::recipe::OptimSettings;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

/// Golden folders of every family, written by transformers.
pub const FOLDERS: &[(&str, &str)] = &[
    ("llama", "llama_untied"),
    ("mistral", "mistral_window"),
    ("qwen2", "qwen2_window"),
    ("qwen3", "qwen3_tied"),
    ("gpt2", "gpt2"),
    ("opt", "opt"),
    ("llama", "llama_rope_linear"),
    ("llama", "llama_rope_dynamic"),
    ("llama", "llama_rope_llama3"),
    ("llama", "llama_rope_yarn"),
    ("phi3", "phi3"),
    ("olmo2", "olmo2"),
    ("smollm3", "smollm3"),
    ("granite", "granite"),
    ("stablelm", "stablelm"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3_text"),
];

#[test]
fn the_tensors_of_a_file_are_the_parameters_of_the_graph() {
    for (family, folder) in FOLDERS {
        let folder = golden(folder);
        let config = ModelConfig::load(&folder).unwrap();
        assert_eq!(config.to_json()["model_type"], *family);
        let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
        let found: BTreeMap<String, Vec<usize>> =
            file.names().into_iter().map(|n| (n.clone(), file.info(&n).unwrap().shape)).collect();
        let tensors = layout(&config);
        let made: BTreeMap<String, Vec<usize>> =
            tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
        assert_eq!(found, made, "{family}");

        let parts: Vec<&str> =
            tensors.iter().flat_map(|t| &t.parts).map(|p| p.parameter.as_str()).collect();
        let declared: BTreeSet<&str> =
            config.parameters().iter().map(|p| p.name.as_str()).collect();
        assert_eq!(parts.len(), declared.len(), "{family}: a parameter stands twice");
        assert_eq!(parts.into_iter().collect::<BTreeSet<_>>(), declared, "{family}");
        // Every element of the tensor belongs to one parameter.
        for t in &tensors {
            let mut next = 0;
            for part in &t.parts {
                assert_eq!(part.start, next, "{family}: {}", t.name);
                next += part.shape[0];
            }
            let size = |shape: &[usize]| shape.iter().product::<usize>();
            assert_eq!(t.parts.iter().map(|p| size(&p.shape)).sum::<usize>(), size(&t.shape));
        }
    }
}

/// With `ODDGRAD_SAVE` the models stay in that folder, for `tests/golden/scripts/check_saved.py`.
#[test]
fn a_saved_model_has_the_files_of_its_family() {
    let dir = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("ODDGRAD_SAVE");
    let place = kept.as_ref().map_or(dir.path(), Path::new);
    for (family, name) in FOLDERS {
        let folder = golden(name);
        let config = ModelConfig::load(&folder).unwrap();
        let weights = collect(&FolderWeights::open(&folder, &config).unwrap()).unwrap();
        let out = place.join(name);
        save_model_folder(&out, None, None, &config, &|name| Ok(weights[name].data.clone()))
            .unwrap();
        let read = |folder: &Path| read_safetensors_f64(&folder.join("model.safetensors")).unwrap();
        assert!(read(&folder) == read(&out), "{family}");
        let again = ModelConfig::load(&out).unwrap();
        assert_eq!(format!("{:?}", again.decoder), format!("{:?}", config.decoder));
    }
}

/// Writes `tensors` as the only weights of a copy of `folder`.
fn copy_with(folder: &Path, tensors: &BTreeMap<String, Tensor64>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("config.json"), dir.path().join("config.json")).unwrap();
    let all = tensors.iter().map(|(name, t)| Unwritten {
        name: name.clone(),
        shape: t.shape.clone(),
        dtype: DType::F32,
        values: Box::new(|| Ok(t.data.iter().map(|&x| x as f32).collect())),
    });
    write_safetensors(&dir.path().join("model.safetensors"), all).unwrap();
    dir
}

fn open(folder: &Path) -> Result<BTreeMap<String, Tensor>> {
    collect(&FolderWeights::open(folder, &ModelConfig::load(folder)?)?)
}

/// The first GPT-2 files: no prefix, the causal masks as tensors, a head beside the embedding.
#[test]
fn old_gpt2_files_load() {
    let folder = golden("gpt2");
    let new = read_safetensors_f64(&folder.join("model.safetensors")).unwrap();
    let mut old: BTreeMap<String, Tensor64> = new
        .iter()
        .map(|(name, t)| (name.strip_prefix("transformer.").unwrap().to_owned(), t.clone()))
        .collect();
    let mask = Tensor64 { shape: vec![1, 1, 2, 2], data: vec![1.0, 0.0, 1.0, 1.0] };
    old.insert("h.0.attn.bias".into(), mask);
    let masked = Tensor64 { shape: vec![1], data: vec![-10000.0] };
    old.insert("h.0.attn.masked_bias".into(), masked);
    old.insert("lm_head.weight".into(), old["wte.weight"].clone());
    assert!(open(copy_with(&folder, &old).path()).unwrap() == open(&folder).unwrap());

    old.insert("transformer.wpe.weight".into(), old["wpe.weight"].clone());
    old.insert("h.2.ln_1.weight".into(), old["h.1.ln_1.weight"].clone());
    old.remove("h.1.attn.c_attn.bias");
    old.insert("h.1.mlp.c_fc.weight".into(), old["h.1.mlp.c_proj.weight"].clone());
    let Err(Error::Input { problems, .. }) = open(copy_with(&folder, &old).path()) else {
        panic!("four tensors are wrong")
    };
    let text: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.place, p.what)).collect();
    assert_eq!(text.len(), 4, "{text:#?}");
    for part in [
        "wpe.weight: is the same tensor as",
        "transformer.h.1.attn.c_attn.bias: is missing",
        "h.1.mlp.c_fc.weight: has shape [256, 64], but the configuration asks for [64, 256]",
        "h.2.ln_1.weight: with shape [64] has no place",
    ] {
        assert!(text.iter().any(|t| t.contains(part)), "{part} in {text:#?}");
    }
}

/// Kibibytes that this process had in memory at its peak.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
}

/// On a software adapter the device's memory is the process' own, so a model must appear in it
/// once, not once more in a map of tensors or in staging buffers that wait for a submission.
#[cfg(target_os = "linux")]
#[test]
fn weights_stream_to_the_device() {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1024,
        "num_hidden_layers": 24, "num_attention_heads": 8, "max_position_embeddings": 64,
    });
    let config = ModelConfig::from_json("config.json", &json).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let length: BTreeMap<&str, usize> =
        config.parameters().iter().map(|p| (p.name.as_str(), p.len())).collect();
    write_weights(dir.path(), &config, &|name| Ok(vec![0.5; length[name]])).unwrap();
    let gpu = gpu();
    let store = Store::new(&gpu);
    let weights = FolderWeights::open(dir.path(), &config).unwrap();
    let before = peak();
    weights.each(&mut |name, shape, values| store.write(name, shape, values)).unwrap();
    gpu.wait().unwrap();
    let model = 4 * config.parameter_count() as u64 / 1024;
    let grown = peak() - before;
    assert!(model > 200 << 10, "{model} KiB would be lost among other things");
    eprintln!("{grown} KiB for a model of {model} KiB");
    assert!(grown < model * 3 / 2, "{grown} KiB for a model of {model} KiB");
}

/// The logits of a few tokens, from parameters as `store` holds them.
fn logits(gpu: &Rc<Gpu>, store: &Store, config: &ModelConfig) -> Vec<f32> {
    let mut g = store.inference_graph();
    let inputs = BatchInputs::declare(&mut g, 8);
    let head = HeadRows::declare(&mut g, 8, 8);
    let logits = config.decoder.forward(&mut g, &inputs, &head).logits(&mut g);
    let program = Program::new(gpu, g, store).unwrap();
    let ids = [7, 300, 12, 450, 9, 33, 101, 8].map(|id| id % config.vocab_size as u32).to_vec();
    let example = Example {
        row: 0,
        chosen: Sequence { ids, response_start: 1 },
        rejected: None,
        desirable: None,
    };
    let capacity = Capacity { tokens: 8, targets: 8, pairs: 1 };
    inputs.write(&program, &pack(&[&example], capacity).unwrap()[0]);
    head.write(&program, &[0, 1, 2, 3, 4, 5, 6, 7]);
    program.run();
    logits.read(&program).unwrap()
}

#[test]
fn weights_of_16_bits_are_evaluated_as_they_are_stored() {
    let gpu = gpu();
    for (dtype, in_file) in
        [(DType::BF16, safetensors::Dtype::BF16), (DType::F16, safetensors::Dtype::F16)]
    {
        for (family, folder) in FOLDERS {
            let folder = golden(folder);
            let tensors = read_safetensors_f64(&folder.join("model.safetensors")).unwrap();
            let bytes: BTreeMap<&String, Vec<u8>> = tensors
                .iter()
                .map(|(name, t)| {
                    (name, dtype.encode(&t.data.iter().map(|&x| x as f32).collect::<Vec<_>>()))
                })
                .collect();
            let views = tensors.iter().map(|(name, t)| {
                let view =
                    safetensors::tensor::TensorView::new(in_file, t.shape.clone(), &bytes[name]);
                (name.as_str(), view.unwrap())
            });
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("model.safetensors");
            safetensors::serialize_to_file(views, None, &path).unwrap();

            let config = ModelConfig::load(&folder).unwrap();
            let weights = FolderWeights::open(dir.path(), &config).unwrap();
            let before = gpu.buffer_bytes();
            let (narrow, wide) = (Store::new(&gpu), Store::new(&gpu));
            weights.put(&narrow).unwrap();
            let taken = gpu.buffer_bytes() - before;
            assert_eq!(taken, weights.stored_bytes());
            assert!(taken < 4 * config.parameter_count() as u64 * 11 / 20, "{taken} bytes");
            weights.each(&mut |name, shape, values| wide.write(name, shape, values)).unwrap();
            assert_eq!(narrow.dtype(config.head()), Some(dtype));
            let (a, b) = (logits(&gpu, &narrow, &config), logits(&gpu, &wide, &config));
            let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // The values are the same; only the order of a kernel's sums may differ.
            assert!(off <= 1e-5, "{family} {dtype}: {off:e}");
            assert!(a.iter().any(|v| v.abs() > 0.1));
            drop((narrow, wide));
            scored_alike(&gpu, &config, &weights, family);
        }
    }
}

/// An evaluation of weights as a folder stores them gives what one of the widened weights gives.
fn scored_alike(gpu: &Rc<Gpu>, config: &ModelConfig, weights: &FolderWeights, family: &str) {
    let capacity = Capacity { tokens: 128, targets: 128, pairs: 4 };
    let mut examples = pairs();
    for example in &mut examples {
        for side in [Some(&mut example.chosen), example.rejected.as_mut()].into_iter().flatten() {
            side.ids.iter_mut().for_each(|id| *id %= config.vocab_size as u32);
        }
    }
    let stream = pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap().remove(0);
    let loss = Loss::default();
    let (objective, optim) = (&*loss.objective, OptimSettings::new(1e-3));
    let coefficients = objective.coefficients(&[&stream], 1).remove(0);
    let evaluator = Evaluator::new(gpu, config, weights, capacity, objective).unwrap();
    let narrow = evaluator.evaluate(&stream, &coefficients).unwrap();
    assert_ne!(evaluator.store().dtype(config.head()), Some(DType::F32));
    let learner = Learner::new(gpu, config, weights, capacity, objective, &optim).unwrap();
    let wide = learner.evaluate(&stream, &coefficients).unwrap();
    let off = (narrow.loss() - wide.loss()).abs();
    assert!(off <= 1e-5 && wide.loss() > 1.0, "{family}: {off:e}");
    let pairs = narrow.get(LOGP).iter().zip(wide.get(LOGP));
    let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= 2e-5, "{family}: {off:e}");
}

pub fn pairs() -> Vec<Example> {
    let side = |salt: u32, n: u32| (0..n).map(|j| (salt * 31 + j * 7) % 500 + 6).collect();
    (0..4)
        .map(|i| {
            let with = |tail: Vec<u32>| {
                let prompt: Vec<u32> = side(i, 5);
                Sequence { ids: [prompt, tail].concat(), response_start: 5 }
            };
            let (chosen, rejected) = (with(side(i + 9, 6)), with(side(i + 20, 4)));
            Example { row: i as usize, chosen, rejected: Some(rejected), desirable: None }
        })
        .collect()
}

#[test]
fn only_the_trained_set_has_gradients_and_moments_and_moves() {
    let gpu = gpu();
    let config = ModelConfig::load(&golden("llama_untied")).unwrap();
    let capacity = Capacity { tokens: 128, targets: 128, pairs: 4 };
    let examples = pairs();
    let stream = pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap().remove(0);
    let loss = Loss::default();
    let objective = &*loss.objective;
    let of_loss = objective.coefficients(&[&stream], 1).remove(0);
    let weights = init_weights(&config, 4);
    let trained = |name: &str| name.contains("layers.1.self_attn.v_proj") || name.contains("norm");
    let set: TrainedSet = Rc::new(trained);
    let learner = |set: &TrainedSet| {
        let options =
            LearnerOptions { placement: Placement::of(set.clone()), ..LearnerOptions::default() };
        let optim = OptimSettings::new(1e-3);
        Learner::with_options(&gpu, &config, &weights, capacity, objective, &optim, &options)
            .unwrap()
    };
    let full = learner(&train_all());
    full.accumulate(&stream, &of_loss).unwrap();
    let before = gpu.buffer_bytes();
    let mut part = learner(&set);
    let allocated = gpu.buffer_bytes() - before;
    part.accumulate(&stream, &of_loss).unwrap();

    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let names = part.store().names();
    let mut both = [0, 0];
    for p in config.parameters() {
        both[usize::from(trained(&p.name))] += 1;
        let state = |suffix: &str| format!("{}{suffix}", p.name);
        for suffix in [GRAD, FIRST_MOMENT, SECOND_MOMENT] {
            assert_eq!(names.contains(&state(suffix)), trained(&p.name), "{}", state(suffix));
        }
        if trained(&p.name) {
            let grad = |l: &Learner| bits(l.read(&state(GRAD)).unwrap());
            assert_eq!(grad(&part), grad(&full), "{}", p.name);
        }
    }
    assert!(both[0] > 10 && both[1] > 5, "{both:?}");

    part.update(1e-2).unwrap();
    for p in config.parameters() {
        let moved = bits(part.read(&p.name).unwrap()) != bits(weights[&p.name].data.clone());
        assert_eq!(moved, trained(&p.name), "{}", p.name);
    }

    let plan = |set: &TrainedSet| {
        let placement = Placement::of(set.clone());
        memory_plan(gpu.target(), &config, capacity, objective, &placement, None).unwrap()
    };
    let (all, some) = (plan(&train_all()), plan(&set));
    assert!(some.state < all.state / 2 && some.total() < all.total());
    let planned = some.total() as f64;
    assert!((allocated as f64 / planned - 1.0).abs() < 0.01, "{allocated} of {planned}");
}
