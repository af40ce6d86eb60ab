//! `layer_norm`: each row shifted to mean 0, scaled to variance 1, then by weight and bias.
//!
//! ```text
//! r[t]      = (mean over k of (x[t,k] - mean[t])^2 + eps)^(-1/2)
//! xhat[t,j] = r[t] * (x[t,j] - mean[t])
//! y[t,j]    = xhat[t,j] * w[j] + b[j]
//! ```
//!
//! Backward, with h = dy * w:
//!
//! ```text
//! dx[t,j] = r[t] * (h[t,j] - mean over k of h[t,k] - xhat[t,j] * mean over k of h[t,k] xhat[t,k])
//! dw[j]   = sum over t of dy[t,j] xhat[t,j]
//! db[j]   = sum over t of dy[t,j]
//! ```
//!
//! Source: Ba, Kiros and Hinton, Layer Normalization, arXiv:1607.06450.

use crate::graph::{Graph, Sink, Var};
use crate::kernel::{HARDWARE, Pass};
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::rms_norm::{ROWS, add_blocks, block_sink};
use crate::ops::values::{Domain, Values};
use crate::variant;

/// Normalises each row of `x` `[T, D]` to mean 0 and variance 1, then multiplies by `weight` `[D]`
/// and adds `bias` `[D]`.
///
/// # Panics
/// When the shapes do not fit or `eps` is not finite.
#[track_caller]
pub fn layer_norm(g: &mut Graph, x: Var, weight: Var, bias: Var, eps: f32) -> Var {
    let &[t, d] = g.shape(x) else { panic!("layer_norm: x is [T, D], not {:?}", g.shape(x)) };
    assert_eq!(g.shape(weight), [d], "layer_norm: weight does not fit x {:?}", g.shape(x));
    assert_eq!(g.shape(bias), [d], "layer_norm: bias does not fit x {:?}", g.shape(x));
    assert_ne!(weight, bias, "layer_norm: weight and bias are the same variable");
    let y = g.temp("layer_norm", &[t, d]);
    let mean = g.temp("mean", &[t]);
    let inverse_deviation = g.temp("inverse_deviation", &[t]);
    let size = [("T", t.into()), ("D", d.into())];
    let constants = [size[0], size[1], ("EPS", eps.into())];
    g.call(&FORWARD, &constants, &[x, weight, bias], &[y, mean, inverse_deviation], [t, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            let constants = [size[0], size[1], dx.constant()];
            let reads = [x, weight, mean, inverse_deviation, dy];
            g.call(&INPUT, &constants, &reads, &[dx.var], [t, 1, 1]);
        }
        let (dw, db) = (g.grad_into(weight), g.grad_into(bias));
        if dw.is_none() && db.is_none() {
            return;
        }
        // The kernel writes both; one that is not wanted is thrown away.
        let part = |g: &mut Graph, total: Option<Sink>| match total {
            Some(total) => block_sink(g, total, t, d),
            None => Sink { var: g.temp("discarded", &[t.div_ceil(ROWS), d]), accumulate: false },
        };
        let (part_w, part_b) = (part(g, dw), part(g, db));
        let constants = [
            size[0],
            size[1],
            ("ROWS", ROWS.into()),
            ("ACCUMULATE_WEIGHT", part_w.accumulate.into()),
            ("ACCUMULATE_BIAS", part_b.accumulate.into()),
        ];
        let reads = [x, mean, inverse_deviation, dy];
        g.call(
            &PARAMETERS,
            &constants,
            &reads,
            &[part_w.var, part_b.var],
            [t.div_ceil(ROWS) * d, 1, 1],
        );
        for (part, total) in [(part_w, dw), (part_b, db)] {
            if let Some(total) = total {
                add_blocks(g, part, total, t, d);
            }
        }
    };
    g.record("layer_norm", &[x, weight, bias], y, backward);
    y
}

static FORWARD: Pass = Pass {
    op: "layer_norm",
    name: "forward",
    variants: &[
        variant!("layer_norm/forward_1_naive.wgsl", tile: [64, 1, 1]),
        variant!("layer_norm/forward_2_workgroup_row.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
    ],
};

static INPUT: Pass = Pass {
    op: "layer_norm",
    name: "input",
    variants: &[
        variant!("layer_norm/input_1_naive.wgsl", tile: [64, 1, 1]),
        variant!("layer_norm/input_2_workgroup_row.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
    ],
};

static PARAMETERS: Pass = Pass {
    op: "layer_norm",
    name: "parameters",
    variants: &[variant!("layer_norm/parameters_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &INPUT, &PARAMETERS];

/// An epsilon that changes the result of rows of ordinary size, so that leaving it out is seen.
const EPS: f32 = 0.05;

fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let (x, w, b) = (inputs[0].f(), inputs[1].f(), inputs[2].f());
    let d = s[1] as f64;
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(s[1]) {
        let mean = row.iter().sum::<f64>() / d;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / d;
        let deviation = (variance + f64::from(EPS)).sqrt();
        y.extend(row.iter().zip(w.iter().zip(b)).map(|(v, (w, b))| (v - mean) / deviation * w + b));
    }
    vec![y]
}

const DOMAIN: Domain = Domain {
    looser: &[(Values::Equal, 100.0, "what a mean of equal values is off by is all that is left")],
    without_gradient: &[(Values::Equal, "the gradients of x and weight cancel to zero")],
    ..Domain::ALL
};

/// Shapes are `[T, D]`.
pub fn case() -> OpCase {
    OpCase {
        op: "layer_norm",
        passes: PASSES,
        shapes: &[&[1, 1], &[1, 257], &[3, 1009], &[63, 64], &[64, 63], &[65, 65], &[131, 7]],
        large: &[&[65_537, 3]],
        inputs: |s, rng| {
            // Rows around 2, so that a mean left out anywhere is seen.
            let x = Array::normal("x", s, rng);
            vec![
                Array::float("x", s, x.f().iter().map(|v| v + 2.0).collect()),
                Array::normal("weight", &s[1..], rng),
                Array::normal("bias", &s[1..], rng),
            ]
        },
        build: |g, _, v| vec![layer_norm(g, v[0], v[1], v[2], EPS)],
        reference,
        tolerance: 1e-6,
        domain: DOMAIN,
        differentiable: true,
        bench: BenchFacts {
            flops: |pass, s, _| (pass == "forward").then(|| 7.0 * (s[0] * s[1]) as f64),
            ..BenchFacts::ROWS
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{case, layer_norm};
    use crate::graph::{DType, Graph};
    use crate::ops::case::OpCase;
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::program::{Program, Store};

    #[test]
    fn layer_norm_forward() {
        forward(&case());
    }

    #[test]
    fn layer_norm_gradient() {
        gradient(&case());
    }

    /// More than 65,535 groups of 64 rows, with the adapter's default kernel only: one workgroup for
    /// each of four million rows takes a software adapter too long.
    #[test]
    fn layer_norm_folds_its_grid() {
        forward(&OpCase { passes: &[], shapes: &[], large: &[&[65_535 * 64 + 3, 2]], ..case() });
    }

    /// Parameter gradients add up over calls, one block or several, and a frozen one is left alone.
    #[test]
    fn layer_norm_adds_to_parameter_gradients() {
        let gpu = gpu();
        for t in [5, 130] {
            let store = Store::new(&gpu);
            let mut g = Graph::new(gpu.target());
            let x = g.input("x", &[t, 2], DType::F32);
            let weight = g.input("weight", &[2], DType::F32);
            let bias = g.parameter("bias", &[2], crate::graph::Init::Zeros);
            let seed = g.input("seed", &[t, 2], DType::F32);
            let y = layer_norm(&mut g, x, weight, bias, 1e-5);
            g.backward_from(&[(y, seed)]);
            assert!(g.grad(weight).is_none() && g.grad(x).is_none());
            let program = Program::new(&gpu, g, &store).unwrap();
            program.write(seed, &vec![0.5; 2 * t]);
            program.write(x, &vec![1.0; 2 * t]);
            program.write(weight, &[1.0; 2]);
            program.run();
            program.run();
            let grad = store.read("bias.grad").unwrap().expect("the step makes it");
            assert_eq!(grad, [t as f32; 2]);
        }
    }
}
