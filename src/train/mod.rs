//! Objectives, schedules, checkpoints, metrics and the training loop.

pub mod best;
mod change;
pub mod checkpoint;
pub mod dataset;
mod describe;
pub mod evaluator;
pub mod learner;
pub mod lock;
pub mod metrics;
pub mod objectives;
pub mod prepare;
pub mod program;
pub mod proof;
pub mod recipe;
pub mod recovery;
mod reference;
mod reference_logps;
pub mod replay;
pub mod sampler;
pub mod schedule;
mod settings;
mod steps;
pub mod trainer;
mod training;
pub mod verify;
