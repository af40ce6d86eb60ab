//! Files of rows, before anybody asks what is in a row: `.jsonl`, `.jsonl.gz`, `.json`, `.parquet`.
//!
//! A record that cannot be read (not JSON, not UTF-8) is handed on with its reason, so that it is
//! reported beside all other problems. A file that breaks off is a problem of its own. A row has
//! at most [`LONGEST_ROW`] bytes, whatever the file says.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io::{BufRead, BufReader, Bytes, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::data::parquet_file;
use crate::error::{Error, Problem, Result};
use crate::files::open_file;
use crate::hub;

/// Longest row in bytes.
pub(super) const LONGEST_ROW: usize = 32 << 20;

/// What a value says in whose place it stands: one that JSON does not have (NaN, a date, bytes).
pub(super) const FOREIGN: &str = "a value that JSON does not have (NaN, infinity, a date, bytes)";

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

/// Which files of a folder are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Split {
    /// What is trained on.
    #[default]
    Train,
    /// What training is judged by.
    Validation,
    /// What is kept for the end.
    Test,
}

impl Split {
    /// The split that a file's name or its folder's names say, by the words and separators that
    /// the `datasets` library knows.
    fn of(path: &Path) -> Option<Self> {
        let word = |word: &str| match word.to_ascii_lowercase().as_str() {
            "train" | "training" => Some(Self::Train),
            "validation" | "valid" | "dev" | "val" => Some(Self::Validation),
            "test" | "testing" | "eval" | "evaluation" => Some(Self::Test),
            _ => None,
        };
        let parts: Vec<_> = path.components().map(|c| c.as_os_str().to_string_lossy()).collect();
        let separates = |c: char| matches!(c, '-' | '.' | '_' | ' ') || c.is_ascii_digit();
        parts.iter().rev().find_map(|part| part.split(separates).find_map(word))
    }
}

/// What [`expand`] found.
pub(super) struct Found {
    pub files: Vec<(PathBuf, Format)>,
    /// Lines for the user: which files of a folder are left out.
    pub notes: Vec<String>,
}

/// The files that `paths` name: files as they are, folders by what lies in them (sub-folders too,
/// hidden ones not), in order of their names. Of a folder whose files name splits, those of
/// `split`. `texts` says whether `.txt` counts as data.
pub(super) fn expand(paths: &[PathBuf], texts: bool, split: Split) -> Result<Found> {
    let known = if texts { ".txt, " } else { "" };
    let known = format!("{known}.jsonl, .jsonl.gz, .json and .parquet");
    let mut all = Found { files: Vec::new(), notes: Vec::new() };
    for path in paths {
        let path = &hub::data_folder(path)?;
        let meta = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        if meta.is_dir() {
            let mut found = Vec::new();
            let mut saved = false;
            walk(path, texts, &mut found, &mut saved)?;
            if saved {
                return Err(saved_to_disk(path));
            }
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
            all.notes.extend(keep_split(path, &mut found, split)?);
            all.files.extend(found);
        } else if !meta.is_file() {
            return Err(Error::file(path, "is neither a file nor a folder; name one"));
        } else {
            match Format::of(path).filter(|f| texts || *f != Format::Text) {
                Some(format) => all.files.push((path.clone(), format)),
                None if is_arrow(path) => return Err(saved_to_disk(path)),
                None => {
                    let what =
                        format!("what is in it cannot be told from its name; {known} are read");
                    return Err(Error::file(path, what));
                }
            }
        }
    }
    if all.files.is_empty() {
        return Err(Error::input("no data file is named", vec![]));
    }
    Ok(all)
}

fn is_arrow(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("arrow"))
}

fn saved_to_disk(path: &Path) -> Error {
    let what = "was written by datasets.save_to_disk (.arrow), which is not read; write it with \
                to_parquet or to_json (dataset.to_parquet(\"rows.parquet\"))";
    Error::file(path, what)
}

/// Leaves the files of one split in `found`, if their names say that there are several.
fn keep_split(
    folder: &Path,
    found: &mut Vec<(PathBuf, Format)>,
    split: Split,
) -> Result<Option<String>> {
    let within = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_path_buf();
    let names = |files: &[&PathBuf]| -> String {
        let mut text: Vec<String> =
            files.iter().take(8).map(|p| within(p).display().to_string()).collect();
        if files.len() > 8 {
            text.push(format!("{} more", files.len() - 8));
        }
        text.join(", ")
    };
    let mut splits: BTreeMap<Option<Split>, Vec<&PathBuf>> = BTreeMap::new();
    for (path, _) in &*found {
        splits.entry(Split::of(&within(path))).or_default().push(path);
    }
    let refuse = |what: String| Err(Error::file(folder, format!("{what}; name the files")));
    match (splits.get(&None), splits.len()) {
        (Some(_), 1) => return Ok(None),
        (Some(other), _) => {
            let named: Vec<&PathBuf> =
                splits.iter().filter(|(s, _)| s.is_some()).flat_map(|(_, f)| f.clone()).collect();
            let (named, other) = (names(&named), names(other));
            return refuse(format!(
                "some of its files name a split ({named}), some do not ({other})"
            ));
        }
        (None, _) => {}
    }
    // A run is judged by the validation split where there is one.
    let has = |split| splits.contains_key(&Some(split));
    let taken = match split {
        Split::Validation if !has(Split::Validation) => Split::Test,
        other => other,
    };
    let Some(files) = splits.get(&Some(taken)) else {
        let all: Vec<&PathBuf> = splits.values().flatten().copied().collect();
        return refuse(format!("none of its files is of the split wanted here ({})", names(&all)));
    };
    // `train_sft-00000-of-00004` and `train_prefs-00000-of-00001` are two splits.
    let stems: BTreeSet<String> = files
        .iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_string_lossy();
            Some(name[..name.find("-00")?].to_owned()).filter(|_| name.contains("-of-"))
        })
        .collect();
    if stems.len() > 1 {
        let stems: Vec<String> = stems.into_iter().collect();
        return refuse(format!("it holds several splits ({})", stems.join(", ")));
    }
    let left: Vec<&PathBuf> =
        splits.iter().filter(|(s, _)| **s != Some(taken)).flat_map(|(_, f)| f.clone()).collect();
    let note = (!left.is_empty()).then(|| {
        format!("{}: files of another split are left out: {}", folder.display(), names(&left))
    });
    let taken: BTreeSet<PathBuf> = files.iter().map(|path| (*path).clone()).collect();
    found.retain(|(path, _)| taken.contains(path));
    Ok(note)
}

fn walk(
    folder: &Path,
    texts: bool,
    found: &mut Vec<(PathBuf, Format)>,
    saved: &mut bool,
) -> Result<()> {
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
            walk(&path, texts, found, saved)?;
            continue;
        }
        *saved |= is_arrow(&path);
        if let Some(format) = Format::of(&path).filter(|f| texts || *f != Format::Text)
            && path.is_file()
        {
            found.push((path, format));
        }
    }
    Ok(())
}

/// What is done with each record; false stops the reading.
pub(super) type Each<'a> = dyn FnMut(Source, JsonRow) -> bool + 'a;

/// Calls `each` with every record of a file, in order. What is wrong with the file as a whole, so
/// that no record can follow, comes back as a problem.
pub(super) fn read_records(
    path: &Path,
    format: Format,
    each: &mut Each<'_>,
) -> Result<Option<Problem>> {
    let file = open_file(path)?;
    let absent = || Error::io("read", path, std::io::ErrorKind::NotFound.into());
    let file = BufReader::new(file.ok_or_else(absent)?);
    match format {
        Format::Lines | Format::Json => read_json(path, file, each),
        Format::GzipLines => read_json(path, BufReader::new(MultiGzDecoder::new(file)), each),
        Format::Parquet => Ok(parquet_file::read(path, file.into_inner(), each)),
        Format::Text => unreachable!("text files have no records"),
    }
}

/// The bytes without a byte-order mark, which editors on Windows write.
pub(super) fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Reads JSON lines, or, if the first line begins a value that it does not end, an array of rows or
/// rows that are spread over lines, as pretty-printers write them. Many a `.json` file on the hub
/// holds JSON lines, and many a `.jsonl` an array.
fn read_json(
    path: &Path,
    mut reader: impl BufRead,
    each: &mut Each<'_>,
) -> Result<Option<Problem>> {
    let mut first = Vec::new();
    let mut line = 0;
    while first.trim_ascii().is_empty() {
        first.clear();
        line += 1;
        match read_line(&mut reader, &mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => {
                let mark = if line == 1 { first.len() - without_bom(&first).len() } else { 0 };
                first.drain(..mark);
            }
            Err(e) => return Ok(Some(broken_at(path, line, &e))),
        }
    }
    let start = first.trim_ascii();
    if start.starts_with(b"[") || start == b"{" {
        let array = start.starts_with(b"[");
        return Ok(read_values(path, array, first.as_slice().chain(reader), each));
    }
    loop {
        let source = Source { file: path.to_path_buf(), line };
        if !first.trim_ascii().is_empty() && !each(source, record_of_line(&first)) {
            return Ok(None);
        }
        first.clear();
        line += 1;
        match read_line(&mut reader, &mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            // A broken gzip stream ends the file; what came before it is judged all the same.
            Err(e) => return Ok(Some(broken_at(path, line, &e))),
        }
    }
}

fn broken_at(path: &Path, line: usize, error: &std::io::Error) -> Problem {
    let source = Source { file: path.to_path_buf(), line };
    Problem::new(source.to_string(), format!("cannot be read further: {error}"))
}

fn too_long() -> std::io::Error {
    std::io::Error::other(format!("a row is longer than {} MiB", LONGEST_ROW >> 20))
}

/// Appends a line to `bytes`.
fn read_line(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> std::io::Result<usize> {
    let length = reader.by_ref().take(LONGEST_ROW as u64 + 1).read_until(b'\n', bytes)?;
    if length > LONGEST_ROW { Err(too_long()) } else { Ok(length) }
}

fn record_of_line(line: &[u8]) -> JsonRow {
    let text = std::str::from_utf8(line).map_err(|e| {
        format!("not UTF-8 (byte {} of the line); save the file as UTF-8", e.valid_up_to() + 1)
    })?;
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        // Python writes NaN and Infinity where JSON has nothing.
        Err(e) if text.contains("NaN") || text.contains("Infinity") => {
            serde_json::from_reader(PythonJson::new(line)).map_err(|_| not_json(&e))?
        }
        Err(e) => return Err(not_json(&e)),
    };
    object(value)
}

fn not_json(error: &serde_json::Error) -> String {
    format!("not JSON: {}", without_line(error))
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
        Value::String(text) if text == FOREIGN => FOREIGN,
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether a value that JSON does not have is somewhere in this one.
pub(super) fn holds_foreign(value: &Value) -> bool {
    match value {
        Value::String(text) => text == FOREIGN,
        Value::Array(list) => list.iter().any(holds_foreign),
        Value::Object(map) => map.values().any(holds_foreign),
        _ => false,
    }
}

/// Rows that are not one a line: the elements of one array, or objects one behind the other. Only
/// one of them is in memory at a time.
fn read_values(
    path: &Path,
    array: bool,
    reader: impl Read,
    each: &mut Each<'_>,
) -> Option<Problem> {
    let room = Cell::new(LONGEST_ROW);
    let reader = PythonJson::new(BufReader::new(Bounded { inner: reader, room: &room }));
    let mut index = 0;
    let mut next = |value: Value| {
        room.set(LONGEST_ROW);
        index += 1;
        each(Source { file: path.to_path_buf(), line: index }, object(value))
    };
    let mut json = serde_json::Deserializer::from_reader(reader);
    let outcome = if array {
        let outcome = json.deserialize_seq(Elements(&mut next));
        outcome.and_then(|whole| if whole { json.end() } else { Ok(()) })
    } else {
        let mut outcome = Ok(());
        for value in json.into_iter() {
            match value {
                Ok(value) => {
                    if !next(value) {
                        break;
                    }
                }
                Err(e) => {
                    outcome = Err(e);
                    break;
                }
            }
        }
        outcome
    };
    let error = outcome.err()?;
    let what = if error.is_io() {
        format!("cannot be read further: {}", std::io::Error::from(error))
    } else if error.to_string().contains("invalid unicode code point") {
        let place = format!("{} (text line {})", path.display(), error.line());
        return Some(Problem::new(place, "not UTF-8; save the file as UTF-8"));
    } else if array {
        format!("not a JSON array of rows: {error}")
    } else {
        format!("not rows in JSON: {error}")
    };
    Some(Problem::new(path.display().to_string(), what))
}

/// Hands on the elements of an array as they are read; its value says whether it came to the end.
struct Elements<'a>(&'a mut dyn FnMut(Value) -> bool);

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<bool, A::Error> {
        while let Some(value) = list.next_element()? {
            if !(self.0)(value) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Ends with an error when more is read than there is room for.
struct Bounded<'a, R> {
    inner: R,
    room: &'a Cell<usize>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = self.room.get();
        if room == 0 {
            return Err(too_long());
        }
        let most = buffer.len().min(room);
        let length = self.inner.read(&mut buffer[..most])?;
        self.room.set(room - length);
        Ok(length)
    }
}

/// JSON as Python writes it, made JSON: in place of NaN and the infinities stands [`FOREIGN`].
struct PythonJson<R: BufRead> {
    bytes: Bytes<R>,
    /// Read ahead and not yet given out.
    ahead: VecDeque<u8>,
    text: bool,
    escaped: bool,
}

impl<R: BufRead> PythonJson<R> {
    fn new(inner: R) -> Self {
        Self { bytes: inner.bytes(), ahead: VecDeque::new(), text: false, escaped: false }
    }

    fn pull(&mut self) -> std::io::Result<Option<u8>> {
        self.bytes.next().transpose()
    }

    /// Reads on while the bytes are those of `word`, of which the first is read already; what
    /// stands for it in JSON.
    fn word(&mut self, word: &[u8]) -> std::io::Result<()> {
        let mut found = vec![word[0]];
        for &wanted in &word[1..] {
            match self.pull()? {
                Some(byte) => found.push(byte),
                None => break,
            }
            if found.last() != Some(&wanted) {
                break;
            }
        }
        if found == word {
            found = format!("\"{FOREIGN}\"").into_bytes();
        }
        self.ahead.extend(found);
        Ok(())
    }

    fn next(&mut self) -> std::io::Result<Option<u8>> {
        if let Some(byte) = self.ahead.pop_front() {
            return Ok(Some(byte));
        }
        let Some(byte) = self.pull()? else { return Ok(None) };
        if self.text {
            let ends = byte == b'"' && !self.escaped;
            self.text = !ends;
            self.escaped = byte == b'\\' && !self.escaped;
            return Ok(Some(byte));
        }
        match byte {
            b'"' => self.text = true,
            b'N' => return self.word(b"NaN").map(|()| self.ahead.pop_front()),
            b'I' => return self.word(b"Infinity").map(|()| self.ahead.pop_front()),
            b'-' => match self.pull()? {
                Some(b'I') => return self.word(b"Infinity").map(|()| self.ahead.pop_front()),
                Some(other) => self.ahead.push_back(other),
                None => {}
            },
            _ => {}
        }
        Ok(Some(byte))
    }
}

impl<R: BufRead> Read for PythonJson<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for (i, place) in buffer.iter_mut().enumerate() {
            match self.next()? {
                Some(byte) => *place = byte,
                None => return Ok(i),
            }
        }
        Ok(buffer.len())
    }
}
