//! How much longer than its input a tokenizer's normalizer or decoder can make a text, by what
//! `tokenizer.json` says, before the library makes room for it.

use serde_json::Value;

/// Longest text that a normalizer or decoder may make, in bytes.
const MOST: u64 = 1 << 30;
/// Largest factor that any tokenizer has use for, and far beyond.
const FACTOR: u64 = 1 << 16;

/// The parts of `tokenizer.json` that rewrite and split text.
#[derive(serde::Deserialize)]
pub(super) struct Rewriting {
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// At most `1 + length * by` bytes come out where `length` go in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth {
    pub normalizer: u64,
    pub decoder: u64,
}

impl Growth {
    /// Errors: a character map that claims to be longer than it is; steps that make a text longer
    /// than any tokenizer has use for.
    pub fn of(file: &Rewriting) -> Result<Self, String> {
        let found = Self { normalizer: growth(&file.normalizer)?, decoder: growth(&file.decoder)? };
        if found.normalizer.max(found.decoder) > FACTOR {
            return Err(format!("its steps can make a text more than {FACTOR} times as long"));
        }
        Ok(found)
    }

    /// Whether a text of `length` bytes can be worked on.
    pub fn allows(by: u64, length: usize) -> Result<(), String> {
        match by.checked_mul(length as u64 + 1) {
            Some(bytes) if bytes <= MOST => Ok(()),
            _ => Err(format!(
                "what tokenizer.json does to a text of {length} bytes could make more than {} MiB of it",
                MOST >> 20
            )),
        }
    }
}

/// The factor of one step, or of all steps of a sequence.
fn growth(step: &Value) -> Result<u64, String> {
    let length = |key: &str| step.get(key).and_then(Value::as_str).map_or(0, str::len) as u64;
    let kind = step.get("type").and_then(Value::as_str).unwrap_or_default();
    Ok(match kind {
        "Sequence" => {
            let list = |key: &str| step.get(key).and_then(Value::as_array);
            let steps = list("normalizers").or_else(|| list("decoders"));
            let mut all: u64 = 1;
            for step in steps.into_iter().flatten() {
                all = all.saturating_mul(growth(step)?);
            }
            all
        }
        // A text is worked on in pieces between added tokens, and each piece gets the prefix.
        "Prepend" => 1 + length("prepend"),
        "Replace" => {
            let pattern = step.get("pattern");
            let text = pattern.and_then(|p| p.get("String")).and_then(Value::as_str);
            // A regular expression can match every byte, and the gap in front of it too.
            let each = match text.map(str::len) {
                Some(pattern @ 1..) => length("content").div_ceil(pattern as u64),
                _ => 1 + length("content"),
            };
            each.max(1)
        }
        "Precompiled" => {
            charsmap(step.get("precompiled_charsmap").and_then(Value::as_str))?;
            // One character becomes the rest of the map at worst; as a rule it becomes a few.
            16
        }
        // The longest decomposition of a character, and UTF-8 read as Latin.
        "NFD" | "NFKD" | "NFC" | "NFKC" | "BertNormalizer" | "ByteLevel" => 8,
        _ => 4,
    })
}

/// Checks the size that a SentencePiece character map claims to have.
fn charsmap(base64: Option<&str>) -> Result<(), String> {
    let text = base64.unwrap_or_default();
    let sextet = |c: u8| {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        LETTERS.iter().position(|&letter| letter == c).map(|at| at as u64)
    };
    let mut start = 0;
    for &c in text.as_bytes().iter().take(6) {
        let Some(six) = sextet(c) else { break };
        start = start << 6 | six;
    }
    // Six letters are 36 bits: the first four bytes, little-endian, and four bits more.
    let size = u64::from(((start >> 4) as u32).swap_bytes());
    if text.len() < 8 || size > text.len() as u64 / 4 * 3 {
        return Err("its precompiled_charsmap is cut off or damaged".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn growth_is_bounded_step_by_step() {
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let sequence = |steps: &[Value]| json!({"type": "Sequence", "normalizers": steps});
        let llama = [json!({"type": "Prepend", "prepend": "▁"}), replace(" ", "▁")];
        assert_eq!(growth(&sequence(&llama)), Ok(12));
        assert_eq!(growth(&Value::Null), Ok(4));
        assert_eq!(growth(&replace("``", "\"")), Ok(1));
        assert!(growth(&sequence(&vec![replace("a", "aa"); 80])).unwrap() > 1 << 60);
        assert!(Growth::allows(12, 1 << 20).is_ok());
        assert!(Growth::allows(50 << 20, 100).unwrap_err().contains("100 bytes"));
        assert!(Growth::allows(u64::MAX, 2).is_err());
    }

    #[test]
    fn character_maps_are_as_long_as_they_say() {
        for damaged in ["", "////", "//////////", "AAAA"] {
            assert!(charsmap(Some(damaged)).is_err(), "{damaged}");
        }
        // Four bytes of trie and one of text.
        assert_eq!(charsmap(Some("BAAAAAAAAAAA")), Ok(()));
    }
}
