//! The decoder: configuration, weights, graph, sampling.

pub mod config;
pub mod folder;
mod init;
pub mod weights;
