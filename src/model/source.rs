//! Where weights come from: one safetensors file, or the shards that an index lists. Headers are
//! read and checked first; a tensor's values only when they are asked for, through a small
//! buffer.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors};

use super::weight_files::WeightFiles;
use crate::error::{Error, Problem, Result};
use crate::files::open_file;
use crate::graph::DType;

/// A file, or several, of named tensors.
pub trait WeightSource {
    /// Every tensor's name.
    fn names(&self) -> Vec<String>;

    /// Shape and number format of a tensor; None if there is none of that name.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Where a tensor is, for messages.
    fn place(&self, name: &str) -> String;

    /// Replaces what is in `values` by a tensor's values, row-major. F16 and BF16 are exact.
    ///
    /// # Errors
    /// A format that is no float of 16 or 32 bits; whatever the disk refuses.
    fn read(&self, name: &str, values: &mut Vec<f32>) -> Result<()>;
}

/// A tensor's shape and number format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How the file stores its numbers.
    pub dtype: Dtype,
}

impl TensorInfo {
    /// The type of the values on a device: narrow floats as they are, anything else as F32.
    pub fn storage(&self) -> DType {
        match self.dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => DType::F32,
        }
    }

    /// What is wrong with the format, if [`WeightSource::read`] cannot read it.
    pub fn problem(&self) -> Option<String> {
        let known = matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        (!known).then(|| format!("holds {:?}; F32, F16 and BF16 are supported", self.dtype))
    }
}

/// One safetensors file, of which the header was read.
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the values begin.
    start: u64,
}

impl SafetensorsFile {
    /// Reads the header and checks it against the file's length.
    ///
    /// # Errors
    /// A file that is missing, cut short or of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, map) = map(path)?;
        let (header_len, header) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::file(path, foreign(&map, &e)))?;
        Ok(Self { path: path.to_owned(), file, header, start: 8 + header_len as u64 })
    }
}

impl WeightSource for SafetensorsFile {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.header.tensors().into_keys().collect();
        names.sort();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let info = self.header.info(name)?;
        Some(TensorInfo { shape: info.shape.clone(), dtype: info.dtype })
    }

    fn place(&self, name: &str) -> String {
        format!("{}: {name}", self.path.display())
    }

    fn read(&self, name: &str, values: &mut Vec<f32>) -> Result<()> {
        let problem = |what: String| Error::file(&self.path, format!("{name} {what}"));
        let info = self.header.info(name).ok_or_else(|| problem("is not there".into()))?;
        if let Some(what) = self.info(name).and_then(|i| i.problem()) {
            return Err(problem(what));
        }
        let io = |e| Error::io("read", &self.path, e);
        let (from, to) = info.data_offsets;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.start + from as u64)).map_err(io)?;
        values.clear();
        let mut buffer = vec![0; (to - from).min(1 << 20)];
        let mut left = to - from;
        while left > 0 {
            let bytes = &mut buffer[..left.min(1 << 20)];
            file.read_exact(bytes).map_err(io)?;
            left -= bytes.len();
            match info.dtype {
                Dtype::F32 => values.extend(words::<4>(bytes).map(f32::from_le_bytes)),
                Dtype::F16 => values.extend(words(bytes).map(|b| f16::from_le_bytes(b).to_f32())),
                _ => values.extend(words(bytes).map(|b| bf16::from_le_bytes(b).to_f32())),
            }
        }
        Ok(())
    }
}

/// The files that an index lists.
struct Shards {
    files: Vec<SafetensorsFile>,
    file_of: HashMap<String, usize>,
}

impl WeightSource for Shards {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file_of.keys().cloned().collect();
        names.sort();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.files[*self.file_of.get(name)?].info(name)
    }

    fn place(&self, name: &str) -> String {
        self.file_of.get(name).map_or_else(|| name.to_owned(), |&f| self.files[f].place(name))
    }

    fn read(&self, name: &str, values: &mut Vec<f32>) -> Result<()> {
        self.files[self.file_of[name]].read(name, values)
    }
}

/// The weight file of a model folder, or its shards. `problems` gets the tensors that a shard
/// lacks though the index names it for them.
///
/// # Errors
/// A folder without weights or shards that it should have, or with files that are not safetensors.
pub fn open_folder(folder: &Path, problems: &mut Vec<Problem>) -> Result<Box<dyn WeightSource>> {
    let index = match WeightFiles::of(folder)? {
        WeightFiles::Single(path) => return Ok(Box::new(SafetensorsFile::open(&path)?)),
        WeightFiles::Index(path) => path,
    };
    let mut shards = Shards { files: Vec::new(), file_of: HashMap::new() };
    let listed = read_index(&index)?;
    let missing: Vec<Problem> = listed
        .keys()
        .map(|shard| folder.join(shard))
        .filter(|path| !path.exists())
        .map(|path| {
            let what = format!("is missing, though {} names it; download it", index.display());
            Problem::new(path.display().to_string(), what)
        })
        .collect();
    if !missing.is_empty() {
        return Err(Error::input(format!("{} lacks shards", folder.display()), missing));
    }
    for (shard, names) in listed {
        let file = SafetensorsFile::open(&folder.join(shard))?;
        for name in names {
            if file.header.info(&name).is_none() {
                problems.push(Problem::new(
                    file.place(&name),
                    format!("is not in this shard, though {} says so", index.display()),
                ));
            }
            shards.file_of.insert(name, shards.files.len());
        }
        shards.files.push(file);
    }
    Ok(Box::new(shards))
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

/// Values in double precision with a shape, row-major: what reference files hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor64 {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values; as many as the product of `shape`.
    pub data: Vec<f64>,
}

/// Every tensor of one safetensors file, as `f64`: floats of every width and integers (exact up
/// to 2^53), as reference files hold them.
///
/// # Errors
/// A file that is missing, cut short or of another kind; formats that are none of these, all
/// named.
pub fn read_safetensors_f64(path: &Path) -> Result<BTreeMap<String, Tensor64>> {
    let (_, map) = map(path)?;
    let file = SafeTensors::deserialize(&map).map_err(|e| Error::file(path, foreign(&map, &e)))?;
    let mut tensors = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, view) in file.tensors() {
        match to_f64(view.dtype(), view.data()) {
            Some(data) => {
                tensors.insert(name, Tensor64 { shape: view.shape().to_vec(), data });
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
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn to_f64(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    Some(match dtype {
        Dtype::F64 => words::<8>(bytes).map(f64::from_le_bytes).collect(),
        Dtype::F32 => words::<4>(bytes).map(|b| f64::from(f32::from_le_bytes(b))).collect(),
        Dtype::F16 => words::<2>(bytes).map(|b| f16::from_le_bytes(b).to_f64()).collect(),
        Dtype::BF16 => words::<2>(bytes).map(|b| bf16::from_le_bytes(b).to_f64()).collect(),
        Dtype::I64 => words::<8>(bytes).map(|b| i64::from_le_bytes(b) as f64).collect(),
        Dtype::I32 => words::<4>(bytes).map(|b| f64::from(i32::from_le_bytes(b))).collect(),
        Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&b| f64::from(b)).collect(),
        _ => return None,
    })
}

/// Maps a file into memory.
pub(super) fn map(path: &Path) -> Result<(File, memmap2::Mmap)> {
    let file =
        open_file(path)?.ok_or_else(|| Error::io("read", path, ErrorKind::NotFound.into()))?;
    if file.metadata().map_err(|e| Error::io("read", path, e))?.len() == 0 {
        return Err(Error::file(path, "is empty; copy or download it again"));
    }
    // SAFETY: the map is only read, and for the time of one call. If another process shortens the
    // file meanwhile the system ends this one; oddgrad never writes into an existing file.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("read", path, e))?;
    Ok((file, map))
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
        return "is a GGUF file, not safetensors; make a model folder of it with `oddgrad import`"
            .into();
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
