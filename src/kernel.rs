//! What a kernel is: a WGSL file, its variants, what they need, and how one is specialised.
//!
//! No wgpu in here: an operation chooses a variant and its constants while the graph is built,
//! and `gpu` makes pipelines of the result.

use crate::dtype::DType;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The kind of adapter a graph is built for. It decides which of several correct kernels is the
/// default choice; every class can run every baseline kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A CPU that implements Vulkan (lavapipe, SwiftShader): barriers and shared memory are slow.
    Software,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A GPU with memory of its own.
    Discrete,
}

/// Facts about the adapter that choose between kernel variants.
#[derive(Debug, Clone)]
pub struct Target {
    /// Software, integrated or discrete.
    pub class: Class,
    /// The adapter can run subgroup operations.
    pub subgroups: bool,
    /// The adapter can compute with 16-bit floats.
    pub f16: bool,
    /// Cooperative matrices the adapter lists.
    pub cooperative: Vec<Cooperative>,
    /// Bytes of workgroup memory a kernel may use.
    pub workgroup_bytes: u32,
    /// Invocations a workgroup may have.
    pub invocations: u32,
    /// Largest storage binding in bytes.
    pub binding_bytes: u64,
    /// Variants asked for: `softmax` or `matmul.nt` to 1, 2, … or one of its tiles.
    pub pinned: BTreeMap<String, VariantId>,
    /// What `oddgrad tune` found on this adapter.
    pub tuned: Arc<Tuned>,
    /// Paths of kernels that gave wrong results here; all tiles of such a file are left out.
    pub demoted: BTreeSet<&'static str>,
}

/// Sizes that one tuned choice holds for: bytes read, bytes written and outputs along x of a
/// dispatch, each rounded up to a power of four. Two products of one class have nearly the same
/// shape of work: with rows and columns of the result, the bytes read leave one length of the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SizeClass {
    /// Bytes of everything the dispatch reads lie below this power of four.
    pub reads_below: u64,
    /// Bytes of everything it writes lie below this one.
    pub writes_below: u64,
    /// Outputs along x, the columns of a product's result, lie below this one.
    pub columns_below: u64,
}

impl SizeClass {
    /// The class of a dispatch that reads and writes so many bytes and has so many outputs along x.
    pub fn of(reads: u64, writes: u64, columns: u64) -> Self {
        let above = |n: u64| {
            let bits = u64::BITS - n.leading_zeros();
            1u64 << (bits + bits % 2).min(62)
        };
        Self {
            reads_below: above(reads),
            writes_below: above(writes),
            columns_below: above(columns),
        }
    }
}

/// What a kernel is chosen by besides the adapter: the variables of a call.
#[derive(Debug, Clone)]
pub struct Facts {
    /// How each variable is stored, in the order of the bindings.
    pub operands: Vec<Operand>,
    /// The class of sizes.
    pub size: SizeClass,
}

/// A variable that a call binds.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Storage type.
    pub dtype: DType,
    /// Elements of a row: the last number of its shape.
    pub row: usize,
    /// Number of rows: the product of the others.
    pub rows: usize,
}

/// What the variables of a call must be like for a kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Takes {
    /// Bindings whose rows it walks in vectors of four: their lengths must be multiples of four.
    pub quads: &'static [usize],
    /// Bindings that it decodes from another storage type than 32-bit words, with that type.
    pub stored: &'static [(usize, DType)],
    /// A binding that may have at most so many rows.
    pub few: Option<(usize, usize)>,
}

impl Takes {
    /// Rows of any length, stored in 32-bit words.
    pub const WORDS: Self = Self { quads: &[], stored: &[], few: None };

    /// True if the kernel can take a call with these variables.
    pub fn fits(&self, operands: &[Operand]) -> bool {
        let stored = |at: usize| self.stored.iter().find(|(i, _)| *i == at).map(|(_, t)| *t);
        operands.iter().enumerate().all(|(i, operand)| {
            let quads = !self.quads.contains(&i) || operand.row.is_multiple_of(4);
            let few = self.few.is_none_or(|(at, most)| at != i || operand.rows <= most);
            quads && few && stored(i).map_or(operand.dtype.is_word(), |t| operand.dtype == t)
        })
    }

    /// True if it takes every call that `other` takes.
    fn covers(&self, other: &Self) -> bool {
        self.stored == other.stored
            && self.quads.iter().all(|q| other.quads.contains(q))
            && (self.few.is_none() || self.few == other.few)
    }
}

/// Kernels measured to be the fastest here: pass (`matmul.nt`) and class of sizes to a variant.
pub type Tuned = BTreeMap<(String, SizeClass), VariantId>;

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

impl Target {
    /// WebGPU's default limits and nothing else: what every adapter can do.
    pub fn baseline(class: Class) -> Self {
        Self {
            class,
            subgroups: false,
            f16: false,
            cooperative: Vec::new(),
            workgroup_bytes: 16384,
            invocations: 256,
            binding_bytes: 128 << 20,
            pinned: BTreeMap::new(),
            tuned: Arc::default(),
            demoted: BTreeSet::new(),
        }
    }
}

/// A kind of cooperative matrix: square, with sums in single precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooperative {
    /// Rows and columns of every matrix: 8 or 16.
    pub size: u32,
    /// The factors are 16-bit floats, else single precision.
    pub half: bool,
}

/// What a variant needs beyond WebGPU's default limits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// Subgroup operations.
    pub subgroups: bool,
    /// 16-bit floats.
    pub f16: bool,
    /// Cooperative matrices of this kind.
    pub cooperative: Option<Cooperative>,
    /// Invocations per workgroup, where more than 256.
    pub invocations: u32,
    /// Workgroup memory in bytes, where more than 16 KiB.
    pub workgroup_bytes: u32,
}

impl Needs {
    /// Nothing beyond WebGPU's defaults.
    pub const NONE: Needs = Needs {
        subgroups: false,
        f16: false,
        cooperative: None,
        invocations: 0,
        workgroup_bytes: 0,
    };

    /// True if it uses an optional capability, which drivers get wrong more often than the rest.
    pub fn special(&self) -> bool {
        self.subgroups || self.f16 || self.cooperative.is_some()
    }

    fn met(&self, target: &Target) -> bool {
        (!self.subgroups || target.subgroups)
            && (!self.f16 || target.f16)
            && self.cooperative.is_none_or(|c| target.cooperative.contains(&c))
            && self.invocations <= target.invocations
            && self.workgroup_bytes <= target.workgroup_bytes
    }
}

/// One numbered WGSL file, or one tile of it. All variants of a pass have the same bindings and the
/// same meaning.
#[derive(Debug)]
pub struct Variant {
    /// Path below `shaders/`, `softmax/forward_1_naive.wgsl`: pass, number, idea.
    pub path: &'static str,
    /// The file's text.
    pub source: &'static str,
    /// Optional capabilities it uses.
    pub needs: Needs,
    /// Outputs that one workgroup computes along x, y and z: the grid is extent / tile, rounded up.
    pub tile: [u32; 3],
    /// What tells it from other entries of the same file, `128x64`; empty where there is but one.
    pub tile_name: &'static str,
    /// Values of the file's constants that make this tile.
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

impl Tile {
    /// The constants of a kernel that decodes 16-bit floats, for IEEE ones, with the outputs of a
    /// workgroup.
    pub const fn f16(outputs: [u32; 3]) -> Self {
        Self { name: "f16", outputs, constants: &[("BF16", Const::Bool(false))] }
    }

    /// As [`Tile::f16`], for the upper halves of 32-bit floats.
    pub const fn bf16(outputs: [u32; 3]) -> Self {
        Self { name: "bf16", outputs, constants: &[("BF16", Const::Bool(true))] }
    }
}

/// Every class of adapter.
pub const ANY: &[Class] = &[Class::Software, Class::Integrated, Class::Discrete];
/// Adapters that are hardware.
pub const HARDWARE: &[Class] = &[Class::Integrated, Class::Discrete];
/// Software adapters.
pub const SOFTWARE: &[Class] = &[Class::Software];

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

    /// The same kernel for calls with such variables only.
    pub const fn taking(self, takes: Takes) -> Self {
        Self { takes, ..self }
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

    /// The file's text with the constants of its tile and those of a call.
    ///
    /// # Errors
    /// Names the first constant that the file does not declare.
    pub fn specialise(&self, constants: &[(&'static str, Const)]) -> Result<String, String> {
        specialise(self.source, &[self.constants, constants].concat())
    }

    /// The file's text with the constants of its tile.
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

    /// The variant that a user asked for.
    ///
    /// # Panics
    /// When it does not exist; `ops::check_pins` reports that to users beforehand.
    pub fn pinned(&self, target: &Target) -> Option<&'static Variant> {
        let full = self.full_name();
        if let Some(id) = target.pinned.get(&full) {
            let v = self.find(id);
            return Some(v.unwrap_or_else(|| panic!("kernel {full} has no variant {id}")));
        }
        // `softmax=1` pins every pass that has a variant 1 and leaves the others alone.
        target.pinned.get(self.op).and_then(|id| self.find(id))
    }

    /// The variant for a call on `target`: the pinned one, else the tuned one, else the default one,
    /// each if it takes the call. None where no kernel of the pass does.
    pub fn choose(&self, target: &Target, facts: &Facts) -> Option<&'static Variant> {
        let fits = |v: &&'static Variant| v.takes.fits(&facts.operands);
        if let Some(v) = self.pinned(target).filter(fits) {
            return Some(v);
        }
        // The file it comes from may have been written with other kernels or edited by hand.
        let tuned = target.tuned.get(&(self.full_name(), facts.size)).and_then(|id| self.find(id));
        tuned
            .filter(|v| v.needs_met(target) && fits(v))
            .or_else(|| self.default_for(target, &facts.operands))
    }

    /// Every kernel that [`Pass::choose`] may take on `target`, whatever the call.
    pub fn in_use(&self, target: &Target) -> Vec<&'static Variant> {
        let full = self.full_name();
        let tuned = target.tuned.iter().filter(|((pass, _), _)| *pass == full).map(|(_, id)| id);
        let pinned = target.pinned.get(&full).or(target.pinned.get(self.op));
        let named = tuned.chain(pinned).filter_map(|id| self.find(id));
        let mut used: Vec<_> = named.collect();
        // From the last of the table on, as long as a call can be left for the one before.
        let mut later: Vec<Takes> = Vec::new();
        for v in self.variants.iter().rev().filter(|v| v.is_default(target)) {
            if !later.iter().any(|l| l.covers(&v.takes)) {
                used.push(v);
                later.push(v.takes);
            }
        }
        if !later.iter().any(|l| l.covers(&Takes::WORDS)) {
            used.push(&self.variants[0]);
        }
        self.variants
            .iter()
            .filter(|v| used.iter().any(|u| std::ptr::eq(*u, *v)) && v.needs_met(target))
            .collect()
    }

    /// The variant for a kind of adapter and a call with these variables, whatever the sizes: the
    /// last that is a default on the adapter's class and whose needs are met, else the first that takes it.
    pub fn default_for(&self, target: &Target, operands: &[Operand]) -> Option<&'static Variant> {
        let fits = |v: &&Variant| v.takes.fits(operands);
        let default = self.variants.iter().rfind(|v| v.is_default(target) && fits(v));
        default.or_else(|| self.variants.iter().find(fits))
    }

    /// The variant for a kind of adapter and rows of multiples of four 32-bit words.
    pub fn default_variant(&self, target: &Target) -> &'static Variant {
        let words = |v: &&Variant| v.takes.stored.is_empty();
        let default = self.variants.iter().rfind(|v| v.is_default(target) && words(v));
        default.unwrap_or(&self.variants[0])
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

/// The value of a WGSL `const`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Const {
    /// A `u32`.
    U32(u32),
    /// An `f32`; must be finite.
    F32(f32),
    /// A `bool`.
    Bool(bool),
}

impl From<u32> for Const {
    fn from(v: u32) -> Self {
        Self::U32(v)
    }
}
impl From<usize> for Const {
    fn from(v: usize) -> Self {
        Self::U32(u32::try_from(v).expect("a shader constant fits 32 bits"))
    }
}
impl From<f32> for Const {
    fn from(v: f32) -> Self {
        assert!(v.is_finite(), "WGSL has no literal for {v}");
        Self::F32(v)
    }
}
impl From<bool> for Const {
    fn from(v: bool) -> Self {
        Self::Bool(v)
    }
}

impl std::fmt::Display for Const {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::U32(v) => write!(f, "{v}u"),
            // Seventeen digits are more than an f32 has; `e` notation is valid WGSL for any value.
            Self::F32(v) => write!(f, "{v:e}f"),
            Self::Bool(v) => write!(f, "{v}"),
        }
    }
}

/// Rewrites the value of each named `const NAME: T = literal;` line of a WGSL source.
///
/// The file on disk stays valid WGSL with its default values; this is the only specialisation
/// mechanism (`override` cannot size function-scope arrays, which register tiles need).
///
/// # Errors
/// Names the first constant that the source does not declare on a line of its own.
pub fn specialise(source: &str, constants: &[(&'static str, Const)]) -> Result<String, String> {
    let mut lines: Vec<String> = source.lines().map(str::to_owned).collect();
    for (name, value) in constants {
        let head = format!("const {name}:");
        let line = lines
            .iter_mut()
            .find(|line| line.starts_with(&head))
            .ok_or_else(|| format!("no line `const {name}: … = …;` in the shader"))?;
        let (declaration, rest) =
            line.split_once('=').ok_or_else(|| format!("the line of const {name} has no `=`"))?;
        let comment = rest.split_once(';').map_or("", |(_, tail)| tail);
        *line = format!("{}= {value};{comment}", declaration);
    }
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Variant = Variant {
        path: "",
        source: "",
        needs: Needs::NONE,
        tile: [1; 3],
        tile_name: "",
        constants: &[],
        default_on: ANY,
        takes: Takes::WORDS,
        tolerance: 0.0,
    };

    /// A call of elementwise kernels that reads and writes so many bytes.
    fn facts(reads: u64, writes: u64) -> Facts {
        Facts { operands: Vec::new(), size: SizeClass::of(reads, writes, writes / 4) }
    }

    #[test]
    fn specialise_rewrites_only_the_named_line() {
        let wgsl =
            "const N: u32 = 1u; // rows\nconst EPS: f32 = 1e-5;\nfn f() -> u32 { return N; }";
        let out = specialise(wgsl, &[("N", 7u32.into()), ("EPS", 0.25f32.into())]).unwrap();
        assert_eq!(
            out,
            "const N: u32 = 7u; // rows\nconst EPS: f32 = 2.5e-1f;\nfn f() -> u32 { return N; }"
        );
    }

    #[test]
    fn an_unknown_constant_is_named() {
        let err = specialise("const N: u32 = 1u;", &[("M", 2u32.into())]).unwrap_err();
        assert!(err.contains("const M"), "{err}");
    }

    #[test]
    fn size_classes_are_powers_of_four_above_the_bytes() {
        for (bytes, below) in
            [(0, 1), (1, 4), (3, 4), (4, 16), (1 << 20, 1 << 22), (5 << 20, 1 << 24)]
        {
            assert_eq!(SizeClass::of(bytes, 0, 0).reads_below, below, "{bytes}");
        }
        assert_eq!(SizeClass::of(0, u64::MAX, 0).writes_below, 1 << 62);
    }

    #[test]
    fn a_product_and_its_transpose_are_tuned_apart() {
        let class = |m: u64, n: u64, k: u64| SizeClass::of(4 * k * (m + n), 4 * m * n, n);
        assert_ne!(class(1024, 128, 64), class(128, 1024, 64));
        assert_ne!(class(1024, 256, 64), class(256, 1024, 64));
        assert_eq!(class(1000, 130, 64), class(1020, 140, 64));
    }

    #[test]
    fn choose_prefers_the_pinned_then_the_tuned_then_the_usual_kernel() {
        let pass = crate::ops::passes().into_iter().find(|p| p.full_name() == "adamw.update");
        let pass = pass.unwrap();
        let of = |target: &Target, facts: &Facts| pass.choose(target, facts).unwrap().number();
        let call = facts(1000, 1000);
        let size = call.size;
        let mut target = Target::baseline(Class::Software);
        let default = of(&target, &call);
        assert_eq!(default, pass.default_variant(&target).number());
        let other = pass.variants.iter().map(Variant::number).find(|&n| n != default).unwrap();
        target.tuned = Arc::new(Tuned::from([(("adamw.update".to_owned(), size), other.into())]));
        assert_eq!(of(&target, &call), other);
        assert_eq!(of(&target, &facts(1, 1)), default);
        target.pinned.insert("adamw.update".into(), default.into());
        assert_eq!(of(&target, &call), default);
        target.pinned.clear();
        target.tuned = Arc::new(Tuned::from([(("adamw.update".to_owned(), size), 99.into())]));
        assert_eq!(of(&target, &call), default, "an unknown number is passed over");
    }

    #[test]
    fn usual_skips_what_is_demoted_and_what_loses_digits() {
        const fn variant(path: &'static str, tolerance: f64) -> Variant {
            Variant { path, tolerance, ..NOTHING }
        }
        static VARIANTS: [Variant; 3] = [
            variant("a/p_1_x.wgsl", 0.0),
            variant("a/p_2_y.wgsl", 0.0),
            variant("a/p_3_z.wgsl", 1e-3),
        ];
        let pass = Pass { op: "a", name: "p", variants: &VARIANTS };
        let mut target = Target::baseline(Class::Discrete);
        assert_eq!(pass.default_variant(&target).number(), 2);
        target.demoted.insert("a/p_2_y.wgsl");
        assert_eq!(pass.default_variant(&target).number(), 1);
        target.pinned.insert("a.p".into(), 3.into());
        assert_eq!(pass.choose(&target, &facts(1, 1)).unwrap().number(), 3);
    }

    #[test]
    fn number_and_idea_come_from_the_file_name() {
        let v = Variant { path: "matmul/nt_3_register_tile.wgsl", ..NOTHING };
        assert_eq!((v.number(), v.idea()), (3, "register_tile"));
        assert_eq!(v.name(), "3 register_tile");
    }

    #[test]
    fn a_variant_is_named_by_number_and_tile() {
        for text in ["3", "11/128x64"] {
            assert_eq!(text.parse::<VariantId>().unwrap().to_string(), text);
        }
        for text in ["", "x", "11/", "/128x64", "-1"] {
            assert!(text.parse::<VariantId>().is_err(), "{text}");
        }
    }

    #[test]
    fn tiles_of_a_file_are_variants_of_their_own() {
        const SOURCE: &str = "const SIDE: u32 = 4u;\nf";
        const SMALL: Tile = Tile { name: "8x4", outputs: [4, 8, 1], constants: &[] };
        const LARGE: Tile =
            Tile { name: "8x8", outputs: [8, 8, 1], constants: &[("SIDE", Const::U32(8))] };
        const FILE: Variant =
            Variant { path: "a/p_2_t.wgsl", source: SOURCE, default_on: &[], ..NOTHING };
        static VARIANTS: [Variant; 3] =
            [Variant { path: "a/p_1_x.wgsl", ..NOTHING }, FILE.tiled(&SMALL), FILE.tiled(&LARGE)];
        let pass = Pass { op: "a", name: "p", variants: &VARIANTS };
        let call = facts(1, 1);
        let mut target = Target::baseline(Class::Discrete);
        for (pin, name) in
            [("1", "1 x"), ("2", "2 t 8x4"), ("2/8x4", "2 t 8x4"), ("2/8x8", "2 t 8x8")]
        {
            target.pinned.insert("a".into(), pin.parse().unwrap());
            assert_eq!(pass.choose(&target, &call).unwrap().name(), name);
        }
        target.pinned.clear();
        target.tuned =
            Arc::new(Tuned::from([(("a.p".into(), call.size), "2/8x8".parse().unwrap())]));
        let large = pass.choose(&target, &call).unwrap();
        assert_eq!(large.id().to_string(), "2/8x8");
        assert_eq!(large.text(), "const SIDE: u32 = 8u;\nf");
        let used: Vec<_> = pass.in_use(&target).iter().map(|v| v.id().to_string()).collect();
        assert_eq!(used, ["1", "2/8x8"]);
        assert_ne!(VARIANTS[1].identity(), large.identity());
        target.demoted.insert("a/p_2_t.wgsl");
        let chosen = pass.choose(&target, &call).unwrap();
        assert_eq!(chosen.number(), 1, "all tiles of a wrong file go");
    }

    #[test]
    fn a_row_of_the_table_says_which_calls_it_takes() {
        const QUADS: Takes = Takes { quads: &[1], ..Takes::WORDS };
        const HALF: Takes = Takes { stored: &[(1, DType::F16)], ..Takes::WORDS };
        static VARIANTS: [Variant; 3] = [
            Variant { path: "a/p_1_x.wgsl", ..NOTHING },
            Variant { path: "a/p_2_y.wgsl", takes: QUADS, ..NOTHING },
            Variant { path: "a/p_3_z.wgsl", takes: HALF, ..NOTHING },
        ];
        let pass = Pass { op: "a", name: "p", variants: &VARIANTS };
        let call = |dtype: DType, row: usize| {
            let word = Operand { dtype: DType::F32, row: 7, rows: 1 };
            Facts { operands: vec![word, Operand { dtype, row, rows: 1 }, word], ..facts(1, 1) }
        };
        let mut target = Target::baseline(Class::Discrete);
        let number =
            |t: &Target, dtype, row| pass.choose(t, &call(dtype, row)).map(Variant::number);
        assert_eq!(number(&target, DType::F32, 8), Some(2));
        assert_eq!(number(&target, DType::U32, 6), Some(1));
        assert_eq!(number(&target, DType::F16, 6), Some(3));
        assert_eq!(number(&target, DType::BF16, 8), None);
        let used: Vec<_> = pass.in_use(&target).iter().map(|v| v.number()).collect();
        assert_eq!(used, [1, 2, 3]);
        assert_eq!(pass.default_variant(&target).number(), 2);
        // A pinned or tuned kernel that cannot take a call leaves it to the one that can.
        target.pinned.insert("a".into(), 2.into());
        assert_eq!(number(&target, DType::F32, 6), Some(1));
        target.pinned.clear();
        let tuned = [(("a.p".into(), facts(1, 1).size), 2.into())];
        target.tuned = Arc::new(Tuned::from(tuned));
        assert_eq!(number(&target, DType::F16, 8), Some(3));
    }
}
