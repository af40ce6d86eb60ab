//! `grad_norm`: the L2 norm over all gradients together, and the factor that clips it.
//!
//! norm = sqrt(sum of g^2 over all elements of all gradients) and factor = min(1, m / (norm + 1e-6))
//! for the largest norm m wanted, as PyTorch's `clip_grad_norm_`. Sums run in a fixed order: `partial` splits each
//! gradient into sums, `finish` adds those of all gradients. No derivative: the factor is applied
//! by `adamw`, after the backward pass.

use crate::graph::{Graph, Var};
use crate::kernel::{HARDWARE, Pass, SOFTWARE, Takes};
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::Domain;
use crate::variant;

/// `[2]` = (norm before clipping, factor) over all of `grads`.
///
/// `max_norm` `[1]` is written by the host; 0, a negative number or infinity turn clipping off
/// (factor 1). If the norm is not finite the factor is 0, and `adamw` leaves the weights alone.
///
/// # Panics
/// When there are no gradients or `max_norm` is no scalar.
#[track_caller]
pub fn grad_norm(g: &mut Graph, grads: &[Var], max_norm: Var) -> Var {
    assert!(!grads.is_empty(), "grad_norm: no gradients");
    assert_eq!(g.shape(max_norm), [1], "grad_norm: max_norm");
    let counts: Vec<usize> = grads.iter().map(|&v| partial_sums(g.info(v).len())).collect();
    let total = counts.iter().sum();
    let partials = g.temp("partial squares", &[total]);
    let mut first = 0u32;
    for (&grad, &count) in grads.iter().zip(&counts) {
        // Data, not a constant: gradients of the same size share one kernel.
        let begin = g.constant_u32("first partial", &[1], &[first]);
        // Blocks of whole rounds: an element belongs to the same sum whether there are blocks or not.
        for block in g.element_blocks(grad, ROUND * count) {
            let add = block.start > 0;
            let constants =
                [("N", block.rows.into()), ("PARTIALS", count.into()), ("ADD", add.into())];
            g.call(&PARTIAL, &constants, &[block.var, begin], &[partials], [count, 1, 1]);
        }
        first += count as u32;
    }
    let clip = g.temp("norm and clip factor", &[2]);
    g.call(&FINISH, &[("N", total.into())], &[partials, max_norm], &[clip], [1, 1, 1]);
    clip
}

/// Neighbouring elements that a kernel takes at a time for one sum, at most.
const ROUND: usize = 256;

/// Sums a gradient of `n` elements is split into.
fn partial_sums(n: usize) -> usize {
    n.div_ceil(2048).clamp(8, 1024)
}

static PARTIAL: Pass = Pass {
    op: "grad_norm",
    name: "partial",
    variants: &[
        variant!("grad_norm/partial_1_naive.wgsl", tile: [8, 1, 1]),
        variant!("grad_norm/partial_2_workgroup_sum.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
        variant!("grad_norm/partial_3_vec4.wgsl", tile: [8, 1, 1], default_on: SOFTWARE)
            .taking(Takes { quads: &[0], ..Takes::WORDS }),
    ],
};

static FINISH: Pass = Pass {
    op: "grad_norm",
    name: "finish",
    variants: &[variant!("grad_norm/finish_1_one_workgroup.wgsl", tile: [1, 1, 1])],
};

static PASSES: &[&Pass] = &[&PARTIAL, &FINISH];

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let (max_norm, grads) = inputs.split_first().expect("max_norm first");
    let norm = grads.iter().flat_map(|a| a.f()).map(|v| v * v).sum::<f64>().sqrt();
    let most = max_norm.f()[0];
    let factor = if !norm.is_finite() {
        0.0
    } else if most > 0.0 {
        (most / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    };
    vec![vec![norm, factor]]
}

/// Shapes are the sizes of the gradients.
pub fn case() -> OpCase {
    OpCase {
        op: "grad_norm",
        passes: PASSES,
        shapes: &[
            &[1],
            &[7, 1, 9],
            &[255, 256, 257],
            &[2047, 2048, 2049, 16_384, 16_385],
            &[1_000_003, 31],
        ],
        large: &[&[2_200_007, 1]],
        inputs: |s, rng| {
            // Norm about 1 and factor about 1/2, so that neither hides the other's error.
            let scale = 1.0 / (s.iter().sum::<usize>() as f64).sqrt();
            let grads = s.iter().map(|&n| {
                let values =
                    Array::normal("grad", &[n], rng).f().iter().map(|v| scale * v).collect();
                Array::fixed("grad", &[n], values)
            });
            let grads: Vec<Array> = grads.collect();
            std::iter::once(Array::fixed("max_norm", &[1], vec![0.5])).chain(grads).collect()
        },
        build: |g, _, v| vec![grad_norm(g, &v[1..], v[0])],
        reference,
        tolerance: 1e-6,
        domain: Domain { inputs: &["grad"], not_a_number: &["grad"], ..Domain::ALL },
        differentiable: false,
        bench: BenchFacts {
            dims: &["N of each gradient", "…"],
            layers: |l| {
                let (d, f) = (l.hidden, l.inner);
                vec![vec![d * d, f * d, f * d, f * d, l.vocabulary * d]]
            },
            sets: &[],
            // Each gradient is a dispatch.
            largest: |dims| {
                let most = dims.iter().copied().max().filter(|_| dims.len() <= 64);
                most.filter(|_| !dims.contains(&0))
            },
            flops: |pass, s, _| {
                (pass == PARTIAL.name).then(|| 2.0 * s.iter().sum::<usize>() as f64)
            },
            // Each gradient, and of the partial sums those of this gradient only.
            bytes: |pass, s, _| {
                let both = s.iter().map(|&n| n + partial_sums(n)).sum::<usize>();
                (pass == PARTIAL.name).then_some(4.0 * both as f64)
            },
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;
    use crate::ops::case::tests::{forward, gpu};
    use crate::program::{Program, Store};

    #[test]
    fn grad_norm_forward() {
        forward(&case());
    }

    #[test]
    fn grad_norm_factor_follows_the_largest_norm_wanted() {
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        let grads = [g.input("a", &[2], DType::F32), g.input("b", &[300], DType::F32)];
        let max_norm = g.input("max_norm", &[1], DType::F32);
        let clip = grad_norm(&mut g, &grads, max_norm);
        g.output(clip);
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        let run = |a: f32, most: f32| {
            program.write(grads[0], &[a, 0.0]);
            let mut b = [0.0; 300];
            b[299] = 4.0;
            program.write(grads[1], &b);
            program.write(max_norm, &[most]);
            program.run();
            program.read(clip).unwrap()
        };
        assert_eq!(run(3.0, 10.0), [5.0, 1.0]);
        let got = run(3.0, 0.5);
        assert!((got[1] - 0.1).abs() < 1e-6, "{got:?}");
        for off in [0.0, -1.0, f32::INFINITY] {
            assert_eq!(run(3.0, off), [5.0, 1.0], "max_norm {off}");
        }
        for bad in [f32::NAN, f32::INFINITY, 1e30] {
            let got = run(bad, 1.0);
            assert!(!got[0].is_finite() && got[1] == 0.0, "{bad}: {got:?}");
        }
    }
}
