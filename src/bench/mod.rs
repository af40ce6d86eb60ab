//! Benchmarks: the kernels of an operation against each other, and the whole training step.
//!
//! - [`op`]: one operation, from the request to the [`report`]
//! - [`shapes`], [`facts`]: what is run, what a kernel's text says
//! - [`gate`]: correctness first; [`race`], [`clock`], [`stats`]: then time
//! - `track`: where they run; [`lap`]: a block of samples in a process of its own
//! - [`child`]: such processes, and one for kernels that may not end
//! - [`ceiling`]: what the adapter itself can do
//! - [`report`], [`chart`], [`page`], [`compare`]: what is written down, drawn and compared
//! - [`mod@step`]: forward, backward and update of a model
//! - [`mod@tune`]: the fastest kernel for each dispatch of that step; [`tuned`]: the file it is kept in

pub mod ceiling;
pub mod chart;
pub mod child;
pub mod clock;
pub mod compare;
pub mod facts;
pub mod gate;
pub mod lap;
pub mod op;
pub mod page;
pub mod race;
pub mod report;
pub mod shapes;
pub mod stats;
pub mod step;
mod track;
pub mod tune;
pub mod tuned;
