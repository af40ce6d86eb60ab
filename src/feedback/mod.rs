//! Preferences that are made here: answers of a model to prompts, compared by people or by a judge,
//! and the rows of these comparisons, which training reads.
//!
//! ```text
//! data::prompts -> asked::Asked -> answers::Answers -> comparison::comparisons -> a person, or a judge
//!                                       -> comparison::Decision::row -> journal::Journal
//! ```

pub mod answers;
pub mod asked;
pub mod collect;
pub mod comparison;
pub mod journal;
pub mod judge;
pub mod run;
