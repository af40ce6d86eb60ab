//! `low_rank`: a linear layer with a low-rank addition (LoRA).
//!
//! ```text
//! h  = s x Aᵀ            [M, R]
//! y  = x Wᵀ + b + h Bᵀ   [M, N]
//!
//! g  = s dy B            [M, R]
//! dx = dy W + g A        [M, K]
//! dA = gᵀ x              [R, K]
//! dB = dyᵀ h             [N, R]
//! ```
//! with x `[M, K]`, W `[N, K]`, A `[R, K]`, B `[N, R]` and a number s. Source: Hu et al., "LoRA",
//! arXiv 2106.09685, equation 3. W and b are mostly frozen; where they train they get the gradients
//! of [`linear`](super::matmul::linear).
//!
//! It is made of the products of `matmul` and of `scale`, and has no kernel of its own. B Aᵀ is never
//! made: with R far below N and K the two thin products cost 2 M R (N + K) instead of 2 R N K.

use crate::graph::{Graph, Sink, Var};
use crate::ops::matmul::{Form, Product, bias_gradient, matrix, product};
use crate::ops::scale::scaled;

/// What is added to a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    /// A `[R, K]`.
    pub a: Var,
    /// B `[N, R]`.
    pub b: Var,
    /// s.
    pub scale: f32,
}

/// y `[M, N]` = x `[M, K]` · weight `[N, K]`ᵀ + bias `[N]` + s (x Aᵀ) Bᵀ.
///
/// # Panics
/// When the shapes do not fit, or s is not finite.
#[track_caller]
pub fn low_rank_linear(
    g: &mut Graph,
    x: Var,
    weight: Var,
    bias: Option<Var>,
    factors: Factors,
) -> Var {
    let Factors { a, b, scale } = factors;
    let ([m, k], [n, inner]) = (matrix(g, "low_rank", x), matrix(g, "low_rank", weight));
    let [r, _] = matrix(g, "low_rank", a);
    assert_eq!(k, inner, "low_rank: x {:?} against weight {:?}", g.shape(x), g.shape(weight));
    assert_eq!((g.shape(a), g.shape(b)), (&[r, k][..], &[n, r][..]), "low_rank: A and B");
    assert!(scale.is_finite(), "low_rank: scale {scale} is not finite");

    let fresh = |var| Sink { var, accumulate: false };
    let add = |var| Sink { var, accumulate: true };
    let [raw, h] = ["x A", "low-rank h"].map(|name| g.temp(name, &[m, r]));
    let y = g.temp("low-rank linear", &[m, n]);
    product(g, Product::whole(Form::Nt, m, r, k), x, a, None, fresh(raw));
    scaled(g, raw, scale, fresh(h));
    product(g, Product::whole(Form::Nt, m, n, k), x, weight, bias, fresh(y));
    product(g, Product::whole(Form::Nt, m, n, r), h, b, None, add(y));

    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(db) = g.grad_into(b) {
            product(g, Product::whole(Form::Tn, n, r, m), dy, h, None, db);
        }
        let [raw, dh] = ["dy B", "d low-rank h"].map(|name| g.temp(name, &[m, r]));
        product(g, Product::whole(Form::Nn, m, r, n), dy, b, None, fresh(raw));
        scaled(g, raw, scale, fresh(dh));
        if let Some(da) = g.grad_into(a) {
            product(g, Product::whole(Form::Tn, r, k, m), dh, x, None, da);
        }
        if let Some(dx) = g.grad_into(x) {
            product(g, Product::whole(Form::Nn, m, k, n), dy, weight, None, dx);
            product(g, Product::whole(Form::Nn, m, k, r), dh, a, None, add(dx.var));
        }
        if let Some(dw) = g.grad_into(weight) {
            product(g, Product::whole(Form::Tn, n, k, m), dy, x, None, dw);
        }
        bias_gradient(g, bias, dy);
    };
    let inputs: Vec<Var> = [x, weight, a, b].into_iter().chain(bias).collect();
    g.record("low_rank", &inputs, y, backward);
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;
    use crate::ops::case::tests::{forward, gradient};
    use crate::ops::case::{Array, BenchFacts, OpCase};
    use crate::ops::values::{Domain, Values};

    const SCALE: f32 = 1.75;
    /// The first number of a shape.
    const TRAINED: usize = 0;
    const FROZEN_BF16: usize = 1;

    fn reference(shape: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
        let &[_, m, n, k, r] = shape else { panic!("[kind, M, N, K, R]") };
        let [x, w, a, b, bias] = [0, 1, 2, 3, 4].map(|i| inputs[i].f());
        let mut y = Vec::new();
        for i in 0..m {
            let x = &x[i * k..][..k];
            let dot = |row: &[f64]| x.iter().zip(row).map(|(x, w)| x * w).sum::<f64>();
            let h: Vec<f64> = (0..r).map(|q| f64::from(SCALE) * dot(&a[q * k..][..k])).collect();
            for j in 0..n {
                let low: f64 = h.iter().zip(&b[j * r..][..r]).map(|(h, b)| h * b).sum();
                y.push(dot(&w[j * k..][..k]) + bias[j] + low);
            }
        }
        vec![y]
    }

    /// Shapes are `[kind, M, N, K, R]`.
    fn case() -> OpCase {
        OpCase {
            op: "low_rank",
            passes: &[],
            shapes: &[
                &[TRAINED, 1, 1, 1, 1],
                &[TRAINED, 7, 5, 3, 2],
                &[TRAINED, 33, 36, 20, 4],
                &[TRAINED, 20, 64, 48, 16],
                &[FROZEN_BF16, 9, 12, 16, 3],
                &[FROZEN_BF16, 33, 36, 20, 8],
                &[FROZEN_BF16, 3, 7, 5, 2],
            ],
            large: &[],
            inputs: |s, rng| {
                let &[kind, m, n, k, r] = s else { panic!("[kind, M, N, K, R]") };
                let mut w = Array::normal("w", &[n, k], rng);
                if kind == FROZEN_BF16 {
                    w = w.frozen(DType::BF16);
                }
                vec![
                    Array::normal("x", &[m, k], rng),
                    w,
                    Array::normal("a", &[r, k], rng),
                    Array::normal("b", &[n, r], rng),
                    Array::normal("bias", &[n], rng),
                ]
            },
            build: |g, _, v| {
                let factors = Factors { a: v[2], b: v[3], scale: SCALE };
                vec![low_rank_linear(g, v[0], v[1], Some(v[4]), factors)]
            },
            reference,
            tolerance: 1e-6,
            // Products of three factors.
            domain: Domain {
                large: 16.0,
                without_gradient: &[(Values::Tiny, "two tiny factors are below a rounding of x W")],
                ..Domain::ALL
            },
            differentiable: true,
            bench: BenchFacts::ELEMENTWISE,
        }
    }

    #[test]
    fn low_rank_forward() {
        forward(&case());
    }

    #[test]
    fn low_rank_gradient() {
        gradient(&case());
    }
}
