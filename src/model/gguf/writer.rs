//! Writes GGUF files, version 3: header, metadata, table of tensors, and each tensor's values when
//! its turn comes.

use std::io::Write;
use std::path::Path;

use super::blocks::BlockType;
use super::file::ALIGNMENT;
use super::metadata::Value;
use crate::error::{Error, Problem, Result};
use crate::files::write_whole;

/// A tensor to be written.
pub(super) struct Unwritten<'a> {
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    pub kind: BlockType,
    /// Gives its values, as many as the product of `shape`.
    pub values: Box<dyn Fn() -> Result<Vec<f32>> + 'a>,
}

impl Unwritten<'_> {
    fn bytes(&self) -> u64 {
        let (elements, bytes) = self.kind.block();
        (self.shape.iter().product::<usize>() / elements * bytes) as u64
    }
}

/// Writes a file, whole or not at all.
///
/// # Errors
/// Values that are not finite or that their type cannot hold, all tensors at once; the errors of those
/// that give values; whatever the disk refuses.
pub(super) fn write(path: &Path, keys: &[(String, Value)], tensors: &[Unwritten]) -> Result<()> {
    write_whole(path, &mut |out| {
        let io = |e| Error::io("write", path, e);
        let head = head(keys, tensors);
        out.write_all(&head).map_err(io)?;
        let mut at = head.len() as u64;
        let mut problems = Vec::new();
        for tensor in tensors {
            pad(out, &mut at).map_err(io)?;
            let values = (tensor.values)()?;
            let largest = tensor.kind.largest();
            let bad = values.iter().filter(|x| !x.is_finite()).count();
            let large = values.iter().filter(|x| x.is_finite() && x.abs() > largest).count();
            let what = match (bad, large) {
                (1.., _) => format!("has {bad} values that are not finite"),
                (0, 1..) => format!(
                    "has {large} values beyond {largest}, the largest that {:?} holds; write f32",
                    tensor.kind
                ),
                (0, 0) => {
                    let bytes = tensor.kind.encode(&values);
                    assert_eq!(bytes.len() as u64, tensor.bytes(), "{}", tensor.name);
                    out.write_all(&bytes).map_err(io)?;
                    at += bytes.len() as u64;
                    continue;
                }
            };
            problems.push(Problem::new(tensor.name.clone(), what));
        }
        if !problems.is_empty() {
            return Err(Error::input("these weights are not written", problems));
        }
        // Readers expect the last tensor to be filled up as well.
        pad(out, &mut at).map_err(io)
    })
}

fn pad(out: &mut dyn Write, at: &mut u64) -> std::io::Result<()> {
    let zeros = (at.next_multiple_of(ALIGNMENT) - *at) as usize;
    *at += zeros as u64;
    out.write_all(&[0; ALIGNMENT as usize][..zeros])
}

/// Everything before the values.
fn head(keys: &[(String, Value)], tensors: &[Unwritten]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut out, key);
        out.extend(number_of(value).to_le_bytes());
        put(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            out.extend((size as u64).to_le_bytes());
        }
        out.extend(tensor.kind.number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + tensor.bytes()).next_multiple_of(ALIGNMENT);
    }
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The number of a value's type in a file: integers and floats of 32 bits are enough here.
fn number_of(value: &Value) -> u32 {
    match value {
        Value::Unsigned(_) => 4,
        Value::Signed(_) => 5,
        Value::Float(_) => 6,
        Value::Bool(_) => 7,
        Value::Text(_) => 8,
        Value::List(_) => 9,
    }
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unsigned(n) => {
            let n = u32::try_from(*n).expect("sizes and ids of models are below 2^32");
            out.extend(n.to_le_bytes());
        }
        Value::Signed(n) => {
            let n = i32::try_from(*n).expect("kinds of tokens are small");
            out.extend(n.to_le_bytes());
        }
        Value::Float(x) => out.extend((*x as f32).to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::Text(t) => text(out, t),
        Value::List(list) => {
            out.extend(list.first().map_or(8, number_of).to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|value| put(out, value));
        }
    }
}
