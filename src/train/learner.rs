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
use crate::step::{Options, Step, Store};
use crate::train::objectives::{Coefficients, Objective, Results};
use crate::train::program::{MicroProgram, micro_graph};
use crate::train::recipe::OptimSettings;
use std::collections::BTreeMap;
use std::rc::Rc;

pub use crate::ops::adamw::{FIRST_MOMENT, SECOND_MOMENT};

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
    micro: MicroProgram,
    eval: MicroProgram,
    update: Update,
    optim: OptimSettings,
    steps: u64,
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

/// Refuses a run of `config` if `bytes` of device memory and what it holds on the host exceed the
/// machine's free memory. A discrete GPU's free memory cannot be asked for, so its bytes are not
/// counted.
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
    objective: &dyn Objective,
) -> Result<MemoryPlan> {
    let parameters = config.parameters();
    check_memory(target, config, 16 * config.parameter_count() as u64)?;
    let (micro, _) = micro_graph(target, config, capacity, objective, true);
    let (eval, _) = micro_graph(target, config, capacity, objective, false);
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
        objective: &dyn Objective,
        optim: &OptimSettings,
    ) -> Result<Self> {
        Self::with_reuse(gpu, config, weights, capacity, objective, optim, Reuse::Pool)
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
        objective: &dyn Objective,
        optim: &OptimSettings,
        reuse: Reuse,
    ) -> Result<Self> {
        let store = Store::new(gpu);
        let options = Options { reuse, ..Options::default() };
        for (name, t) in weights {
            store.write(name, &t.shape, &t.data)?;
        }
        let program = |derivative| -> Result<MicroProgram> {
            let (graph, inputs) =
                micro_graph(gpu.target(), config, capacity, objective, derivative);
            Ok(MicroProgram { step: Step::with_options(gpu, graph, &store, options)?, inputs })
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
    pub fn accumulate(&self, stream: &Stream, coefficients: &Coefficients) -> Result<Results> {
        self.micro.run(stream, coefficients, false)
    }

    /// As [`Learner::accumulate`]; the results hold the objective's details too.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn accumulate_in_detail(
        &self,
        stream: &Stream,
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
        streams: &[Stream],
        coefficients: &[Coefficients],
        each: impl FnMut(&Stream, Results) -> Result<()>,
    ) -> Result<()> {
        self.micro.run_all(streams, coefficients, each)
    }

    /// Loss and log-probabilities of a stream, without gradients.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn evaluate(&self, stream: &Stream, coefficients: &Coefficients) -> Result<Results> {
        self.eval.run(stream, coefficients, false)
    }

    /// Forward only, of many streams; `each` gets every result in order.
    ///
    /// # Errors
    /// When the device is lost, or `each` fails.
    pub fn evaluate_all(
        &self,
        streams: &[Stream],
        coefficients: &[Coefficients],
        each: impl FnMut(&Stream, Results) -> Result<()>,
    ) -> Result<()> {
        self.eval.run_all(streams, coefficients, each)
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
                for part in call.variant.identity() {
                    hasher.update(part.as_bytes());
                }
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
