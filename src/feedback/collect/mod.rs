//! Preferences of people: a page on this machine that shows a prompt with two answers, and writes down
//! which is the better one.
//!
//! [`desk`] knows what is to be decided and by whom, `page` shows it, [`server`] lies between them and
//! the browser. A decision is on the disk before the next comparison is shown.

pub mod desk;
mod page;
pub mod server;
