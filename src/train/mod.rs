//! Objectives, schedules, checkpoints, metrics and the training loop.

pub mod report;
