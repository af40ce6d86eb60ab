//! The decoder: configuration, weights, graph, sampling.

pub mod config;
pub mod folder;
pub mod weights;
