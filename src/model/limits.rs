//! What a number of tokens comes to, compared with what an adapter binds before a graph is built
//! from it: a graph's own arithmetic is for sizes that exist.

use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::graph::{DType, HELD, Parameter};
use crate::kernel::Target;

/// Numbers that describe a token besides its activations: the spans it attends to.
const SPANS: usize = 8;

/// The widest activations of a token.
pub fn widest(config: &ModelConfig) -> usize {
    // Every matrix [outputs, inputs] is applied to activations of its inputs' width.
    let matrices = config.parameters().iter().filter(|p| p.shape.len() == 2);
    matrices.map(|p| p.shape[1]).max().unwrap_or(config.hidden_size)
}

/// Refuses a parameter that no buffer of `target` holds, stored as `dtype` says. What of it cannot be
/// bound in one piece, the graph finds out ([`Graph::check_limits`](crate::graph::Graph::check_limits)):
/// tables and heads are bound in blocks of rows.
///
/// # Errors
/// [`Error::Limit`] that names the largest one.
pub fn check_parameters(
    target: &Target,
    config: &ModelConfig,
    dtype: impl Fn(&Parameter) -> DType,
) -> Result<()> {
    let bytes = |p: &Parameter| dtype(p).bytes(p.len());
    let largest = config.parameters().iter().max_by_key(|p| bytes(p));
    largest.map_or(Ok(()), |p| {
        let what = || format!("the model's `{}` {:?}", p.name, p.shape);
        check(
            bytes(p),
            target.buffer_bytes,
            what,
            "in one buffer, and one of this adapter holds",
            HELD,
        )
    })
}

/// Refuses `tokens` tokens of `width` values each that `target` cannot bind in one piece. `what`
/// says in messages what has so many tokens.
///
/// # Errors
/// [`Error::Limit`] with the bytes and the limit.
pub fn check_tokens(target: &Target, tokens: usize, width: usize, what: &str) -> Result<()> {
    let bytes = (tokens as u64).saturating_mul(4 * width.max(SPANS) as u64);
    let what = || format!("{what} of {tokens} tokens, each {width} wide,");
    check(bytes, target.binding_bytes, what, "in one piece, and this adapter binds", "")
}

fn check(bytes: u64, most: u64, what: impl Fn() -> String, how: &str, advice: &str) -> Result<()> {
    if bytes <= most {
        return Ok(());
    }
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    Err(Error::Limit(format!(
        "{} takes {:.1} MiB {how} at most {:.1} MiB.{advice}",
        what(),
        mib(bytes),
        mib(most)
    )))
}
