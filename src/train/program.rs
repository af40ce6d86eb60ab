//! One stream through the model and an objective: the graph, what it is given and what comes back.

use crate::data::pack::{Capacity, PackedBatch};
use crate::error::Result;
use crate::graph::{DType, Graph, Parameter, Var};
use crate::kernel::Target;
use crate::model::config::ModelConfig;
use crate::model::stream::{BatchInputs, HeadRows};
use crate::model::weights::Storage;
use crate::ops::token_logp::token_logp_capped;
use crate::plan::READS_IN_FLIGHT;
use crate::program::{Fetch, Program};
use crate::train::objectives::{Coefficients, LOGP, LOSS, Objective, Results, Scored, Terms};
use std::borrow::Borrow;
use std::collections::VecDeque;
use std::rc::Rc;

/// Which parameters train: true for the names of those that do.
pub type TrainedSet = Rc<dyn Fn(&str) -> bool>;

/// A trained set of all parameters.
pub fn train_all() -> TrainedSet {
    Rc::new(|_| true)
}

/// A trained set of none.
pub fn train_none() -> TrainedSet {
    Rc::new(|_| false)
}

/// The operation that every block of a decoder has once.
const ATTENTION: &str = "attention";

/// How a model lies on a device: which of its parameters train, and the types of the others.
#[derive(Clone)]
pub struct Placement {
    /// Those that train, which are F32.
    pub trained: TrainedSet,
    /// The others' types by name; F32 where there is none.
    pub storage: Rc<Storage>,
    /// Of the forward pass only what goes from block to block is kept for the derivative, and the rest
    /// is computed again.
    pub recompute: bool,
}

impl Placement {
    /// Everything trains.
    pub fn all() -> Self {
        Self::of(train_all())
    }

    /// Only `trained` trains, and all is F32.
    pub fn of(trained: TrainedSet) -> Self {
        Self { trained, storage: Rc::default(), recompute: false }
    }

    /// How a parameter is stored. Vectors (norms, biases) are F32 whatever their file says.
    pub fn dtype(&self, p: &Parameter) -> DType {
        match (self.trained)(&p.name) || p.shape.len() < 2 {
            true => DType::F32,
            false => self.storage.get(&p.name).copied().unwrap_or(DType::F32),
        }
    }

    /// An empty graph in which they train.
    pub fn training_graph(&self, target: &Target) -> Graph {
        let mut g = self.graph(target, self.trained.clone());
        if self.recompute {
            g.recompute_between(ATTENTION);
        }
        g
    }

    /// An empty graph over the same parameters in which nothing trains.
    pub fn inference_graph(&self, target: &Target) -> Graph {
        self.graph(target, train_none())
    }

    fn graph(&self, target: &Target, trained: TrainedSet) -> Graph {
        let (mut g, placement) = (Graph::new(target), self.clone());
        g.train_only(move |name| trained(name));
        g.store_as(move |name| match (placement.trained)(name) {
            true => DType::F32,
            false => placement.storage.get(name).copied().unwrap_or(DType::F32),
        });
        g
    }
}

/// Builds the forward pass for streams of `capacity` into an empty graph, and the backward pass if
/// its trained set holds a parameter of the model ([`Placement::training_graph`]).
pub fn micro_graph(
    mut g: Graph,
    config: &ModelConfig,
    capacity: Capacity,
    objective: &dyn Objective,
) -> (Graph, MicroInputs) {
    let inputs = MicroInputs::declare(&mut g, config, capacity, objective);
    if g.parameters().iter().any(|p| p.trained) {
        g.backward(inputs.terms.loss);
    }
    (g, inputs)
}

/// Where a stream goes into the graph of [`micro_graph`], and what comes out.
pub struct MicroInputs {
    stream: BatchInputs,
    head: HeadRows,
    target_id: Var,
    scored: Scored,
    terms: Terms,
}

impl MicroInputs {
    fn declare(
        g: &mut Graph,
        config: &ModelConfig,
        capacity: Capacity,
        objective: &dyn Objective,
    ) -> Self {
        let Capacity { tokens, targets, pairs } = capacity;
        let stream = BatchInputs::declare(g, tokens);
        let head = HeadRows::declare(g, targets, tokens);
        let target_id = g.input("target id", &[targets], DType::U32);
        let owner = g.input("owner", &[targets, 2], DType::U32);
        let seq_offset = g.input("sequence offset", &[2 * pairs + 1], DType::U32);
        let seq_target = g.input("sequence targets", &[2 * targets], DType::U32);

        let of_model = config.decoder.forward(g, &stream, &head);
        let logp = token_logp_capped(g, of_model.input, of_model.weight, target_id, of_model.cap);
        let scored = Scored { logp, seq_offset, seq_target, owner, capacity };
        let terms = objective.declare(g, &scored);
        for (_, out) in outputs(&scored, &terms).chain(terms.details.iter().copied()) {
            g.output(out);
        }
        Self { stream, head, target_id, scored, terms }
    }

    /// Uploads a stream and the objective's coefficients for it.
    fn write(&self, program: &Program, stream: &PackedBatch, coefficients: &Coefficients) {
        self.stream.write(program, stream);
        self.head.write(program, &stream.target_row);
        program.write_u32(self.target_id, &stream.target_id);
        program.write_u32(self.scored.owner, &stream.owner);
        program.write_u32(self.scored.seq_offset, &stream.seq_offset);
        program.write_u32(self.scored.seq_target, &stream.seq_target);
        for (name, input) in &self.terms.inputs {
            program.write(*input, &coefficients[name]);
        }
    }
}

/// What is read after every stream.
fn outputs<'a>(
    scored: &Scored,
    terms: &'a Terms,
) -> impl Iterator<Item = (&'static str, Var)> + 'a {
    [(LOSS, terms.loss), (LOGP, scored.logp)].into_iter().chain(terms.results.iter().copied())
}

/// The graph made real.
pub(super) struct MicroProgram {
    pub program: Program,
    pub inputs: MicroInputs,
}

impl MicroProgram {
    /// The static sizes of its streams.
    pub fn capacity(&self) -> Capacity {
        self.inputs.scored.capacity
    }

    fn start(
        &self,
        stream: &PackedBatch,
        coefficients: &Coefficients,
        read: &[(&str, Var)],
    ) -> Fetch {
        self.inputs.write(&self.program, stream, coefficients);
        self.program.run();
        self.program.fetch(&read.iter().map(|(_, var)| *var).collect::<Vec<_>>())
    }

    fn finish(&self, fetch: Fetch, read: &[(&'static str, Var)]) -> Result<Results> {
        let values = self.program.collect(fetch)?;
        Ok(Results::new(read.iter().map(|(name, _)| *name).zip(values)))
    }

    /// Runs one stream; with `details` reads also what only `verify` looks at.
    pub fn run(
        &self,
        stream: &PackedBatch,
        coefficients: &Coefficients,
        details: bool,
    ) -> Result<Results> {
        let terms = &self.inputs.terms;
        let mut read: Vec<_> = outputs(&self.inputs.scored, terms).collect();
        if details {
            read.extend(&terms.details);
        }
        self.finish(self.start(stream, coefficients, &read), &read)
    }

    /// Runs all streams, several in flight at a time, and calls `each` with every result in order.
    pub fn run_all<S: Borrow<PackedBatch>, C: Borrow<Coefficients>>(
        &self,
        streams: impl IntoIterator<Item = (S, C)>,
        mut each: impl FnMut(&PackedBatch, Results) -> Result<()>,
    ) -> Result<()> {
        let read: Vec<_> = outputs(&self.inputs.scored, &self.inputs.terms).collect();
        let mut started: VecDeque<(S, Fetch)> = VecDeque::new();
        let mut finish = |(stream, fetch): (S, Fetch)| {
            let results = self.finish(fetch, &read)?;
            each(stream.borrow(), results)
        };
        for (stream, coefficients) in streams {
            if started.len() == READS_IN_FLIGHT {
                finish(started.pop_front().expect("some are in flight"))?;
            }
            let fetch = self.start(stream.borrow(), coefficients.borrow(), &read);
            started.push_back((stream, fetch));
        }
        started.into_iter().try_for_each(finish)
    }
}
