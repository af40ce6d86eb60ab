//! A model on a device with its three programs over the same parameters: `micro` (forward,
//! backward, accumulate), `eval` (forward) and `update` (clip, AdamW).

use crate::data::pack::{Capacity, Stream};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, available_memory};
use crate::graph::{DType, GRAD, Graph, Var};
use crate::kernel::Class;
use crate::kernel::Target;
use crate::model::config::{ModelConfig, ParameterSpec, decays};
use crate::model::weights::Tensor;
use crate::ops::adamw::{HYPER, adamw, hyper};
use crate::ops::grad_norm::grad_norm;
use crate::plan::{Plan, Pool, Reuse, plan};
use crate::step::{Fetch, Options, READS_IN_FLIGHT, Step, Store};
use crate::train::objective::{Objective, Weights};
use crate::train::recipe::OptimSettings;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Suffixes of the optimizer's state.
pub const FIRST_MOMENT: &str = ".m";
/// Suffix of AdamW's second moment.
pub const SECOND_MOMENT: &str = ".v";

/// What one stream gave.
#[derive(Debug, Clone)]
pub struct StreamResult {
    /// The stream's part of the step's loss.
    pub loss: f32,
    /// Log-probability of every target `[N]`.
    pub logp: Vec<f32>,
    /// Mean log-probability of every sequence's response `[2P]`.
    pub mean_logp: Vec<f32>,
    /// Per pair: L_OR, z, g_w, g_l `[P, 4]`.
    pub odds: Vec<f32>,
}

struct Program {
    step: Step,
    objective: Objective,
}

impl Program {
    fn start(&self, stream: &Stream, weights: &Weights) -> Fetch {
        let o = &self.objective;
        o.write(&self.step, stream, weights);
        self.step.run();
        self.step.fetch(&[o.loss, o.logp, o.mean_logp, o.odds])
    }

    fn finish(&self, fetch: Fetch) -> Result<StreamResult> {
        let mut out = self.step.collect(fetch)?.into_iter();
        let mut next = || out.next().expect("four outputs were read");
        Ok(StreamResult { loss: next()[0], logp: next(), mean_logp: next(), odds: next() })
    }

    /// Runs all streams, several in flight at a time, and calls `each` with every result in order.
    fn run_all(
        &self,
        streams: &[Stream],
        weights: &[Weights],
        mut each: impl FnMut(&Stream, StreamResult) -> Result<()>,
    ) -> Result<()> {
        let mut started = VecDeque::new();
        for (stream, weights) in streams.iter().zip(weights) {
            if started.len() == READS_IN_FLIGHT {
                let (stream, fetch) = started.pop_front().expect("some are in flight");
                each(stream, self.finish(fetch)?)?;
            }
            started.push_back((stream, self.start(stream, weights)));
        }
        started.into_iter().try_for_each(|(stream, fetch)| each(stream, self.finish(fetch)?))
    }
}

struct Update {
    step: Step,
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
    micro: Program,
    eval: Program,
    update: Update,
    optim: OptimSettings,
    steps: u64,
}

/// Builds the forward (and, with `derivative`, the backward) pass for streams of `capacity`.
pub fn micro_graph(
    target: &Target,
    config: &ModelConfig,
    capacity: Capacity,
    derivative: bool,
) -> (Graph, Objective) {
    let mut g = Graph::new(target);
    let objective = Objective::declare(&mut g, config, capacity);
    if derivative {
        g.backward(objective.loss);
    }
    (g, objective)
}

/// Builds clip and AdamW over all parameters: graph, hyper-parameters, clip norm, norm output.
fn update_graph(target: &Target, parameters: &[ParameterSpec]) -> (Graph, [Var; 3]) {
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
        adamw(&mut g, param, grad, m, v, norm, hyper, decays(p.kind));
    }
    (g, [hyper, max_norm, norm])
}

/// Bytes a run needs on the device, known before anything is allocated.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// Weights, gradients and both moments.
    pub state: u64,
    /// The plan of forward and backward.
    pub micro: Plan,
    /// The plan of evaluation.
    pub eval: Plan,
    /// The plan of clip and AdamW.
    pub update: Plan,
    /// The slots that these programs take turns with.
    pub pool: Pool,
}

impl MemoryPlan {
    /// Everything together, read-back buffers apart.
    pub fn total(&self) -> u64 {
        let inputs = self.micro.inputs + self.eval.inputs + self.update.inputs;
        self.state + inputs + self.pool.sizes().iter().sum::<u64>()
    }
}

/// Bytes that a run holds in the machine's own memory for each parameter: the weights and both
/// moments, when a checkpoint is written.
const HOST_BYTES: u64 = 12;

/// Refuses `bytes` of device memory, and what a run of `config` holds besides, if the machine has
/// not got them. What a GPU with memory of its own has left, nothing can tell beforehand.
fn check_memory(target: &Target, config: &ModelConfig, bytes: u64) -> Result<()> {
    let device = if target.class == Class::Discrete { 0 } else { bytes };
    let needed = device + HOST_BYTES * config.parameter_count() as u64;
    match available_memory() {
        Some(free) if needed > free => Err(Error::Limit(format!(
            "this needs {:.1} GiB of memory, and {:.1} GiB are free on this machine.",
            needed as f64 / (1u64 << 30) as f64,
            free as f64 / (1u64 << 30) as f64,
        ))),
        _ => Ok(()),
    }
}

/// Refuses a model whose weights, gradients and moments alone cannot fit, before it is read.
///
/// # Errors
/// [`Error::Limit`] with what is needed and what is there.
pub fn check_parameters(config: &ModelConfig) -> Result<()> {
    check_memory(&Target::baseline(Class::Discrete), config, 0)
}

/// Plans a run without a device.
///
/// # Errors
/// [`Error::Limit`] when a tensor or a dispatch is beyond the adapter's limits, or the whole
/// beyond the machine's free memory.
pub fn memory_plan(
    target: &Target,
    config: &ModelConfig,
    capacity: Capacity,
) -> Result<MemoryPlan> {
    let parameters = config.parameters();
    check_memory(target, config, 16 * config.parameter_count() as u64)?;
    let (micro, _) = micro_graph(target, config, capacity, true);
    let (eval, _) = micro_graph(target, config, capacity, false);
    let (update, _) = update_graph(target, &parameters);
    for graph in [&micro, &eval, &update] {
        graph.check_limits()?;
    }
    let [micro, eval, update] = [&micro, &eval, &update].map(|graph| plan(graph, Reuse::Pool));
    let mut pool = Pool::default();
    for program in [&micro, &eval, &update] {
        pool.assign(&program.slots);
    }
    let state = 16 * config.parameter_count() as u64;
    let memory = MemoryPlan { state, micro, eval, update, pool };
    check_memory(target, config, memory.total())?;
    Ok(memory)
}

impl Learner {
    /// Puts `weights` on the device and makes the programs.
    ///
    /// # Errors
    /// When the adapter's memory or limits do not suffice.
    pub fn new(
        gpu: &Rc<Gpu>,
        config: &ModelConfig,
        weights: &BTreeMap<String, Tensor>,
        capacity: Capacity,
        optim: &OptimSettings,
    ) -> Result<Self> {
        Self::with_reuse(gpu, config, weights, capacity, optim, Reuse::Pool)
    }

    /// As [`Learner::new`]; without sharing memory every temporary keeps its value after a run, so
    /// that single calls can be run again.
    ///
    /// # Errors
    /// When the adapter's memory or limits do not suffice.
    pub fn with_reuse(
        gpu: &Rc<Gpu>,
        config: &ModelConfig,
        weights: &BTreeMap<String, Tensor>,
        capacity: Capacity,
        optim: &OptimSettings,
        reuse: Reuse,
    ) -> Result<Self> {
        let store = Store::new(gpu);
        let options = Options { reuse, ..Options::default() };
        for (name, t) in weights {
            store.write(name, &t.shape, &t.data)?;
        }
        let program = |derivative| -> Result<Program> {
            let (graph, objective) = micro_graph(gpu.target(), config, capacity, derivative);
            Ok(Program { step: Step::with_options(gpu, graph, &store, options)?, objective })
        };
        let micro = program(true)?;
        let eval = program(false)?;
        let (graph, [hyper, max_norm, norm]) = update_graph(gpu.target(), &config.parameters());
        let step = Step::with_options(gpu, graph, &store, options)?;
        let update = Update { step, hyper, max_norm, norm };
        Ok(Self {
            config: config.clone(),
            gpu: gpu.clone(),
            store,
            micro,
            eval,
            update,
            optim: optim.clone(),
            steps: 0,
        })
    }

    /// Forward and backward of one stream; gradients add up until [`Learner::update`].
    ///
    /// # Errors
    /// When the device is lost.
    pub fn accumulate(&self, stream: &Stream, weights: &Weights) -> Result<StreamResult> {
        self.micro.finish(self.micro.start(stream, weights))
    }

    /// Forward and backward of all streams of a step; `each` gets every result in order.
    ///
    /// # Errors
    /// When the device is lost, or `each` fails.
    pub fn accumulate_all(
        &self,
        streams: &[Stream],
        weights: &[Weights],
        each: impl FnMut(&Stream, StreamResult) -> Result<()>,
    ) -> Result<()> {
        self.micro.run_all(streams, weights, each)
    }

    /// Forward only.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn evaluate(&self, stream: &Stream, weights: &Weights) -> Result<StreamResult> {
        self.eval.finish(self.eval.start(stream, weights))
    }

    /// Forward only, of many streams; `each` gets every result in order.
    ///
    /// # Errors
    /// When the device is lost, or `each` fails.
    pub fn evaluate_all(
        &self,
        streams: &[Stream],
        weights: &[Weights],
        each: impl FnMut(&Stream, StreamResult) -> Result<()>,
    ) -> Result<()> {
        self.eval.run_all(streams, weights, each)
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
        u.step.write(
            u.hyper,
            &hyper(learning_rate, o.beta1, o.beta2, o.eps, o.weight_decay, self.steps),
        );
        u.step.write(u.max_norm, &[o.max_grad_norm as f32]);
        u.step.run();
        Ok(u.step.read(u.norm)?[0])
    }

    /// A hash of the kernels that forward, backward and update run, in their order: runs with one
    /// hash on one device give the same bits.
    pub fn kernels_hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for step in [&self.micro.step, &self.update.step] {
            for call in step.graph().calls() {
                call.variant.hash_into(&mut hasher);
            }
        }
        hasher.finalize().to_hex()[..16].into()
    }

    /// Optimizer steps done; AdamW's bias correction counts on it.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The static sizes of its streams.
    pub fn micro_capacity(&self) -> Capacity {
        self.micro.objective.capacity()
    }

    /// The device.
    pub fn gpu(&self) -> &Rc<Gpu> {
        &self.gpu
    }

    /// Parameters, gradients and moments on the device.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The step program of forward and backward, for listings and benchmarks.
    pub fn micro_step(&self) -> &Step {
        &self.micro.step
    }

    /// The step program of clip and AdamW, for listings and benchmarks.
    pub fn update_step(&self) -> &Step {
        &self.update.step
    }

    /// Bytes of the buffers that results are read back through.
    pub fn staging_bytes(&self) -> u64 {
        [&self.micro.step, &self.eval.step, &self.update.step]
            .iter()
            .map(|s| s.staging_bytes())
            .sum()
    }

    /// Reads one kind of state of every parameter: "" for the weights, [`GRAD`],
    /// [`FIRST_MOMENT`] or [`SECOND_MOMENT`]. Names are the parameters'.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn read_state(&self, suffix: &str) -> Result<BTreeMap<String, Tensor>> {
        let read = |p: ParameterSpec| {
            let data = self.store.read(&format!("{}{suffix}", p.name))?;
            let data =
                data.ok_or_else(|| Error::Device(format!("no state for {}{suffix}", p.name)))?;
            Ok((p.name, Tensor { shape: p.shape, data }))
        };
        self.config.parameters().into_iter().map(read).collect()
    }

    /// Puts the optimizer back where a checkpoint left it.
    ///
    /// # Errors
    /// When the adapter's memory does not suffice.
    pub fn restore(
        &mut self,
        steps: u64,
        m: &BTreeMap<String, Tensor>,
        v: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        self.steps = steps;
        for (suffix, tensors) in [(FIRST_MOMENT, m), (SECOND_MOMENT, v)] {
            for (name, t) in tensors {
                self.store.write(&format!("{name}{suffix}"), &t.shape, &t.data)?;
            }
        }
        Ok(())
    }
}
