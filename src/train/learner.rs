//! A model on a device with its three programs over the same parameters: `micro` (forward,
//! backward, accumulate), `eval` (forward) and `update` (clip, AdamW).

use crate::data::pack::{Capacity, PackedBatch};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::{DType, GRAD, Graph, Parameter, Var};
use crate::kernel::Target;
use crate::model::config::ModelConfig;
use crate::model::generate::{GeneratorPlan, Room, plan_generator};
use crate::model::limits::{check_parameters, check_tokens, widest};
use crate::model::weights::{ParameterValues, Tensor, put_as};
use crate::ops::adamw::{HYPER, adamw, hyper};
use crate::ops::grad_norm::grad_norm;
use crate::plan::{Plan, Pool, Reuse, plan};
use crate::program::{Program, ProgramOptions, Store};
use crate::train::objectives::{Coefficients, Objective, Results};
use crate::train::program::{MicroProgram, Placement, micro_graph};
use crate::train::recipe::{OptimSettings, Recompute};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

pub use crate::ops::adamw::{FIRST_MOMENT, SECOND_MOMENT};

struct Update {
    program: Program,
    hyper: Var,
    max_norm: Var,
    norm: Var,
}

/// A model being trained.
pub struct Learner {
    /// The model's shape.
    pub config: ModelConfig,
    gpu: Rc<Gpu>,
    store: Store,
    micro: MicroProgram,
    eval: MicroProgram,
    update: Update,
    optim: OptimSettings,
    trained: Vec<Parameter>,
    steps: u64,
}

/// A hash of the kernels that programs run, in their order.
fn kernels_hash(programs: &[&Program]) -> String {
    let mut hasher = blake3::Hasher::new();
    let calls = programs.iter().flat_map(|program| program.graph().calls());
    // What is run a second time gives what it gave.
    for call in calls.filter(|call| !call.again) {
        for part in call.variant.identity() {
            hasher.update(part.as_bytes());
        }
    }
    hasher.finalize().to_hex()[..16].into()
}

/// The parameters of a graph that its trained set holds.
fn trained_of(graph: &Graph) -> Vec<Parameter> {
    graph.parameters().iter().filter(|p| p.trained).cloned().collect()
}

/// Builds clip and AdamW over the trained parameters: graph, hyper-parameters, clip norm, norm
/// output.
fn update_graph(target: &Target, parameters: &[Parameter]) -> (Graph, [Var; 3]) {
    let mut g = Graph::new(target);
    let hyper = g.input("hyper-parameters", &[HYPER], DType::F32);
    let max_norm = g.input("max grad norm", &[1], DType::F32);
    let grads: Vec<Var> =
        parameters.iter().map(|p| g.state(&format!("{}{GRAD}", p.name), &p.shape)).collect();
    let norm = grad_norm(&mut g, &grads, max_norm);
    g.output(norm);
    for (p, &grad) in parameters.iter().zip(&grads) {
        let param = g.state(&p.name, &p.shape);
        let m = g.state(&format!("{}{FIRST_MOMENT}", p.name), &p.shape);
        let v = g.state(&format!("{}{SECOND_MOMENT}", p.name), &p.shape);
        adamw(&mut g, param, grad, m, v, norm, hyper, p.decays());
    }
    (g, [hyper, max_norm, norm])
}

/// Bytes a run needs on the device, known before anything is allocated.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// Weights of all parameters, gradients and both moments of the trained ones.
    pub state: u64,
    /// The plan of forward and backward.
    pub micro: Plan,
    /// The plan of evaluation.
    pub eval: Plan,
    /// The plan of clip and AdamW.
    pub update: Plan,
    /// What continues the recipe's prompts, if there are any.
    pub generator: Option<GeneratorPlan>,
    /// The slots that these programs take turns with.
    pub pool: Pool,
}

impl MemoryPlan {
    /// The plan of every program.
    fn programs(&self) -> impl Iterator<Item = &Plan> {
        let of_generator = self.generator.iter().flat_map(|g| &g.programs);
        [&self.micro, &self.eval, &self.update].into_iter().chain(of_generator)
    }

    /// Bytes of the inputs of all programs, and of the buffers they are read back through.
    pub fn exchanged(&self) -> u64 {
        self.programs().map(|p| p.inputs + p.staging).sum()
    }

    /// Bytes of the keys and values that prompts are continued with.
    pub fn cache(&self) -> u64 {
        self.generator.as_ref().map_or(0, |g| g.cache)
    }

    /// Everything together.
    pub fn total(&self) -> u64 {
        self.state + self.cache() + self.exchanged() + self.pool.sizes().iter().sum::<u64>()
    }
}

/// Refuses `bytes` of device memory that exceed what there is. On the host a run holds one parameter at a
/// time besides.
fn check_memory(target: &Target, bytes: u64) -> Result<()> {
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    match target.memory {
        Some(there) if bytes > there => Err(Error::Limit(format!(
            "this needs {:.3} GiB of memory, and there are {:.3} GiB. `oddgrad plan` lists settings that fit.",
            gib(bytes),
            gib(there)
        ))),
        _ => Ok(()),
    }
}

/// Refuses a model whose weights, of `bytes` bytes, alone cannot fit, before they are read.
///
/// # Errors
/// [`Error::Limit`] with what is needed and what is there.
pub fn check_weights(target: &Target, bytes: u64) -> Result<()> {
    check_memory(target, bytes)
}

/// Bytes of the weights of all parameters, and of gradients and moments of the trained ones.
fn state_bytes(config: &ModelConfig, placement: &Placement) -> u64 {
    let bytes = |p: &Parameter| {
        let values = if (placement.trained)(&p.name) { 4 } else { 1 };
        values * placement.dtype(p).bytes(p.len())
    };
    config.parameters().iter().map(bytes).sum()
}

/// Plans a run without a device; `room` is that of the prompts that it continues.
///
/// # Errors
/// [`Error::Limit`] when a tensor or a dispatch is beyond the adapter's limits, or the whole
/// beyond the machine's free memory.
pub fn memory_plan(
    target: &Target,
    config: &ModelConfig,
    capacity: Capacity,
    objective: &dyn Objective,
    placement: &Placement,
    room: Option<Room>,
) -> Result<MemoryPlan> {
    let state = state_bytes(config, placement);
    check_memory(target, state)?;
    check_parameters(target, config, |p| placement.dtype(p))?;
    check_tokens(target, capacity.tokens, widest(config), "a stream")?;
    let built = |graph| micro_graph(graph, config, capacity, objective).0;
    let micro = built(placement.training_graph(target));
    let eval = built(placement.inference_graph(target));
    let (update, _) = update_graph(target, &trained_of(&micro));
    for graph in [&micro, &eval, &update] {
        graph.check_limits()?;
    }
    let [micro, eval, update] = [&micro, &eval, &update].map(|graph| plan(graph, Reuse::Pool));
    let empty = || placement.inference_graph(target);
    let generator = room.map(|room| plan_generator(target, config, room, empty)).transpose()?;
    let mut memory = MemoryPlan { state, micro, eval, update, generator, pool: Pool::default() };
    let mut pool = Pool::default();
    for program in memory.programs() {
        pool.assign(&program.slots);
    }
    memory.pool = pool;
    check_memory(target, memory.total())?;
    Ok(memory)
}

/// As [`memory_plan`], and with [`Recompute::Auto`] has blocks computed again where memory does not
/// suffice without: then the placement says so.
///
/// # Errors
/// As [`memory_plan`], of the smaller plan.
pub fn fitting_plan(
    target: &Target,
    config: &ModelConfig,
    capacity: Capacity,
    objective: &dyn Objective,
    placement: &mut Placement,
    room: Option<Room>,
    recompute: Recompute,
) -> Result<MemoryPlan> {
    let plan =
        |placement: &Placement| memory_plan(target, config, capacity, objective, placement, room);
    match plan(placement) {
        Err(Error::Limit(_)) if recompute == Recompute::Auto => {
            placement.recompute = true;
            plan(placement)
        }
        planned => planned,
    }
}

/// How a [`Learner`] is made.
pub struct LearnerOptions {
    /// Share memory between temporaries. Without, every temporary keeps its value after a run, so
    /// that single calls can be run again.
    pub reuse: Reuse,
    /// Which parameters train, and how the others are stored.
    pub placement: Placement,
}

impl Default for LearnerOptions {
    fn default() -> Self {
        Self { reuse: Reuse::Pool, placement: Placement::all() }
    }
}

impl Learner {
    /// Puts `weights` on the device and makes the programs.
    ///
    /// # Errors
    /// Weights that cannot be read or used; an adapter whose memory or limits do not suffice.
    pub fn new(
        gpu: &Rc<Gpu>,
        config: &ModelConfig,
        weights: &dyn ParameterValues,
        capacity: Capacity,
        objective: &dyn Objective,
        optim: &OptimSettings,
    ) -> Result<Self> {
        let options = LearnerOptions::default();
        Self::with_options(gpu, config, weights, capacity, objective, optim, &options)
    }

    /// As [`Learner::new`] with other [`LearnerOptions`].
    ///
    /// # Errors
    /// As [`Learner::new`].
    ///
    /// # Panics
    /// When the trained set holds none of the parameters.
    pub fn with_options(
        gpu: &Rc<Gpu>,
        config: &ModelConfig,
        weights: &dyn ParameterValues,
        capacity: Capacity,
        objective: &dyn Objective,
        optim: &OptimSettings,
        options: &LearnerOptions,
    ) -> Result<Self> {
        let placement = &options.placement;
        let store = Store::new(gpu);
        put_as(weights, &store, &placement.storage)?;
        let shared = ProgramOptions { reuse: options.reuse, ..ProgramOptions::default() };
        let program = |graph| -> Result<MicroProgram> {
            let (graph, inputs) = micro_graph(graph, config, capacity, objective);
            Ok(MicroProgram { program: Program::with_options(gpu, graph, &store, shared)?, inputs })
        };
        let micro = program(placement.training_graph(gpu.target()))?;
        let eval = program(store.inference_graph())?;
        let trained = trained_of(micro.program.graph());
        let (graph, [hyper, max_norm, norm]) = update_graph(gpu.target(), &trained);
        let program = Program::with_options(gpu, graph, &store, shared)?;
        let update = Update { program, hyper, max_norm, norm };
        Ok(Self {
            config: config.clone(),
            gpu: gpu.clone(),
            store,
            micro,
            eval,
            update,
            optim: optim.clone(),
            trained,
            steps: 0,
        })
    }

    /// Forward and backward of one stream; gradients add up until [`Learner::update`].
    ///
    /// # Errors
    /// When the device is lost.
    pub fn accumulate(&self, stream: &PackedBatch, coefficients: &Coefficients) -> Result<Results> {
        self.micro.run(stream, coefficients, false)
    }

    /// As [`Learner::accumulate`]; the results hold the objective's details too.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn accumulate_in_detail(
        &self,
        stream: &PackedBatch,
        coefficients: &Coefficients,
    ) -> Result<Results> {
        self.micro.run(stream, coefficients, true)
    }

    /// Forward and backward of all streams of a step; `each` gets every result in order.
    ///
    /// # Errors
    /// When the device is lost, or `each` fails.
    pub fn accumulate_all(
        &self,
        streams: &[PackedBatch],
        coefficients: &[Coefficients],
        each: impl FnMut(&PackedBatch, Results) -> Result<()>,
    ) -> Result<()> {
        self.micro.run_all(streams.iter().zip(coefficients), each)
    }

    /// Loss and log-probabilities of a stream, without gradients.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn evaluate(&self, stream: &PackedBatch, coefficients: &Coefficients) -> Result<Results> {
        self.eval.run(stream, coefficients, false)
    }

    /// Forward only, of many streams, which may be packed while others are computed; `each` gets
    /// every result in order.
    ///
    /// # Errors
    /// When the device is lost, or `each` fails.
    pub fn evaluate_all(
        &self,
        streams: impl IntoIterator<Item = (PackedBatch, Coefficients)>,
        each: impl FnMut(&PackedBatch, Results) -> Result<()>,
    ) -> Result<()> {
        self.eval.run_all(streams, each)
    }

    /// Clips, steps AdamW and zeroes the gradients. Returns the norm before clipping. A norm that
    /// is not finite leaves the parameters as they are.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn update(&mut self, learning_rate: f64) -> Result<f32> {
        let o = &self.optim;
        self.steps += 1;
        let u = &self.update;
        u.program.write(
            u.hyper,
            &hyper(learning_rate, o.beta1, o.beta2, o.eps, o.weight_decay, self.steps),
        );
        u.program.write(u.max_norm, &[o.max_grad_norm as f32]);
        u.program.run();
        Ok(u.program.read(u.norm)?[0])
    }

    /// A hash of the kernels that forward, backward and update run, in their order: runs with one
    /// hash on one device give the same bits.
    pub fn kernels_hash(&self) -> String {
        kernels_hash(&[&self.micro.program, &self.update.program])
    }

    /// The same of the kernels that evaluations run.
    pub fn eval_kernels_hash(&self) -> String {
        kernels_hash(&[&self.eval.program])
    }

    /// Optimizer steps done; AdamW's bias correction counts on it.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The static sizes of its streams.
    pub fn micro_capacity(&self) -> Capacity {
        self.micro.capacity()
    }

    /// The device that holds the parameters.
    pub fn gpu(&self) -> &Rc<Gpu> {
        &self.gpu
    }

    /// Parameters, gradients and moments on the device.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The program of forward and backward, for listings and benchmarks.
    pub fn micro_program(&self) -> &Program {
        &self.micro.program
    }

    /// The program of clip and AdamW, for listings and benchmarks.
    pub fn update_program(&self) -> &Program {
        &self.update.program
    }

    /// The parameters that train.
    pub fn trained(&self) -> &[Parameter] {
        &self.trained
    }

    /// Reads a state by its name: a parameter's, or that with [`GRAD`], [`FIRST_MOMENT`] or
    /// [`SECOND_MOMENT`] behind it.
    ///
    /// # Errors
    /// When there is no such state, or the device is lost.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.store.read(name)?;
        values.ok_or_else(|| Error::Device(format!("no state is called {name}")))
    }

    /// As [`Learner::read`], a part of the values at a time, in their order: what is only looked at
    /// need not stand in memory whole.
    ///
    /// # Errors
    /// As [`Learner::read`].
    pub fn read_in_pieces(&self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<()> {
        match self.store.read_in_pieces(name, each)? {
            true => Ok(()),
            false => Err(Error::Device(format!("no state is called {name}"))),
        }
    }

    /// `values` of a parameter as the device stores them: rounded where it keeps fewer bits.
    pub fn as_stored<'a>(&self, name: &str, values: &'a [f32]) -> Cow<'a, [f32]> {
        match self.store.dtype(name) {
            None | Some(DType::F32) => Cow::Borrowed(values),
            Some(dtype) => Cow::Owned(dtype.decode(&dtype.encode(values))),
        }
    }

    /// Reads one kind of state of all parameters that have it: "" for the weights, [`GRAD`],
    /// [`FIRST_MOMENT`] or [`SECOND_MOMENT`]. Names are the parameters'.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn read_state(&self, suffix: &str) -> Result<BTreeMap<String, Tensor>> {
        let of = if suffix.is_empty() { self.config.parameters() } else { &self.trained };
        let read = |p: &Parameter| {
            let data = self.read(&format!("{}{suffix}", p.name))?;
            Ok((p.name.clone(), Tensor { shape: p.shape.clone(), data }))
        };
        of.iter().map(read).collect()
    }

    /// Puts other weights in the place of those on the device.
    ///
    /// # Errors
    /// When they cannot be read, or the adapter's memory does not suffice.
    pub fn put(&self, weights: &dyn ParameterValues) -> Result<()> {
        weights.each(&mut |name, shape, values| self.store.write(name, shape, values))
    }

    /// Puts the optimizer back where a checkpoint left it; `moments` go by the names of their
    /// state.
    ///
    /// # Errors
    /// When they cannot be read, or the adapter's memory does not suffice.
    pub fn restore(&mut self, steps: u64, moments: &dyn ParameterValues) -> Result<()> {
        self.steps = steps;
        moments.each(&mut |name, shape, values| self.store.write(name, shape, values))
    }
}
