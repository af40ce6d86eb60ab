//! GGUF, llama.cpp's file format: one file with a model's sizes, weights and tokenizer. Read into an
//! ordinary model folder ([`import`]) and written from one ([`export`]).
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod architecture;
pub mod blocks;
mod config;
mod described;
pub mod export;
pub mod file;
pub mod import;
pub mod metadata;
mod rope;
mod tokenizer;
mod weights;
mod writer;

pub use file::is_gguf;
