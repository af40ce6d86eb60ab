//! Parquet files: rows out of columns, and how large a file may make them.
//!
//! A page says how large it is before it is decompressed, and some codecs do not listen to it. So
//! the headers of all pages are read first, by a reader of Thrift's compact protocol that knows
//! nothing but sizes (<https://github.com/apache/parquet-format>), and the pages of codecs that do
//! not listen are decompressed once, to be counted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use parquet::basic::Compression;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{
    ChunkReader, FileReader, Length, RowGroupReader, SerializedFileReader,
};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use crate::data::files::{Each, FOREIGN, LONGEST_ROW, Source};
use crate::error::Problem;
use crate::guard::caught;

/// Most bytes of a page of values.
const LARGEST_PAGE: u64 = 256 << 20;
/// Most bytes of a dictionary, which every value of a page may repeat; writers stop at 1 MiB.
const LARGEST_DICTIONARY: u64 = 64 << 20;
/// Most bytes of one page and the dictionary of every column together: all are in memory at once.
const LARGEST_PAGES: u64 = 1 << 30;
/// Most values of a column of lists in a group of rows. A run of equal values takes a few bytes of a file,
/// and a row may have all of them.
const MOST_VALUES: i64 = 1 << 24;
/// Most bytes of a page's header.
const LARGEST_HEADER: u64 = 1 << 20;

/// Calls `each` with every row; what is wrong with the file as a whole comes back.
pub(super) fn read(path: &Path, file: File, each: &mut Each<'_>) -> Option<Problem> {
    // The reader asserts what a damaged file can violate; that must not end the program.
    let outcome = caught(|| {
        let pages = file.try_clone().map_err(|e| e.to_string())?;
        let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
        let mut row = 1;
        for (number, group) in reader.metadata().row_groups().iter().enumerate() {
            let mut together = 0u64;
            for column in group.columns() {
                together += check_pages(&pages, column)
                    .map_err(|why| format!("column {}: {why}", column.column_path()))?;
            }
            if together > LARGEST_PAGES {
                return Err(format!(
                    "its {} columns have pages of {} MiB together, and at most {} MiB are read at once; write the file with smaller pages (data_page_size) or fewer columns",
                    group.num_columns(),
                    together >> 20,
                    LARGEST_PAGES >> 20
                ));
            }
            check_lists(&*reader.get_row_group(number).map_err(|e| e.to_string())?, row)?;
            row += usize::try_from(group.num_rows()).unwrap_or(0);
        }
        for (index, row) in reader.get_row_iter(None).map_err(|e| e.to_string())?.enumerate() {
            let source = Source { file: path.to_path_buf(), line: index + 1 };
            let row = row.map_err(|e| format!("row {}: {e}", index + 1))?;
            let row = match bytes_of_row(&row) {
                0..=LONGEST_ROW => Ok(columns(&row)),
                _ => Err(format!("has more than {} MiB", LONGEST_ROW >> 20)),
            };
            if !each(source, row) {
                break;
            }
        }
        Ok::<(), String>(())
    });
    let what: String = match outcome {
        Ok(Ok(())) => return None,
        Ok(Err(what)) => what.trim_start_matches("Parquet error: ").chars().take(300).collect(),
        Err(_) => "the file is damaged".into(),
    };
    Some(Problem::new(path.display().to_string(), format!("not a readable Parquet file: {what}")))
}

/// Whether the lists of text in a group of rows, of which `first` is the file's, are no longer than a row
/// may be: each value may be a repetition of a long one. Nothing is copied for it.
fn check_lists(group: &dyn RowGroupReader, first: usize) -> Result<(), String> {
    let mut bytes: Vec<usize> = Vec::new();
    for (number, column) in group.metadata().columns().iter().enumerate() {
        if column.column_descr().max_rep_level() == 0 {
            continue;
        }
        let name = column.column_path();
        if column.num_values() > MOST_VALUES {
            return Err(format!(
                "column {name} has {} values in a group of rows, and at most {MOST_VALUES} are read at once; write the file with smaller groups (row_group_size)",
                column.num_values()
            ));
        }
        let reader = group.get_column_reader(number).map_err(|e| format!("column {name}: {e}"))?;
        let ColumnReader::ByteArrayColumnReader(mut reader) = reader else { continue };
        let whole = column.column_descr().max_def_level();
        let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut row = 0;
        loop {
            defined.clear();
            repeated.clear();
            values.clear();
            let (rows, ..) = reader
                .read_records(64, Some(&mut defined), Some(&mut repeated), &mut values)
                .map_err(|e| format!("column {name}: {e}"))?;
            if rows == 0 {
                break;
            }
            let mut values = values.iter().map(ByteArray::len);
            for (at, (&level, &repeats)) in defined.iter().zip(&repeated).enumerate() {
                row += usize::from(at > 0 && repeats == 0);
                if row >= bytes.len() {
                    bytes.resize(row + 1, 0);
                }
                let length = if level == whole { values.next().unwrap_or(0) } else { 0 };
                bytes[row] = bytes[row].saturating_add(length);
                if bytes[row] > LONGEST_ROW {
                    return Err(format!(
                        "row {} has more than {} MiB",
                        first + row,
                        LONGEST_ROW >> 20
                    ));
                }
            }
            row += 1;
        }
    }
    Ok(())
}

/// Bytes of the largest page and the dictionary of a column, once every page is as large as it says, and no
/// larger than any has use for.
fn check_pages(file: &File, column: &ColumnChunkMetaData) -> Result<u64, String> {
    const CUT: &str = "its pages are cut off or damaged";
    let (start, length) = column.byte_range();
    let end = start.checked_add(length).filter(|&end| end <= file.len()).ok_or(CUT)?;
    let (mut at, mut largest) = (start, [0; 2]);
    while at < end {
        let from = file.get_read(at).map_err(|e| e.to_string())?;
        let mut thrift = Thrift { from: from.take(LARGEST_HEADER.min(end - at)), read: 0 };
        let page = thrift.page().ok_or(CUT)?;
        let body = at + thrift.read;
        at = body.checked_add(page.compressed).filter(|&at| at <= end).ok_or(CUT)?;
        let kind = &mut largest[usize::from(page.is_dictionary)];
        *kind = page.uncompressed.max(*kind);
        let most = if page.is_dictionary { LARGEST_DICTIONARY } else { LARGEST_PAGE };
        if page.uncompressed > most {
            return Err(format!(
                "it has a page of {} MiB, and at most {} MiB are read at once; write the file with smaller pages (data_page_size)",
                page.uncompressed >> 20,
                most >> 20
            ));
        }
        let body = || {
            Ok::<_, String>(file.get_read(body).map_err(|e| e.to_string())?.take(page.compressed))
        };
        let larger = match column.compression() {
            Compression::GZIP(_) => {
                count(flate2::read::MultiGzDecoder::new(body()?), page.uncompressed)
            }
            Compression::BROTLI(_) => {
                count(brotli::Decompressor::new(body()?, 4096), page.uncompressed)
            }
            Compression::LZ4 => {
                count(lz4_flex::frame::FrameDecoder::new(body()?), page.uncompressed)
            }
            _ => false,
        };
        if larger {
            return Err(format!(
                "a page has more bytes than the {} that it says",
                page.uncompressed
            ));
        }
    }
    Ok(largest[0] + largest[1])
}

/// Whether more than `most` bytes come out; an error is the real reader's to tell.
fn count(from: impl Read, most: u64) -> bool {
    std::io::copy(&mut from.take(most + 1), &mut std::io::sink()).is_ok_and(|bytes| bytes > most)
}

/// What a page's header says of its size.
#[derive(Debug, PartialEq)]
struct Page {
    is_dictionary: bool,
    uncompressed: u64,
    compressed: u64,
}

/// Reads Thrift's compact protocol; None where it breaks off or makes no sense.
struct Thrift<R> {
    from: R,
    /// Bytes so far.
    read: u64,
}

impl<R: Read> Thrift<R> {
    /// How deep structures may nest: those of a page's header nest three times.
    const DEEPEST: u32 = 8;
    const DICTIONARY: i64 = 2;

    fn page(&mut self) -> Option<Page> {
        let mut sizes = [None; 3];
        let mut id = 0;
        loop {
            let (kind, field) = self.field(id)?;
            id = field;
            match (kind, id) {
                (0, _) => break,
                (5, 1..=3) => sizes[id as usize - 1] = Some(self.signed()?),
                _ => self.skip(kind, 0)?,
            }
        }
        let [kind, uncompressed, compressed] = sizes;
        Some(Page {
            is_dictionary: kind? == Self::DICTIONARY,
            uncompressed: uncompressed?.try_into().ok()?,
            compressed: compressed?.try_into().ok()?,
        })
    }

    /// A field's type and number; type 0 ends the structure.
    fn field(&mut self, last: i64) -> Option<(u8, i64)> {
        let byte = self.byte()?;
        Some(match (byte & 15, byte >> 4) {
            (0, _) => (0, last),
            (kind, 0) => (kind, self.signed()?),
            (kind, step) => (kind, last.checked_add(step.into())?),
        })
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        if depth > Self::DEEPEST {
            return None;
        }
        match kind {
            1 | 2 => {}
            3 => drop(self.byte()?),
            4..=6 => drop(self.varint()?),
            7 => self.pass(8)?,
            8 => {
                let length = self.varint()?;
                self.pass(length)?;
            }
            9 | 10 => {
                let byte = self.byte()?;
                let length = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                for _ in 0..length {
                    // Of a list's truth values each is a byte.
                    let kind = if byte & 15 <= 2 { 3 } else { byte & 15 };
                    self.skip(kind, depth + 1)?;
                }
            }
            12 => {
                let mut id = 0;
                loop {
                    let (kind, field) = self.field(id)?;
                    id = field;
                    if kind == 0 {
                        break;
                    }
                    self.skip(kind, depth + 1)?;
                }
            }
            // Maps, which no header has, and what is no type.
            _ => return None,
        }
        Some(())
    }

    fn pass(&mut self, bytes: u64) -> Option<()> {
        let passed = std::io::copy(&mut (&mut self.from).take(bytes), &mut std::io::sink()).ok()?;
        self.read += passed;
        (passed == bytes).then_some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.from.read_exact(&mut byte).ok()?;
        self.read += 1;
        Some(byte[0])
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let zigzag = self.varint()?;
        Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }
}

fn bytes_of_row(row: &Row) -> usize {
    row.get_column_iter().map(|(_, field)| bytes_of(field)).fold(0, usize::saturating_add)
}

fn bytes_of(field: &Field) -> usize {
    match field {
        Field::Str(text) => text.len(),
        Field::Bytes(bytes) => bytes.len(),
        Field::Group(row) => bytes_of_row(row),
        Field::ListInternal(list) => {
            list.elements().iter().map(bytes_of).fold(0, usize::saturating_add)
        }
        _ => 8,
    }
}

fn columns(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// Text, lists, structures and numbers as JSON has them.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Str(text) => Value::String(text.clone()),
        // Files written without a logical type hold text as plain bytes.
        Field::Bytes(bytes) => Value::String(bytes.as_utf8().unwrap_or(FOREIGN).to_owned()),
        // A structure has every field that any row has; what a row did not have is null there.
        Field::Group(row) => {
            let filled = columns(row).into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(filled.collect())
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::Double(x) => number(*x),
        Field::Float(x) => number(f64::from(*x)),
        Field::Long(x) => Value::from(*x),
        Field::Int(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Byte(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UByte(x) => Value::from(*x),
        _ => Value::from(FOREIGN),
    }
}

fn number(x: f64) -> Value {
    serde_json::Number::from_f64(x).map_or(Value::from(FOREIGN), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(bytes: &[u8]) -> Option<Page> {
        Thrift { from: bytes, read: 0 }.page()
    }

    #[test]
    fn headers_of_pages_say_their_sizes() {
        // type = data page, 300 bytes of 1,000; a data page's header with statistics; end.
        let header = [
            0x15, 0x00, 0x15, 0xd0, 0x0f, 0x15, 0xd8, 0x04, // three numbers, zigzag
            0x2c, 0x15, 0x06, 0x1c, 0x18, 0x03, b'a', b'b', b'c', 0x11, 0x00, 0x00, 0x00,
        ];
        let found = page(&header);
        assert_eq!(found, Some(Page { is_dictionary: false, uncompressed: 1000, compressed: 300 }));
        for cut in 0..header.len() {
            assert_eq!(page(&header[..cut]), None, "{cut}");
        }
        // A size below zero; a size that is missing; structures without an end; a length that lies.
        assert_eq!(page(&[0x15, 0, 0x15, 1, 0x15, 2, 0]), None);
        assert_eq!(page(&[0x15, 0, 0x15, 2, 0]), None);
        assert_eq!(page(&[0x1c; 64]), None);
        assert_eq!(page(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]), None);
    }

    /// One row of one column of text.
    fn file(text: &str, compression: Compression) -> (tempfile::TempDir, std::path::PathBuf) {
        columns_of("required binary text (UTF8);", &[&[text]], compression, false)
    }

    /// One row of columns, each with one text or a list of them.
    fn columns_of(
        schema: &str,
        texts: &[&[&str]],
        compression: Compression,
        dictionary: bool,
    ) -> (tempfile::TempDir, std::path::PathBuf) {
        use parquet::data_type::ByteArrayType;
        use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
        let schema = format!("message schema {{ {schema} }}");
        let schema = parquet::schema::parser::parse_message_type(&schema).unwrap();
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_dictionary_enabled(dictionary)
            .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
            .build();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let file = File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema.into(), properties.into()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for texts in texts {
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<_> = texts.iter().map(|&text| ByteArray::from(text)).collect();
            let repeats: Vec<_> = (0..texts.len()).map(|i| i16::from(i > 0)).collect();
            let (defined, repeats) = (vec![1; texts.len()], repeats);
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&defined), Some(&repeats))
                .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        (folder, path)
    }

    /// What is said of the rows, or of the file.
    fn answers(path: &Path) -> Vec<String> {
        let mut all = Vec::new();
        let mut each = |_, row: Result<Map<String, Value>, String>| {
            all.push(row.map_or_else(|e| e, |row| format!("{} columns", row.len())));
            true
        };
        let problem = read(path, File::open(path).unwrap(), &mut each);
        all.extend(problem.map(|p| p.what));
        all
    }

    #[test]
    fn what_a_file_makes_of_itself_is_bounded() {
        let (_kept, path) = file("hello", Compression::GZIP(Default::default()));
        assert_eq!(answers(&path), ["1 columns"]);
        // "hello" and its length are 9 bytes; the header says 1.
        let mut bytes = std::fs::read(&path).unwrap();
        let size = bytes.windows(2).position(|w| w == [0x15, 18]).unwrap() + 1;
        bytes[size] = 2;
        std::fs::write(&path, bytes).unwrap();
        let found = answers(&path);
        assert!(found[0].contains("more bytes than the 1 that it says"), "{found:?}");

        let zstd = Compression::ZSTD(Default::default());
        let (_kept, path) = file(&"a".repeat(33 << 20), zstd);
        assert_eq!(answers(&path), ["has more than 32 MiB"]);
        let (_kept, path) = file(&"a".repeat(257 << 20), zstd);
        let found = answers(&path);
        assert!(found[0].contains("column \"text\": it has a page of 257 MiB"), "{found:?}");
    }

    #[test]
    fn lists_that_repeat_a_long_text_are_bounded() {
        let text = "a".repeat(1 << 20);
        let lists = |first: usize, second: usize| {
            let texts = [vec![text.as_str(); first], vec![text.as_str(); second]];
            let schema = "repeated binary a (UTF8); repeated binary b (UTF8);";
            let texts = [texts[0].as_slice(), texts[1].as_slice()];
            let (kept, path) = columns_of(schema, &texts, Compression::UNCOMPRESSED, true);
            assert!(path.metadata().unwrap().len() < 3 << 20, "each text is written once");
            (kept, answers(&path))
        };
        assert_eq!(lists(12, 12).1, ["2 columns"]);
        for (first, second) in [(40, 1), (1, 40), (20, 20)] {
            let found = lists(first, second).1;
            assert!(found[0].ends_with("row 1 has more than 32 MiB"), "{found:?}");
        }
    }

    #[test]
    fn pages_of_all_columns_together_are_bounded() {
        let names: Vec<_> = (0..5).map(|i| format!("required binary c{i} (UTF8);")).collect();
        let text = "a".repeat(250 << 20);
        let zstd = Compression::ZSTD(Default::default());
        let (_kept, path) = columns_of(&names.concat(), &[&[text.as_str()][..]; 5], zstd, false);
        let found = answers(&path);
        assert!(found[0].contains("5 columns have pages of 1250 MiB together"), "{found:?}");
    }
}
