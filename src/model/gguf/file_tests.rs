use super::*;
use crate::dtype::DType;

/// A file by its parts, each as it is written, right or wrong.
struct Parts {
    version: u32,
    /// Written in place of the real number of tensors, of keys.
    counts: [Option<u64>; 2],
    /// Key, number of the type, bytes of the value.
    keys: Vec<(&'static str, u32, Vec<u8>)>,
    /// Name, dimensions with the innermost first, number of the type, offset.
    tensors: Vec<(&'static str, Vec<u64>, u32, u64)>,
    /// Bytes of values.
    data: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// An array that says it has `count` values.
fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat()
}

impl Parts {
    fn new() -> Self {
        Self {
            version: 3,
            counts: [None; 2],
            keys: vec![
                ("general.architecture", 8, text("llama")),
                ("a.number", 4, 7u32.to_le_bytes().to_vec()),
                ("a.float", 6, 1e-5f32.to_le_bytes().to_vec()),
                ("a.flag", 7, vec![1]),
                ("a.list", 9, array(5, 2, &[1, 0, 0, 0, 255, 255, 255, 255])),
            ],
            tensors: vec![("x", vec![3, 2], 0, 0), ("y", vec![32, 2], 8, 32)],
            data: 100,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        let real = [self.tensors.len() as u64, self.keys.len() as u64];
        for (count, real) in self.counts.iter().zip(real) {
            out.extend(count.unwrap_or(real).to_le_bytes());
        }
        for (key, kind, value) in &self.keys {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for (name, dimensions, kind, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        let start = out.len().next_multiple_of(32);
        out.resize(start, 0);
        out.extend((0..self.data).map(|i| (i % 7) as u8));
        out
    }
}

fn opened(bytes: &[u8]) -> Result<GgufFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    // The file stays open.
    GgufFile::open(&path)
}

#[track_caller]
fn refused(bytes: &[u8], phrases: &[&str]) {
    let error = opened(bytes).expect_err("it is refused").to_string();
    for phrase in phrases {
        assert!(error.contains(phrase), "`{phrase}` is missing: {error}");
    }
}

#[track_caller]
fn refused_with(change: impl Fn(&mut Parts), phrases: &[&str]) {
    let mut parts = Parts::new();
    change(&mut parts);
    refused(&parts.bytes(), phrases);
}

#[test]
fn what_is_written_is_read() {
    for version in [2, 3] {
        let bytes = Parts { version, ..Parts::new() }.bytes();
        let file = opened(&bytes).unwrap();
        let get = |key: &str| file.metadata.get(key).cloned();
        assert_eq!(get("general.architecture"), Some(Value::Text("llama".into())));
        assert_eq!(get("a.number"), Some(Value::Unsigned(7)));
        assert_eq!(get("a.float"), Some(Value::Float(1e-5)));
        assert_eq!(get("a.flag"), Some(Value::Bool(true)));
        assert_eq!(get("a.list"), Some(Value::List(vec![Value::Signed(1), Value::Signed(-1)])));
        assert_eq!(file.tensors()["x"].shape, [2, 3], "the outermost first");
        assert_eq!(file.tensors()["y"].kind, BlockType::Q8_0);
        let data = &bytes[bytes.len() - 100..];
        let mut values = vec![9.0];
        file.read("x", &mut values).unwrap();
        assert_eq!(values, DType::F32.decode(&data[..24]));
        file.read("y", &mut values).unwrap();
        let mut want = Vec::new();
        BlockType::Q8_0.decode(&data[32..], &mut want);
        assert_eq!(values, want);
        assert!(file.read("z", &mut values).is_err());
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let bytes = Parts::new().bytes();
    for length in 0..bytes.len() {
        refused(&bytes[..length], &["m.gguf"]);
    }
}

#[test]
fn foreign_files_are_refused() {
    refused(b"", &["is empty"]);
    refused(b"PK\x03\x04 and more", &["is not a GGUF file"]);
    refused_with(|p| p.version = 1, &["version 1; versions 2 and 3"]);
    refused_with(|p| p.version = 9, &["version 9"]);
    refused_with(|p| p.version = 3 << 24, &["big-endian"]);
}

#[test]
fn lying_counts_and_lengths_are_refused_before_room_is_made() {
    for lie in [3, 1 << 20, 1 << 40, u64::MAX] {
        refused_with(|p| p.counts = [Some(lie), None], &["m.gguf"]);
        refused_with(|p| p.counts = [None, Some(lie.saturating_add(5))], &["m.gguf"]);
        let long = |p: &mut Parts| {
            p.keys.push(("a.text", 8, lie.saturating_add(600).to_le_bytes().into()))
        };
        refused_with(long, &["a.text is a text of"]);
        for kind in [0, 4, 8, 9, 12] {
            let many = |p: &mut Parts| {
                p.keys.push(("a.many", 9, array(kind, lie.saturating_add(600), &[])))
            };
            refused_with(many, &["a.many is an array of", "damaged"]);
        }
    }
    refused_with(|p| p.counts = [Some(u64::MAX), None], &["number of tensors is 1844"]);
    refused_with(|p| p.counts = [None, Some(u64::MAX)], &["number of keys is 1844"]);
}

#[test]
fn values_that_are_none_are_refused() {
    refused_with(
        |p| p.keys.push(("a.x", 13, vec![0; 8])),
        &["a.x has a value of the unknown type 13"],
    );
    refused_with(|p| p.keys.push(("a.x", 7, vec![2])), &["a.x is 2, neither true"]);
    let latin = [&1u64.to_le_bytes()[..], &[0xe9]].concat();
    refused_with(|p| p.keys.push(("a.x", 8, latin.clone())), &["a.x is not UTF-8"]);
    refused_with(|p| p.keys.push(("a.flag", 7, vec![0])), &["has the key a.flag twice"]);
    let list = |p: &mut Parts| p.keys.push(("a.x", 9, array(99, 1, &[0; 8])));
    refused_with(list, &["a.x has a value of the unknown type 99"]);
    // Arrays of one array each.
    let nested = (0..40).fold(array(0, 0, &[]), |inner, _| array(9, 1, &inner));
    refused_with(
        |p| p.keys.push(("a.deep", 9, nested.clone())),
        &["a.deep has arrays within arrays"],
    );
    for wrong in [0u32, 24, 1 << 30] {
        let alignment = ("general.alignment", 4, wrong.to_le_bytes().to_vec());
        refused_with(|p| p.keys.push(alignment.clone()), &["general.alignment is"]);
    }
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    let tensor = |tensor: (&'static str, Vec<u64>, u32, u64), phrases: &[&str]| {
        refused_with(|p| p.tensors[1] = tensor.clone(), phrases);
    };
    tensor(("y", vec![32, 2], 11, 32), &["m.gguf: y: has type 11 (Q3_K)"]);
    tensor(("y", vec![32, 2], 1000, 32), &["has type 1000 (unknown)"]);
    tensor(("y", vec![33, 2], 8, 32), &["has rows of 33 values"]);
    tensor(("y", vec![32, 2], 8, 33), &["begins at 33"]);
    tensor(("y", vec![32, 2], 8, 0), &["overlaps with"]);
    tensor(("y", vec![32, 2], 8, 64), &["ends at byte", "cut short"]);
    tensor(("y", vec![32, 2], 8, u64::MAX - 31), &["is larger than any file"]);
    tensor(("y", vec![32, 3], 8, 32), &["ends at byte"]);
    tensor(("y", vec![1 << 40, 1 << 40], 0, 32), &["is larger than any file"]);
    tensor(("y", vec![u64::MAX, 2], 0, 32), &["is larger than any file"]);
    tensor(("y", vec![1 << 62, 1], 0, 32), &["is larger than any file"]);
    tensor(("y", vec![0, 2], 0, 32), &["y has a dimension of 0"]);
    tensor(("y", vec![], 0, 32), &["y has 0 dimensions"]);
    tensor(("y", vec![1; 9], 0, 32), &["y has 9 dimensions"]);
    tensor(("x", vec![32, 2], 8, 32), &["m.gguf: x: is in the table of tensors twice"]);
    let all = |p: &mut Parts| p.tensors = vec![("a", vec![1], 10, 0), ("b", vec![1], 16, 0)];
    refused_with(all, &["a: has type 10 (Q2_K)", "b: has type 16 (IQ2_XXS)"]);
}

#[test]
fn a_file_is_told_by_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    assert!(!is_gguf(&path).unwrap() && !is_gguf(dir.path()).unwrap());
    for (bytes, want) in [(&b"GG"[..], false), (b"GGUF", true), (b"{\"a\": 1}", false)] {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(is_gguf(&path).unwrap(), want);
    }
}
