//! Views: another shape, or some of the rows, of a variable's memory, without a copy.
//!
//! A view shares everything with its base: memory, lifetime and gradient. The gradient of a view is
//! the same view of the base's gradient, so no call and no tape record stands for it.
//!
//! There is no view of columns: its elements do not lie together, and every kernel that takes one
//! would have to be told the distance of two rows. The columns `a..b` of a linear layer x Wᵀ are the
//! linear layer of the rows `a..b` of W, which costs nothing.

use super::{DType, Graph, Role, Sink, Var};
use crate::kernel::Pass;

/// WebGPU starts a binding at multiples of so many bytes. Some adapters allow less; a graph that
/// could be built only there would be of little use.
pub const BINDING_ALIGNMENT: u64 = 256;

/// Rows of a variable that are bound by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowBlock {
    /// They.
    pub var: Var,
    /// The first of them.
    pub start: usize,
    /// How many they are.
    pub rows: usize,
}

/// Rows of a table that are read together: about a quarter, so that what is computed of them is small
/// beside the model, but enough to keep an adapter busy.
pub fn chunk_rows(rows: usize) -> usize {
    rows.div_ceil(4).next_multiple_of(8).clamp(128, 4096)
}

/// Rows of each block, but the last, of a variable `shape` that is bound in blocks of at most
/// `binding_bytes`; None where it is bound whole, because it can be or because not even the least number
/// of rows can.
///
/// A block begins where a binding may, and holds a multiple of `multiple` rows. Of types that store
/// elements together a block holds all of its own, so that it is a variable of its own in memory.
pub fn rows_of_block(
    shape: &[usize],
    dtype: DType,
    multiple: usize,
    binding_bytes: u64,
) -> Option<usize> {
    let width: usize = shape[1..].iter().product();
    if dtype.bytes(shape[0] * width) <= binding_bytes {
        return None;
    }
    let (elements, bytes) = dtype.block();
    // Of so many elements the bytes are whole bindings: 256 bytes need 256 / gcd(256, bytes) blocks.
    let aligned = elements * (BINDING_ALIGNMENT as usize / gcd(BINDING_ALIGNMENT as usize, bytes));
    let rows = aligned / gcd(aligned, width);
    let unit = multiple / gcd(multiple, rows) * rows;
    let most = (binding_bytes / dtype.bytes(unit * width)) as usize;
    (most > 0).then_some(most * unit)
}

/// The greatest common divisor.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Zeroes the gradient of a variable before its first slice gets a contribution.
pub static FILL: Pass = Pass {
    op: "gather_rows",
    name: "fill",
    variants: &[crate::variant!("gather_rows/fill_1_naive.wgsl", tile: [256, 1, 1])],
};

impl Graph {
    /// The elements of `var` under another shape, without a copy.
    ///
    /// # Panics
    /// When the shape has another number of elements.
    #[track_caller]
    pub fn view(&mut self, var: Var, shape: &[usize]) -> Var {
        assert_eq!(
            self.info(var).len(),
            shape.iter().product::<usize>(),
            "view: {} {:?} does not have the elements of {shape:?}",
            self.info(var).name,
            self.shape(var)
        );
        let name = self.info(var).name.clone();
        self.part(var, &name, shape, 0)
    }

    /// The rows `start..start + count` of `var` `[rows, …]`, without a copy: `[count, …]`.
    ///
    /// # Panics
    /// When the rows are not there, are stored in blocks, or the first does not begin at a multiple of
    /// [`BINDING_ALIGNMENT`] bytes (64 floats), where WebGPU can bind it. `gather_rows` copies any.
    #[track_caller]
    pub fn rows(&mut self, var: Var, start: usize, count: usize) -> Var {
        let (info, end) = (self.info(var), start + count);
        let name = format!("{} rows {start}..{end}", info.name);
        let mut shape = info.shape.clone();
        assert!(shape.first().is_some_and(|&rows| end <= rows), "{name}: it has shape {shape:?}");
        shape[0] = count;
        let first = start * shape[1..].iter().product::<usize>();
        let (elements, _) = info.dtype.block();
        let byte = info.dtype.bytes(first);
        assert!(
            byte.is_multiple_of(BINDING_ALIGNMENT) && elements == 1,
            "{name} begin at byte {byte}, and a binding begins at a multiple of {BINDING_ALIGNMENT} \
             bytes: slice at other rows, or copy them with gather_rows"
        );
        self.part(var, &name, &shape, first)
    }

    /// `var` `[rows, …]` in the blocks of rows that the adapter can bind ([`rows_of_block`]): the variable
    /// itself where it can be bound in one piece, as most can. What is too large in the least number of
    /// rows is given back whole too, and [`Graph::check_limits`] names it.
    ///
    /// # Panics
    /// When `var` has no rows.
    #[track_caller]
    pub fn row_blocks(&mut self, var: Var) -> Vec<RowBlock> {
        let (info, most) = (self.info(var), self.target().binding_bytes);
        let (shape, name) = (info.shape.clone(), info.name.clone());
        let (rows, width) = (shape[0], shape[1..].iter().product::<usize>());
        let Some(block) = rows_of_block(&shape, info.dtype, chunk_rows(rows), most) else {
            return vec![RowBlock { var, start: 0, rows }];
        };
        let part = |start: usize| {
            let count = block.min(rows - start);
            let shape = [&[count], &shape[1..]].concat();
            let name = format!("{name} rows {start}..{}", start + count);
            RowBlock { var: self.part(var, &name, &shape, start * width), start, rows: count }
        };
        (0..rows).step_by(block).map(part).collect()
    }

    /// All elements of `var`, which are 32-bit words, in blocks of a multiple of `multiple` that the
    /// adapter can bind, for kernels that know of no rows; else as [`Graph::row_blocks`].
    #[track_caller]
    pub fn element_blocks(&mut self, var: Var, multiple: usize) -> Vec<RowBlock> {
        let (info, most) = (self.info(var), self.target().binding_bytes);
        let len = info.len();
        assert!(info.dtype.is_word(), "{} is stored in no words", info.name);
        let Some(block) = rows_of_block(&[len], info.dtype, multiple, most) else {
            return vec![RowBlock { var, start: 0, rows: len }];
        };
        let elements = self.view(var, &[len]);
        let part = |start: usize| {
            let rows = block.min(len - start);
            RowBlock { var: self.rows(elements, start, rows), start, rows }
        };
        (0..len).step_by(block).map(part).collect()
    }

    fn part(&mut self, var: Var, name: &str, shape: &[usize], start: usize) -> Var {
        let (base, before) = self.place(var);
        let dtype = self.info(var).dtype;
        self.push(name, shape, dtype, Role::View { base, start: before + start })
    }

    /// The variable whose memory `var` lies in, and the element it starts at.
    pub fn place(&self, var: Var) -> (Var, usize) {
        match self.info(var).role {
            Role::View { base, start } => (base, start),
            _ => (var, 0),
        }
    }

    /// The variable whose memory `var` lies in: itself, if it is no view.
    pub fn base(&self, var: Var) -> Var {
        self.place(var).0
    }

    /// True if some element belongs to both.
    pub(super) fn overlap(&self, a: Var, b: Var) -> bool {
        let ((base_a, start_a), (base_b, start_b)) = (self.place(a), self.place(b));
        base_a == base_b
            && start_a < start_b + self.info(b).len()
            && start_b < start_a + self.info(a).len()
    }

    /// The part of a sink for a whole variable that belongs to its view `var`, from element `start`.
    pub(super) fn sink_of_view(&mut self, var: Var, start: usize, whole: Sink) -> Sink {
        let n = self.info(whole.var).len();
        let mut accumulate = whole.accumulate;
        if !accumulate && self.info(var).len() < n {
            // The rest of the gradient is zero until something adds to it.
            self.call(&FILL, &[("N", n.into())], &[], &[whole.var], [n, 1, 1]);
            accumulate = true;
        }
        let (name, shape) = (format!("d {}", self.info(var).name), self.shape(var).to_vec());
        Sink { var: self.part(whole.var, &name, &shape, start), accumulate }
    }
}
