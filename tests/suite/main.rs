//! Tests across modules, in one binary: linking wgpu once is enough.

mod bad_input;
mod bench;
mod collect;
mod comparison;
mod conversation;
mod data_check;
mod demo;
mod engine;
mod evaluation;
mod families;
mod faults;
mod feedback;
mod formats;
mod further;
mod generate;
mod gguf;
mod golden;
mod hub;
mod large;
mod library;
mod lora;
mod malformed;
mod numbers;
mod objectives;
mod place;
mod planted;
mod portability;
mod recompute;
mod reference;
mod rounds;
mod runs;
mod shaders;
mod storage;
mod training;
mod tune;
mod views;

use oddgrad::gpu::{AdapterChoice, Gpu};
use std::rc::Rc;

/// The adapter the tests run on. No adapter is never a pass.
fn gpu() -> Rc<Gpu> {
    Rc::new(
        Gpu::open(&AdapterChoice::default())
            .unwrap_or_else(|e| panic!("tests need an adapter: {e}")),
    )
}

/// A file below `tests/golden`.
fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}
