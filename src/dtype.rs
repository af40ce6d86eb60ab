//! How the elements of a variable are stored. Kernels compute in 32-bit floats whatever the type.

use half::{bf16, f16};

/// Storage type of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// IEEE 16-bit float, two to a 32-bit word, the first in the low half.
    F16,
    /// The upper half of a 32-bit float, two to a word as [`DType::F16`].
    BF16,
    /// 32-bit unsigned integer (indices, positions, spans).
    U32,
    /// Signed 8-bit integers, 32 of which share a scale in [`DType::F16`]: value = scale * integer.
    /// All integers come first, four to a word, and all scales behind them. GGML's type of that
    /// name, which has each scale before its integers.
    Q8_0,
    /// Integers 0 to 15, eight to a word, 32 of which share a scale: value = scale * (integer - 8).
    /// Laid out as [`DType::Q8_0`].
    Q4_0,
}

/// Elements that share a scale in [`DType::Q8_0`] and [`DType::Q4_0`].
const BLOCK: usize = 32;

impl DType {
    /// Elements that are stored together, and the bytes they take.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 | Self::U32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (BLOCK, BLOCK + 2),
            Self::Q4_0 => (BLOCK, BLOCK / 2 + 2),
        }
    }

    /// Bytes of `len` elements; the last block may be filled in part.
    pub const fn bytes(self, len: usize) -> u64 {
        let (elements, bytes) = self.block();
        (len.div_ceil(elements) * bytes) as u64
    }

    /// True if every element is a 32-bit word, which any kernel can bind.
    pub const fn is_word(self) -> bool {
        matches!(self, Self::F32 | Self::U32)
    }

    /// The values of stored bytes. Exact: every value of a narrower type is a 32-bit float, and the
    /// product of a scale of 11 significant bits with a small integer is one.
    ///
    /// # Panics
    /// For [`DType::U32`], whose values are no floats, and for bytes that are no whole elements.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
            let (words, rest) = bytes.as_chunks();
            assert!(rest.is_empty(), "{} bytes are no elements of {N} bytes", bytes.len());
            words.iter().copied()
        }
        match self {
            Self::F32 => words(bytes).map(f32::from_le_bytes).collect(),
            Self::F16 => words(bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Self::BF16 => words(bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            Self::U32 => panic!("unsigned integers are no floats"),
            Self::Q8_0 | Self::Q4_0 => self.decode_blocks(bytes),
        }
    }

    fn decode_blocks(self, bytes: &[u8]) -> Vec<f32> {
        let (_, block_bytes) = self.block();
        assert!(bytes.len().is_multiple_of(block_bytes), "{} bytes of {self}", bytes.len());
        let (integers, scales) = bytes.split_at(bytes.len() / block_bytes * (block_bytes - 2));
        let scale =
            |block: usize| f16::from_le_bytes([scales[2 * block], scales[2 * block + 1]]).to_f32();
        let integer = |i: usize| match self {
            Self::Q8_0 => f32::from(integers[i] as i8),
            _ => f32::from(integers[i / 2] >> (4 * (i % 2)) & 15) - 8.0,
        };
        let len = bytes.len() / block_bytes * BLOCK;
        (0..len).map(|i| scale(i / BLOCK) * integer(i)).collect()
    }

    /// Rounds `values` to blocks as GGML does: the scale makes the largest magnitude of a block 127
    /// in Q8_0, and -8 in Q4_0.
    fn encode_blocks(self, values: &[f32]) -> Vec<u8> {
        assert!(values.len().is_multiple_of(BLOCK), "{} values are no blocks", values.len());
        let (mut integers, mut scales) = (Vec::new(), Vec::new());
        for block in values.chunks_exact(BLOCK) {
            let largest = block.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
            let largest = largest.expect("a block has values");
            let scale = if self == Self::Q8_0 { largest.abs() / 127.0 } else { largest / -8.0 };
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            scales.extend(f16::from_f32(scale).to_le_bytes());
            if self == Self::Q8_0 {
                integers.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
                continue;
            }
            let nibble = |v: f32| ((v * inverse + 8.5) as u8).min(15);
            integers.extend(block.chunks_exact(2).map(|v| nibble(v[0]) | nibble(v[1]) << 4));
        }
        integers.extend(scales);
        integers
    }

    /// `values` as they are stored, rounded to the nearest where the type is narrower.
    ///
    /// # Panics
    /// For [`DType::U32`], whose values are no floats, and for values that do not fill the last block.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Self::U32 => panic!("unsigned integers are no floats"),
            Self::Q8_0 | Self::Q4_0 => self.encode_blocks(values),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::U32 => "u32",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of each type by hand, and how far values move.
    #[test]
    fn blocks_share_a_scale() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 - 40.0) / 8.0).collect();
        for (dtype, step) in [(DType::Q8_0, 0.5 / 127.0), (DType::Q4_0, 1.0 / 8.0)] {
            let bytes = dtype.encode(&values);
            assert_eq!(bytes.len() as u64, dtype.bytes(64), "{dtype}");
            let back = dtype.decode(&bytes);
            for (block, back) in values.chunks(32).zip(back.chunks(32)) {
                let largest = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                let off = block.iter().zip(back).map(|(v, b)| (v - b).abs()).fold(0.0, f32::max);
                assert!(off <= 1.01 * step * largest, "{dtype}: {off} of {largest}");
            }
        }
        // 32 integers 1 with the scale 1/2, and 31 nibbles 9 behind one 0 with the scale 2.
        let mut q8 = vec![1u8; 32];
        q8.extend(f16::from_f32(0.5).to_le_bytes());
        assert_eq!(DType::Q8_0.decode(&q8), [0.5; 32]);
        let mut q4 = vec![0x99u8; 16];
        q4[0] = 0x90;
        q4.extend(f16::from_f32(2.0).to_le_bytes());
        let decoded = DType::Q4_0.decode(&q4);
        assert_eq!((decoded[0], &decoded[1..]), (-16.0, &[2.0; 31][..]));
        for (dtype, bytes) in
            [(DType::Q8_0, vec![0; 34]), (DType::Q4_0, DType::Q4_0.encode(&[0.0; 32]))]
        {
            assert_eq!(dtype.decode(&bytes), [0.0; 32]);
        }
    }

    #[test]
    fn stored_values_come_back_rounded_to_their_type() {
        let values = [0.0, -1.5, 2.345_678, 65504.0, 1e-3];
        for (dtype, step) in [(DType::F32, 0.0), (DType::F16, 5e-4), (DType::BF16, 4e-3)] {
            let bytes = dtype.encode(&values);
            assert_eq!(bytes.len() as u64, dtype.bytes(values.len()));
            let back = dtype.decode(&bytes);
            assert!(back.iter().zip(values).all(|(b, v)| (b - v).abs() <= step * v.abs()));
            assert_eq!(dtype.encode(&back), bytes, "{dtype} survives widening");
        }
    }
}
