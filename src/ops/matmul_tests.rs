use super::*;
use crate::ops::case::TestRng;
use crate::ops::case::tests::{forward, gradient};

#[test]
fn matmul_forward() {
    forward(&case());
}

#[test]
fn matmul_gradient() {
    gradient(&case());
}

const FORMS: [Form; 3] = [Form::Nt, Form::Nn, Form::Tn];

/// Rows that b and out are taller than their windows, behind them.
const BEHIND: usize = 3;

/// Added to the form's number where the product is added to what is there.
const ADD: usize = 10;

/// Added to it where there is a bias.
const BIASED: usize = 20;

fn form(s: &[usize]) -> Form {
    FORMS[s[0] % ADD]
}

fn adds(s: &[usize]) -> bool {
    s[0] / ADD % 2 == 1
}

/// Shapes are `[form, m, n, k, b_start, out_start]`. The windows lie inside taller
/// variables whose other rows are NaN (b) or must stay as they are (out).
fn windows() -> OpCase {
    OpCase {
        shapes: &[
            &[ADD, 1, 1, 1, 1, 1],
            &[0, 17, 5, 12, 7, 3],
            &[ADD, 65, 33, 20, 2, 5],
            &[ADD, 65, 68, 36, 2, 5],
            &[ADD, 2, 13, 36, 2, 5],
            &[ADD + 1, 1, 1, 1, 1, 1],
            &[1, 17, 5, 12, 7, 3],
            &[ADD + 1, 65, 33, 20, 2, 5],
            &[ADD + 1, 16, 32, 64, 64, 32],
            &[BIASED + ADD + 1, 65, 68, 35, 2, 5],
            &[ADD + 2, 1, 1, 1, 1, 1],
            &[2, 17, 5, 12, 7, 3],
            &[ADD + 2, 65, 33, 20, 2, 5],
            &[ADD + 2, 16, 32, 64, 64, 32],
            &[BIASED + ADD + 2, 66, 68, 35, 2, 5],
        ],
        inputs: window_inputs,
        build: |g, s, v| {
            let out = g.temp("out", g.shape(v[2]).to_owned().as_slice());
            g.accumulate(v[2], Sink { var: out, accumulate: false });
            let p = Product {
                form: form(s),
                m: s[1],
                n: s[2],
                k: s[3],
                b_start: s[4],
                out_start: s[5],
            };
            let sink = Sink { var: out, accumulate: adds(s) };
            product(g, p, v[0], v[1], v.get(3).copied(), sink);
            vec![out]
        },
        reference: window_reference,
        differentiable: false,
        ..case()
    }
}

fn window_inputs(s: &[usize], rng: &mut TestRng) -> Vec<Array> {
    let (m, n, k, b_start, out_start) = (s[1], s[2], s[3], s[4], s[5]);
    let (a, rows, columns) = match form(s) {
        Form::Nt => ([m, k], n, k),
        Form::Nn => ([m, k], k, n),
        Form::Tn => ([k, m], k, n),
    };
    let tall = [b_start + rows + BEHIND, columns];
    let mut b = Array::normal("b", &tall, rng).f().to_vec();
    b[..b_start * columns].fill(f64::NAN);
    b[(b_start + rows) * columns..].fill(f64::NAN);
    let mut inputs = vec![
        Array::normal("a", &a, rng),
        Array::fixed("b", &tall, b),
        Array::normal("present", &[out_start + m + BEHIND, n], rng),
    ];
    if s[0] >= BIASED {
        inputs.push(Array::normal("bias", &[n], rng));
    }
    inputs
}

fn window_reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let (m, n, k, start) = (s[1], s[2], s[3], s[4]);
    let (a, b) = (inputs[0].f(), inputs[1].f());
    let mut product = match form(s) {
        Form::Nt => multiply([m, n, k], |i, l| a[i * k + l], |j, l| b[(start + j) * k + l]),
        Form::Nn => multiply([m, n, k], |i, l| a[i * k + l], |j, l| b[(start + l) * n + j]),
        Form::Tn => multiply([m, n, k], |i, l| a[l * m + i], |j, l| b[(start + l) * n + j]),
    };
    if let Some(bias) = inputs.get(3) {
        add_to_rows(&mut product, bias.f());
    }
    let mut out = inputs[2].f().to_vec();
    for (o, p) in out[s[5] * n..].iter_mut().zip(product) {
        *o = if adds(s) { *o + p } else { p };
    }
    vec![out]
}

#[test]
fn matmul_windows() {
    forward(&windows());
}
