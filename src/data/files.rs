//! Files of rows, before anybody asks what is in a row: `.jsonl`, `.jsonl.gz`, `.json`, `.parquet`.
//!
//! A record that cannot be read (not JSON, not UTF-8) is handed on with its reason, so that it is
//! reported beside all other problems. A file that breaks off is a problem of its own.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use crate::error::{Error, Problem, Result};

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Path of the file it was read from.
    pub file: PathBuf,
    /// 1-based line, or 1-based index of the row in a JSON array or a Parquet file.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A row's columns, or the reason why it has none.
pub(super) type JsonRow = std::result::Result<Map<String, Value>, String>;

/// What a path's name says about its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Lines,
    GzipLines,
    Json,
    Parquet,
    Text,
}

impl Format {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let ends = |suffix: &str| name.ends_with(suffix);
        if ends(".jsonl") || ends(".ndjson") {
            Some(Self::Lines)
        } else if ends(".jsonl.gz") || ends(".ndjson.gz") || ends(".json.gz") {
            Some(Self::GzipLines)
        } else if ends(".json") {
            Some(Self::Json)
        } else if ends(".parquet") {
            Some(Self::Parquet)
        } else if ends(".txt") {
            Some(Self::Text)
        } else {
            None
        }
    }
}

/// The files that `paths` name: files as they are, folders by what lies in them (sub-folders too,
/// hidden ones not), in order of their names. `texts` says whether `.txt` counts as data.
pub(super) fn expand(paths: &[PathBuf], texts: bool) -> Result<Vec<(PathBuf, Format)>> {
    let known = if texts { ".txt, " } else { "" };
    let known = format!("{known}.jsonl, .jsonl.gz, .json and .parquet");
    let mut files = Vec::new();
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        if meta.is_dir() {
            let mut found = Vec::new();
            walk(path, texts, &mut found)?;
            // Beside data files a .json is a description (dataset_info.json), not data.
            if found.iter().any(|(_, format)| *format != Format::Json) {
                found.retain(|(_, format)| *format != Format::Json);
            }
            if found.is_empty() {
                return Err(Error::file(
                    path,
                    format!("the folder holds no data: no {known} file"),
                ));
            }
            files.extend(found);
        } else if !meta.is_file() {
            return Err(Error::file(path, "is neither a file nor a folder; name one"));
        } else {
            match Format::of(path).filter(|f| texts || *f != Format::Text) {
                Some(format) => files.push((path.clone(), format)),
                None => {
                    let what =
                        format!("what is in it cannot be told from its name; {known} are read");
                    return Err(Error::file(path, what));
                }
            }
        }
    }
    if files.is_empty() {
        return Err(Error::input("no data file is named", vec![]));
    }
    Ok(files)
}

fn walk(folder: &Path, texts: bool, found: &mut Vec<(PathBuf, Format)>) -> Result<()> {
    let io = |e| Error::io("read", folder, e);
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).map_err(io)?.collect::<std::io::Result<_>>().map_err(io)?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        // Links to folders are not followed: they can lead in a circle.
        if entry.file_type().map_err(io)?.is_dir() {
            walk(&path, texts, found)?;
        } else if let Some(format) = Format::of(&path).filter(|f| texts || *f != Format::Text)
            && path.is_file()
        {
            found.push((path, format));
        }
    }
    Ok(())
}

/// Calls `each` with every record of a file, in order. What is wrong with the file as a whole, so
/// that no record can follow, comes back as a problem.
pub(super) fn read_records(
    path: &Path,
    format: Format,
    each: &mut dyn FnMut(Source, JsonRow),
) -> Result<Option<Problem>> {
    let open = || File::open(path).map_err(|e| Error::io("read", path, e));
    match format {
        Format::Lines => read_lines(path, &mut BufReader::new(open()?), each),
        Format::GzipLines => {
            let mut reader = BufReader::new(MultiGzDecoder::new(BufReader::new(open()?)));
            let start = reader.fill_buf().map_err(|e| Error::io("read", path, e))?;
            if first_byte(start) == Some(b'[') {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
                return Ok(read_array(path, &bytes, each));
            }
            read_lines(path, &mut reader, each)
        }
        Format::Json => {
            let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
            // Many a .json file on the hub holds JSON lines.
            if first_byte(&bytes) == Some(b'{') {
                return read_lines(path, &mut bytes.as_slice(), each);
            }
            Ok(read_array(path, &bytes, each))
        }
        Format::Parquet => Ok(read_parquet(path, open()?, each)),
        Format::Text => unreachable!("text files have no records"),
    }
}

/// The bytes without a byte-order mark, which editors on Windows write.
pub(super) fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

fn first_byte(bytes: &[u8]) -> Option<u8> {
    without_bom(bytes).iter().copied().find(|b| !b.is_ascii_whitespace())
}

fn read_lines(
    path: &Path,
    reader: &mut dyn BufRead,
    each: &mut dyn FnMut(Source, JsonRow),
) -> Result<Option<Problem>> {
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let source = Source { file: path.to_path_buf(), line };
        match reader.read_until(b'\n', &mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            // A broken gzip stream ends the file; what came before it is judged all the same.
            Err(e) => {
                let what = format!("cannot be read further: {e}");
                return Ok(Some(Problem::new(source.to_string(), what)));
            }
        }
        let line = if line == 1 { without_bom(&bytes) } else { &bytes };
        if !line.trim_ascii().is_empty() {
            each(source, record_of_line(line));
        }
    }
    Ok(None)
}

fn record_of_line(line: &[u8]) -> JsonRow {
    let text = std::str::from_utf8(line).map_err(|e| {
        format!("not UTF-8 (byte {} of the line); save the file as UTF-8", e.valid_up_to() + 1)
    })?;
    let value: Value =
        serde_json::from_str(text).map_err(|e| format!("not JSON: {}", without_line(&e)))?;
    object(value)
}

/// Serde counts lines within the text it was given, which here is one line of many.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let cut = text.rfind(" at line ").unwrap_or(text.len());
    format!("{} at column {}", &text[..cut], error.column())
}

fn object(value: Value) -> JsonRow {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(format!("a row must be a JSON object, this is {}", kind(&other))),
    }
}

/// What a JSON value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn read_array(path: &Path, bytes: &[u8], each: &mut dyn FnMut(Source, JsonRow)) -> Option<Problem> {
    let bytes = without_bom(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            let place = format!("{} (text line {line})", path.display());
            return Some(Problem::new(place, "not UTF-8; save the file as UTF-8"));
        }
    };
    match serde_json::from_str::<Vec<Value>>(text) {
        Ok(values) => {
            for (index, value) in values.into_iter().enumerate() {
                each(Source { file: path.to_path_buf(), line: index + 1 }, object(value));
            }
            None
        }
        Err(e) => {
            Some(Problem::new(path.display().to_string(), format!("not a JSON array of rows: {e}")))
        }
    }
}

fn read_parquet(path: &Path, file: File, each: &mut dyn FnMut(Source, JsonRow)) -> Option<Problem> {
    // The reader asserts what a damaged file can violate; that must not end the program.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
        for (index, row) in reader.get_row_iter(None).map_err(|e| e.to_string())?.enumerate() {
            let source = Source { file: path.to_path_buf(), line: index + 1 };
            let row = row.map_err(|e| format!("row {}: {e}", index + 1))?;
            each(source, Ok(columns(&row)));
        }
        Ok::<(), String>(())
    }));
    let what: String = match outcome {
        Ok(Ok(())) => return None,
        Ok(Err(what)) => what.trim_start_matches("Parquet error: ").chars().take(300).collect(),
        Err(_) => "the file is damaged".into(),
    };
    Some(Problem::new(path.display().to_string(), format!("not a readable Parquet file: {what}")))
}

fn columns(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// Text, lists and structures as JSON has them; numbers only need to be recognised as numbers.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Str(text) => Value::String(text.clone()),
        // Files written without a logical type hold text as plain bytes.
        Field::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => Value::String(text.to_string()),
            Err(_) => Value::Bool(false),
        },
        Field::Group(row) => Value::Object(columns(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::Double(x) => serde_json::Number::from_f64(*x).map_or(Value::from(0), Value::Number),
        Field::Long(x) => Value::from(*x),
        Field::Int(x) => Value::from(*x),
        _ => Value::from(0),
    }
}
