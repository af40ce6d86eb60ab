//! GGUF files, versions 2 and 3: a header, metadata by keys, a table of tensors, and their values.
//! Whatever the file says of lengths, counts and offsets is compared with what is left of it before
//! anything is made room for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::blocks::BlockType;
use super::metadata::{Metadata, Value};
use crate::error::{Error, Problem, Result};
use crate::files::open_file;
use crate::model::source::map;

/// How a file begins.
const MAGIC: &[u8] = b"GGUF";
/// Most keys, and most tensors, of a file.
const MOST: u64 = 1 << 16;
/// Most single values in all metadata: the largest vocabularies have a third of it.
const MOST_VALUES: usize = 1 << 22;
/// Longest key or name in bytes, as the format has it.
const LONGEST_NAME: u64 = 65_535;
/// Longest text in bytes; chat templates have a hundredth of it.
const LONGEST_TEXT: u64 = 16 << 20;
/// Arrays within arrays.
const DEEPEST: usize = 4;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;
/// Where values begin and tensors start, unless the file says otherwise.
pub(super) const ALIGNMENT: u64 = 32;

/// What was read, or why not.
type Found<T> = std::result::Result<T, String>;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub kind: BlockType,
    /// Where they are in the file.
    start: u64,
    bytes: u64,
}

/// A GGUF file, of which everything but the tensors' values was read.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    /// What it says of the model and its tokenizer.
    pub metadata: Metadata,
    tensors: BTreeMap<String, GgufTensor>,
}

/// Whether a path is a file that begins as GGUF files do.
///
/// # Errors
/// A file that cannot be read.
pub fn is_gguf(path: &Path) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let Some(file) = open_file(path)? else { return Ok(false) };
    let mut start = Vec::new();
    file.take(4).read_to_end(&mut start).map_err(|e| Error::io("read", path, e))?;
    Ok(start == MAGIC)
}

impl GgufFile {
    /// Reads header, metadata and the table of tensors.
    ///
    /// # Errors
    /// A file that is missing, cut short, of another kind or version, or that contradicts itself;
    /// tensors of types that are not decoded, all at once.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, bytes) = map(path)?;
        let refuse = |what: String| Error::file(path, what);
        let mut cursor = Cursor { bytes: &bytes, at: 0, values: 0 };
        let (tensors, keys) = cursor.header().map_err(refuse)?;
        let metadata = Metadata::new(path, cursor.metadata(keys).map_err(refuse)?);
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 16 => *n,
            Some(other) => {
                let what = format!("general.alignment is {other}, not a power of two up to 65536");
                return Err(refuse(what));
            }
        };
        let infos = cursor.tensors(tensors).map_err(refuse)?;
        let start = (cursor.at as u64).next_multiple_of(alignment);
        let tensors = placed(path, infos, start, bytes.len() as u64, alignment)?;
        Ok(Self { path: path.to_owned(), file, metadata, tensors })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor by name.
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// Replaces what is in `values` by a tensor's values, row-major.
    ///
    /// # Errors
    /// A tensor that is not there; whatever the disk refuses.
    pub fn read(&self, name: &str, values: &mut Vec<f32>) -> Result<()> {
        let tensor = self.tensors.get(name);
        let tensor =
            tensor.ok_or_else(|| Error::file(&self.path, format!("{name} is not there")))?;
        let io = |e| Error::io("read", &self.path, e);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(tensor.start)).map_err(io)?;
        values.clear();
        // Whole blocks at a time.
        let block = tensor.kind.block().1 as u64;
        let most = (1 << 20) / block * block;
        let mut buffer = vec![0; tensor.bytes.min(most) as usize];
        let mut left = tensor.bytes;
        while left > 0 {
            let bytes = &mut buffer[..left.min(most) as usize];
            file.read_exact(bytes).map_err(io)?;
            left -= bytes.len() as u64;
            tensor.kind.decode(bytes, values);
        }
        Ok(())
    }
}

/// A line of the table of tensors.
struct Info {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// The tensors with their places in a file of `len` bytes whose values begin at `start`.
fn placed(
    path: &Path,
    infos: Vec<Info>,
    start: u64,
    len: u64,
    alignment: u64,
) -> Result<BTreeMap<String, GgufTensor>> {
    let mut tensors = BTreeMap::new();
    let mut problems = Vec::new();
    for info in infos {
        let name = info.name.clone();
        match place(info, start, len, alignment) {
            Err(what) => problems.push(Problem::new(format!("{}: {name}", path.display()), what)),
            Ok(tensor) => match tensors.entry(name) {
                std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(tensor)),
                std::collections::btree_map::Entry::Occupied(entry) => problems.push(Problem::new(
                    format!("{}: {}", path.display(), entry.key()),
                    "is in the table of tensors twice",
                )),
            },
        }
    }
    let mut by_place: Vec<(&String, &GgufTensor)> = tensors.iter().collect();
    by_place.sort_by_key(|(_, tensor)| tensor.start);
    for pair in by_place.windows(2) {
        let [(before, a), (name, b)] = pair else { continue };
        if a.start + a.bytes > b.start {
            let what = format!("overlaps with {before}");
            problems.push(Problem::new(format!("{}: {name}", path.display()), what));
        }
    }
    if problems.is_empty() {
        return Ok(tensors);
    }
    Err(Error::input(format!("{} cannot be read", path.display()), problems))
}

fn place(info: Info, start: u64, len: u64, alignment: u64) -> Found<GgufTensor> {
    let Info { shape, kind, offset, .. } = info;
    let kind = BlockType::of_number(kind)?;
    let (elements, size) = kind.block();
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(elements) {
        return Err(format!("has rows of {row} values, which {kind:?} stores {elements} together"));
    }
    let bytes = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let bytes = bytes.and_then(|n| (n / elements as u64).checked_mul(size as u64));
    let end = |bytes: u64| start.checked_add(offset)?.checked_add(bytes);
    let Some((bytes, end)) = bytes.and_then(|bytes| Some((bytes, end(bytes)?))) else {
        return Err(format!("with shape {shape:?} at {offset} is larger than any file"));
    };
    if !offset.is_multiple_of(alignment) {
        return Err(format!("begins at {offset}, not at a multiple of {alignment}"));
    }
    if end > len {
        return Err(format!(
            "ends at byte {end}, but the file has {len}; it is cut short: copy or download it again"
        ));
    }
    Ok(GgufTensor { shape, kind, start: start + offset, bytes })
}

/// Where the reading of a file is.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Values of metadata so far.
    values: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, bytes: u64, what: &str) -> Found<&'a [u8]> {
        if bytes > self.left() {
            return Err(format!(
                "{what} takes {bytes} bytes at byte {}, but the file has only {} more; it is cut \
                 short or damaged: copy or download it again",
                self.at,
                self.left()
            ));
        }
        let start = self.at;
        self.at += bytes as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Found<[u8; N]> {
        self.take(N as u64, what).map(|bytes| bytes.try_into().expect("it took as many"))
    }

    fn u32(&mut self, what: &str) -> Found<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Found<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, longest: u64, what: &str) -> Found<String> {
        let length = self.u64(what)?;
        if length > longest.min(self.left()) {
            return Err(format!(
                "{what} is a text of {length} bytes at byte {}; {} are left in the file, and more \
                 than {longest} are not read",
                self.at,
                self.left()
            ));
        }
        let bytes = self.take(length, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// Numbers of tensors and of keys.
    fn header(&mut self) -> Found<(u64, u64)> {
        let magic: [u8; 4] = self.array("the first word")?;
        if magic != MAGIC {
            return Err("is not a GGUF file: it does not begin with GGUF".into());
        }
        match self.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() <= 0xffff => {
                return Err(
                    "is a GGUF file for big-endian machines; take the little-endian one".into()
                );
            }
            version => {
                return Err(format!("is GGUF of version {version}; versions 2 and 3 are read"));
            }
        }
        let tensors = self.count("the number of tensors", 24)?;
        let keys = self.count("the number of keys", 13)?;
        Ok((tensors, keys))
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64) -> Found<u64> {
        let count = self.u64(what)?;
        if count > (self.left() / least).min(MOST) {
            return Err(format!(
                "{what} is {count}, more than the file can hold or any model has; it is damaged"
            ));
        }
        Ok(count)
    }

    fn metadata(&mut self, keys: u64) -> Found<BTreeMap<String, Value>> {
        let mut map = BTreeMap::new();
        for index in 0..keys {
            let key = self.text(LONGEST_NAME, &format!("key {index} of the metadata"))?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key, DEEPEST)?;
            if map.insert(key.clone(), value).is_some() {
                return Err(format!("has the key {key} twice"));
            }
        }
        Ok(map)
    }

    fn value(&mut self, kind: u32, key: &str, deeper: usize) -> Found<Value> {
        self.values += 1;
        if self.values > MOST_VALUES {
            return Err(format!("has more than {MOST_VALUES} values of metadata, up to {key}"));
        }
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::of_f32(f32::from_le_bytes(self.array(key)?)),
            7 => match u8::from_le_bytes(self.array(key)?) {
                bit @ (0 | 1) => Value::Bool(bit == 1),
                other => return Err(format!("{key} is {other}, neither true (1) nor false (0)")),
            },
            8 => Value::Text(self.text(LONGEST_TEXT, key)?),
            9 => self.list(key, deeper)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(format!("{key} has a value of the unknown type {other}")),
        })
    }

    fn list(&mut self, key: &str, deeper: usize) -> Found<Value> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        if count > (self.left() / least).min((MOST_VALUES - self.values) as u64) {
            return Err(format!(
                "{key} is an array of {count} values, more than the file can hold or any model has; \
                 it is damaged"
            ));
        }
        let Some(deeper) = deeper.checked_sub(1) else {
            return Err(format!("{key} has arrays within arrays, more than {DEEPEST} deep"));
        };
        (0..count).map(|_| self.value(kind, key, deeper)).collect::<Found<_>>().map(Value::List)
    }

    fn tensors(&mut self, count: u64) -> Found<Vec<Info>> {
        let mut infos = Vec::new();
        for index in 0..count {
            let name = self.text(LONGEST_NAME, &format!("the name of tensor {index}"))?;
            let dimensions = self.u32(&name)?;
            if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
                return Err(format!("{name} has {dimensions} dimensions; 1 to 4 are possible"));
            }
            let mut shape = Vec::new();
            for _ in 0..dimensions {
                let size = self.u64(&name)?;
                match usize::try_from(size) {
                    Ok(size @ 1..) => shape.push(size),
                    _ => return Err(format!("{name} has a dimension of {size}")),
                }
            }
            // A file has the innermost first.
            shape.reverse();
            let (kind, offset) = (self.u32(&name)?, self.u64(&name)?);
            infos.push(Info { name, shape, kind, offset });
        }
        Ok(infos)
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
