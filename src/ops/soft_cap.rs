//! `soft_cap`: y = cap * tanh(x / cap), elementwise, which lies between -cap and cap.
//!
//! Backward: dx = dy * (1 - tanh(x / cap)^2).
//!
//! Source: Gemma team, Gemma 2, arXiv:2408.00118, section 2.

use crate::graph::{Graph, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::{Domain, Values};
use crate::variant;

/// `cap` * tanh(`x` / `cap`), elementwise.
///
/// # Panics
/// When `cap` is not above 0 and finite.
#[track_caller]
pub fn soft_cap(g: &mut Graph, x: Var, cap: f32) -> Var {
    let y = soft_capped(g, x, cap);
    let n = g.info(x).len();
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            let constants = [("N", n.into()), ("CAP", cap.into()), dx.constant()];
            g.call(&BACKWARD, &constants, &[x, dy], &[dx.var], [n, 1, 1]);
        }
    };
    g.record("soft_cap", &[x], y, backward);
    y
}

/// As [`soft_cap`], and nothing on the tape.
#[track_caller]
pub(super) fn soft_capped(g: &mut Graph, x: Var, cap: f32) -> Var {
    assert!(cap > 0.0 && cap.is_finite(), "soft_cap: cap {cap} must be above 0 and finite");
    let shape = g.shape(x).to_vec();
    let n = g.info(x).len();
    let y = g.temp("soft_cap", &shape);
    g.call(&FORWARD, &[("N", n.into()), ("CAP", cap.into())], &[x], &[y], [n, 1, 1]);
    y
}

static FORWARD: Pass = Pass {
    op: "soft_cap",
    name: "forward",
    variants: &[variant!("soft_cap/forward_1_naive.wgsl", tile: [256, 1, 1])],
};

static BACKWARD: Pass = Pass {
    op: "soft_cap",
    name: "backward",
    variants: &[variant!("soft_cap/backward_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

/// The cap of the case: normal values reach its flat ends and stay in its middle.
const CAP: f32 = 1.5;

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let cap = f64::from(CAP);
    vec![inputs[0].f().iter().map(|x| cap * (x / cap).tanh()).collect()]
}

const DOMAIN: Domain = Domain {
    without_gradient: &[(Values::Large, "the slope is below what differences can show")],
    ..Domain::ALL
};

/// Shapes are `[n]`.
pub fn case() -> OpCase {
    OpCase {
        op: "soft_cap",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009]],
        large: &[&[65_535 * 256 + 3]],
        inputs: |s, rng| vec![Array::normal("x", s, rng)],
        build: |g, _, v| vec![soft_cap(g, v[0], CAP)],
        reference,
        tolerance: 1e-6,
        domain: DOMAIN,
        differentiable: true,
        bench: BenchFacts {
            flops: |pass, s, _| (pass == "forward").then(|| 12.0 * s[0] as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{case, soft_cap};
    use crate::graph::{DType, Graph};
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::program::{Program, Store};

    #[test]
    fn soft_cap_forward() {
        forward(&case());
    }

    #[test]
    fn soft_cap_gradient() {
        gradient(&case());
    }

    /// Values whose exponential overflows give the cap and no slope.
    #[test]
    fn soft_cap_of_huge_values_is_the_cap() {
        let gpu = gpu();
        let values = [-3e38f32, -1e6, -1e3, 1e3, 1e6, 3e38];
        let mut g = Graph::new(gpu.target());
        let x = g.input_with_grad("x", &[6]);
        let seed = g.input("seed", &[6], DType::F32);
        let y = soft_cap(&mut g, x, 30.0);
        g.output(y);
        g.backward_from(&[(y, seed)]);
        let dx = g.grad(x).expect("x wants a gradient");
        g.output(dx);
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        program.write(x, &values);
        program.write(seed, &[1.0; 6]);
        program.run();
        let (y, dx) = (program.read(y).unwrap(), program.read(dx).unwrap());
        for (i, x) in values.iter().enumerate() {
            assert_eq!(y[i], 30.0 * x.signum(), "soft_cap({x})");
            assert!(dx[i].abs() < 1e-20, "slope at {x} is {}", dx[i]);
        }
    }
}
