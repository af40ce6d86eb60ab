//! A model on a device that is scored and not trained.

use crate::data::pack::{Capacity, PackedBatch};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::limits::{check_tokens, widest};
use crate::model::weights::FolderWeights;
use crate::plan::Reuse;
use crate::program::{Program, ProgramOptions, Store};
use crate::train::objectives::{Coefficients, Objective, Results};
use crate::train::program::{MicroProgram, micro_graph};
use std::rc::Rc;

/// Parameters on a device and the forward pass of an objective over them: no gradients, no moments,
/// and matrices of 16-bit floats as their file stores them.
pub struct Evaluator {
    store: Store,
    program: MicroProgram,
}

impl Evaluator {
    /// Puts `weights` on the device and makes the program.
    ///
    /// # Errors
    /// Weights that cannot be read or used; an adapter whose memory or limits do not suffice.
    pub fn new(
        gpu: &Rc<Gpu>,
        config: &ModelConfig,
        weights: &FolderWeights,
        capacity: Capacity,
        objective: &dyn Objective,
    ) -> Result<Self> {
        check_tokens(gpu.target(), capacity.tokens, widest(config), "a stream")?;
        let store = Store::new(gpu);
        weights.put(&store)?;
        let (graph, inputs) = micro_graph(store.inference_graph(), config, capacity, objective);
        let options = ProgramOptions { reuse: Reuse::Pool, ..ProgramOptions::default() };
        let program = Program::with_options(gpu, graph, &store, options)?;
        Ok(Self { store, program: MicroProgram { program, inputs } })
    }

    /// Loss and log-probabilities of a stream.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn evaluate(&self, stream: &PackedBatch, coefficients: &Coefficients) -> Result<Results> {
        self.program.run(stream, coefficients, false)
    }

    /// The parameters on the device.
    pub fn store(&self) -> &Store {
        &self.store
    }
}
