//! The training step as a benchmark: forward, backward and AdamW on full streams.

use crate::data::example::{Example, Sequence};
use crate::data::pack::{Capacity, PackedBatch, footprint, pack};
use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::lora::{Base, Lora, is_factor};
use crate::model::weights::{RandomWeights, Storage};
use crate::plan::Reuse;
use crate::train::learner::{Learner, LearnerOptions, memory_plan};
use crate::train::objectives::{Coefficients, Loss};
use crate::train::program::Placement;
use crate::train::recipe::OptimSettings;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// Of the steps that are timed; its value changes no time.
const LEARNING_RATE: f64 = 1e-4;

/// One operation's part of a step.
#[derive(Debug)]
pub struct OpTime {
    /// Operation and pass.
    pub name: String,
    /// Dispatches per step.
    pub dispatches: usize,
    /// Wall-clock seconds of all of them, one at a time.
    pub seconds: f64,
}

/// What `bench_step` found.
#[derive(Debug)]
pub struct StepBench {
    /// Parameters of the model.
    pub parameters: usize,
    /// PackedBatch tokens of a step that are not padding.
    pub tokens: usize,
    /// Seconds of each timed step, sorted.
    pub seconds: Vec<f64>,
    /// Their median.
    pub median: f64,
    /// Seconds the CPU spends encoding one step.
    pub host: f64,
    /// Dispatches of a step.
    pub dispatches: usize,
    /// Submissions of a step.
    pub submissions: usize,
    /// Bytes planned for all programs and state.
    pub planned: u64,
    /// Bytes of buffers alive, staging for read-back apart.
    pub allocated: u64,
    /// Operations, the slowest first.
    pub per_op: Vec<OpTime>,
    /// Every dispatch of forward and backward, then of the update.
    pub listing: String,
}

/// The additions of a LoRA step, and how the model under them is kept.
pub type StepLora = (Lora, Base);

/// Longest stream that is asked of anything; a recipe's bound too.
const MOST_TOKENS: usize = 1 << 24;

/// Preference pairs of made-up tokens with the proportions of the demo's (a prompt of 30 tokens,
/// answers of about 20 that part in their middle), filling one stream.
fn examples(tokens: usize, vocab: usize) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut out = Vec::new();
    let mut used = 0;
    loop {
        let shared: Vec<u32> = (0..40).map(|_| rng.random_range(0..vocab as u32)).collect();
        let mut side = |n: usize| {
            let mut ids = shared.clone();
            ids.extend((0..n).map(|_| rng.random_range(0..vocab as u32)));
            Sequence { ids, response_start: 30 }
        };
        let example =
            Example { row: out.len(), chosen: side(11), rejected: Some(side(10)), desirable: None };
        let size = footprint(&example).tokens;
        if used + size > tokens {
            return out;
        }
        used += size;
        out.push(example);
    }
}

/// A model with random weights and one full stream for it, ready to train.
pub(crate) struct Loaded {
    pub config: ModelConfig,
    pub capacity: Capacity,
    pub placement: Placement,
    pub learner: Learner,
    pub stream: PackedBatch,
    pub loss: Loss,
    pub coefficients: Coefficients,
}

impl Loaded {
    /// The model of `folder` (its config.json is enough), with the additions of `lora`, and a stream of
    /// `tokens`, made by `reuse`.
    /// `problems` are what the caller found wrong, to be named together with what is wrong here.
    ///
    /// # Errors
    /// An unreadable model, a stream too small for one pair, a device without room.
    pub fn new(
        gpu: &Rc<Gpu>,
        folder: &Path,
        tokens: usize,
        lora: Option<&StepLora>,
        reuse: Reuse,
        mut problems: Vec<Problem>,
    ) -> Result<Self> {
        let config = ModelConfig::load(folder)?;
        let (config, placement) = match lora {
            None => (config, Placement::all()),
            Some((lora, base)) => {
                let config = config.adapted(lora)?;
                let storage = Rc::new(base.storage(&config, Storage::new()));
                (config, Placement { storage, ..Placement::of(Rc::new(is_factor)) })
            }
        };
        let examples = examples(tokens.min(MOST_TOKENS), config.vocab_size);
        if examples.is_empty() || tokens > MOST_TOKENS {
            let what = format!("is {tokens}; it must be from 61, one pair, to {MOST_TOKENS}");
            problems.push(Problem::new("--tokens", what));
        }
        if !problems.is_empty() {
            return Err(Error::input("the training step cannot run", problems));
        }
        let capacity = Capacity { tokens, targets: tokens, pairs: examples.len() };
        // Says what does not fit before anything is allocated.
        let loss = Loss::default();
        let objective = &*loss.objective;
        memory_plan(gpu.target(), &config, capacity, objective, &placement, None)?;
        let optim = OptimSettings::new(LEARNING_RATE);
        let init = RandomWeights { config: &config, seed: 0 };
        let options = LearnerOptions { reuse, placement: placement.clone() };
        let learner =
            Learner::with_options(gpu, &config, &init, capacity, objective, &optim, &options)?;
        let stream = pack(&examples.iter().collect::<Vec<_>>(), capacity)?.remove(0);
        let coefficients = objective.coefficients(&[&stream], 1).remove(0);
        Ok(Self { config, capacity, placement, learner, stream, loss, coefficients })
    }

    /// One training step, waited for.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn step(&mut self) -> Result<()> {
        self.learner.accumulate(&self.stream, &self.coefficients)?;
        self.learner.update(LEARNING_RATE)?;
        Ok(())
    }
}

/// Times `steps` training steps of the model in `folder` (weights drawn at random), or of the additions
/// of `lora` to it, on full streams of `tokens` tokens.
///
/// # Errors
/// An unreadable model, a stream too small for one pair, a device without room.
pub fn bench_step(
    gpu: &Rc<Gpu>,
    folder: &Path,
    lora: Option<&StepLora>,
    tokens: usize,
    steps: usize,
) -> Result<StepBench> {
    let mut problems = Vec::new();
    if steps == 0 {
        problems.push(Problem::new("--steps", "is 0; it must be at least 1"));
    }
    let before = gpu.buffer_bytes();
    let mut loaded = Loaded::new(gpu, folder, tokens, lora, Reuse::Pool, problems)?;
    let Loaded { config, capacity, placement, .. } = &loaded;
    let objective = &*loaded.loss.objective;
    let planned = memory_plan(gpu.target(), config, *capacity, objective, placement, None)?;
    let planned = planned.total();
    let allocated = gpu.buffer_bytes() - before;

    let mut seconds = Vec::with_capacity(steps);
    for i in 0..=steps {
        let start = Instant::now();
        loaded.step()?;
        if i > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let Loaded { config, learner, stream, .. } = loaded;
    let host =
        learner.micro_program().encoding_seconds() + learner.update_program().encoding_seconds();

    let mut per_op: Vec<OpTime> = Vec::new();
    for program in [learner.micro_program(), learner.update_program()] {
        for (call, time) in program.graph().calls().iter().zip(program.run_timed()?) {
            let name = format!("{}.{}", call.op, call.pass);
            match per_op.iter_mut().find(|o| o.name == name) {
                Some(op) => {
                    op.dispatches += 1;
                    op.seconds += time;
                }
                None => per_op.push(OpTime { name, dispatches: 1, seconds: time }),
            }
        }
    }
    per_op.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(StepBench {
        parameters: config.parameter_count(),
        tokens: stream.used_tokens,
        median: seconds[seconds.len() / 2],
        seconds,
        host,
        dispatches: learner.micro_program().graph().calls().len()
            + learner.update_program().graph().calls().len(),
        submissions: learner.micro_program().submissions() + learner.update_program().submissions(),
        planned,
        allocated,
        per_op,
        listing: learner.micro_program().graph().listing()
            + &learner.update_program().graph().listing(),
    })
}
