//! From files of preference rows to the packed stream a micro-batch is.
//!
//! ```text
//! files -> rows::read_preferences -> PreferenceRow -> tokenize::Tokenizer::examples -> Example
//!                                                        (template::ChatTemplate)
//!       -> check::check_examples -> DataReport;   pack::pack -> PackedBatch (one micro-batch)
//! ```
//!
//! Everything here runs on the CPU and knows nothing of graphs or devices. Whatever is wrong with
//! what a user gives is reported with its file and line, all of it at once.

pub mod bpe;
pub mod check;
pub mod convert;

pub mod example;
mod exports;
mod files;
pub mod form;
mod growth;
pub mod length;
pub mod messages;
pub mod mismatch;
mod normalise;
pub mod pack;
mod parquet_file;
pub mod prompts;
pub mod rows;
mod special;
pub mod survey;
mod surveying;

pub mod template;
pub mod tokenize;
pub mod vocabulary;
