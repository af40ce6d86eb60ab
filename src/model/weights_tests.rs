use super::*;
use crate::model::save;
use crate::model::source::{SafetensorsFile, Tensor64, read_safetensors_f64};
use safetensors::tensor::{Dtype as FileDtype, SafeTensors, TensorView};
use serde_json::json;
use std::fs;

fn tiny_json(tied: bool) -> serde_json::Value {
    json!({
        "model_type": "llama", "vocab_size": 24, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32, "tie_word_embeddings": tied, "eos_token_id": 2,
    })
}

/// A configuration of two small layers.
pub(crate) fn tiny(tied: bool) -> ModelConfig {
    ModelConfig::from_json("config.json", &tiny_json(tied)).unwrap()
}

/// The weights of a folder, all at once.
fn read_weights(folder: &Path, config: &ModelConfig) -> Result<BTreeMap<String, Tensor>> {
    collect(&FolderWeights::open(folder, config)?)
}

/// Writes tensors as they are, whatever a configuration says.
fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let tensors = tensors.iter().map(|(name, t)| save::Unwritten {
        name: name.clone(),
        shape: t.shape.clone(),
        dtype: DType::F32,
        values: Box::new(|| Ok(t.data.clone())),
    });
    save::write_safetensors(path, tensors)
}

fn write_weights(folder: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    write_tensors(&folder.join("model.safetensors"), tensors)
}

pub(crate) fn all_equal(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> bool {
    // Bits, so that -0.0 and 0.0 differ.
    let bits = |t: &Tensor| t.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|((n, x), (m, y))| n == m && x.shape == y.shape && bits(x) == bits(y))
}

/// Writes a safetensors file of raw bytes.
fn write_raw(path: &Path, tensors: &[(&str, FileDtype, &[usize], Vec<u8>)]) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(n, d, s, b)| (*n, TensorView::new(*d, s.to_vec(), b).unwrap()))
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn problems(error: Error) -> Vec<String> {
    match error {
        Error::Input { problems, .. } => {
            problems.into_iter().map(|p| format!("{}: {}", p.place, p.what)).collect()
        }
        other => panic!("expected a list of problems, got: {other}"),
    }
}

#[test]
fn every_dtype_comes_back() {
    use half::{bf16, f16};
    let config = tiny(false);
    let weights = init_weights(&config, 3);
    let bytes_of = |dtype: FileDtype, x: f32| match dtype {
        FileDtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        FileDtype::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    for (dtype, relative) in
        [(FileDtype::F32, 0.0), (FileDtype::F16, 2f32.powi(-11)), (FileDtype::BF16, 2f32.powi(-8))]
    {
        let dir = tempfile::tempdir().unwrap();
        let raw: Vec<_> = weights
            .iter()
            .map(|(n, t)| {
                let bytes = t.data.iter().flat_map(|&x| bytes_of(dtype, x)).collect();
                (n.as_str(), dtype, t.shape.as_slice(), bytes)
            })
            .collect();
        write_raw(&dir.path().join("model.safetensors"), &raw);
        let back = read_weights(dir.path(), &config).unwrap();
        assert_eq!(all_equal(&back, &weights), dtype == FileDtype::F32);
        for (name, tensor) in &weights {
            assert_eq!(back[name].shape, tensor.shape);
            for (x, y) in tensor.data.iter().zip(&back[name].data) {
                // F16 loses relative precision below 6.1e-5.
                assert!(
                    (x - y).abs() <= relative * x.abs() + 6e-8 * (relative > 0.0) as u8 as f32,
                    "{name}: {x} {y}"
                );
            }
        }
    }
}

#[test]
fn what_is_written_is_what_transformers_expects() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(true);
    let weights = init_weights(&config, 3);
    let read = |name: &str| Ok(weights[name].data.clone());
    save::write_weights(dir.path(), &config, &read).unwrap();
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let (_, meta) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(meta.metadata().as_ref().unwrap()["format"], "pt");
    assert!(all_equal(&read_weights(dir.path(), &config).unwrap(), &weights));
}

/// A tensor longer than the buffer that files are read through.
#[test]
fn a_large_tensor_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<f32> = (0..700_001).map(|i| i as f32).collect();
    let tensors = BTreeMap::from([("x".to_owned(), Tensor { shape: vec![700_001], data })]);
    let path = dir.path().join("x.safetensors");
    write_tensors(&path, &tensors).unwrap();
    let mut values = vec![1.0; 3];
    SafetensorsFile::open(&path).unwrap().read("x", &mut values).unwrap();
    assert!(values == tensors["x"].data);
}

#[test]
fn known_bit_patterns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_raw(
        &path,
        &[
            ("half", FileDtype::F16, &[2], vec![0x00, 0x3c, 0x00, 0xc1]),
            ("brain", FileDtype::BF16, &[1], vec![0x20, 0x40]),
            ("double", FileDtype::F64, &[1], 0.1f64.to_le_bytes().to_vec()),
            (
                "ids",
                FileDtype::I64,
                &[1, 2],
                [7i64, -1].iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
        ],
    );
    let file = SafetensorsFile::open(&path).unwrap();
    let mut values = Vec::new();
    for (name, want) in [("half", &[1.0, -2.5][..]), ("brain", &[2.5])] {
        file.read(name, &mut values).unwrap();
        assert_eq!(values, want);
    }
    let error = file.read("double", &mut values).unwrap_err().to_string();
    assert!(error.contains("double holds F64"), "{error}");
    let t = read_safetensors_f64(&path).unwrap();
    assert_eq!(t["double"], Tensor64 { shape: vec![1], data: vec![0.1f64] });
    assert_eq!(t["ids"], Tensor64 { shape: vec![1, 2], data: vec![7.0, -1.0] });

    write_raw(&path, &[("odd", FileDtype::U16, &[1], vec![0, 0])]);
    assert!(read_safetensors_f64(&path).unwrap_err().to_string().contains("odd: holds U16"));
}

#[test]
fn shards() {
    let config = tiny(false);
    let weights = init_weights(&config, 3);
    let dir = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let name = format!("model-0000{}-of-00002.safetensors", part + 1);
        let some: BTreeMap<String, Tensor> = weights
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 2 == part)
            .map(|(_, (n, t))| (n.clone(), t.clone()))
            .collect();
        for tensor in some.keys() {
            map.insert(tensor.clone(), json!(name));
        }
        write_tensors(&dir.path().join(name), &some).unwrap();
    }
    let index = dir.path().join("model.safetensors.index.json");
    let write_index = |map: &serde_json::Map<String, serde_json::Value>| {
        fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    };
    write_index(&map);
    assert!(all_equal(&read_weights(dir.path(), &config).unwrap(), &weights));

    let shard_of_norm = map["model.norm.weight"].clone();
    let other = if shard_of_norm.as_str().unwrap().contains("00001-of") { 2 } else { 1 };
    map["model.norm.weight"] = json!(format!("model-0000{other}-of-00002.safetensors"));
    write_index(&map);
    let found = problems(read_weights(dir.path(), &config).unwrap_err());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("model.norm.weight: is not in this shard"), "{found:?}");

    map["model.norm.weight"] = json!("../elsewhere.safetensors");
    write_index(&map);
    assert!(
        read_weights(dir.path(), &config)
            .unwrap_err()
            .to_string()
            .contains("not the name of a file")
    );
    map["model.norm.weight"] = json!("model-00009-of-00002.safetensors");
    write_index(&map);
    assert!(
        read_weights(dir.path(), &config).unwrap_err().to_string().contains("model-00009-of-00002")
    );
}

#[test]
fn wrong_tensors_are_named_at_once() {
    let config = tiny(false);
    let mut weights = init_weights(&config, 3);
    let dir = tempfile::tempdir().unwrap();
    weights.remove("model.norm.weight");
    weights.insert("model.extra".into(), Tensor { shape: vec![2], data: vec![0.0; 2] });
    weights.insert(
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        Tensor { shape: vec![1], data: vec![1.0] },
    );
    weights.insert(
        "model.layers.0.mlp.up_proj.weight".into(),
        Tensor { shape: vec![8, 12], data: vec![0.0; 96] },
    );
    write_weights(dir.path(), &weights).unwrap();
    let found = problems(read_weights(dir.path(), &config).unwrap_err());
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found.iter().any(|p| p.contains("model.norm.weight: is missing") && p.contains("[8]")));
    assert!(found.iter().any(|p| p.contains("model.extra: with shape [2] has no place")));
    assert!(
        found
            .iter()
            .any(|p| p.contains("up_proj.weight: has shape [8, 12]") && p.contains("[12, 8]"))
    );
}

#[test]
fn values_that_are_not_finite() {
    let config = tiny(true);
    let weights = init_weights(&config, 3);
    let dir = tempfile::tempdir().unwrap();
    let mut broken = weights.clone();
    broken.get_mut("model.norm.weight").unwrap().data[5] = f32::INFINITY;
    let refused = problems(write_weights(dir.path(), &broken).unwrap_err());
    assert!(refused[0].contains("model.norm.weight: has 1 values"), "{refused:?}");
    assert!(!dir.path().join("model.safetensors").exists());

    let path = dir.path().join("model.safetensors");
    let raw: Vec<_> = weights
        .iter()
        .map(|(n, t)| {
            let mut data = t.data.clone();
            if n == "model.norm.weight" {
                data[5] = f32::NAN;
            }
            (
                n.as_str(),
                FileDtype::F32,
                t.shape.as_slice(),
                data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            )
        })
        .collect();
    write_raw(&path, &raw);
    let found = problems(read_weights(dir.path(), &config).unwrap_err());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0]
            .contains("model.norm.weight: has 1 values that are not finite, the first at index 5")
    );
}

#[test]
fn a_tied_model_with_a_head() {
    let config = tiny(true);
    let mut weights = init_weights(&config, 3);
    let dir = tempfile::tempdir().unwrap();
    weights.insert("lm_head.weight".into(), weights["model.embed_tokens.weight"].clone());
    write_weights(dir.path(), &weights).unwrap();
    assert!(!read_weights(dir.path(), &config).unwrap().contains_key("lm_head.weight"));
    weights.get_mut("lm_head.weight").unwrap().data[0] += 1.0;
    write_weights(dir.path(), &weights).unwrap();
    let found = problems(read_weights(dir.path(), &config).unwrap_err());
    assert!(found.len() == 1 && found[0].contains("tie_word_embeddings"), "{found:?}");
}

#[test]
fn damaged_and_foreign_files() {
    let config = tiny(true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let message = || read_weights(dir.path(), &config).unwrap_err().to_string();
    assert!(message().contains("holds no file of weights"));

    write_weights(dir.path(), &init_weights(&config, 3)).unwrap();
    let whole = fs::read(&path).unwrap();
    for cut in [1, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let m = message();
        assert!(m.contains("truncated") && m.contains("model.safetensors"), "{cut}: {m}");
    }
    for (bytes, word) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid"[..], "git lfs pull"),
        (b"PK\x03\x04 archive of a PyTorch model", "PyTorch"),
        (b"GGUF\x03\x00\x00\x00\x00\x00", "GGUF"),
        (b"", "is empty"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "not a usable safetensors"),
    ] {
        fs::write(&path, bytes).unwrap();
        assert!(message().contains(word), "{word}: {}", message());
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(message().contains("is a folder"), "{}", message());
    let absent = read_safetensors_f64(&dir.path().join("absent")).unwrap_err().to_string();
    assert!(absent.starts_with("cannot read") && absent.contains("absent"), "{absent}");
}

#[test]
fn initial_weights() {
    let mut json = tiny_json(false);
    for (key, value) in [("vocab_size", 2000), ("hidden_size", 64), ("intermediate_size", 640)] {
        json[key] = value.into();
    }
    json["initializer_range"] = 0.05.into();
    let config = ModelConfig::from_json("config.json", &json).unwrap();
    let weights = init_weights(&config, 3);
    let std = |name: &str| {
        let t = &weights[name].data;
        let mean = t.iter().map(|&x| f64::from(x)).sum::<f64>() / t.len() as f64;
        let var = t.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / t.len() as f64;
        (mean, var.sqrt())
    };
    let (mean, dev) = std("model.embed_tokens.weight");
    assert!(mean.abs() < 5e-4 && (dev - 0.05).abs() < 5e-4, "{mean} {dev}");
    let (_, dev) = std("model.layers.1.mlp.down_proj.weight");
    assert!((dev - 0.025).abs() < 5e-4, "{dev}");
    assert!(weights["model.layers.0.input_layernorm.weight"].data.iter().all(|&x| x == 1.0));
    // The share beyond two standard deviations is what makes it normal and not merely spread.
    let embedding = &weights["model.embed_tokens.weight"].data;
    let far = embedding.iter().filter(|x| x.abs() > 0.1).count() as f64 / embedding.len() as f64;
    assert!((far - 0.0455).abs() < 0.003, "{far}");

    assert!(all_equal(&weights, &init_weights(&config, 3)));
    let other = init_weights(&config, 4);
    assert_ne!(other["lm_head.weight"], weights["lm_head.weight"]);
    assert_ne!(weights["lm_head.weight"], weights["model.embed_tokens.weight"]);
    // A deeper model starts with the same embedding.
    json["num_hidden_layers"] = 3.into();
    let config = ModelConfig::from_json("config.json", &json).unwrap();
    assert_eq!(init_weights(&config, 3)["lm_head.weight"], weights["lm_head.weight"]);
}
