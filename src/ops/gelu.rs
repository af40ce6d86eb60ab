//! `gelu`: the tanh form of the Gaussian error linear unit, as in GPT-2 (`gelu_new`).
//!
//! ```text
//! u = sqrt(2 / pi) * (x + 0.044715 x^3)
//! y = x / 2 * (1 + tanh(u)) = x * sigmoid(2 u)
//! ```
//!
//! Backward, with s = sigmoid(2 u):
//!
//! ```text
//! dx = dy * (s + 2 x s (1 - s) sqrt(2 / pi) (1 + 3 * 0.044715 x^2))
//! ```
//!
//! Source: Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::Domain;
use crate::variant;

/// gelu(`x`), elementwise, in the tanh form.
#[track_caller]
pub fn gelu(g: &mut Graph, x: Var) -> Var {
    let shape = g.shape(x).to_vec();
    let n = g.info(x).len();
    let y = g.temp("gelu", &shape);
    g.call(&FORWARD, &[("N", n.into())], &[x], &[y], [n, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            let constants = [("N", n.into()), dx.constant()];
            g.call(&BACKWARD, &constants, &[x, dy], &[dx.var], [n, 1, 1]);
        }
    };
    g.record("gelu", &[x], y, backward);
    y
}

static FORWARD: Pass = Pass {
    op: "gelu",
    name: "forward",
    variants: &[variant!("gelu/forward_1_naive.wgsl", tile: [256, 1, 1])],
};

static BACKWARD: Pass = Pass {
    op: "gelu",
    name: "backward",
    variants: &[variant!("gelu/backward_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let factor = (2.0 / std::f64::consts::PI).sqrt();
    let gelu = |x: f64| 0.5 * x * (1.0 + (factor * (x + 0.044715 * x.powi(3))).tanh());
    vec![inputs[0].f().iter().map(|&x| gelu(x)).collect()]
}

/// Shapes are `[n]`.
pub fn case() -> OpCase {
    OpCase {
        op: "gelu",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009]],
        large: &[&[65_535 * 256 + 3]],
        inputs: |s, rng| {
            // Three standard deviations wide, so that both flat ends are met.
            let x = Array::normal("x", s, rng);
            vec![Array::float("x", s, x.f().iter().map(|v| 3.0 * v).collect())]
        },
        build: |g, _, v| vec![gelu(g, v[0])],
        reference,
        tolerance: 1e-6,
        domain: Domain::ALL,
        differentiable: true,
        bench: BenchFacts {
            layers: |l| vec![vec![l.tokens * l.inner]],
            flops: |pass, s, _| (pass == "forward").then(|| 9.0 * s[0] as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{case, gelu};
    use crate::graph::{DType, Graph};
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::program::{Program, Store};

    #[test]
    fn gelu_forward() {
        forward(&case());
    }

    #[test]
    fn gelu_gradient() {
        gradient(&case());
    }

    /// Values whose cube or exponential overflows: 0 or x itself, slope 0 or 1.
    #[test]
    fn gelu_of_huge_values_is_relu() {
        let gpu = gpu();
        let values = [-1e30f32, -1e13, -1e4, -21.0, -20.0, 20.0, 21.0, 1e4, 1e13, 3e38];
        let n = values.len();
        let mut g = Graph::new(gpu.target());
        let x = g.input_with_grad("x", &[n]);
        let seed = g.input("seed", &[n], DType::F32);
        let y = gelu(&mut g, x);
        g.output(y);
        g.backward_from(&[(y, seed)]);
        let dx = g.grad(x).expect("x wants a gradient");
        g.output(dx);
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        program.write(x, &values);
        program.write(seed, &vec![1.0; n]);
        program.run();
        let (y, dx) = (program.read(y).unwrap(), program.read(dx).unwrap());
        for (i, &x) in values.iter().enumerate() {
            let near = |got: f32, want: f32| (got - want).abs() <= 1e-6 * want.abs().max(1.0);
            assert!(near(y[i], x.max(0.0)), "gelu({x}) = {}", y[i]);
            assert!(near(dx[i], f32::from(x > 0.0)), "slope at {x} is {}", dx[i]);
        }
    }
}
