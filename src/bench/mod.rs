//! Benchmarks: the whole training step.

pub mod step;
