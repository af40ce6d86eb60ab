//! `softmax`: each row becomes positive and sums to 1.
//!
//! ```text
//! m[r]   = max over k of x[r,k]
//! y[r,j] = exp(x[r,j] - m[r]) / sum over k of exp(x[r,k] - m[r])
//! ```
//!
//! Backward, from the saved y:
//!
//! ```text
//! dx[r,j] = y[r,j] * (dy[r,j] - sum over k of dy[r,k] y[r,k])
//! ```
//!
//! No family of models here uses it: attention and the loss have a softmax inside. It is for graphs of
//! your own, and the operation to read first.
//!
//! Source: Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs,
//! 1990; Goodfellow, Bengio and Courville, Deep Learning, sections 4.1 and 6.2.2.3.

use crate::graph::{Graph, Var};
use crate::kernel::{HARDWARE, Needs, Pass};
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::{Domain, Values};
use crate::variant;

/// Softmax over the last axis of `x` `[R, C]`. Values must be finite; a mask is a large negative
/// number such as -1e30.
///
/// # Panics
/// When `x` has not two dimensions.
#[track_caller]
pub fn softmax(g: &mut Graph, x: Var) -> Var {
    let &[r, c] = g.shape(x) else { panic!("softmax: x is [R, C], not {:?}", g.shape(x)) };
    let y = g.temp("softmax", &[r, c]);
    let size = [("R", r.into()), ("C", c.into())];
    g.call(&FORWARD, &size, &[x], &[y], [r, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            let constants = [size[0], size[1], dx.constant()];
            g.call(&BACKWARD, &constants, &[y, dy], &[dx.var], [r, 1, 1]);
        }
    };
    g.record("softmax", &[x], y, backward);
    y
}

const SUBGROUPS: Needs = Needs { subgroups: true, ..Needs::NONE };

static FORWARD: Pass = Pass {
    op: "softmax",
    name: "forward",
    variants: &[
        variant!("softmax/forward_1_naive.wgsl", tile: [64, 1, 1]),
        variant!("softmax/forward_2_workgroup_row.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
        variant!("softmax/forward_3_online.wgsl", tile: [1, 1, 1], default_on: &[]),
        variant!(
            "softmax/forward_4_subgroup_row.wgsl",
            tile: [1, 1, 1],
            default_on: HARDWARE,
            needs: SUBGROUPS
        ),
    ],
};

static BACKWARD: Pass = Pass {
    op: "softmax",
    name: "backward",
    variants: &[
        variant!("softmax/backward_1_naive.wgsl", tile: [64, 1, 1]),
        variant!("softmax/backward_2_workgroup_row.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
        variant!(
            "softmax/backward_3_subgroup_row.wgsl",
            tile: [1, 1, 1],
            default_on: HARDWARE,
            needs: SUBGROUPS
        ),
    ],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let mut y = Vec::with_capacity(inputs[0].f().len());
    for row in inputs[0].f().chunks(s[1]) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
        y.extend(row.iter().map(|v| (v - largest).exp() / sum));
    }
    vec![y]
}

const DOMAIN: Domain = Domain {
    without_gradient: &[(
        Values::Spikes,
        "one element has all the weight, and the rest is nothing",
    )],
    ..Domain::ALL
};

/// Shapes are `[R, C]`.
pub fn case() -> OpCase {
    OpCase {
        op: "softmax",
        passes: PASSES,
        shapes: &[&[1, 1], &[7, 1], &[1, 1009], &[63, 63], &[64, 64], &[65, 65], &[5, 257]],
        large: &[&[65_537, 3]],
        inputs: |s, rng| vec![Array::normal("x", s, rng)],
        build: |g, _, v| vec![softmax(g, v[0])],
        reference,
        tolerance: 1e-6,
        domain: DOMAIN,
        differentiable: true,
        bench: BenchFacts {
            dims: &["ROWS", "COLUMNS"],
            layers: |l| vec![vec![l.tokens, l.tokens]],
            flops: |pass, s, _| (pass == "forward").then(|| 5.0 * (s[0] * s[1]) as f64),
            ..BenchFacts::ROWS
        },
    }
}

#[cfg(test)]
mod tests {
    use super::case;
    use crate::ops::case::tests::{forward, gradient};
    use crate::ops::case::{Array, OpCase};
    use crate::ops::values::Domain;

    #[test]
    fn softmax_forward() {
        forward(&case());
    }

    #[test]
    fn softmax_gradient() {
        gradient(&case());
    }

    /// More than 65,535 groups of 64 rows, with the adapter's default kernel only: one workgroup for
    /// each of four million rows takes a software adapter too long.
    #[test]
    fn softmax_folds_its_grid() {
        forward(&OpCase { passes: &[], shapes: &[], large: &[&[65_535 * 64 + 3, 2]], ..case() });
    }

    /// Rows far from zero, of huge spread, of equal values, and masked by -1e30: exact zeros and
    /// ones where they belong.
    #[test]
    fn softmax_of_extreme_rows() {
        let extreme = OpCase {
            shapes: &[&[6, 67], &[6, 1]],
            large: &[],
            inputs: |s, rng| {
                let noise = Array::normal("", s, rng);
                let value = |(i, &v): (usize, &f64)| {
                    let odd = i % 2 == 1;
                    match i / s[1] {
                        0 => 1e4 + v,
                        1 => -1e4 + v,
                        2 => {
                            if odd {
                                1e4
                            } else {
                                -1e4
                            }
                        }
                        3 => 3.0,
                        4 => {
                            if odd {
                                -1e30
                            } else {
                                v
                            }
                        }
                        _ => 1e3 * v,
                    }
                };
                vec![Array::float("x", s, noise.f().iter().enumerate().map(value).collect())]
            },
            domain: Domain::AS_DRAWN,
            ..case()
        };
        forward(&extreme);
    }
}
