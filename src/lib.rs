//! oddgrad trains small transformer language models with ORPO on any GPU that wgpu reaches.
//!
//! The map of the house (dependencies run one way, top to bottom is "is used by"):
//!
//! - [`error`]: the one error type
//! - [`graph`], [`plan`]: the static graph, its derivative and its memory plan; no wgpu in here
//! - [`gpu`], [`step`]: adapters, buffers, pipelines; a planned graph made real and replayed
//! - [`ops`]: one file per operation, with formula, derivative, kernels, reference and test case
//! - [`data`]: rows, chat templates, tokens, the packed preference stream
//! - [`model`]: the decoder, its configuration, weights and sampling
//! - [`train`]: objectives, schedules, checkpoints, the training loop
//! - [`cli`]: parsing and printing only

pub mod data;
pub mod error;
mod files;
pub mod model;
pub mod train;
