//! oddgrad trains small transformer language models with ORPO on any GPU that wgpu reaches.
//!
//! The map of the house (a module uses those above it, never those below):
//!
//! - [`error`]: the one error type
//! - [`kernel`]: a WGSL file, its variants and how one is chosen and specialised
//! - [`graph`], [`plan`]: the static graph, its derivative and its memory plan; no wgpu in here
//! - [`gpu`], [`step`]: adapters, buffers, pipelines; a planned graph made real and replayed
//! - [`ops`]: one file per operation, with formula, derivative, kernels, reference and test case
//! - [`data`]: rows, chat templates, tokens, the packed preference stream
//! - [`model`]: the decoder, its configuration, weights and sampling
//! - [`train`]: objectives, schedules, checkpoints, the training loop
//! - [`mod@bench`]: benchmarks of kernels and of the whole step
//! - `page`, `demo`, `cli`: HTML pages, the demo and the command line of the `oddgrad` program

pub mod bench;
#[doc(hidden)]
pub mod cli;
pub mod data;
#[doc(hidden)]
pub mod demo;
pub mod error;
mod files;
pub mod gpu;
pub mod graph;
pub mod kernel;
pub mod model;
pub mod ops;
#[doc(hidden)]
pub mod page;
pub mod plan;
pub mod step;
pub mod train;
