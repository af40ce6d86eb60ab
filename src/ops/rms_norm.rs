//! `rms_norm`: each row divided by its root mean square and scaled by a weight per column.
//!
//! ```text
//! r[t]      = (mean over k of x[t,k]^2 + eps)^(-1/2)
//! xhat[t,j] = r[t] * x[t,j]
//! y[t,j]    = xhat[t,j] * (w[j] + c)
//! ```
//!
//! with c = 0, or 1 in Gemma's models. Backward, with h = dy * (w + c):
//!
//! ```text
//! dx[t,j] = r[t] * (h[t,j] - xhat[t,j] * mean over k of h[t,k] xhat[t,k])
//! dw[j]   = sum over t of dy[t,j] xhat[t,j]
//! ```
//!
//! Source: Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467.

use crate::graph::{Graph, Sink, Var};
use crate::kernel::{HARDWARE, Needs, Pass, SOFTWARE, Takes};
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::{Domain, Values};
use crate::variant;

/// Rows that one invocation of the weight's gradient adds up; the blocks are added after that.
pub(crate) const ROWS: usize = 64;

/// Normalises each row of `x` `[T, D]` by its root mean square and multiplies by `weight` `[D]`.
///
/// # Panics
/// When the shapes do not fit or `eps` is not finite.
#[track_caller]
pub fn rms_norm(g: &mut Graph, x: Var, weight: Var, eps: f32) -> Var {
    rms_norm_plus(g, x, weight, 0.0, eps)
}

/// As [`rms_norm`], with `offset` added to each element of the weight.
///
/// # Panics
/// When the shapes do not fit, or `offset` or `eps` is not finite.
#[track_caller]
pub fn rms_norm_plus(g: &mut Graph, x: Var, weight: Var, offset: f32, eps: f32) -> Var {
    let &[t, d] = g.shape(x) else { panic!("rms_norm: x is [T, D], not {:?}", g.shape(x)) };
    assert_eq!(g.shape(weight), [d], "rms_norm: weight does not fit x {:?}", g.shape(x));
    let y = g.temp("rms_norm", &[t, d]);
    let inverse_rms = g.temp("inverse_rms", &[t]);
    let size = [("T", t.into()), ("D", d.into())];
    let offset = ("OFFSET", offset.into());
    let constants = [size[0], size[1], ("EPS", eps.into()), offset];
    g.call(&FORWARD, &constants, &[x, weight], &[y, inverse_rms], [t, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            let constants = [size[0], size[1], offset, dx.constant()];
            g.call(&INPUT, &constants, &[x, weight, inverse_rms, dy], &[dx.var], [t, 1, 1]);
        }
        if let Some(dw) = g.grad_into(weight) {
            let part = block_sink(g, dw, t, d);
            let accumulate = part.constant();
            let constants = [size[0], size[1], ("ROWS", ROWS.into()), accumulate];
            g.call(
                &WEIGHT,
                &constants,
                &[x, inverse_rms, dy],
                &[part.var],
                [t.div_ceil(ROWS) * d, 1, 1],
            );
            add_blocks(g, part, dw, t, d);
        }
    };
    g.record("rms_norm", &[x, weight], y, backward);
    y
}

/// Where the sums over blocks of [`ROWS`] of `t` rows of width `d` go: straight to `total` if one
/// block holds every row.
pub(crate) fn block_sink(g: &mut Graph, total: Sink, t: usize, d: usize) -> Sink {
    if t <= ROWS {
        return total;
    }
    Sink { var: g.temp("block_sum", &[t.div_ceil(ROWS), d]), accumulate: false }
}

/// Adds the sums over blocks to `total`, if [`block_sink`] did not put them there.
pub(crate) fn add_blocks(g: &mut Graph, part: Sink, total: Sink, t: usize, d: usize) {
    if part.var != total.var {
        let size = [("BLOCKS", t.div_ceil(ROWS).into()), ("D", d.into())];
        let constants = [size[0], size[1], total.constant()];
        g.call(&BLOCKS, &constants, &[part.var], &[total.var], [d, 1, 1]);
    }
}

const SUBGROUPS: Needs = Needs { subgroups: true, ..Needs::NONE };

static FORWARD: Pass = Pass {
    op: "rms_norm",
    name: "forward",
    variants: &[
        variant!("rms_norm/forward_1_naive.wgsl", tile: [64, 1, 1]),
        variant!("rms_norm/forward_2_workgroup_row.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
        variant!(
            "rms_norm/forward_3_subgroup_row.wgsl",
            tile: [1, 1, 1],
            default_on: HARDWARE,
            needs: SUBGROUPS
        ),
        variant!("rms_norm/forward_4_vec4.wgsl", tile: [64, 1, 1], default_on: SOFTWARE)
            .taking(Takes { quads: &[0, 1, 2], ..Takes::WORDS }),
    ],
};

static INPUT: Pass = Pass {
    op: "rms_norm",
    name: "input",
    variants: &[
        variant!("rms_norm/input_1_naive.wgsl", tile: [64, 1, 1]),
        variant!("rms_norm/input_2_workgroup_row.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
        variant!(
            "rms_norm/input_3_subgroup_row.wgsl",
            tile: [1, 1, 1],
            default_on: HARDWARE,
            needs: SUBGROUPS
        ),
        variant!("rms_norm/input_4_vec4.wgsl", tile: [64, 1, 1], default_on: SOFTWARE)
            .taking(Takes { quads: &[0, 1, 3, 4], ..Takes::WORDS }),
    ],
};

static WEIGHT: Pass = Pass {
    op: "rms_norm",
    name: "weight",
    variants: &[
        variant!("rms_norm/weight_1_naive.wgsl", tile: [256, 1, 1]),
        variant!("rms_norm/weight_2_vec4.wgsl", tile: [256, 1, 1], default_on: SOFTWARE)
            .taking(Takes { quads: &[0, 2, 3], ..Takes::WORDS }),
    ],
};

static BLOCKS: Pass = Pass {
    op: "rms_norm",
    name: "blocks",
    variants: &[variant!("rms_norm/blocks_1_naive.wgsl", tile: [64, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &INPUT, &WEIGHT, &BLOCKS];

/// An epsilon that changes the result of rows of ordinary size, so that leaving it out is seen.
const EPS: f32 = 0.05;

/// What shapes with a third number add to the weight.
const OFFSET: f32 = 1.0;

fn offset(s: &[usize]) -> f32 {
    if s.len() > 2 { OFFSET } else { 0.0 }
}

fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let offset = f64::from(offset(s));
    let (x, w) = (inputs[0].f(), inputs[1].f());
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(s[1]) {
        let square = row.iter().map(|v| v * v).sum::<f64>() / s[1] as f64;
        let rms = (square + f64::from(EPS)).sqrt();
        y.extend(row.iter().zip(w).map(|(v, w)| v / rms * (w + offset)));
    }
    vec![y]
}

const DOMAIN: Domain = Domain {
    looser: &[(Values::Equal, 10.0, "sums of equal squares are rounded to one side")],
    ..Domain::ALL
};

/// Shapes are `[T, D]`. With a third number the weight has an offset.
pub fn case() -> OpCase {
    OpCase {
        op: "rms_norm",
        passes: PASSES,
        shapes: &[
            &[1, 1],
            &[1, 257],
            &[3, 1009],
            &[63, 64],
            &[64, 63],
            &[65, 65],
            &[131, 7],
            &[66, 68],
            &[65, 17, 1],
        ],
        large: &[&[65_537, 3]],
        inputs: |s, rng| {
            vec![Array::normal("x", &s[..2], rng), Array::normal("weight", &s[1..2], rng)]
        },
        build: |g, s, v| vec![rms_norm_plus(g, v[0], v[1], offset(s), EPS)],
        reference,
        tolerance: 1e-6,
        domain: DOMAIN,
        differentiable: true,
        bench: BenchFacts {
            flops: |pass, s, _| (pass == "forward").then(|| 4.0 * (s[0] * s[1]) as f64),
            ..BenchFacts::ROWS
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::case::OpCase;
    use crate::ops::case::tests::{forward, gradient};

    #[test]
    fn rms_norm_forward() {
        forward(&super::case());
    }

    #[test]
    fn rms_norm_gradient() {
        gradient(&super::case());
    }

    /// More than 65,535 groups of 64 rows, with the adapter's default kernel only: one workgroup for
    /// each of four million rows takes a software adapter too long.
    #[test]
    fn rms_norm_folds_its_grid() {
        let base = super::case();
        forward(&OpCase { passes: &[], shapes: &[], large: &[&[65_535 * 64 + 3, 1]], ..base });
    }
}
