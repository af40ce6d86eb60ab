//! Views: another shape, or some of the rows, of a variable's memory, without a copy.
//!
//! A view shares everything with its base: memory, lifetime and gradient. The gradient of a view is
//! the same view of the base's gradient, so no call and no tape record stands for it.
//!
//! There is no view of columns: its elements do not lie together, and every kernel that takes one
//! would have to be told the distance of two rows. The columns `a..b` of a linear layer x Wᵀ are the
//! linear layer of the rows `a..b` of W, which costs nothing.

use super::{Graph, Role, Sink, Var};
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

/// The greatest common divisor.
fn gcd(a: u64, b: u64) -> u64 {
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

    /// `var` `[rows, …]` in blocks of rows that the adapter can bind, each a multiple of `multiple` rows
    /// but the last: the variable itself where it can be bound in one piece, as most can. So can what
    /// is stored in blocks of elements not be cut, and what is too large in the least number of rows: it
    /// is given back whole, and [`Graph::check_limits`] names it.
    ///
    /// # Panics
    /// When `var` is a scalar without a shape or `multiple` is 0.
    #[track_caller]
    pub fn row_blocks(&mut self, var: Var, multiple: usize) -> Vec<RowBlock> {
        let info = self.info(var);
        let (rows, most) = (info.shape[0], self.target().binding_bytes);
        let whole = vec![RowBlock { var, start: 0, rows }];
        if info.bytes() <= most || info.dtype.block().0 > 1 {
            return whole;
        }
        let row = info.dtype.bytes(info.shape[1..].iter().product());
        let aligned = (BINDING_ALIGNMENT / gcd(BINDING_ALIGNMENT, row)) as usize;
        let unit = multiple / gcd(multiple as u64, aligned as u64) as usize * aligned;
        let block = (most / row) as usize / unit * unit;
        if block == 0 {
            return whole;
        }
        (0..rows)
            .step_by(block)
            .map(|start| {
                let count = block.min(rows - start);
                RowBlock { var: self.rows(var, start, count), start, rows: count }
            })
            .collect()
    }

    /// As [`Graph::row_blocks`] of single elements, for kernels that know of no rows.
    #[track_caller]
    pub fn element_blocks(&mut self, var: Var, multiple: usize) -> Vec<RowBlock> {
        let len = self.info(var).len();
        if self.info(var).bytes() <= self.target().binding_bytes {
            return vec![RowBlock { var, start: 0, rows: len }];
        }
        let elements = self.view(var, &[len]);
        self.row_blocks(elements, multiple)
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
