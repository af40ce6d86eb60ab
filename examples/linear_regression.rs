//! Linear regression: finds the three weights and the bias that made noisy data.
//!
//! `cargo run --example linear_regression --no-default-features`

use oddgrad::ops::{adamw, matmul::linear, mse::mse};
use oddgrad::{DType, Gpu, Graph, Init, Program, Result, Store};
use std::rc::Rc;

const ROWS: usize = 64;
const WEIGHT: [f32; 3] = [0.5, -2.0, 3.0];
const BIAS: f32 = 1.0;

fn main() -> Result<()> {
    let gpu = Rc::new(Gpu::open(&Default::default())?);
    println!("{}", gpu.describe());

    // The program: prediction, loss, derivative, update.
    let mut g = Graph::new(gpu.target());
    let x = g.input("x", &[ROWS, 3], DType::F32);
    let y = g.input("y", &[ROWS, 1], DType::F32);
    let weight = g.parameter("weight", &[1, 3], Init::Zeros);
    let bias = g.parameter("bias", &[1], Init::Zeros);
    let prediction = linear(&mut g, x, weight, Some(bias));
    let loss = mse(&mut g, prediction, y);
    g.output(loss);
    g.backward(loss);
    let hyper = adamw::minimise(&mut g, 0.0);
    print!("{}", g.listing());

    // The data.
    let mut rng = fastrand::Rng::with_seed(1);
    let rows: Vec<[f32; 3]> = (0..ROWS).map(|_| [0; 3].map(|_| 2.0 * rng.f32() - 1.0)).collect();
    let measured = |row: &[f32; 3]| {
        let exact: f32 = row.iter().zip(WEIGHT).map(|(x, w)| x * w).sum();
        exact + BIAS + 0.01 * (rng.f32() - 0.5)
    };
    let targets: Vec<f32> = rows.iter().map(measured).collect();

    let store = Store::new(&gpu);
    let program = Program::new(&gpu, g, &store)?;
    program.write(x, rows.as_flattened());
    program.write(y, &targets);
    for t in 1..=400 {
        program.write(hyper, &adamw::hyper(0.05, 0.9, 0.999, 1e-8, 0.0, t));
        program.run();
        if t % 100 == 0 {
            println!("step {t}: loss {:.6}", program.read(loss)?[0]);
        }
    }
    let found = [store.read("weight")?, store.read("bias")?].map(|v| v.expect("a parameter"));
    println!("weight {:.3?} bias {:.3?}", found[0], found[1]);
    for (found, made) in found.concat().iter().zip([WEIGHT.as_slice(), &[BIAS]].concat()) {
        assert!((found - made).abs() < 0.02, "{found} instead of {made}");
    }
    Ok(())
}
