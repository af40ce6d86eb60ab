//! A GPU compute engine with automatic differentiation, on [wgpu] and hand-written WGSL kernels,
//! and small language models trained with it by ORPO.
//!
//! A [`Graph`] is built once from operations ([`ops`]), given its derivative by
//! [`Graph::backward`], and becomes a [`Program`]: buffers and a list of dispatches that are replayed.
//! [`Gpu`] is any adapter that Vulkan, Metal, DX12 or OpenGL reaches, a CPU with software Vulkan
//! among them. This fits a line:
//!
//! ```
//! use oddgrad::ops::{adamw, matmul::linear, mse::mse};
//! use oddgrad::{DType, Gpu, Graph, Init, Program, Store};
//! use std::rc::Rc;
//!
//! let gpu = Rc::new(Gpu::open(&Default::default())?);
//! let mut g = Graph::new(gpu.target());
//! let x = g.input("x", &[4, 1], DType::F32);
//! let y = g.input("y", &[4, 1], DType::F32);
//! let weight = g.parameter("weight", &[1, 1], Init::Zeros);
//! let bias = g.parameter("bias", &[1], Init::Zeros);
//! let line = linear(&mut g, x, weight, Some(bias));
//! let loss = mse(&mut g, line, y);
//! g.backward(loss);
//! let hyper = adamw::minimise(&mut g, 0.0);
//!
//! let store = Store::new(&gpu); // holds the parameters; new ones are zero
//! let program = Program::new(&gpu, g, &store)?;
//! program.write(x, &[0.0, 1.0, 2.0, 3.0]);
//! program.write(y, &[1.0, 3.0, 5.0, 7.0]); // y = 2 x + 1
//! for t in 1..=300 {
//!     program.write(hyper, &adamw::hyper(0.1, 0.9, 0.999, 1e-8, 0.0, t));
//!     program.run();
//! }
//! let weight = store.read("weight")?.expect("the program made it")[0];
//! assert!((weight - 2.0).abs() < 0.05, "{weight}");
//! # Ok::<(), oddgrad::Error>(())
//! ```
//!
//! `examples/` has this at full length (`linear_regression.rs`), an operation with a kernel of its
//! own (`own_op.rs`) and a language model's training step (`decoder_step.rs`). A program that has a
//! [`wgpu::Device`] already hands it to [`Gpu::from_wgpu`].
//!
//! # Features
//! - `default-features = false`: the engine and its operations, and nothing that only training or
//!   the program needs.
//! - `train`: [`data`], [`model`] and [`train`]: rows, tokenizers, models, recipes, the training loop.
//! - `cli` (with `train`, by default): [`mod@bench`] and what the `oddgrad` program is made of.
//! - `gl` (by default): OpenGL ES, for machines without Vulkan, Metal or DX12.
//!
//! # The map of the house
//! A module uses those above it, never those below.
//!
//! - [`error`]: the one error type
//! - [`kernel`]: a WGSL file, its variants and how one is chosen and specialised
//! - [`graph`], [`plan`]: the static graph, its derivative and its memory plan; no wgpu in here
//! - [`gpu`], [`program`]: adapters, buffers, pipelines; a planned graph made real and replayed
//! - [`ops`]: one file per operation, with formula, derivative, kernels, reference and test case
//! - [`hub`]: models and data sets by name, from the hub's cache
//! - [`data`]: rows, chat templates, tokens, the packed preference stream
//! - [`model`]: the decoder, its configuration, weights and sampling
//! - [`train`]: objectives, schedules, checkpoints, the training loop
//! - [`mod@bench`]: benchmarks of kernels and of the whole step
//! - `page`, `demo`, `compare`, `feedback`, `rounds`, `cli`: HTML pages, the demo, objectives side by side,
//!   preferences by people and judges, rounds of them, and the commands of the `oddgrad` program

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod compare;
#[cfg(feature = "train")]
pub mod data;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod demo;
pub mod dtype;
pub mod error;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod feedback;
#[cfg(feature = "train")]
mod files;
pub mod gpu;
pub mod graph;
mod guard;
#[cfg(feature = "train")]
pub mod hub;
pub mod kernel;
#[cfg(feature = "train")]
pub mod model;
pub mod ops;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod page;
pub mod plan;
pub mod program;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod rounds;
#[cfg(feature = "train")]
pub mod train;

pub use error::{Error, Result};
pub use gpu::{AdapterChoice, Gpu};
pub use graph::{DType, Graph, Init, Var};
pub use program::{Program, Store};
pub use wgpu;
