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
}

impl DType {
    /// Elements that are stored together, and the bytes they take. A type of scales and small
    /// integers is a block of many elements; all of today's are blocks of one.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 | Self::U32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
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

    /// The values of stored bytes. Exact: every value of a narrower type is a 32-bit float.
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
        }
    }

    /// `values` as they are stored, rounded to the nearest where the type is narrower.
    ///
    /// # Panics
    /// For [`DType::U32`], whose values are no floats.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Self::U32 => panic!("unsigned integers are no floats"),
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
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
