//! Which variant of a pass runs: the pinned one, else the tuned one, else the default, each if it
//! takes the call.

use super::{Pass, Target, Variant, VariantId};
use crate::dtype::DType;
use std::collections::BTreeMap;

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
    /// A binding whose rows must have at least so many elements.
    pub long: Option<(usize, usize)>,
}

impl Takes {
    /// Rows of any length, stored in 32-bit words.
    pub const WORDS: Self = Self { quads: &[], stored: &[], few: None, long: None };

    /// True if the kernel can take a call with these variables.
    pub fn fits(&self, operands: &[Operand]) -> bool {
        let stored = |at: usize| self.stored.iter().find(|(i, _)| *i == at).map(|(_, t)| *t);
        operands.iter().enumerate().all(|(i, operand)| {
            let quads = !self.quads.contains(&i) || operand.row.is_multiple_of(4);
            let few = self.few.is_none_or(|(at, most)| at != i || operand.rows <= most);
            let long = self.long.is_none_or(|(at, least)| at != i || operand.row >= least);
            quads
                && few
                && long
                && stored(i).map_or(operand.dtype.is_word(), |t| operand.dtype == t)
        })
    }

    /// True if it takes every call that `other` takes.
    fn covers(&self, other: &Self) -> bool {
        self.stored == other.stored
            && self.quads.iter().all(|q| other.quads.contains(q))
            && (self.few.is_none() || self.few == other.few)
            && (self.long.is_none() || self.long == other.long)
    }
}

/// Kernels measured to be the fastest here: pass (`matmul.nt`) and class of sizes to a variant.
pub type Tuned = BTreeMap<(String, SizeClass), VariantId>;

impl Pass {
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
}
