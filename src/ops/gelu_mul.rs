//! `gelu_mul`: y = gelu(gate) * up with GELU in its tanh form, the middle of a GeGLU layer.
//!
//! ```text
//! u = sqrt(2 / pi) * (gate + 0.044715 gate^3)
//! y = gate * s * up, with s = (1 + tanh(u)) / 2 = sigmoid(2 u)
//! ```
//!
//! Backward:
//!
//! ```text
//! dgate = dy * up * (s + gate * s * (1 - s) * 2 sqrt(2 / pi) * (1 + 3 * 0.044715 gate^2))
//! dup   = dy * gate * s
//! ```
//!
//! Source: Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.

use crate::graph::{Graph, Sink, Var};
use crate::kernel::{Pass, SOFTWARE, Takes};
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::Domain;
use crate::variant;

/// gelu(`gate`) * `up`, elementwise, both of the same shape (`[T, F]` in a model).
///
/// # Panics
/// When the shapes differ or both are the same variable.
#[track_caller]
pub fn gelu_mul(g: &mut Graph, gate: Var, up: Var) -> Var {
    assert_eq!(g.shape(gate), g.shape(up), "gelu_mul: shapes of gate and up differ");
    assert_ne!(gate, up, "gelu_mul: gate and up are the same variable");
    let shape = g.shape(gate).to_vec();
    let n = g.info(gate).len();
    let y = g.temp("gelu_mul", &shape);
    g.call(&FORWARD, &[("N", n.into())], &[gate, up], &[y], [n, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        // Only one may want a gradient; the kernel writes both, so the other is thrown away.
        let discard = |g: &mut Graph| Sink { var: g.temp("discarded", &shape), accumulate: false };
        let d_gate = g.grad_into(gate).unwrap_or_else(|| discard(g));
        let d_up = g.grad_into(up).unwrap_or_else(|| discard(g));
        let constants = [
            ("N", n.into()),
            ("ACCUMULATE_GATE", d_gate.accumulate.into()),
            ("ACCUMULATE_UP", d_up.accumulate.into()),
        ];
        g.call(&BACKWARD, &constants, &[gate, up, dy], &[d_gate.var, d_up.var], [n, 1, 1]);
    };
    g.record("gelu_mul", &[gate, up], y, backward);
    y
}

const FORWARD_QUADS: Takes = Takes { quads: &[0, 1, 2], ..Takes::WORDS };
const BACKWARD_QUADS: Takes = Takes { quads: &[0, 1, 2, 3, 4], ..Takes::WORDS };

static FORWARD: Pass = Pass {
    op: "gelu_mul",
    name: "forward",
    variants: &[
        variant!("gelu_mul/forward_1_naive.wgsl", tile: [256, 1, 1]),
        variant!("gelu_mul/forward_2_vec4.wgsl", tile: [1024, 1, 1], default_on: SOFTWARE)
            .taking(FORWARD_QUADS),
    ],
};

static BACKWARD: Pass = Pass {
    op: "gelu_mul",
    name: "backward",
    variants: &[
        variant!("gelu_mul/backward_1_naive.wgsl", tile: [256, 1, 1]),
        variant!("gelu_mul/backward_2_vec4.wgsl", tile: [1024, 1, 1], default_on: SOFTWARE)
            .taking(BACKWARD_QUADS),
    ],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

/// GELU as its definition in the tanh form has it.
fn gelu(z: f64) -> f64 {
    0.5 * z * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3))).tanh())
}

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    vec![inputs[0].f().iter().zip(inputs[1].f()).map(|(&z, u)| gelu(z) * u).collect()]
}

/// Shapes are `[n]`.
pub fn case() -> OpCase {
    OpCase {
        op: "gelu_mul",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009], &[1028]],
        large: &[&[65_535 * 256 + 3]],
        inputs: |s, rng| vec![Array::normal("gate", s, rng), Array::normal("up", s, rng)],
        build: |g, _, v| vec![gelu_mul(g, v[0], v[1])],
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
    use super::gelu_mul;
    use crate::graph::{DType, Graph};
    use crate::ops::case::OpCase;
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::program::{Program, Store};

    #[test]
    fn gelu_mul_forward() {
        forward(&super::case());
    }

    #[test]
    fn gelu_mul_gradient() {
        gradient(&super::case());
    }

    /// Both sinks hold something already, or only one of them does: the flags are separate.
    #[test]
    fn gelu_mul_gradient_adds_to_each_sink_on_its_own() {
        let base = super::case();
        gradient(&OpCase {
            build: |g, _, v| {
                let y = gelu_mul(g, v[0], v[1]);
                let z = gelu_mul(g, v[1], y);
                vec![crate::ops::add::add(g, y, z)]
            },
            reference: |_, inputs| {
                let pair = |(&a, &b): (&f64, &f64)| {
                    let y = super::gelu(a) * b;
                    y + super::gelu(b) * y
                };
                vec![inputs[0].f().iter().zip(inputs[1].f()).map(pair).collect()]
            },
            shapes: &[&[1], &[257]],
            ..base
        });
    }

    /// Gates whose exponential overflows give 0 or the gate itself, and finite gradients; a
    /// frozen `up` is left alone.
    #[test]
    fn gelu_mul_of_huge_gates_is_finite() {
        let gpu = gpu();
        let gates = [-3e38f32, -1e4, -100.0, 0.0, 100.0, 1e4, 3e38];
        let mut g = Graph::new(gpu.target());
        let gate = g.input_with_grad("gate", &[7]);
        let up = g.input("up", &[7], DType::F32);
        let seed = g.input("seed", &[7], DType::F32);
        let y = gelu_mul(&mut g, gate, up);
        g.output(y);
        g.backward_from(&[(y, seed)]);
        let d_gate = g.grad(gate).expect("gate wants a gradient");
        assert!(g.grad(up).is_none());
        g.output(d_gate);
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        program.write(gate, &gates);
        program.write(up, &[1.0; 7]);
        program.write(seed, &[1.0; 7]);
        program.run();
        let y = program.read(y).unwrap();
        let d = program.read(d_gate).unwrap();
        for (i, &z) in gates.iter().enumerate() {
            let (want, slope) =
                if z == 0.0 { (0.0, 0.5) } else { (z.max(0.0), f32::from(z > 0.0)) };
            let near = |got: f32, want: f32| (got - want).abs() <= 1e-6 * want.abs().max(1.0);
            assert!(near(y[i], want), "gelu({z}) = {}", y[i]);
            assert!(near(d[i], slope), "slope at {z} is {}", d[i]);
        }
    }
}
