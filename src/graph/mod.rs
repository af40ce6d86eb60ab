//! The static graph: variables, calls, the tape, and the derivative appended to the same graph.
//!
//! A [`Graph`] is an arena. Each operation in `ops` appends *calls* (one dispatch each) and one
//! tape record with a backward closure. The order in which calls are pushed is the order in
//! which they run, so [`Graph::backward`] walks the tape in reverse and appends gradient calls of
//! the same kind. Nothing here knows wgpu.

mod call;
mod gradient;
mod parameter;
mod recompute;
mod view;

pub use crate::dtype::DType;
pub use call::{Call, HELD, MAX_GROUPS};
pub use gradient::{ACCUMULATE, GRAD, Sink};
pub use parameter::{Init, LowRank, Parameter};
pub use view::{BINDING_ALIGNMENT, FILL, RowBlock, chunk_rows, rows_of_block};

use crate::kernel::Target;
use gradient::Record;
use parameter::Additions;
use std::collections::{BTreeSet, HashMap};
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

/// An arena of variables, calls and tape records.
pub struct Graph {
    target: Target,
    vars: Vec<VarInfo>,
    calls: Vec<Call>,
    /// The operation that marks the blocks whose forward pass is run again.
    recompute: Option<&'static str>,
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
    low_rank: Additions,
}

impl Graph {
    /// An empty graph whose kernels are chosen for `target`.
    pub fn new(target: &Target) -> Self {
        Self {
            target: target.clone(),
            vars: Vec::new(),
            calls: Vec::new(),
            recompute: None,
            tape: Vec::new(),
            grads: HashMap::new(),
            grads_in: HashMap::new(),
            states: HashMap::new(),
            notes: BTreeSet::new(),
            parameters: Vec::new(),
            trained: Box::new(|_| true),
            storage: Box::new(|_| DType::F32),
            low_rank: Box::new(|_| None),
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
}
