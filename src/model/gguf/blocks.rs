//! How GGUF stores numbers: plain floats, and blocks of small integers with their scales. Layouts
//! are those of GGML (ggml-common.h), decoded here in the order of operations of its own decoder,
//! so that the values are the same to the last bit.

use half::f16;

use crate::dtype::DType;

/// Storage type of a tensor, of those that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

use BlockType::*;

/// Every type that is decoded, with its number in a file.
const DECODED: [(u32, BlockType); 11] = [
    (0, F32),
    (1, F16),
    (2, Q4_0),
    (3, Q4_1),
    (6, Q5_0),
    (7, Q5_1),
    (8, Q8_0),
    (12, Q4_K),
    (13, Q5_K),
    (14, Q6_K),
    (30, BF16),
];

/// The others, so that a refusal can name them.
const OTHERS: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// Elements of a block of the older types, and of those with K in their name.
const BLOCK: usize = 32;
const SUPER_BLOCK: usize = 256;

impl BlockType {
    /// The type of a number.
    ///
    /// # Errors
    /// A type that is not decoded, by its name.
    pub fn of_number(number: u32) -> Result<Self, String> {
        if let Some((_, found)) = DECODED.iter().find(|(n, _)| *n == number) {
            return Ok(*found);
        }
        let known: Vec<String> = DECODED.iter().map(|(_, t)| format!("{t:?}")).collect();
        let name = OTHERS.iter().find(|(n, _)| *n == number).map_or("unknown", |(_, name)| name);
        Err(format!("has type {number} ({name}); {} are read", known.join(", ")))
    }

    /// The number that stands for it in a file.
    pub fn number(self) -> u32 {
        DECODED.iter().find(|(_, t)| *t == self).expect("every type has a number").0
    }

    /// Elements that are stored together, and the bytes they take.
    pub const fn block(self) -> (usize, usize) {
        match self {
            F32 => (1, 4),
            F16 | BF16 => (1, 2),
            Q4_0 => (BLOCK, 18),
            Q4_1 => (BLOCK, 20),
            Q5_0 => (BLOCK, 22),
            Q5_1 => (BLOCK, 24),
            Q8_0 => (BLOCK, 34),
            Q4_K => (SUPER_BLOCK, 144),
            Q5_K => (SUPER_BLOCK, 176),
            Q6_K => (SUPER_BLOCK, 210),
        }
    }

    /// The type of this precision outside a file: blocks become [`DType::F32`], which holds each of
    /// their values.
    pub fn widened(self) -> DType {
        match self {
            F16 => DType::F16,
            BF16 => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Appends the values of whole blocks to `values`.
    ///
    /// # Panics
    /// For bytes that are no whole blocks.
    pub fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        let (_, size) = self.block();
        assert!(bytes.len().is_multiple_of(size), "{} bytes of {self:?}", bytes.len());
        let blocks = bytes.chunks_exact(size);
        match self {
            F32 | F16 | BF16 => values.extend(self.widened().decode(bytes)),
            Q4_0 | Q4_1 | Q5_0 | Q5_1 => blocks.for_each(|b| self.decode_nibbles(b, values)),
            Q8_0 => blocks.for_each(|b| {
                values.extend(b[2..].iter().map(|&q| f32::from(q as i8) * half_at(b, 0)));
            }),
            Q4_K | Q5_K => blocks.for_each(|b| self.decode_scaled_nibbles(b, values)),
            Q6_K => blocks.for_each(|b| decode_q6(b, values)),
        }
    }

    /// 32 integers of 4 or 5 bits: all low halves of the bytes, then all high ones. Those of 5 bits
    /// have their highest in a word before them; types that end in 0 are centred, the others have an
    /// offset.
    fn decode_nibbles(self, block: &[u8], values: &mut Vec<f32>) {
        let scale = half_at(block, 0);
        let nibbles = &block[block.len() - BLOCK / 2..];
        let (offset, centre) = match self {
            Q4_0 => (None, 8.0),
            Q5_0 => (None, 16.0),
            _ => (Some(half_at(block, 2)), 0.0),
        };
        let high = match self {
            Q5_0 => word_at(block, 2),
            Q5_1 => word_at(block, 4),
            _ => 0,
        };
        values.extend((0..BLOCK).map(|i| {
            let nibble = nibbles[i % (BLOCK / 2)] >> (4 * (i / (BLOCK / 2))) & 15;
            let bit = (high >> i & 1) as u8;
            let value = (f32::from(nibble | bit << 4) - centre) * scale;
            offset.map_or(value, |offset| value + offset)
        }));
    }

    /// 256 integers of 4 or 5 bits, 32 of which share a scale and an offset of 6 bits each; those are
    /// multiples of two numbers of the block.
    fn decode_scaled_nibbles(self, block: &[u8], values: &mut Vec<f32>) {
        let (scale, offset) = (half_at(block, 0), half_at(block, 2));
        let packed = &block[4..16];
        let nibbles = &block[block.len() - SUPER_BLOCK / 2..];
        for group in 0..SUPER_BLOCK / BLOCK {
            let (s, o) = six_bits(packed, group);
            let (scale, offset) = (scale * f32::from(s), offset * f32::from(o));
            values.extend((0..BLOCK).map(|i| {
                let nibble = nibbles[group / 2 * BLOCK + i] >> (4 * (group % 2)) & 15;
                // Bit g of byte i is the fifth of integer i of group g.
                let bit = if self == Q5_K { block[16 + i] >> group & 1 } else { 0 };
                scale * f32::from(nibble | bit << 4) - offset
            }));
        }
    }

    /// `values` as a file stores them, rounded to the nearest.
    ///
    /// # Panics
    /// For types that nothing is written in, and for values that do not fill the last block.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            F32 | F16 => self.widened().encode(values),
            Q8_0 => {
                let encoded = DType::Q8_0.encode(values);
                let (integers, scales) = encoded.split_at(values.len());
                let blocks = integers.chunks_exact(BLOCK).zip(scales.chunks_exact(2));
                blocks.flat_map(|(integers, scale)| [scale, integers].concat()).collect()
            }
            other => panic!("nothing is written in {other:?}"),
        }
    }

    /// The largest magnitude that [`BlockType::encode`] keeps finite.
    pub fn largest(self) -> f32 {
        match self {
            F16 => f16::MAX.to_f32(),
            Q8_0 => 127.0 * f16::MAX.to_f32(),
            _ => f32::MAX,
        }
    }
}

/// 256 integers of 6 bits: four of a byte of low halves and two bits more elsewhere; 16 share a scale.
fn decode_q6(block: &[u8], values: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    values.extend((0..SUPER_BLOCK).map(|i| {
        // Halves of 128, in each four quarters of 32.
        let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[64 * part + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
        let top = high[32 * part + l] >> (2 * quarter) & 3;
        let integer = f32::from(nibble | top << 4) - 32.0;
        scale * f32::from(scales[i / 16] as i8) * integer
    }));
}

/// Scale and offset of a group of 32: eight pairs of 6-bit integers in twelve bytes.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let low = packed[group + 4];
    (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// Blocks of random bytes with the values that gguf-py gives them
    /// (tests/golden/scripts/gguf_blocks.py).
    #[test]
    fn every_type_decodes_as_gguf_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf/blocks.safetensors");
        let file = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        for (number, kind) in DECODED {
            let bytes = file.tensor(&format!("{kind:?}.bytes")).unwrap();
            let want = file.tensor(&format!("{kind:?}.values")).unwrap();
            let mut values = Vec::new();
            kind.decode(bytes.data(), &mut values);
            let want = DType::F32.decode(want.data());
            assert!(!want.is_empty() && values.len() == want.len(), "{kind:?}");
            let differs = values.iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs.count(), 0, "{kind:?}");
            assert_eq!(BlockType::of_number(number), Ok(kind));
            assert_eq!(kind.number(), number);
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        for (kind, step) in [(F32, 0.0), (F16, 5e-4), (Q8_0, 0.51 / 127.0)] {
            let mut back = Vec::new();
            kind.decode(&kind.encode(&values), &mut back);
            let most = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            assert!(
                values.iter().zip(&back).all(|(v, b)| (v - b).abs() <= step * most),
                "{kind:?}"
            );
            let mut large = Vec::new();
            kind.decode(&kind.encode(&[kind.largest(); 32]), &mut large);
            assert!(large.iter().all(|v| v.is_finite()), "{kind:?}");
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        assert!(BlockType::of_number(11).unwrap_err().starts_with("has type 11 (Q3_K); F32, F16"));
        assert!(BlockType::of_number(77).unwrap_err().starts_with("has type 77 (unknown)"));
        assert!(BlockType::of_number(u32::MAX).is_err());
    }
}
