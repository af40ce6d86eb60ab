//! The operations: one file each, with formula, forward, derivative, kernels, reference and case.
//! `README.md` in this folder says how an operation is laid out.

pub mod adamw;
pub mod add;
pub mod attention;
pub mod bradley_terry;
pub mod case;
pub mod embedding;
#[cfg(test)]
mod fan_out;
pub mod gather_index;
pub mod gather_rows;
pub mod gelu;
pub mod gelu_mul;
pub mod grad_norm;
pub mod layer_norm;
pub mod low_rank;
pub mod matmul;
pub mod mse;
pub mod nll;
pub mod odds_ratio;
pub mod relu;
pub mod rms_norm;
pub mod rope;
pub mod scale;
pub mod segment_mean;
pub mod self_test;
pub mod silu_mul;
pub mod soft_cap;
pub mod softmax;
pub mod store_rows;
pub mod token_logp;
pub mod trial;
pub mod values;

use crate::kernel::{Pass, Target, VariantId};
use case::OpCase;
use std::collections::{BTreeMap, BTreeSet};

/// Every operation's case, in alphabetical order. A test fails on a shader folder without one.
pub fn cases() -> Vec<OpCase> {
    vec![
        adamw::case(),
        add::case(),
        attention::case(),
        bradley_terry::case(),
        embedding::case(),
        gather_rows::case(),
        gelu::case(),
        gelu_mul::case(),
        grad_norm::case(),
        layer_norm::case(),
        matmul::case(),
        mse::case(),
        nll::case(),
        odds_ratio::case(),
        relu::case(),
        rms_norm::case(),
        rope::case(),
        scale::case(),
        segment_mean::case(),
        silu_mul::case(),
        soft_cap::case(),
        softmax::case(),
        store_rows::case(),
        token_logp::case(),
    ]
}

/// Every pass of every operation.
pub fn passes() -> Vec<&'static Pass> {
    cases().iter().flat_map(|c| c.passes.iter().copied()).collect()
}

/// Checks the pinned kernels against what exists and, once an adapter is chosen, against what it can
/// run.
///
/// # Errors
/// Names every unknown operation, pass, number or tile, with what there is.
pub fn check_pins(
    pinned: &BTreeMap<String, VariantId>,
    target: Option<&Target>,
) -> crate::error::Result<()> {
    let passes = passes();
    let mut problems = Vec::new();
    for (name, id) in pinned {
        let (op, pass) = name.split_once('.').map_or((name.as_str(), None), |(o, p)| (o, Some(p)));
        let there: Vec<_> =
            passes.iter().filter(|p| p.op == op && pass.is_none_or(|n| n == p.name)).collect();
        let mut problem = |what: String| {
            problems.push(crate::error::Problem::new(format!("--kernel {name}={id}"), what));
        };
        let numbered = || there.iter().flat_map(|p| p.variants).filter(|v| v.number() == id.number);
        let chosen: Vec<_> = there.iter().filter_map(|p| p.find(id)).collect();
        if there.is_empty() {
            problem(
                "there is no such operation or pass; `oddgrad doctor --kernels` lists them".into(),
            );
        } else if numbered().next().is_none() {
            let mut list = Vec::new();
            for path in there.iter().flat_map(|p| p.variants).map(|v| v.path) {
                // Tiles and passes share files.
                if !list.contains(&path) {
                    list.push(path);
                }
            }
            problem(format!("no variant has that number; there are: {}", list.join(", ")));
        } else if chosen.is_empty() {
            let tiles: BTreeSet<_> = numbered().map(|v| v.tile_name).collect();
            let tiles: Vec<_> = tiles.into_iter().filter(|t| !t.is_empty()).collect();
            let number = id.number;
            problem(match tiles.as_slice() {
                [] => format!("variant {number} has one tile without a name; leave out the /"),
                _ => format!("variant {number} has no such tile; there are: {}", tiles.join(", ")),
            });
        } else if let Some(target) = target {
            for v in chosen.iter().filter(|v| !v.needs_met(target)) {
                problem(format!(
                    "this adapter cannot run {}, or not rightly; choose another number",
                    v.label()
                ));
            }
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(crate::error::Error::input("these kernels cannot be used", problems))
}
