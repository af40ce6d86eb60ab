//! The static graph: variables, calls, the tape, and the derivative appended to the same graph.
//!
//! A [`Graph`] is an arena. Each operation in `ops` appends *calls* (one dispatch each) and one
//! tape record with a backward closure. The order in which calls are pushed is the order in
//! which they run, so [`Graph::backward`] walks the tape in reverse and appends gradient calls of
//! the same kind. Nothing here knows wgpu.
//!
//! # Gradients
//! The gradient of a parameter is persistent state: gradient kernels always *add* to it, and the
//! optimizer zeroes it. The gradient of any other variable is a temporary: the first contribution
//! writes it, later ones add to it (the kernels' `ACCUMULATE` constant). Because calls run in
//! push order, adding in place is safe exactly when no other pending gradient lies in the same
//! memory; [`Graph::grad_into`] checks that and copies otherwise.

mod parameter;
mod view;

pub use crate::dtype::DType;
pub use parameter::{Init, Parameter};
pub use view::{BINDING_ALIGNMENT, FILL};

use crate::error::{Error, Result};
use crate::kernel::{Const, Facts, Operand, Pass, SizeClass, Target, Variant};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

/// A variable of a [`Graph`]: an index, freely copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var(pub(crate) u32);

impl Var {
    /// Position in [`Graph::vars`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a variable's memory comes from and how long it lives.
#[derive(Debug, Clone)]
pub enum Role {
    /// Written and read inside one run; the plan gives it a slot.
    Temp,
    /// Written by the host before a run; a buffer of its own.
    Input,
    /// Shared by name between programs and kept between runs (parameters, gradients, moments).
    State,
    /// Fixed values, uploaded once.
    Constant(Arc<Vec<u8>>),
    /// Part of another variable's memory; see [`Graph::view`] and [`Graph::rows`].
    View {
        /// The variable that owns the memory; never a view itself.
        base: Var,
        /// First element of the base that belongs to the view.
        start: usize,
    },
}

/// What is known of a variable.
#[derive(Debug, Clone)]
pub struct VarInfo {
    /// For listings and errors; for state, the name it is shared under.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Storage type.
    pub dtype: DType,
    /// Memory and lifetime.
    pub role: Role,
    /// The host reads it after a run, so the plan keeps it to the end.
    pub output: bool,
    needs_grad: bool,
    leaf: bool,
    /// Its operation's backward has run, so a gradient that arrives now would go nowhere.
    differentiated: bool,
}

impl VarInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a shape with a zero in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.dtype.bytes(self.len())
    }
}

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

/// Where a gradient kernel writes: `accumulate` says whether it adds to what is there.
#[derive(Debug, Clone, Copy)]
pub struct Sink {
    /// The gradient variable.
    pub var: Var,
    /// Add to the present value instead of overwriting it.
    pub accumulate: bool,
}

type Backward = Box<dyn Fn(&mut Graph, &[Option<Var>])>;

struct Record {
    op: &'static str,
    outputs: Vec<Var>,
    backward: Option<Backward>,
}

/// Suffix of a parameter's gradient state.
pub const GRAD: &str = ".grad";

/// WebGPU's limit of workgroups per dimension.
pub const MAX_GROUPS: u32 = 65_535;

/// Where two gradients meet: the only kernel that the graph calls by itself.
pub static ACCUMULATE: Pass = Pass {
    op: "add",
    name: "accumulate",
    variants: &[crate::variant!("add/accumulate_1_naive.wgsl", tile: [256, 1, 1])],
};

/// An arena of variables, calls and tape records.
pub struct Graph {
    target: Target,
    vars: Vec<VarInfo>,
    calls: Vec<Call>,
    tape: Vec<Record>,
    /// The gradient of each variable, as far as it has been added up.
    grads: HashMap<Var, Var>,
    /// How many of `grads` lie in the memory of a variable.
    grads_in: HashMap<Var, usize>,
    states: HashMap<String, Var>,
    notes: BTreeSet<String>,
    parameters: Vec<Parameter>,
    trained: Box<dyn Fn(&str) -> bool>,
    storage: Box<dyn Fn(&str) -> DType>,
}

impl Graph {
    /// An empty graph whose kernels are chosen for `target`.
    pub fn new(target: &Target) -> Self {
        Self {
            target: target.clone(),
            vars: Vec::new(),
            calls: Vec::new(),
            tape: Vec::new(),
            grads: HashMap::new(),
            grads_in: HashMap::new(),
            states: HashMap::new(),
            notes: BTreeSet::new(),
            parameters: Vec::new(),
            trained: Box::new(|_| true),
            storage: Box::new(|_| DType::F32),
        }
    }

    /// The adapter facts kernels are chosen by.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// All variables; a [`Var`]'s index points in here.
    pub fn vars(&self) -> &[VarInfo] {
        &self.vars
    }

    /// All calls in the order they run.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// What is known of `var`.
    pub fn info(&self, var: Var) -> &VarInfo {
        &self.vars[var.index()]
    }

    /// Shape of `var`.
    pub fn shape(&self, var: Var) -> &[usize] {
        &self.info(var).shape
    }

    fn push(&mut self, name: &str, shape: &[usize], dtype: DType, role: Role) -> Var {
        let var = Var(u32::try_from(self.vars.len()).expect("fewer than 2^32 variables"));
        self.vars.push(VarInfo {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype,
            role,
            output: false,
            needs_grad: false,
            leaf: false,
            differentiated: false,
        });
        var
    }

    /// A variable that lives inside one run.
    pub fn temp(&mut self, name: &str, shape: &[usize]) -> Var {
        self.push(name, shape, DType::F32, Role::Temp)
    }

    /// A variable the host writes before a run.
    pub fn input(&mut self, name: &str, shape: &[usize], dtype: DType) -> Var {
        self.push(name, shape, dtype, Role::Input)
    }

    /// An input that gradients are computed for (tests, and models with soft prompts).
    pub fn input_with_grad(&mut self, name: &str, shape: &[usize]) -> Var {
        let var = self.push(name, shape, DType::F32, Role::Input);
        self.vars[var.index()].needs_grad = true;
        self.vars[var.index()].leaf = true;
        var
    }

    /// Fixed 32-bit floats, uploaded once.
    ///
    /// # Panics
    /// When `values` does not fill `shape`.
    #[track_caller]
    pub fn constant(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Var {
        self.constant_bytes(name, shape, DType::F32, bytemuck::cast_slice(values))
    }

    /// Fixed 32-bit unsigned integers, uploaded once.
    ///
    /// # Panics
    /// When `values` does not fill `shape`.
    #[track_caller]
    pub fn constant_u32(&mut self, name: &str, shape: &[usize], values: &[u32]) -> Var {
        self.constant_bytes(name, shape, DType::U32, bytemuck::cast_slice(values))
    }

    #[track_caller]
    fn constant_bytes(&mut self, name: &str, shape: &[usize], dtype: DType, bytes: &[u8]) -> Var {
        let var = self.push(name, shape, dtype, Role::Constant(Arc::new(bytes.to_vec())));
        assert_eq!(self.info(var).bytes(), bytes.len() as u64, "constant {name}: shape {shape:?}");
        var
    }

    /// Persistent state shared by name between programs; asking twice gives the same variable.
    ///
    /// # Panics
    /// When the name is known with another shape or storage type.
    #[track_caller]
    pub fn state(&mut self, name: &str, shape: &[usize]) -> Var {
        self.state_typed(name, shape, DType::F32)
    }

    /// As [`Graph::state`] for state that is stored as `dtype`: weights that are read and never
    /// written. Only operations with a kernel for that type take it.
    ///
    /// # Panics
    /// As [`Graph::state`].
    #[track_caller]
    pub fn state_typed(&mut self, name: &str, shape: &[usize], dtype: DType) -> Var {
        if let Some(&var) = self.states.get(name) {
            let known = (self.shape(var), self.info(var).dtype);
            assert_eq!(known, (shape, dtype), "state {name} is something else already");
            return var;
        }
        let var = self.push(name, shape, dtype, Role::State);
        self.states.insert(name.to_owned(), var);
        var
    }

    /// Keeps `var` until the end of the run so that the host can read it.
    ///
    /// # Panics
    /// When it is not stored in 32-bit words.
    #[track_caller]
    pub fn output(&mut self, var: Var) -> Var {
        assert!(self.info(var).dtype.is_word(), "{} is read as it is stored", self.info(var).name);
        self.vars[var.index()].output = true;
        var
    }

    /// True if a gradient of `var` is wanted.
    pub fn needs_grad(&self, var: Var) -> bool {
        self.info(self.base(var)).needs_grad
    }

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

    /// Compares every variable and every call with what the adapter can bind and start.
    ///
    /// # Errors
    /// [`Error::Limit`] that names the largest offender.
    pub fn check_limits(&self) -> Result<()> {
        let largest = self.vars.iter().max_by_key(|info| info.bytes());
        if let Some(info) = largest.filter(|info| info.bytes() > self.target.binding_bytes) {
            let mib = |bytes: u64| bytes as f64 / 1048576.0;
            let what = if matches!(info.role, Role::State) { "the model's " } else { "" };
            return Err(Error::Limit(format!(
                "{what}`{}` {:?} takes {:.1} MiB in one piece, and this adapter binds at most {:.1} MiB.",
                info.name,
                info.shape,
                mib(info.bytes()),
                mib(self.target.binding_bytes)
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

    /// Puts an operation on the tape. Its outputs need a gradient if any of `inputs` does; the
    /// closure receives the gradients of `outputs` (None where nothing depends on one) and appends
    /// calls that write to [`Graph::grad_into`] of the inputs.
    ///
    /// # Panics
    /// When an output is a view: record the variable whose memory it is and return a view of that.
    #[track_caller]
    pub fn record(
        &mut self,
        op: &'static str,
        inputs: &[Var],
        outputs: &[Var],
        backward: Option<Backward>,
    ) {
        if !inputs.iter().any(|&v| self.needs_grad(v)) {
            return;
        }
        for &out in outputs {
            assert_eq!(self.base(out), out, "{op}: the output {} is a view", self.info(out).name);
            self.vars[out.index()].needs_grad = true;
        }
        self.tape.push(Record { op, outputs: outputs.to_vec(), backward });
    }

    /// Where to put a contribution to the gradient of `var`; None if none is wanted.
    ///
    /// # Panics
    /// When the operation that made `var` was differentiated already.
    #[track_caller]
    pub fn grad_into(&mut self, var: Var) -> Option<Sink> {
        if !self.needs_grad(var) {
            return None;
        }
        if let Role::View { base, start } = self.info(var).role {
            let whole = self.grad_into(base)?;
            return Some(self.sink_of_view(var, start, whole));
        }
        self.assert_open(var);
        if matches!(self.info(var).role, Role::State) {
            let name = format!("{}{GRAD}", self.info(var).name);
            let shape = self.shape(var).to_vec();
            let grad = self.state(&name, &shape);
            self.set_grad(var, Some(grad));
            return Some(Sink { var: grad, accumulate: true });
        }
        let name = format!("d {}", self.info(var).name);
        let shape = self.shape(var).to_vec();
        let Some(&present) = self.grads.get(&var) else {
            let grad = self.temp(&name, &shape);
            self.set_grad(var, Some(grad));
            return Some(Sink { var: grad, accumulate: false });
        };
        // A seed is an input or a constant: the next run needs it unchanged.
        let memory = self.base(present);
        let seed = !matches!(self.info(memory).role, Role::Temp);
        let shared = self.grads_in[&memory] > 1;
        if shared || seed {
            let copy = self.temp(&name, &shape);
            self.accumulate(present, Sink { var: copy, accumulate: false });
            self.set_grad(var, Some(copy));
            return Some(Sink { var: copy, accumulate: true });
        }
        Some(Sink { var: present, accumulate: true })
    }

    /// Passes `grad` on unchanged as a contribution to the gradient of `var`, without a copy
    /// where that is safe.
    ///
    /// # Panics
    /// As [`Graph::grad_into`].
    #[track_caller]
    pub fn grad_pass(&mut self, var: Var, grad: Var) {
        let base = self.base(var);
        let fresh = self.needs_grad(base)
            && !self.grads.contains_key(&base)
            && self.info(var).len() == self.info(base).len()
            && !matches!(self.info(base).role, Role::State);
        if fresh {
            self.assert_open(base);
            let shape = self.shape(base).to_vec();
            let grad = if self.shape(grad) == shape { grad } else { self.view(grad, &shape) };
            self.set_grad(base, Some(grad));
        } else if let Some(sink) = self.grad_into(var) {
            self.accumulate(grad, sink);
        }
    }

    fn set_grad(&mut self, var: Var, grad: Option<Var>) {
        let before = match grad {
            Some(grad) => {
                *self.grads_in.entry(self.base(grad)).or_default() += 1;
                self.grads.insert(var, grad)
            }
            None => self.grads.remove(&var),
        };
        if let Some(before) = before {
            let memory = self.base(before);
            *self.grads_in.get_mut(&memory).expect("counted when it was set") -= 1;
        }
    }

    #[track_caller]
    fn assert_open(&self, var: Var) {
        assert!(
            !self.info(var).differentiated,
            "`{}` was differentiated already: backward() walks each operation once, so this gradient \
             would be lost. Add the losses and call backward() of the sum, or hand all of them to \
             one backward_from().",
            self.info(var).name
        );
    }

    /// Adds `x` to the sink, or copies it there.
    pub(crate) fn accumulate(&mut self, x: Var, sink: Sink) {
        let n = self.info(x).len();
        let constants = [("N", n.into()), ("ACCUMULATE", sink.accumulate.into())];
        self.call(&ACCUMULATE, &constants, &[x], &[sink.var], [n, 1, 1]);
    }

    /// Appends the derivative of the scalar `loss` (shape `[1]`) to the graph.
    ///
    /// # Panics
    /// When `loss` is not a scalar, does not depend on anything that needs a gradient, an operation
    /// on the way has no backward, or one was differentiated by an earlier call already. What is
    /// appended after a derivative has a derivative of its own, whose gradients of parameters and
    /// inputs add to those that are there.
    #[track_caller]
    pub fn backward(&mut self, loss: Var) {
        assert_eq!(
            self.info(loss).len(),
            1,
            "backward starts from a scalar, not {:?}",
            self.shape(loss)
        );
        let one = self.constant("one", &[1], &[1.0]);
        self.backward_from(&[(loss, one)]);
    }

    /// Appends the derivative for given gradients of several variables: (variable, its gradient).
    ///
    /// # Panics
    /// As [`Graph::backward`].
    #[track_caller]
    pub fn backward_from(&mut self, seeds: &[(Var, Var)]) {
        for &(var, grad) in seeds {
            assert!(
                self.needs_grad(var),
                "{} depends on nothing that needs a gradient",
                self.info(var).name
            );
            self.grad_pass(var, grad);
        }
        let tape = std::mem::take(&mut self.tape);
        for record in tape.iter().rev() {
            let grads: Vec<_> = record.outputs.iter().map(|v| self.grads.get(v).copied()).collect();
            if grads.iter().any(Option::is_some) {
                let Some(backward) = &record.backward else {
                    panic!("operation `{}` has no backward", record.op);
                };
                backward(self, &grads);
            }
            // Consumed: from here on nothing reads these, so they may be added to in place.
            for &out in &record.outputs {
                self.vars[out.index()].differentiated = true;
                self.set_grad(out, None);
            }
        }
    }

    /// The gradient of a leaf (parameter or input) after [`Graph::backward`].
    ///
    /// # Panics
    /// When `leaf` is a view: take the gradient of the variable it belongs to, and a view of that.
    #[track_caller]
    pub fn grad(&self, leaf: Var) -> Option<Var> {
        assert_eq!(self.base(leaf), leaf, "{} is a view", self.info(leaf).name);
        self.grads.get(&leaf).copied()
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
