//! An operation of one's own: y = x^2, with the kernel `own_op.wgsl`, its derivative, and the case
//! that checks both against plain Rust.
//!
//! `cargo run --example own_op --no-default-features`

use oddgrad::graph::Sink;
use oddgrad::kernel::{Pass, Variant};
use oddgrad::ops::case::{Array, BenchFacts, OpCase};
use oddgrad::ops::trial::{check_forward, check_gradient};
use oddgrad::ops::values::Domain;
use oddgrad::{Gpu, Graph, Result, Var};
use std::rc::Rc;

static PASSES: &[&Pass] = &[&PRODUCT];

/// The kernels of the only pass; a faster one would be a second entry.
static PRODUCT: Pass = Pass {
    op: "square",
    name: "product",
    variants: &[Variant::new("square/product_1_naive", include_str!("own_op.wgsl"), [64, 1, 1])],
};

/// y = x^2, elementwise. Backward: dx = 2 x dy.
fn square(g: &mut Graph, x: Var) -> Var {
    let n = g.info(x).len();
    let shape = g.shape(x).to_vec();
    let product = move |g: &mut Graph, factor: f32, b: Var, out: Sink| {
        let constants = [("N", n.into()), ("FACTOR", factor.into()), out.constant()];
        g.call(&PRODUCT, &constants, &[x, b], &[out.var], [n, 1, 1]);
    };
    let y = g.temp("square", &shape);
    product(g, 1.0, x, Sink { var: y, accumulate: false });
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            product(g, 2.0, dy, dx);
        }
    };
    g.record("square", &[x], y, backward);
    y
}

/// Inputs of every kind at awkward sizes, and the truth in double precision. Shapes are `[N]`.
fn case() -> OpCase {
    OpCase {
        op: "square",
        passes: PASSES,
        shapes: &[&[1], &[63], &[64], &[65], &[1009]],
        large: &[],
        inputs: |s, rng| vec![Array::normal("x", s, rng)],
        build: |g, _, v| vec![square(g, v[0])],
        reference: |_, inputs| vec![inputs[0].f().iter().map(|x| x * x).collect()],
        tolerance: 1e-6,
        domain: Domain::ALL,
        differentiable: true,
        bench: BenchFacts::ELEMENTWISE,
    }
}

fn main() -> Result<()> {
    let gpu = Rc::new(Gpu::open(&Default::default())?);
    check_forward(&gpu, &case())?;
    check_gradient(&gpu, &case())?;
    println!("square and its derivative are right on {}", gpu.describe());
    Ok(())
}
