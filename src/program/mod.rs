//! A planned graph made real: buffers, bind groups and a flat list of dispatches to replay.
//!
//! Everything is created in [`Program::new`]; [`Program::write`], [`Program::run`] and [`Program::read`]
//! create nothing ([`Gpu::created`] proves it in a test).

mod debug;
#[cfg(feature = "cli")]
mod replay;
mod store;
mod submissions;

use debug::GUARD_BYTES;
pub use debug::POISON;
#[cfg(feature = "cli")]
pub use replay::{Replay, Time};
pub use store::Store;

use crate::error::Result;
use crate::gpu::{Checks, Compiled, Gpu, Mapping};
use crate::graph::{Call, DType, Graph, Role, Var};
use crate::plan::{Plan, READS_IN_FLIGHT, Reuse, padded, plan};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use store::{Held, storage};
use submissions::{Submission, split};

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
    submission: u64,
    maps: Vec<Mapping>,
}

#[derive(Clone)]
struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    grid: [u32; 3],
    /// The kernel, in words.
    what: Arc<str>,
}

/// A graph ready to run.
pub struct Program {
    gpu: Rc<Gpu>,
    graph: Graph,
    plan: Plan,
    buffers: Vec<Option<Rc<Held>>>,
    dispatches: Vec<Dispatch>,
    submissions: RefCell<Vec<Submission>>,
    /// Whether the submissions are those of measured dispatches.
    measured: Cell<bool>,
    staging: Vec<HashMap<Var, Held>>,
    next_read: Cell<usize>,
    /// What [`Program::fetch`] submits, in words.
    fetching: Arc<str>,
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
            submissions: RefCell::default(),
            measured: Cell::new(false),
            staging,
            next_read: Cell::new(0),
            fetching: "reading results back".into(),
            options,
        };
        if options.poison {
            program.poison();
        }
        program.dispatches = program.compile()?;
        program.submit_by(&vec![0.0; program.dispatches.len()]);
        gpu.check_complaints()?;
        Ok(program)
    }

    /// The calls with their pipelines. A new pipeline is started once for no workgroup at all: some
    /// drivers compile at the first start, and the first run should not wait for that unseen.
    fn compile(&self) -> Result<Vec<Dispatch>> {
        let mut compiled_any = false;
        let pipelines = self.gpu.pipelines(self.graph.calls(), self.options.checks);
        let dispatch = |(call, (compiled, new)): (&Call, _)| {
            let dispatch = self.bind(call, compiled);
            if new {
                compiled_any = true;
                self.gpu.compiles(Some(&call.variant.label()));
                self.submit(&Dispatch { grid: [0; 3], ..dispatch.clone() });
                self.gpu.wait()?;
            }
            Ok(dispatch)
        };
        let dispatches = self.graph.calls().iter().zip(pipelines).map(dispatch).collect();
        if compiled_any {
            self.gpu.compiles(None);
        }
        dispatches
    }

    fn bind(&self, call: &Call, compiled: Compiled) -> Dispatch {
        let entries: Vec<_> = call
            .reads
            .iter()
            .chain(&call.writes)
            .enumerate()
            .map(|(i, &v)| {
                let (buffer, offset) = (&self.held(v).buffer, self.offset(v));
                // A driver or a shader with bounds checks would drop a write beyond the binding, or
                // bend it back: so the guard zone is bound too and can be hit.
                let guarded = self.options.poison
                    && buffer.size() - offset <= self.gpu.target().binding_bytes;
                let size = if guarded { 0 } else { padded(self.graph.info(v).bytes()) };
                let size = std::num::NonZeroU64::new(size);
                wgpu::BindGroupEntry {
                    binding: i as u32,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer,
                        offset,
                        size,
                    }),
                }
            })
            .collect();
        let group = self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(call.variant.path),
            layout: &compiled.layout,
            entries: &entries,
        });
        self.gpu.count_created();
        let what = call.variant.label().into();
        Dispatch { pipeline: compiled.pipeline, group, grid: call.grid, what }
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

    /// Submissions one run makes; the first one makes more, to find out how many.
    pub fn submissions(&self) -> usize {
        self.submissions.borrow().len()
    }

    /// Splits the dispatches, which take `seconds` each, into submissions.
    fn submit_by(&self, seconds: &[f64]) {
        *self.submissions.borrow_mut() = split(seconds, |i| self.dispatches[i].what.to_string());
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
        self.gpu.write(&self.held(var).buffer, 0, bytes);
    }

    /// Submits every dispatch in order. Returns at once, but for the first time, when it measures the
    /// dispatches one by one to know how many may be submitted together; [`Program::read`] waits.
    pub fn run(&self) {
        self.gpu.count_run();
        if !self.measured.get() {
            // What goes wrong is kept and told by the next wait.
            if let Ok(seconds) = self.run_timed() {
                self.submit_by(&seconds);
                self.measured.set(true);
            }
            return;
        }
        for submission in self.submissions.borrow().iter() {
            let commands = self.encode(&self.dispatches[submission.dispatches.clone()]);
            self.gpu.submit([commands], &submission.what);
        }
    }

    fn submit(&self, dispatch: &Dispatch) {
        let commands = self.encode(std::slice::from_ref(dispatch));
        self.gpu.submit([commands], &dispatch.what);
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
        let submission = self.gpu.submit([encoder.finish()], &self.fetching);
        let maps = vars.iter().map(|&v| self.gpu.start_map(&self.staging(set, v).buffer)).collect();
        Fetch { set, vars: vars.to_vec(), submission, maps }
    }

    /// Waits for a [`Program::fetch`] and returns the values, one list per variable.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn collect(&self, fetch: Fetch) -> Result<Vec<Vec<f32>>> {
        self.gpu.wait_for(fetch.submission)?;
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
}
