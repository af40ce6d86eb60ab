//! `adamw`: one step of AdamW for one parameter, in place, and the gradient zeroed for the next.
//!
//! With g = gradient times clip factor and step t = 1, 2, …:
//!
//! ```text
//! p = p - lr * decay * p                      (if this parameter decays)
//! m = beta1 * m + (1 - beta1) * g
//! v = beta2 * v + (1 - beta2) * g^2
//! p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```
//!
//! Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101, in
//! the form of PyTorch's `torch.optim.AdamW`. No derivative.

use crate::graph::{DType, Graph, Parameter, Var};
use crate::kernel::{Pass, SOFTWARE, Takes};
use crate::ops::case::{Array, BenchFacts, Data, OpCase};
use crate::ops::grad_norm::grad_norm;
use crate::ops::values::Domain;
use crate::variant;

/// Suffix of a parameter's first moment in the state.
pub const FIRST_MOMENT: &str = ".m";
/// Suffix of a parameter's second moment in the state.
pub const SECOND_MOMENT: &str = ".v";

/// Elements of the `hyper` input.
pub const HYPER: usize = 8;

/// What [`adamw`] needs to know of a step, computed in double precision.
///
/// `step` counts from 1. The order is the kernel's: step size with its bias correction, beta1,
/// 1 - beta1, beta2, 1 - beta2, bias correction of the root, epsilon, decay per step.
pub fn hyper(lr: f64, beta1: f64, beta2: f64, eps: f64, weight_decay: f64, step: u64) -> Vec<f32> {
    let t = step.max(1) as f64;
    let correction = |beta: f64| -(beta.ln() * t).exp_m1(); // 1 - beta^t without cancellation
    [
        lr / correction(beta1),
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 / correction(beta2).sqrt(),
        eps,
        lr * weight_decay,
    ]
    .map(|v| v as f32)
    .to_vec()
}

/// Updates `param`, `m`, `v` in place and zeroes `grad`, all of one shape.
///
/// `clip` `[2]` is (norm, factor) of [`grad_norm`]; `hyper` `[8]` is an
/// input written with [`hyper()`] before each step; `decay` says whether this parameter's weights
/// decay (norms and biases usually do not). If the norm is not finite, `param`, `m` and `v` stay
/// unchanged: non-finite gradients must not destroy the weights.
///
/// # Panics
/// When the shapes do not fit.
#[allow(clippy::too_many_arguments)] // the four variables of a parameter have no other home
#[track_caller]
pub fn adamw(
    g: &mut Graph,
    param: Var,
    grad: Var,
    m: Var,
    v: Var,
    clip: Var,
    hyper: Var,
    decay: bool,
) {
    for (name, var) in [("grad", grad), ("m", m), ("v", v)] {
        assert_eq!(
            g.shape(var),
            g.shape(param),
            "adamw: {name} has another shape than the parameter"
        );
    }
    assert_eq!(g.shape(clip), [2], "adamw: clip");
    assert_eq!(g.shape(hyper), [HYPER], "adamw: hyper");
    let [of_param, of_m, of_v, of_grad] = [param, m, v, grad].map(|var| g.element_blocks(var, 1));
    for (((param, m), v), grad) in of_param.into_iter().zip(of_m).zip(of_v).zip(of_grad) {
        let n = param.rows;
        let constants = [("N", n.into()), ("DECAY", decay.into())];
        let writes = [param, m, v, grad].map(|block| block.var);
        g.call(&UPDATE, &constants, &[clip, hyper], &writes, [n, 1, 1]);
    }
}

/// Appends clipping and AdamW for every trained parameter of `g`, behind a [`Graph::backward`] that
/// gave each of them a gradient: one program then computes a loss and lowers it.
///
/// Gives back the input `[8]` that is written with [`hyper()`] before each run. `max_norm` is that
/// of [`grad_norm`]. The moments are state named after the parameters.
///
/// # Panics
/// When there is no trained parameter, or one that the loss does not depend on.
#[track_caller]
pub fn minimise(g: &mut Graph, max_norm: f32) -> Var {
    let trained: Vec<Parameter> = g.parameters().iter().filter(|p| p.trained).cloned().collect();
    let pairs: Vec<(Var, Var)> = trained
        .iter()
        .map(|p| {
            let param = g.state(&p.name, &p.shape);
            let grad = g.grad(param);
            (param, grad.unwrap_or_else(|| panic!("the loss does not depend on {}", p.name)))
        })
        .collect();
    let hyper = g.input("hyper-parameters", &[HYPER], DType::F32);
    let max_norm = g.constant("max grad norm", &[1], &[max_norm]);
    let grads: Vec<Var> = pairs.iter().map(|&(_, grad)| grad).collect();
    let clip = grad_norm(g, &grads, max_norm);
    for (p, (param, grad)) in trained.iter().zip(pairs) {
        let m = g.state(&format!("{}{FIRST_MOMENT}", p.name), &p.shape);
        let v = g.state(&format!("{}{SECOND_MOMENT}", p.name), &p.shape);
        adamw(g, param, grad, m, v, clip, hyper, p.decays());
    }
    hyper
}

static UPDATE: Pass = Pass {
    op: "adamw",
    name: "update",
    variants: &[
        variant!("adamw/update_1_naive.wgsl", tile: [256, 1, 1]),
        variant!("adamw/update_2_span.wgsl", tile: [256, 1, 1], default_on: SOFTWARE),
        variant!("adamw/update_3_strided_span.wgsl", tile: [1024, 1, 1], default_on: &[]),
        variant!("adamw/update_4_vec4_span.wgsl", tile: [256, 1, 1], default_on: SOFTWARE)
            .taking(Takes { quads: &[2, 3, 4, 5], ..Takes::WORDS }),
    ],
};

static PASSES: &[&Pass] = &[&UPDATE];

const LR: f64 = 1e-2;
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.1;
const STEP: u64 = 3;

/// PyTorch's own steps in double precision: multiply by 1 - lr wd, lerp, addcmul, addcdiv.
fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let [p, grad, m, v, clip] = [0, 1, 2, 3, 4].map(|i| inputs[i].f());
    if !clip[0].is_finite() {
        return vec![p.to_vec(), m.to_vec(), v.to_vec(), vec![0.0; p.len()]];
    }
    let keep = if decays(s) { 1.0 - LR * WEIGHT_DECAY } else { 1.0 };
    let mut out = vec![Vec::new(), Vec::new(), Vec::new(), vec![0.0; p.len()]];
    for i in 0..p.len() {
        let g = grad[i] * clip[1];
        let mean = BETA1 * m[i] + (1.0 - BETA1) * g;
        let square = BETA2 * v[i] + (1.0 - BETA2) * g * g;
        let denominator = square.sqrt() / (1.0 - BETA2.powi(STEP as i32)).sqrt() + EPS;
        out[0].push(p[i] * keep - LR / (1.0 - BETA1.powi(STEP as i32)) * mean / denominator);
        out[1].push(mean);
        out[2].push(square);
    }
    out
}

fn decays(s: &[usize]) -> bool {
    s[0] % 2 == 1
}

/// Shapes are `[N]`; odd sizes decay. The outputs are the changed p, m, v and the zeroed gradient.
pub fn case() -> OpCase {
    OpCase {
        op: "adamw",
        passes: PASSES,
        shapes: &[&[1], &[255], &[256], &[257], &[1009], &[1028]],
        large: &[],
        inputs: |s, rng| {
            let fixed = |a: Array| match a.data {
                Data::Float { values, .. } => {
                    Array { data: Data::Float { values, grad: false }, ..a }
                }
                Data::Index(_) => a,
            };
            let squares = Array::normal("v", s, rng).f().iter().map(|x| x * x).collect();
            let hyper = hyper(LR, BETA1, BETA2, EPS, WEIGHT_DECAY, STEP).into_iter().map(f64::from);
            vec![
                fixed(Array::normal("p", s, rng)),
                fixed(Array::normal("grad", s, rng)),
                fixed(Array::normal("m", s, rng)),
                Array::fixed("v", s, squares),
                Array::fixed("clip", &[2], vec![4.0, 0.25]),
                Array::fixed("hyper", &[HYPER], hyper.collect()),
            ]
        },
        build: |g, s, v| {
            adamw(g, v[0], v[1], v[2], v[3], v[4], v[5], decays(s));
            vec![v[0], v[2], v[3], v[1]]
        },
        reference,
        tolerance: 1e-6,
        domain: Domain { inputs: &["p", "grad", "m"], not_a_number: &["clip"], ..Domain::ALL },
        differentiable: false,
        bench: BenchFacts {
            layers: |l| vec![vec![l.inner * l.hidden], vec![l.vocabulary * l.hidden]],
            flops: |_, s, _| Some(15.0 * s[0] as f64),
            // Four buffers read and written.
            bytes: |_, s, _| Some(32.0 * s[0] as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;
    use crate::ops::case::tests::{forward, gpu};
    use crate::ops::grad_norm::grad_norm;
    use crate::program::{Program, Store};

    #[test]
    fn adamw_forward() {
        forward(&case());
    }

    #[test]
    fn adamw_hyper_keeps_double_precision_until_the_end() {
        let h = hyper(1e-3, 0.9, 0.999, 1e-8, 0.01, 1);
        assert_eq!(h[2], 0.1);
        assert_eq!(h[4], 0.001);
        assert!((h[0] / 1e-2 - 1.0).abs() < 2e-7, "{h:?}");
        assert!((f64::from(h[5]) - 1000f64.sqrt()).abs() < 1e-4, "{h:?}");
        // beta1 = 0 (no momentum) is allowed: 1 - 0^t = 1.
        assert_eq!(hyper(0.5, 0.0, 0.0, 1e-8, 0.0, 7)[..2], [0.5, 0.0]);
    }

    /// An embedding of 50,000 by 600 has more elements than 65,535 groups reach.
    #[test]
    fn adamw_reaches_every_element_of_a_large_parameter() {
        let gpu = gpu();
        let store = Store::new(&gpu);
        let n = 65_535 * 256 + 3;
        store.write("p.grad", &[n], &vec![1.0; n]).unwrap();
        let mut g = Graph::new(gpu.target());
        let hyper_var = g.input("hyper", &[HYPER], DType::F32);
        let clip = g.constant("clip", &[2], &[1.0, 1.0]);
        let [p, grad, m, v] = ["p", "p.grad", "p.m", "p.v"].map(|name| g.state(name, &[n]));
        adamw(&mut g, p, grad, m, v, clip, hyper_var, false);
        let program = Program::new(&gpu, g, &store).unwrap();
        program.write(hyper_var, &hyper(0.5, BETA1, BETA2, EPS, 0.0, 1));
        program.run();
        // The first step moves by the learning rate, whatever the gradient.
        let p = store.read("p").unwrap().unwrap();
        assert!(
            p.iter().all(|&x| (x + 0.5).abs() < 1e-6),
            "{:?}",
            p.iter().position(|&x| (x + 0.5).abs() >= 1e-6)
        );
        assert!(store.read("p.grad").unwrap().unwrap().iter().all(|&x| x == 0.0));
    }

    /// The two programs of training: gradients in state, norm, update. Twenty steps towards the
    /// minimum of a quadratic against the same in double precision.
    #[test]
    fn adamw_follows_double_precision_for_twenty_steps() {
        let gpu = gpu();
        let store = Store::new(&gpu);
        let (a, b) = ([1.0f32, -2.0, 3.0], [0.5f32, -0.25]);
        store.write("a", &[3], &a).unwrap();
        store.write("b", &[2], &b).unwrap();
        let mut g = Graph::new(gpu.target());
        let hyper_var = g.input("hyper", &[HYPER], DType::F32);
        let max_norm = g.input("max_norm", &[1], DType::F32);
        let states: Vec<[Var; 4]> = [("a", 3), ("b", 2)]
            .iter()
            .map(|&(name, n)| {
                ["", ".grad", ".m", ".v"].map(|s| g.state(&format!("{name}{s}"), &[n]))
            })
            .collect();
        let clip = grad_norm(&mut g, &[states[0][1], states[1][1]], max_norm);
        g.output(clip);
        for (i, [p, grad, m, v]) in states.into_iter().enumerate() {
            adamw(&mut g, p, grad, m, v, clip, hyper_var, i == 0);
        }
        let program = Program::new(&gpu, g, &store).unwrap();
        program.write(max_norm, &[1.0]);

        let mut p: Vec<f64> = a.iter().chain(&b).map(|&x| f64::from(x)).collect();
        let (mut m, mut v) = (vec![0.0; 5], vec![0.0; 5]);
        for t in 1..=20u64 {
            let lr = 0.05 / t as f64;
            let grads: Vec<f64> = p.iter().enumerate().map(|(i, x)| x * (i + 1) as f64).collect();
            let device: Vec<f32> =
                ["a", "b"].iter().flat_map(|n| store.read(n).unwrap().unwrap()).collect();
            let g32: Vec<f32> =
                device.iter().enumerate().map(|(i, x)| x * (i + 1) as f32).collect();
            store.write("a.grad", &[3], &g32[..3]).unwrap();
            store.write("b.grad", &[2], &g32[3..]).unwrap();
            program.write(hyper_var, &hyper(lr, BETA1, BETA2, EPS, WEIGHT_DECAY, t));
            program.run();

            let norm = grads.iter().map(|x| x * x).sum::<f64>().sqrt();
            let factor = (1.0 / (norm + 1e-6)).min(1.0);
            let got = program.read(clip).unwrap();
            assert!(
                (f64::from(got[0]) / norm - 1.0).abs() < 1e-5,
                "step {t}: norm {} for {norm}",
                got[0]
            );
            for i in 0..5 {
                let g = grads[i] * factor;
                p[i] *= if i < 3 { 1.0 - lr * WEIGHT_DECAY } else { 1.0 };
                m[i] = BETA1 * m[i] + (1.0 - BETA1) * g;
                v[i] = BETA2 * v[i] + (1.0 - BETA2) * g * g;
                let denominator = (v[i] / (1.0 - BETA2.powi(t as i32))).sqrt() + EPS;
                p[i] -= lr / (1.0 - BETA1.powi(t as i32)) * m[i] / denominator;
            }
            assert_eq!(store.read("a.grad").unwrap().unwrap(), [0.0; 3]);
        }
        let device: Vec<f32> =
            ["a", "b"].iter().flat_map(|n| store.read(n).unwrap().unwrap()).collect();
        for (got, want) in device.iter().zip(&p) {
            assert!((f64::from(*got) - want).abs() < 2e-6, "{device:?} instead of {p:?}");
        }
    }

    #[test]
    fn adamw_leaves_the_weights_alone_when_a_gradient_is_not_finite() {
        let gpu = gpu();
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38];
        for (bad, variant) in bad.into_iter().flat_map(|x| [(x, 1), (x, 2)]) {
            let store = Store::new(&gpu);
            let mut target = gpu.target().clone();
            target.pinned.insert("adamw.update".to_owned(), variant.into());
            let mut g = Graph::new(&target);
            let hyper_var = g.input("hyper", &[HYPER], DType::F32);
            let max_norm = g.input("max_norm", &[1], DType::F32);
            let [p, grad, m, v] = ["p", "p.grad", "p.m", "p.v"].map(|name| g.state(name, &[4]));
            let other = g.state("other.grad", &[2]);
            let clip = grad_norm(&mut g, &[grad, other], max_norm);
            adamw(&mut g, p, grad, m, v, clip, hyper_var, true);
            let program = Program::new(&gpu, g, &store).unwrap();
            for (name, x) in [("p", 1.0), ("p.m", 0.5), ("p.v", 0.25), ("p.grad", 2.0)] {
                store.write(name, &[4], &[x; 4]).unwrap();
            }
            // The bad element is in another parameter's gradient: the step is skipped as a whole.
            store.write("other.grad", &[2], &[0.0, bad]).unwrap();
            program.write(max_norm, &[0.0]);
            program.write(hyper_var, &hyper(0.1, BETA1, BETA2, EPS, 0.1, 1));
            program.run();
            for (name, x) in [("p", 1.0), ("p.m", 0.5), ("p.v", 0.25), ("p.grad", 0.0)] {
                assert_eq!(store.read(name).unwrap().unwrap(), [x; 4], "{name} after {bad}");
            }
        }
    }
}
