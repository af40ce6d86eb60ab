//! From files of preference rows to the packed stream a micro-batch is.

pub mod example;
pub mod grammar;
