//! A planned graph made real: buffers, bind groups and a flat list of dispatches to replay.
//!
//! Everything is created in [`Program::new`]; [`Program::write`], [`Program::run`] and [`Program::read`]
//! create nothing ([`Gpu::created`] proves it in a test).

#[cfg(feature = "cli")]
mod replay;

#[cfg(feature = "cli")]
pub use replay::{Replay, Time};

use crate::error::{Error, Result};
use crate::gpu::{Checks, Compiled, Gpu, Mapping};
use crate::graph::{DType, Graph, Role, Var};
use crate::plan::{Plan, Pool, READS_IN_FLIGHT, Reuse, padded, plan};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// Dispatches per submission: few enough for watchdogs, many enough to hide the cost of one.
const PER_SUBMISSION: usize = 48;
/// Bytes behind each buffer that no kernel may write, when guards are on.
const GUARD_BYTES: u64 = 256;
/// What poisoned outputs hold: a NaN with a recognisable payload.
pub const POISON: u32 = 0x7fc0_dead;

/// What the guard zone of a variable holds: each buffer gets its own pattern. Arithmetic keeps the
/// payload of a NaN, so with one pattern for all, a kernel that reads beyond one buffer and writes
/// beyond another would write what is there already.
fn guard(var: usize) -> u32 {
    0x7fc1_0000 + (var % 0x1_0000) as u32
}

/// A device buffer that is counted while it lives.
struct Held {
    buffer: wgpu::Buffer,
    gpu: Rc<Gpu>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gpu.release(self.buffer.size());
    }
}

/// A state variable's buffer, and what is in it.
#[derive(Clone)]
struct State {
    held: Rc<Held>,
    shape: Vec<usize>,
    dtype: DType,
}

/// State buffers (parameters, gradients, moments) shared by name between programs, and the slots
/// that they take turns with.
pub struct Store {
    gpu: Rc<Gpu>,
    buffers: RefCell<HashMap<String, State>>,
    pool: RefCell<(Pool, Vec<Rc<Held>>)>,
    /// Bytes written since the last submission; each waits in a staging buffer.
    staged: Cell<u64>,
}

/// Bytes of writes that may wait for a submission: a model that is streamed to the device must
/// not stand in staging buffers once more.
const STAGED_BYTES: u64 = 32 << 20;

impl Store {
    /// An empty store on `gpu`.
    pub fn new(gpu: &Rc<Gpu>) -> Self {
        Self {
            gpu: gpu.clone(),
            buffers: RefCell::default(),
            pool: RefCell::default(),
            staged: Cell::new(0),
        }
    }

    fn get(&self, name: &str, shape: &[usize], dtype: DType, extra: u64) -> Result<Rc<Held>> {
        if let Some(state) = self.buffers.borrow().get(name) {
            let known = (state.shape.as_slice(), state.dtype);
            assert_eq!(known, (shape, dtype), "state {name} is something else in another program");
            return Ok(state.held.clone());
        }
        let bytes = padded(dtype.bytes(shape.iter().product())) + extra;
        // wgpu zero-fills new buffers: gradients and moments start at zero.
        let held = Rc::new(Held {
            buffer: self.gpu.buffer(name, bytes, storage())?,
            gpu: self.gpu.clone(),
        });
        let state = State { held: held.clone(), shape: shape.to_vec(), dtype };
        self.buffers.borrow_mut().insert(name.to_owned(), state);
        Ok(held)
    }

    /// Buffers for the slots of a program from the pool, which grows where it is too small.
    fn slots(&self, bytes: &[u64]) -> Result<Vec<Rc<Held>>> {
        let (pool, buffers) = &mut *self.pool.borrow_mut();
        let places = pool.assign(bytes);
        for (i, &bytes) in pool.sizes().iter().enumerate().skip(buffers.len()) {
            let buffer = self.gpu.buffer(&format!("temporaries {i}"), bytes, storage())?;
            buffers.push(Rc::new(Held { buffer, gpu: self.gpu.clone() }));
        }
        Ok(places.into_iter().map(|place| buffers[place].clone()).collect())
    }

    /// An empty graph that trains nothing and reads parameters in the types they have here: for
    /// generation and evaluation.
    pub fn inference_graph(&self) -> Graph {
        let states = self.buffers.borrow();
        let stored: HashMap<String, DType> =
            states.iter().map(|(name, state)| (name.clone(), state.dtype)).collect();
        let mut g = Graph::new(self.gpu.target());
        g.train_only(|_| false);
        g.store_as(move |name| stored.get(name).copied().unwrap_or(DType::F32));
        g
    }

    /// How a state variable is stored; None if no program or write has created it.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.buffers.borrow().get(name).map(|state| state.dtype)
    }

    /// Writes a state variable in the type it is stored in, creating it if it is new. `bytes` are
    /// its elements, row-major and little-endian, as a safetensors file has them.
    ///
    /// # Errors
    /// When the buffer does not fit the adapter, or the device is lost.
    ///
    /// # Panics
    /// When `bytes` does not fill `shape`, or the state has another shape or type already.
    pub fn write_bytes(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        bytes: &[u8],
    ) -> Result<()> {
        let needed = dtype.bytes(shape.iter().product());
        assert_eq!(needed, bytes.len() as u64, "bytes of state {name}");
        let held = self.get(name, shape, dtype, 0)?;
        self.gpu.write(&held.buffer, bytes);
        self.staged.set(self.staged.get() + needed);
        if self.staged.get() > STAGED_BYTES {
            self.staged.set(0);
            self.gpu.queue.submit([]);
            self.gpu.wait()?;
        }
        Ok(())
    }

    /// Writes values of a state variable, creating it with `shape` as 32-bit floats if it is new.
    /// One that is stored in a narrower type gets the nearest values.
    ///
    /// # Errors
    /// When the buffer does not fit the adapter.
    ///
    /// # Panics
    /// When `values` does not fill `shape`.
    pub fn write(&self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "state {name}");
        match self.dtype(name).unwrap_or(DType::F32) {
            DType::F32 => self.write_bytes(name, shape, DType::F32, bytemuck::cast_slice(values)),
            dtype => self.write_bytes(name, shape, dtype, &dtype.encode(values)),
        }
    }

    /// Reads a state variable as 32-bit floats, whatever type it is stored in; None if no program
    /// or write has created it.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn read(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(state) = self.buffers.borrow().get(name).cloned() else {
            return Ok(None);
        };
        let bytes = state.dtype.bytes(state.shape.iter().product());
        let mut data = self.gpu.read_buffer(&state.held.buffer, 0, padded(bytes))?;
        data.truncate(bytes as usize);
        Ok(Some(state.dtype.decode(&data)))
    }

    /// Names of all state variables, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.buffers.borrow().keys().cloned().collect();
        names.sort();
        names
    }
}

fn storage() -> wgpu::BufferUsages {
    wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST
}

/// How a step is made.
#[derive(Debug, Clone, Copy)]
pub struct ProgramOptions {
    /// Share memory between temporaries.
    pub reuse: Reuse,
    /// Fill temporaries with NaN before the first run and put guard zones behind every buffer, so
    /// that an element a kernel forgets or oversteps is seen. For tests.
    pub poison: bool,
    /// Keep the driver's bounds checks in the shaders.
    pub checks: Checks,
}

impl Default for ProgramOptions {
    fn default() -> Self {
        Self { reuse: Reuse::Slots, poison: false, checks: Checks::Off }
    }
}

/// A read that was started and not waited for.
pub struct Fetch {
    set: usize,
    vars: Vec<Var>,
    submission: wgpu::SubmissionIndex,
    maps: Vec<Mapping>,
}

struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    grid: [u32; 3],
}

/// A graph ready to run.
pub struct Program {
    gpu: Rc<Gpu>,
    graph: Graph,
    plan: Plan,
    buffers: Vec<Option<Rc<Held>>>,
    dispatches: Vec<Dispatch>,
    staging: Vec<HashMap<Var, Held>>,
    next_read: Cell<usize>,
    options: ProgramOptions,
}

impl Program {
    /// Makes buffers, pipelines and bind groups for `graph`; state comes from `store`.
    ///
    /// # Errors
    /// When memory or the adapter's limits do not suffice.
    pub fn new(gpu: &Rc<Gpu>, graph: Graph, store: &Store) -> Result<Self> {
        Self::with_options(gpu, graph, store, ProgramOptions::default())
    }

    /// As [`Program::new`] with other [`ProgramOptions`].
    ///
    /// # Errors
    /// When memory or the adapter's limits do not suffice.
    ///
    /// # Panics
    /// When a shader does not declare a constant its operation sets.
    pub fn with_options(
        gpu: &Rc<Gpu>,
        graph: Graph,
        store: &Store,
        options: ProgramOptions,
    ) -> Result<Self> {
        graph.check_limits()?;
        let plan = plan(&graph, options.reuse);
        let guard = if options.poison { GUARD_BYTES } else { 0 };
        let hold = |label: &str, bytes: u64| -> Result<Rc<Held>> {
            let buffer = gpu.buffer(label, padded(bytes) + guard, storage())?;
            Ok(Rc::new(Held { buffer, gpu: gpu.clone() }))
        };
        graph.notes().for_each(|note| gpu.note(note));
        let own = |(i, &bytes): (usize, &u64)| hold(&format!("temporaries {i}"), bytes);
        let slots = match (options.reuse, options.poison) {
            (Reuse::Pool, false) => store.slots(&plan.slots)?,
            _ => plan.slots.iter().enumerate().map(own).collect::<Result<Vec<_>>>()?,
        };
        let mut buffers = Vec::with_capacity(graph.vars().len());
        let mut staging: Vec<HashMap<Var, Held>> =
            (0..READS_IN_FLIGHT).map(|_| HashMap::new()).collect();
        for (i, info) in graph.vars().iter().enumerate() {
            let held = match &info.role {
                Role::Temp => plan.slot_of[i].map(|slot| slots[slot].clone()),
                Role::Input => Some(hold(&info.name, info.bytes())?),
                Role::State => Some(store.get(&info.name, &info.shape, info.dtype, guard)?),
                Role::View { .. } => None,
                Role::Constant(bytes) => {
                    let held = hold(&info.name, info.bytes())?;
                    gpu.queue.write_buffer(&held.buffer, 0, bytes);
                    Some(held)
                }
            };
            for set in staging.iter_mut().filter(|_| info.output) {
                let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
                let buffer = gpu.buffer("read back", info.bytes(), usage)?;
                set.insert(Var(i as u32), Held { buffer, gpu: gpu.clone() });
            }
            buffers.push(held);
        }
        let mut program = Self {
            gpu: gpu.clone(),
            graph,
            plan,
            buffers,
            dispatches: Vec::new(),
            staging,
            next_read: Cell::new(0),
            options,
        };
        if options.poison {
            program.poison();
        }
        program.dispatches =
            program.graph.calls().iter().map(|call| program.dispatch(call)).collect();
        gpu.check_complaints()?;
        Ok(program)
    }

    fn dispatch(&self, call: &crate::graph::Call) -> Dispatch {
        self.bind(call, self.gpu.pipeline(call, self.options.checks))
    }

    fn bind(&self, call: &crate::graph::Call, compiled: Compiled) -> Dispatch {
        let entries: Vec<_> = call
            .reads
            .iter()
            .chain(&call.writes)
            .enumerate()
            .map(|(i, &v)| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &self.held(v).buffer,
                    offset: self.offset(v),
                    // A driver or a shader with bounds checks would drop a write beyond the
                    // binding, or bend it back: so the guard zone is bound too and can be hit.
                    size: if self.options.poison {
                        None
                    } else {
                        std::num::NonZeroU64::new(padded(self.graph.info(v).bytes()))
                    },
                }),
            })
            .collect();
        let group = self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(call.variant.path),
            layout: &compiled.layout,
            entries: &entries,
        });
        self.gpu.count_created();
        Dispatch { pipeline: compiled.pipeline, group, grid: call.grid }
    }

    fn held(&self, var: Var) -> &Held {
        self.buffers[self.graph.base(var).index()]
            .as_ref()
            .unwrap_or_else(|| panic!("no call names {}", self.graph.info(var).name))
    }

    /// Byte of its buffer that a variable begins at.
    fn offset(&self, var: Var) -> u64 {
        self.graph.info(var).dtype.bytes(self.graph.place(var).1)
    }

    fn read_now(&self, var: Var) -> Result<Vec<u32>> {
        let bytes = self.graph.info(var).bytes();
        let data = self.gpu.read_buffer(&self.held(var).buffer, self.offset(var), bytes)?;
        Ok(bytemuck::pod_collect_to_vec(&data))
    }

    /// The graph this step runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The memory plan this step was made by.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes of the buffers that outputs are read back through.
    pub fn staging_bytes(&self) -> u64 {
        self.staging.iter().flatten().map(|(_, held)| held.buffer.size()).sum()
    }

    /// Submissions one run makes.
    pub fn submissions(&self) -> usize {
        self.dispatches.len().div_ceil(PER_SUBMISSION)
    }

    /// Writes an input of floats, in the type it is stored in.
    ///
    /// # Panics
    /// When `var` is no float input or `values` has another length.
    #[track_caller]
    pub fn write(&self, var: Var, values: &[f32]) {
        match self.graph.info(var).dtype {
            DType::F32 | DType::U32 => {
                self.write_bytes(var, DType::F32, values.len(), bytemuck::cast_slice(values));
            }
            dtype => self.write_bytes(var, dtype, values.len(), &dtype.encode(values)),
        }
    }

    /// Writes an input of 32-bit unsigned integers.
    ///
    /// # Panics
    /// When `var` is no integer input or `values` has another length.
    #[track_caller]
    pub fn write_u32(&self, var: Var, values: &[u32]) {
        self.write_bytes(var, DType::U32, values.len(), bytemuck::cast_slice(values));
    }

    #[track_caller]
    fn write_bytes(&self, var: Var, dtype: DType, len: usize, bytes: &[u8]) {
        let info = self.graph.info(var);
        assert!(matches!(info.role, Role::Input), "{} is not an input", info.name);
        assert_eq!((info.dtype, info.len()), (dtype, len), "input {}", info.name);
        self.gpu.write(&self.held(var).buffer, bytes);
    }

    /// Submits every dispatch in order. Returns at once; [`Program::read`] waits.
    pub fn run(&self) {
        for chunk in self.dispatches.chunks(PER_SUBMISSION) {
            self.submit(chunk);
        }
    }

    fn submit(&self, dispatches: &[Dispatch]) {
        self.gpu.queue.submit([self.encode(dispatches)]);
    }

    fn encode(&self, dispatches: &[Dispatch]) -> wgpu::CommandBuffer {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for d in dispatches {
                pass.set_pipeline(&d.pipeline);
                pass.set_bind_group(0, &d.group, &[]);
                pass.dispatch_workgroups(d.grid[0], d.grid[1], d.grid[2]);
            }
        }
        encoder.finish()
    }

    /// Seconds the CPU needs to encode one run, without submitting it: what replaying costs on an
    /// adapter whose work the CPU does not do itself.
    pub fn encoding_seconds(&self) -> f64 {
        let start = std::time::Instant::now();
        for chunk in self.dispatches.chunks(PER_SUBMISSION) {
            drop(self.encode(chunk));
        }
        start.elapsed().as_secs_f64()
    }

    /// Runs one call at a time and scans what each wrote; names the first call whose result holds
    /// a NaN or an infinity. Slow: for finding out, not for training.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the call's listing line, or a lost device.
    pub fn run_checked(&self) -> Result<()> {
        for (i, (call, dispatch)) in self.graph.calls().iter().zip(&self.dispatches).enumerate() {
            self.submit(std::slice::from_ref(dispatch));
            for &var in &call.writes {
                let info = self.graph.info(var);
                let data = self.read_now(var)?;
                // By bits: compilers may assume that NaN does not exist.
                let bad = data.iter().position(|b| b & 0x7f80_0000 == 0x7f80_0000);
                if let (Some(at), DType::F32) = (bad, info.dtype) {
                    let listing = self.graph.listing();
                    let line = listing.lines().nth(i).unwrap_or_default();
                    return Err(Error::NonFinite(format!(
                        "element {at} of {} is {} after call\n{line}",
                        info.name,
                        f32::from_bits(data[at])
                    )));
                }
            }
        }
        Ok(())
    }

    /// Runs one call at a time and waits for each: wall-clock seconds per call, for the step
    /// benchmark.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn run_timed(&self) -> Result<Vec<f64>> {
        self.gpu.wait()?;
        self.dispatches
            .iter()
            .map(|d| {
                let start = std::time::Instant::now();
                self.submit(std::slice::from_ref(d));
                self.gpu.wait()?;
                Ok(start.elapsed().as_secs_f64())
            })
            .collect()
    }

    /// Starts reading outputs of the last run without waiting: they are copied into one of
    /// [`READS_IN_FLIGHT`] sets of staging buffers, and the next run may be submitted meanwhile.
    ///
    /// # Panics
    /// When a variable was not marked with [`Graph::output`].
    #[track_caller]
    pub fn fetch(&self, vars: &[Var]) -> Fetch {
        let set = self.next_read.get();
        self.next_read.set((set + 1) % READS_IN_FLIGHT);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for &var in vars {
            let bytes = padded(self.graph.info(var).bytes());
            let staging = &self.staging(set, var).buffer;
            let from = &self.held(var).buffer;
            encoder.copy_buffer_to_buffer(from, self.offset(var), staging, 0, bytes);
        }
        let submission = self.gpu.queue.submit([encoder.finish()]);
        let maps = vars.iter().map(|&v| self.gpu.start_map(&self.staging(set, v).buffer)).collect();
        Fetch { set, vars: vars.to_vec(), submission, maps }
    }

    /// Waits for a [`Program::fetch`] and returns the values, one list per variable.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn collect(&self, fetch: Fetch) -> Result<Vec<Vec<f32>>> {
        self.gpu.wait_for(Some(fetch.submission))?;
        let read = |(&var, map)| {
            let bytes = self.graph.info(var).bytes();
            let data = self.gpu.finish_map(&self.staging(fetch.set, var).buffer, bytes, map)?;
            Ok(bytemuck::pod_collect_to_vec(&data))
        };
        fetch.vars.iter().zip(fetch.maps).map(read).collect()
    }

    /// Reads several outputs after the last run, waiting for it once.
    ///
    /// # Errors
    /// When the device is lost.
    ///
    /// # Panics
    /// When one was not marked with [`Graph::output`].
    #[track_caller]
    pub fn read_many(&self, vars: &[Var]) -> Result<Vec<Vec<f32>>> {
        self.collect(self.fetch(vars))
    }

    /// Reads one output after the last run.
    ///
    /// # Errors
    /// When the device is lost.
    #[track_caller]
    pub fn read(&self, var: Var) -> Result<Vec<f32>> {
        Ok(self.read_many(&[var])?.remove(0))
    }

    #[track_caller]
    fn staging(&self, set: usize, var: Var) -> &Held {
        self.staging[set]
            .get(&var)
            .unwrap_or_else(|| panic!("{} is not marked as an output", self.graph.info(var).name))
    }

    fn poison(&self) {
        for (i, info) in self.graph.vars().iter().enumerate() {
            let Some(held) = &self.buffers[i] else { continue };
            let words = (held.buffer.size() / 4) as usize;
            let inside = (padded(info.bytes()) / 4) as usize;
            let from = if matches!(info.role, Role::Temp) { 0 } else { inside };
            let mut pattern = vec![POISON; inside - from];
            pattern.resize(words - from, guard(i));
            let offset = 4 * from as u64;
            self.gpu.queue.write_buffer(&held.buffer, offset, bytemuck::cast_slice(&pattern));
        }
    }

    /// Names variables whose guard zone was written (only with [`ProgramOptions::poison`] and without
    /// slot sharing).
    ///
    /// # Errors
    /// When the device is lost.
    pub fn broken_guards(&self) -> Result<Vec<String>> {
        assert!(
            self.options.poison && self.options.reuse == Reuse::None,
            "guards need poison and no sharing"
        );
        let mut broken = Vec::new();
        for (i, info) in self.graph.vars().iter().enumerate() {
            let Some(held) = &self.buffers[i] else { continue };
            let data: Vec<u32> = bytemuck::pod_collect_to_vec(&self.gpu.read_buffer(
                &held.buffer,
                0,
                held.buffer.size(),
            )?);
            if data[(padded(info.bytes()) / 4) as usize..].iter().any(|&w| w != guard(i)) {
                broken.push(info.name.clone());
            }
        }
        Ok(broken)
    }
}
