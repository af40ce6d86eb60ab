//! What a kernel is: a WGSL file, its variants, what they need, and how one is specialised.
//!
//! No wgpu in here: an operation chooses a variant and its constants while the graph is built,
//! and `gpu` makes pipelines of the result.

mod choose;
mod specialise;
mod target;
#[cfg(test)]
mod tests;

pub use choose::{Facts, Operand, SizeClass, Takes, Tuned};
pub use specialise::{Const, specialise};
pub use target::{ANY, Class, Cooperative, HARDWARE, Needs, SOFTWARE, Target};

use crate::dtype::DType;
use std::borrow::Cow;

/// One numbered WGSL file, or one tile of it. All variants of a pass have the same bindings and the
/// same meaning. A file may serve several passes that differ in its constants.
#[derive(Debug)]
pub struct Variant {
    /// Path below `shaders/`, `softmax/forward_1_naive.wgsl`: pass, number, idea. Of a file that serves
    /// several passes, `matmul/nn_tn_7_vec4_tile.wgsl`: what they are together, number, idea.
    pub path: &'static str,
    /// The file's text.
    pub source: &'static str,
    /// Optional capabilities it uses.
    pub needs: Needs,
    /// Outputs that one workgroup computes along x, y and z: the grid is extent / tile, rounded up.
    pub tile: [u32; 3],
    /// What tells it from other entries of the same file, `128x64`; empty where there is but one.
    pub tile_name: &'static str,
    /// Values of the file's constants that make this tile and this pass.
    pub constants: &'static [(&'static str, Const)],
    /// Adapter classes for which this is the default. Of several the last in the table wins.
    pub default_on: &'static [Class],
    /// What the variables of a call must be like.
    pub takes: Takes,
    /// Relative error it may have beyond the case's, such as that of 16-bit factors; 0 for a kernel
    /// in full single precision. One above 0 is never the default.
    pub tolerance: f64,
}

/// One of several tiles that a WGSL file can be specialised to.
#[derive(Debug)]
pub struct Tile {
    /// [`Variant::tile_name`].
    pub name: &'static str,
    /// [`Variant::tile`].
    pub outputs: [u32; 3],
    /// [`Variant::constants`].
    pub constants: &'static [(&'static str, Const)],
}

impl Variant {
    /// A kernel outside this crate: `path` names it in listings and has a number in its file name
    /// (`square_1_naive.wgsl`), `source` is its text, `tile` what one workgroup computes. It needs
    /// nothing beyond WebGPU's default limits; kernels that do set [`Variant::needs`] as well.
    pub const fn new(path: &'static str, source: &'static str, tile: [u32; 3]) -> Self {
        Self {
            path,
            source,
            needs: Needs::NONE,
            tile,
            tile_name: "",
            constants: &[],
            default_on: ANY,
            takes: Takes::WORDS,
            tolerance: 0.0,
        }
    }

    /// The number in the file name.
    pub fn number(&self) -> u32 {
        self.stem()
            .split('_')
            .find_map(|part| part.parse().ok())
            .unwrap_or_else(|| panic!("shader file `{}` has no number in its name", self.path))
    }

    /// The idea in the file name: what follows the number.
    pub fn idea(&self) -> &'static str {
        let digits = format!("_{}_", self.number());
        let at = self.stem().find(&digits).expect("number() found it");
        &self.stem()[at + digits.len()..]
    }

    /// The same file with another tile.
    pub const fn tiled(self, tile: &Tile) -> Self {
        Self { tile: tile.outputs, tile_name: tile.name, constants: tile.constants, ..self }
    }

    /// The same file with these values of its constants: what tells the passes it serves apart.
    pub const fn with(self, constants: &'static [(&'static str, Const)]) -> Self {
        Self { constants, ..self }
    }

    /// The same kernel for calls with such variables only.
    pub const fn taking(self, takes: Takes) -> Self {
        Self { takes, ..self }
    }

    /// The same file for a binding that is stored in another type than 32-bit words, which its
    /// constant `STORED` tells it.
    ///
    /// # Panics
    /// Unless it is one binding, of such a type.
    pub const fn decoding(self, stored: &'static [(usize, DType)]) -> Self {
        const fn number(n: u32) -> [(&'static str, Const); 1] {
            [("STORED", Const::U32(n))]
        }
        assert!(stored.len() == 1);
        let (tile_name, constants): (_, &'static [(&'static str, Const)]) = match stored[0].1 {
            DType::F16 => ("f16", const { &number(0) }),
            DType::BF16 => ("bf16", const { &number(1) }),
            DType::Q8_0 => ("q8_0", const { &number(2) }),
            DType::Q4_0 => ("q4_0", const { &number(3) }),
            DType::F32 | DType::U32 => panic!("words are not decoded"),
        };
        Self { tile_name, constants, takes: Takes { stored, ..self.takes }, ..self }
    }

    /// Number and tile.
    pub fn id(&self) -> VariantId {
        VariantId { number: self.number(), tile: self.tile_name.to_owned() }
    }

    /// Number, idea and tile for people: `11 tile_table 128x64`.
    pub fn name(&self) -> String {
        let name = format!("{} {} {}", self.number(), self.idea(), self.tile_name);
        name.trim_end().to_owned()
    }

    /// Path and tile for listings and reports of faults.
    pub fn label(&self) -> String {
        format!("{} {}", self.path, self.tile_name).trim_end().to_owned()
    }

    /// The file's text with its own constants and those of a call.
    ///
    /// # Errors
    /// Names the first constant that the file does not declare.
    pub fn specialise(&self, constants: &[(&'static str, Const)]) -> Result<String, String> {
        specialise(self.source, &[self.constants, constants].concat())
    }

    /// The file's text with its own constants.
    ///
    /// # Panics
    /// When the file does not declare one of them.
    pub fn text(&self) -> Cow<'static, str> {
        if self.constants.is_empty() {
            return Cow::Borrowed(self.source);
        }
        let text = self.specialise(&[]).unwrap_or_else(|e| panic!("{}: {e}", self.label()));
        Cow::Owned(text)
    }

    /// What decides the bits it computes, to be hashed: its name, its tile's name and its text.
    pub fn identity(&self) -> [Cow<'static, str>; 3] {
        [self.path.into(), self.tile_name.into(), self.text()]
    }

    /// True if an adapter with these facts can run it and is not known to get it wrong.
    pub fn needs_met(&self, target: &Target) -> bool {
        self.needs.met(target) && !target.demoted.contains(self.path)
    }

    /// True if it may run on such an adapter unasked.
    fn is_default(&self, target: &Target) -> bool {
        self.tolerance == 0.0 && self.default_on.contains(&target.class) && self.needs_met(target)
    }

    fn stem(&self) -> &'static str {
        let file = self.path.rsplit('/').next().unwrap_or(self.path);
        file.trim_end_matches(".wgsl")
    }
}

/// Names a variant of a pass, as `--kernel` spells it: `3`, or `11/128x64` for one of the tiles of a
/// file that has several. Without a tile it is the first entry of that number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VariantId {
    /// [`Variant::number`].
    pub number: u32,
    /// [`Variant::tile_name`], or empty.
    pub tile: String,
}

impl From<u32> for VariantId {
    fn from(number: u32) -> Self {
        Self { number, tile: String::new() }
    }
}

impl std::str::FromStr for VariantId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, tile) = match text.split_once('/') {
            Some((number, tile)) if !tile.is_empty() => (number, tile),
            None => (text, ""),
            _ => return Err(format!("`{text}` names no tile behind its /")),
        };
        let number = number.parse().map_err(|_| format!("`{number}` is no number"))?;
        Ok(Self { number, tile: tile.to_owned() })
    }
}

impl std::fmt::Display for VariantId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.tile.as_str() {
            "" => write!(f, "{}", self.number),
            tile => write!(f, "{}/{tile}", self.number),
        }
    }
}

/// The variants of one pass of an operation, baseline first.
#[derive(Debug)]
pub struct Pass {
    /// The operation: folder below `shaders/`.
    pub op: &'static str,
    /// The pass: `forward`, `backward`, `nt`, …
    pub name: &'static str,
    /// Numbered variants, the baseline first; the tiles of one file stand together.
    pub variants: &'static [Variant],
}

impl Pass {
    /// `matmul.nt`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.op, self.name)
    }

    /// The variant of this name.
    pub fn find(&self, id: &VariantId) -> Option<&'static Variant> {
        let named = |v: &&Variant| {
            v.number() == id.number && (id.tile.is_empty() || id.tile == v.tile_name)
        };
        self.variants.iter().find(named)
    }
}

/// Declares a [`Variant`] from a file below `shaders/`.
///
/// `variant!("scale/forward_1_naive.wgsl", tile: [256, 1, 1])`, optionally followed by
/// `default_on: SOFTWARE`, `needs: Needs { .. }` and `tolerance: 2e-3`, in this order.
#[macro_export]
macro_rules! variant {
    ($path:literal, tile: $tile:expr) => {
        $crate::variant!($path, tile: $tile, default_on: $crate::kernel::ANY, needs: $crate::kernel::Needs::NONE)
    };
    ($path:literal, tile: $tile:expr, default_on: $default_on:expr) => {
        $crate::variant!($path, tile: $tile, default_on: $default_on, needs: $crate::kernel::Needs::NONE)
    };
    ($path:literal, tile: $tile:expr, default_on: $default_on:expr, needs: $needs:expr) => {
        $crate::variant!($path, tile: $tile, default_on: $default_on, needs: $needs, tolerance: 0.0)
    };
    ($path:literal, tile: $tile:expr, default_on: $default_on:expr, needs: $needs:expr, tolerance: $tolerance:expr) => {
        $crate::kernel::Variant {
            path: $path,
            source: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)),
            needs: $needs,
            tile: $tile,
            tile_name: "",
            constants: &[],
            default_on: $default_on,
            takes: $crate::kernel::Takes::WORDS,
            tolerance: $tolerance,
        }
    };
}
