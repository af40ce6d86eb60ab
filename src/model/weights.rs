//! Model weights: Hugging Face safetensors files to `f32` tensors by name, and back.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype as FileDtype, SafeTensorError, SafeTensors, TensorView, View};

use super::config::ModelConfig;
pub use super::init::init_weights;
use crate::error::{Error, Problem, Result};

/// Values with a shape, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values; as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// Values in double precision with a shape, row-major: what reference files hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor64 {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values; as many as the product of `shape`.
    pub data: Vec<f64>,
}

/// The number format of a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float: exact.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
}

impl Dtype {
    /// The name transformers uses in `config.json`.
    pub fn hf_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    fn in_file(self) -> FileDtype {
        match self {
            Self::F32 => FileDtype::F32,
            Self::F16 => FileDtype::F16,
            Self::Bf16 => FileDtype::BF16,
        }
    }
}

/// True if the folder holds weights; a folder without any is initialised from a seed.
pub fn has_weights(folder: &Path) -> bool {
    folder.join("model.safetensors").exists()
        || folder.join("model.safetensors.index.json").exists()
}

/// Reads the weights of a model folder, from `model.safetensors` or from the shards that
/// `model.safetensors.index.json` lists, and checks them against the configuration. The result
/// holds exactly [`ModelConfig::parameters`].
///
/// # Errors
/// Missing, truncated and foreign files; and, all at once: tensors that are missing, extra, of
/// another shape, of a number format other than F32, F16 and BF16, or not finite.
pub fn read_weights(folder: &Path, config: &ModelConfig) -> Result<BTreeMap<String, Tensor>> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    let mut problems = Vec::new();
    let mut tensors = BTreeMap::new();
    if single.exists() {
        read_into(&single, &|_| true, &mut tensors, &mut problems)?;
    } else if index.exists() {
        for (shard, names) in read_index(&index)? {
            let path = folder.join(&shard);
            read_into(&path, &|name| names.iter().any(|n| n == name), &mut tensors, &mut problems)?;
            for name in names.iter().filter(|n| !tensors.contains_key(*n)) {
                if !problems.iter().any(|p: &Problem| p.place.ends_with(&format!(": {name}"))) {
                    problems.push(Problem::new(
                        format!("{}: {name}", path.display()),
                        format!("is not in this shard, though {} says so", index.display()),
                    ));
                }
            }
        }
    } else {
        return Err(Error::file(
            folder,
            "has neither model.safetensors nor model.safetensors.index.json; \
             convert other formats with transformers' save_pretrained",
        ));
    }
    check(folder, config, &mut tensors, &mut problems);
    if problems.is_empty() {
        Ok(tensors)
    } else {
        Err(Error::input(
            format!("the weights in {} cannot be used with its config.json", folder.display()),
            problems,
        ))
    }
}

/// Names and shapes against the configuration; drops a redundant head and old rotary buffers.
fn check(
    folder: &Path,
    config: &ModelConfig,
    tensors: &mut BTreeMap<String, Tensor>,
    problems: &mut Vec<Problem>,
) {
    // A tensor that could not be read has its problem already.
    let told: Vec<String> = problems.iter().map(|p| p.place.clone()).collect();
    let told = |name: &str| told.iter().any(|place| place.ends_with(&format!(": {name}")));
    let place = |name: &str| format!("{}: {name}", folder.display());
    if config.tied
        && let Some(head) = tensors.remove("lm_head.weight")
        && tensors.get("model.embed_tokens.weight").is_some_and(|embedding| *embedding != head)
    {
        problems.push(Problem::new(
            place("lm_head.weight"),
            "differs from model.embed_tokens.weight, but config.json says tie_word_embeddings: true; \
             set it to false or remove the tensor",
        ));
    }
    // Old Llama folders hold the rotary frequencies, which follow from the configuration.
    tensors.retain(|name, _| !name.ends_with(".rotary_emb.inv_freq"));
    let wanted = config.parameters();
    for spec in &wanted {
        match tensors.get(&spec.name) {
            None if told(&spec.name) => {}
            None => problems.push(Problem::new(
                place(&spec.name),
                format!("is missing; the configuration asks for shape {:?}", spec.shape),
            )),
            Some(tensor) if tensor.shape != spec.shape => problems.push(Problem::new(
                place(&spec.name),
                format!(
                    "has shape {:?}, but the configuration asks for {:?}",
                    tensor.shape, spec.shape
                ),
            )),
            Some(_) => {}
        }
    }
    let wanted: std::collections::BTreeSet<&str> = wanted.iter().map(|s| s.name.as_str()).collect();
    for (name, tensor) in tensors.iter().filter(|(name, _)| !wanted.contains(name.as_str())) {
        problems.push(Problem::new(
            place(name),
            format!("with shape {:?} has no place in the configuration's model", tensor.shape),
        ));
    }
}

/// Shard file -> tensors it holds.
fn read_index(index: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let text = std::fs::read_to_string(index).map_err(|e| Error::io("read", index, e))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::file(index, format!("is not JSON: {e}")))?;
    let map = json["weight_map"]
        .as_object()
        .ok_or_else(|| Error::file(index, "has no weight_map; download the folder again"))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, shard) in map {
        let file = shard.as_str().unwrap_or_default();
        // A shard lies beside its index: anything that leads elsewhere is not a weight file.
        if file.is_empty() || Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(Error::file(
                index,
                format!("puts {name} into {shard}, which is not the name of a file beside it"),
            ));
        }
        shards.entry(file.to_string()).or_default().push(name.clone());
    }
    Ok(shards)
}

/// Every tensor of one safetensors file, as `f32` (F64 is rounded; F16 and BF16 are exact).
pub fn read_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let single = |t: Tensor64| Tensor {
        shape: t.shape,
        data: t.data.into_iter().map(|x| x as f32).collect(),
    };
    let tensors = read_safetensors_f64(path)?;
    Ok(tensors.into_iter().map(|(name, t)| (name, single(t))).collect())
}

/// Every tensor of one safetensors file, as `f64`: floats of every width and integers (exact up
/// to 2^53), as reference files hold them.
pub fn read_safetensors_f64(path: &Path) -> Result<BTreeMap<String, Tensor64>> {
    with_file(path, |file| {
        let mut tensors = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, view) in file.tensors() {
            match to_f64(&view) {
                Some(data) => {
                    let shape = view.shape().to_vec();
                    tensors.insert(name, Tensor64 { shape, data });
                }
                None => problems.push(Problem::new(
                    format!("{}: {name}", path.display()),
                    format!("holds {:?}, which is not supported here", view.dtype()),
                )),
            }
        }
        if problems.is_empty() {
            Ok(tensors)
        } else {
            Err(Error::input(format!("{} cannot be read", path.display()), problems))
        }
    })
}

/// Reads the tensors of a weight file whose names `keep` accepts.
fn read_into(
    path: &Path,
    keep: &dyn Fn(&str) -> bool,
    tensors: &mut BTreeMap<String, Tensor>,
    problems: &mut Vec<Problem>,
) -> Result<()> {
    with_file(path, |file| {
        let mut views = file.tensors();
        views.retain(|(name, _)| keep(name));
        views.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, view) in views {
            let place = || format!("{}: {name}", path.display());
            let bytes = view.data();
            let data: Vec<f32> = match view.dtype() {
                FileDtype::F32 => words::<4>(bytes).map(f32::from_le_bytes).collect(),
                FileDtype::F16 => {
                    words::<2>(bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect()
                }
                FileDtype::BF16 => {
                    words::<2>(bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect()
                }
                other => {
                    problems.push(Problem::new(
                        place(),
                        format!("holds {other:?}; F32, F16 and BF16 are supported"),
                    ));
                    continue;
                }
            };
            if let Some(at) = data.iter().position(|x| !x.is_finite()) {
                let bad = data.iter().filter(|x| !x.is_finite()).count();
                problems.push(Problem::new(
                    place(),
                    format!("has {bad} values that are not finite, the first at index {at}; the file is damaged or its training diverged"),
                ));
            }
            tensors.insert(name, Tensor { shape: view.shape().to_vec(), data });
        }
        Ok(())
    })
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn to_f64(view: &TensorView) -> Option<Vec<f64>> {
    let bytes = view.data();
    Some(match view.dtype() {
        FileDtype::F64 => words::<8>(bytes).map(f64::from_le_bytes).collect(),
        FileDtype::F32 => words::<4>(bytes).map(|b| f64::from(f32::from_le_bytes(b))).collect(),
        FileDtype::F16 => words::<2>(bytes).map(|b| f16::from_le_bytes(b).to_f64()).collect(),
        FileDtype::BF16 => words::<2>(bytes).map(|b| bf16::from_le_bytes(b).to_f64()).collect(),
        FileDtype::I64 => words::<8>(bytes).map(|b| i64::from_le_bytes(b) as f64).collect(),
        FileDtype::I32 => words::<4>(bytes).map(|b| f64::from(i32::from_le_bytes(b))).collect(),
        FileDtype::U8 | FileDtype::BOOL => bytes.iter().map(|&b| f64::from(b)).collect(),
        _ => return None,
    })
}

/// Maps the file into memory, checks its header against its length and hands it on.
fn with_file<R>(path: &Path, read: impl FnOnce(&SafeTensors) -> Result<R>) -> Result<R> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let meta = file.metadata().map_err(|e| Error::io("read", path, e))?;
    if meta.is_dir() {
        return Err(Error::file(path, "is a folder; a safetensors file was expected"));
    }
    if meta.len() == 0 {
        return Err(Error::file(path, "is empty; copy or download it again"));
    }
    // SAFETY: the map is only read and lives for this call. If another process shortens the file
    // meanwhile the system ends this one; oddgrad itself never writes into an existing file.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("read", path, e))?;
    let parsed =
        SafeTensors::deserialize(&map).map_err(|e| Error::file(path, foreign(&map, &e)))?;
    read(&parsed)
}

/// What a file that is not a whole safetensors file most likely is.
fn foreign(bytes: &[u8], error: &SafeTensorError) -> String {
    if bytes.starts_with(b"version https://git-lfs") {
        return "is a Git LFS pointer, not the weights; run `git lfs pull` in its repository"
            .into();
    }
    if bytes.starts_with(b"PK") || bytes.starts_with(b"\x80\x02") {
        return "is a PyTorch checkpoint, not safetensors; convert it with transformers' save_pretrained".into();
    }
    if bytes.starts_with(b"GGUF") {
        return "is a GGUF file, not safetensors".into();
    }
    if matches!(
        error,
        SafeTensorError::MetadataIncompleteBuffer
            | SafeTensorError::InvalidHeaderLength
            | SafeTensorError::HeaderTooLarge
            | SafeTensorError::HeaderTooSmall
    ) {
        return format!(
            "is truncated or not a safetensors file ({error}); copy or download it again"
        );
    }
    format!("is not a usable safetensors file: {error}")
}

/// Writes `model.safetensors` into an existing folder, with the metadata transformers expects.
///
/// # Errors
/// Values that are not finite, or too large for `dtype` (all tensors named at once), and whatever
/// the disk refuses.
pub fn write_weights<'a>(
    folder: &Path,
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
    dtype: Dtype,
) -> Result<()> {
    write_safetensors(&folder.join("model.safetensors"), tensors, dtype)
}

/// Writes one safetensors file; see [`write_weights`].
///
/// # Panics
/// If a tensor's values are not as many as its shape says: that is a programming error.
#[track_caller]
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
    dtype: Dtype,
) -> Result<()> {
    let tensors: Vec<(&String, &Tensor)> = tensors.into_iter().collect();
    let mut problems = Vec::new();
    for (name, tensor) in &tensors {
        let count: usize = tensor.shape.iter().product();
        assert_eq!(
            count,
            tensor.data.len(),
            "{name}: shape {:?} against the number of values",
            tensor.shape
        );
        let bad = tensor.data.iter().filter(|&&x| !fits(x, dtype)).count();
        if bad > 0 {
            problems.push(Problem::new(
                format!("{}: {name}", path.display()),
                format!("has {bad} values that are not finite as {}", dtype.hf_name()),
            ));
        }
    }
    if !problems.is_empty() {
        return Err(Error::input("these weights are not written", problems));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), Encoded { tensor, dtype }));
    // The writer goes through a private temporary file, which would leave the weights readable to
    // their owner only: an ordinary file in that place shows what the permissions should be.
    let permissions = match std::fs::metadata(path) {
        Ok(existing) => Ok(existing.permissions()),
        Err(_) => File::create_new(path).and_then(|f| f.metadata()).map(|m| m.permissions()),
    }
    .map_err(|e| Error::io("create", path, e))?;
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
        SafeTensorError::IoError(e) => Error::io("write", path, e),
        other => Error::file(path, format!("cannot be written: {other}")),
    })?;
    std::fs::set_permissions(path, permissions).map_err(|e| Error::io("write", path, e))
}

fn fits(x: f32, dtype: Dtype) -> bool {
    match dtype {
        Dtype::F32 => x.is_finite(),
        Dtype::F16 => f16::from_f32(x).is_finite(),
        Dtype::Bf16 => bf16::from_f32(x).is_finite(),
    }
}

/// A tensor that becomes bytes only when its turn to be written comes.
struct Encoded<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
}

impl View for Encoded<'_> {
    fn dtype(&self) -> FileDtype {
        self.dtype.in_file()
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.data.iter();
        Cow::Owned(match self.dtype {
            Dtype::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => values.flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Dtype::Bf16 => values.flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.tensor.data.len() * if self.dtype == Dtype::F32 { 4 } else { 2 }
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
pub(crate) mod tests;
