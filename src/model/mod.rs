//! The decoder: configuration, weights, graph, sampling.

pub mod config;
pub mod folder;
pub mod generate;
mod init;
pub mod stream;
pub mod transformer;
pub mod weights;
