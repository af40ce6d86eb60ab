//! Calls: one dispatch each, with the kernel chosen for it.

use super::{Graph, Role, Var};
use crate::error::{Error, Result};
use crate::kernel::{Const, Facts, Operand, Pass, SizeClass, Target, Variant};
use std::fmt::Write as _;

/// One dispatch: bindings 0.. are `reads` in order, then `writes`.
#[derive(Debug, Clone)]
pub struct Call {
    /// Operation, the shader folder.
    pub op: &'static str,
    /// Pass of the operation.
    pub pass: &'static str,
    /// The chosen kernel.
    pub variant: &'static Variant,
    /// Constants the source is specialised with, besides those of the variant's tile.
    pub constants: Vec<(&'static str, Const)>,
    /// Variables bound read-only.
    pub reads: Vec<Var>,
    /// Variables bound read-write.
    pub writes: Vec<Var>,
    /// Workgroups along x, y, z.
    pub grid: [u32; 3],
    /// Outputs along x, y, z, from which the grid of another variant follows.
    pub extent: [usize; 3],
    /// It does a second time what a call of the forward pass did ([`Graph::recompute_between`]).
    pub again: bool,
}

impl Call {
    /// `matmul.nt`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.op, self.pass)
    }

    /// The same work done by another kernel of the pass.
    ///
    /// # Panics
    /// As [`Graph::call`].
    #[track_caller]
    pub fn with_variant(&self, variant: &'static Variant) -> Self {
        let grid = self.grid_of(variant).unwrap_or_else(|e| panic!("{e}"));
        Self { variant, grid, ..self.clone() }
    }

    /// The grid another kernel of the pass would have.
    ///
    /// # Errors
    /// Says what is too large.
    pub fn grid_of(&self, variant: &Variant) -> std::result::Result<[u32; 3], String> {
        let grid = cover(variant, self.extent);
        if grid.iter().all(|&n| n <= MAX_GROUPS) {
            return Ok(grid);
        }
        Err(format!(
            "{}.{}: grid {grid:?} is beyond 65,535 workgroups per dimension",
            self.op, self.pass
        ))
    }
}

/// Workgroups of `variant` that cover `extent`; a long one-dimensional grid is folded into (x, y).
/// What is too large for any adapter stays so: [`Graph::check_limits`] names it.
fn cover(variant: &Variant, extent: [usize; 3]) -> [u32; 3] {
    let mut groups = [0, 1, 2].map(|axis| {
        u32::try_from(extent[axis].div_ceil(variant.tile[axis] as usize)).unwrap_or(u32::MAX)
    });
    if groups[0] > MAX_GROUPS && extent[1] == 1 && extent[2] == 1 {
        groups[1] = groups[0].div_ceil(MAX_GROUPS);
        groups[0] = groups[0].div_ceil(groups[1]);
    }
    groups
}

/// What to do about a variable that no buffer of an adapter holds.
pub const HELD: &str =
    " Take another adapter (`oddgrad doctor` lists them), or weights in fewer bits.";

/// WebGPU's limit of workgroups per dimension.
pub const MAX_GROUPS: u32 = 65_535;

impl Graph {
    /// Appends one dispatch of `pass`. `extent` counts the outputs along x, y, z in the units of
    /// the variant's tile; a one-dimensional grid beyond 65,535 groups is folded into (x, y), and
    /// such kernels compute `group = wid.x + wid.y * num_workgroups.x`. A grid that is too large
    /// all the same is found by [`Graph::check_limits`]: it comes from the sizes a user asked for.
    ///
    /// # Panics
    /// When more buffers are bound than WebGPU guarantees, one is bound twice for writing, or no
    /// kernel of the pass takes the types these variables are stored in.
    #[track_caller]
    pub fn call(
        &mut self,
        pass: &'static Pass,
        constants: &[(&'static str, Const)],
        reads: &[Var],
        writes: &[Var],
        extent: [usize; 3],
    ) {
        let variant = self.choose(pass, reads, writes, extent);
        let grid = cover(variant, extent);
        assert!(
            reads.len() + writes.len() <= 8,
            "{}.{}: WebGPU guarantees 8 storage buffers",
            pass.op,
            pass.name
        );
        for (i, &w) in writes.iter().enumerate() {
            // WebGPU tracks the use of a buffer as a whole: even another part of it must not be read.
            let read = reads.iter().any(|&r| self.base(r) == self.base(w));
            let written = writes[..i].iter().any(|&other| self.overlap(other, w));
            assert!(
                !read && !written,
                "{}.{}: {} is bound twice, once for writing",
                pass.op,
                pass.name,
                self.info(w).name
            );
        }
        if grid.contains(&0) {
            return; // nothing to compute
        }
        self.calls.push(Call {
            op: pass.op,
            pass: pass.name,
            variant,
            constants: constants.to_vec(),
            reads: reads.to_vec(),
            writes: writes.to_vec(),
            grid,
            extent,
            again: false,
        });
    }

    #[track_caller]
    fn choose(
        &mut self,
        pass: &'static Pass,
        reads: &[Var],
        writes: &[Var],
        extent: [usize; 3],
    ) -> &'static Variant {
        let facts = self.facts(reads, writes, extent);
        let Some(variant) = pass.choose(&self.target, &facts) else {
            let mut stored = reads.iter().chain(writes).map(|&v| self.info(v));
            let what = stored.find(|info| !info.dtype.is_word());
            let what =
                what.map(|info| format!("`{}` {:?} as {}", info.name, info.shape, info.dtype));
            panic!(
                "{}.{} has no kernel for {}: widen it to f32",
                pass.op,
                pass.name,
                what.unwrap_or_else(|| "these row lengths".into())
            );
        };
        let pinned = pass.pinned(&self.target);
        if let Some(pinned) = pinned.filter(|v| !v.takes.fits(&facts.operands)) {
            let (pinned, used) = (pinned.id(), variant.name());
            let name = pass.full_name();
            self.notes.insert(format!(
                "kernel {name}={pinned} does not take all row lengths and types of {name} here; where it does not, {used} runs"
            ));
        }
        variant
    }

    /// What kernels of a dispatch on these variables are chosen by.
    pub fn facts(&self, reads: &[Var], writes: &[Var], extent: [usize; 3]) -> Facts {
        let operand = |&v: &Var| {
            let info = self.info(v);
            let (row, rows) =
                info.shape.split_last().map_or((1, 1), |(&row, rest)| (row, rest.iter().product()));
            Operand { dtype: info.dtype, row, rows }
        };
        let bytes = |vars: &[Var]| vars.iter().map(|&v| self.info(v).bytes()).sum();
        Facts {
            operands: reads.iter().chain(writes).map(operand).collect(),
            size: SizeClass::of(bytes(reads), bytes(writes), extent[0] as u64),
        }
    }

    /// As [`Graph::facts`], for a call that is there.
    pub fn facts_of(&self, call: &Call) -> Facts {
        self.facts(&call.reads, &call.writes, call.extent)
    }

    /// What whoever chose kernels by hand should hear.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.notes.iter().map(String::as_str)
    }

    /// Compares every variable and every call with what the adapter can hold, bind and start.
    ///
    /// # Errors
    /// [`Error::Limit`] that names the largest offender.
    pub fn check_limits(&self) -> Result<()> {
        let Target { binding_bytes, buffer_bytes, .. } = self.target;
        let bound = self.calls.iter().flat_map(|call| call.reads.iter().chain(&call.writes));
        let bound = bound.map(|&v| self.info(v)).max_by_key(|info| info.bytes());
        let owned = self.vars.iter().filter(|info| !matches!(info.role, Role::View { .. }));
        let owned = owned.max_by_key(|info| info.bytes());
        for (largest, most, how, advice) in [
            (owned, buffer_bytes, "in one buffer, and one of this adapter holds at most", HELD),
            (bound, binding_bytes, "in one piece, and this adapter binds at most", ""),
        ] {
            let Some(info) = largest.filter(|info| info.bytes() > most) else { continue };
            let mib = |bytes: u64| bytes as f64 / 1048576.0;
            let what = if matches!(info.role, Role::State) { "the model's " } else { "" };
            return Err(Error::Limit(format!(
                "{what}`{}` {:?} takes {:.1} MiB {how} {:.1} MiB.{advice}",
                info.name,
                info.shape,
                mib(info.bytes()),
                mib(most)
            )));
        }
        let call = self.calls.iter().find(|c| c.grid.iter().any(|&n| n > MAX_GROUPS));
        call.map_or(Ok(()), |call| {
            Err(Error::Limit(format!(
                "{}.{} is too large for one dispatch: {:?} workgroups, and GPUs start at most {MAX_GROUPS} along each dimension.",
                call.op, call.pass, call.grid
            )))
        })
    }

    /// Puts `variant` in the place of the kernel of every call of a pass that it takes and returns
    /// how many there are: for benchmarks and tests of kernels that stand in no table.
    ///
    /// # Panics
    /// As [`Graph::call`].
    #[track_caller]
    pub fn replace(&mut self, op: &str, pass: &str, variant: &'static Variant) -> usize {
        let ours = |&i: &usize| {
            let call = &self.calls[i];
            let fits = variant.takes.fits(&self.facts_of(call).operands);
            call.op == op && call.pass == pass && fits
        };
        let places: Vec<usize> = (0..self.calls.len()).filter(ours).collect();
        for &i in &places {
            self.calls[i] = self.calls[i].with_variant(variant);
        }
        places.len()
    }

    /// Folds the grid of every call of `variant` into two rows, where it has one dimension and more
    /// than one group: for tests of what [`Graph::call`] does to grids beyond 65,535 groups.
    pub fn fold(&mut self, variant: &Variant) {
        for call in self.calls.iter_mut().filter(|c| std::ptr::eq(c.variant, variant)) {
            let line = call.extent[1..] == [1, 1] && call.grid[1] == 1;
            if line && call.grid[0] > 1 {
                call.grid = [call.grid[0].div_ceil(2), 2, 1];
            }
        }
    }

    /// The whole step: one line per dispatch with names and shapes.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        let name = |&v: &Var| {
            let info = self.info(v);
            let reshaped = self.base(v) != v && info.len() == self.info(self.base(v)).len();
            format!("{}{}{:?}", info.name, if reshaped { " as " } else { "" }, info.shape)
        };
        for (i, call) in self.calls.iter().enumerate() {
            let writes: Vec<_> = call.writes.iter().map(name).collect();
            let reads: Vec<_> = call.reads.iter().map(name).collect();
            let [x, y, z] = call.grid;
            let _ = writeln!(
                text,
                "{i:4} {:<28} {} <- {}   ({x} x {y} x {z}, {})",
                format!("{}.{}", call.op, call.pass),
                writes.join(", "),
                reads.join(", "),
                call.variant.label(),
            );
        }
        text
    }
}
