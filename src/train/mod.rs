//! Objectives, schedules, checkpoints, metrics and the training loop.

pub mod checkpoint;
pub mod metrics;
pub mod recipe;
pub mod report;
pub mod schedule;
mod settings;
