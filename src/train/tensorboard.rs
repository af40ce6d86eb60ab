//! Figures as TensorBoard reads them: a file of events beside `metrics.jsonl`.
//!
//! The file is a row of TFRecords: the length of the data as 64 bits, its checksum, the data and its
//! checksum, little-endian. The data is a message `Event` in the encoding of protocol buffers
//! (<https://protobuf.dev/programming-guides/encoding/>): 1 the time in seconds (double), 2 the step
//! (int64), 3 the version of the file (string), 5 a `Summary`, of which 1 is a value with 1 its tag
//! (string) and 2 the number (float).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Name of the file in a run's folder: TensorBoard looks for its beginning.
pub(super) const EVENTS: &str = "events.out.tfevents.oddgrad";

/// Writes figures as events.
#[derive(Debug)]
pub(super) struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Begins the file anew.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::io("create", path, e))?;
        let mut writer = Self { file, path: path.to_path_buf() };
        writer.append(&Message::default().double(1, now()).text(3, "brain.Event:2"))?;
        Ok(writer)
    }

    /// Writes the figures of a step; `group` stands in front of their names.
    ///
    /// # Errors
    /// When the disk takes no more.
    pub fn write(&mut self, group: &str, step: u64, values: &[(String, f64)]) -> Result<()> {
        self.append(&event(group, step, values))
    }

    fn append(&mut self, event: &Message) -> Result<()> {
        let written = self.file.write_all(&framed(event)).and_then(|()| self.file.flush());
        written.map_err(|e| Error::io("write", &self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn event(group: &str, step: u64, values: &[(String, f64)]) -> Message {
    let mut summary = Message::default();
    for (name, value) in values {
        let tag = format!("{group}/{name}");
        let value = Message::default().text(1, &tag).float(2, *value as f32);
        summary = summary.message(1, &value);
    }
    Message::default().double(1, now()).number(2, step).message(5, &summary)
}

/// A message of protocol buffers, field after field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 128 {
            self.0.push(value as u8 | 128);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A field's number and how it is written.
    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    fn message(self, field: u64, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }
}

/// A message as a TFRecord.
fn framed(message: &Message) -> Vec<u8> {
    let data = &message.0;
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked(&length).to_le_bytes());
    bytes.extend(data);
    bytes.extend(masked(data).to_le_bytes());
    bytes
}

/// CRC-32C turned by 15 bits and moved, as TFRecords hold it: a checksum of data that holds checksums
/// would be no good.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes a step.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let odd = crc & 1;
            crc = (crc >> 1) ^ (0x82f6_3b78 * odd);
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_are_events() {
        let event = event("eval", 300, &[("loss".into(), 0.5)]).0;
        // 2: 300; 5: a summary of 17 bytes with 1: a value of 15 bytes, 1: its tag, 2: 0.5f.
        let want = [
            &[0x10, 0xac, 0x02, 0x2a, 18, 0x0a, 16, 0x0a, 9][..],
            b"eval/loss",
            &[0x15, 0, 0, 0, 0x3f],
        ];
        assert_eq!(event[9..], want.concat());
        let framed = framed(&Message(b"abc".to_vec()));
        assert_eq!(
            (framed.len(), &framed[..8], &framed[12..15]),
            (19, &[3, 0, 0, 0, 0, 0, 0, 0][..], &b"abc"[..])
        );
    }
}
