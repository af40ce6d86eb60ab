//! The decoder: configuration, weights, graph, sampling.

pub mod adapter;
pub mod blocks;
pub mod config;
pub mod families;
pub mod folder;
pub mod generate;
pub mod gguf;
mod init;
pub mod keys;
pub mod layout;
pub mod limits;
pub mod lora;
pub mod merge;
pub mod rotary;
pub mod sampling;
pub mod save;
pub mod source;
pub mod speech;
pub mod stream;
pub mod weight_files;
pub mod weights;
