//! Views of variables and u32 constants: values, derivatives, shared memory, replay.

use crate::gpu;
use oddgrad::gpu::Checks;
use oddgrad::graph::{DType, Graph, Init, Role, Var};
use oddgrad::kernel::{Class, Target};
use oddgrad::ops::add::add;
use oddgrad::ops::matmul::linear;
use oddgrad::ops::scale::scale;
use oddgrad::ops::silu_mul::silu_mul;
use oddgrad::plan::{Reuse, plan};
use oddgrad::program::{Program, ProgramOptions, Store};

const D: usize = 64;

struct Net {
    graph: Graph,
    x: Var,
    w: Var,
    dy: Var,
    y: Var,
    grads: [Var; 2],
}

/// h = x Wᵀ `[4, D]` is used as its rows 0..2 and 2..4 and under the shape `[2, 2 D]`, and W as its
/// rows 16..48: y = (silu(h[0..2]) h[2..4] + 2 h[1..3]) W[16..48]ᵀ `[2, 32]`.
fn net(target: &Target, parameter: bool) -> Net {
    let mut g = Graph::new(target);
    let x = g.input_with_grad("x", &[4, D]);
    let w = match parameter {
        true => g.parameter("w", &[D, D], Init::Zeros),
        false => g.input_with_grad("w", &[D, D]),
    };
    let dy = g.input("dy", &[2, 32], DType::F32);
    let h = linear(&mut g, x, w, None);
    let (first, second) = (g.rows(h, 0, 2), g.rows(h, 2, 2));
    let product = silu_mul(&mut g, first, second);
    let wide = g.view(h, &[2, 2 * D]);
    let wide = scale(&mut g, wide, 2.0);
    let tall = g.view(wide, &[4, D]);
    let middle = g.rows(tall, 1, 2);
    let sum = add(&mut g, product, middle);
    let slice = g.rows(w, 16, 32);
    let y = linear(&mut g, sum, slice, None);
    let flat = g.view(y, &[64]);
    let seed = g.view(dy, &[64]);
    g.backward_from(&[(flat, seed)]);
    let grads = [x, w].map(|v| g.grad(v).unwrap());
    for v in [y, grads[0], grads[1]] {
        g.output(v);
    }
    Net { graph: g, x, w, dy, y, grads }
}

fn reference(x: &[f64], w: &[f64]) -> Vec<f64> {
    let row = |x: &[f64], j: usize| (0..D).map(|k| x[k] * w[j * D + k]).sum::<f64>();
    let h: Vec<f64> =
        x.chunks(D).flat_map(|x| (0..D).map(|j| row(x, j)).collect::<Vec<_>>()).collect();
    let sum: Vec<f64> =
        (0..2 * D).map(|i| h[i] / (1.0 + (-h[i]).exp()) * h[2 * D + i] + 2.0 * h[D + i]).collect();
    sum.chunks(D).flat_map(|s| (16..48).map(|j| row(s, j)).collect::<Vec<_>>()).collect()
}

fn values(n: usize, phase: f64) -> Vec<f32> {
    (0..n).map(|i| (0.3 * (i as f64 * 1.7 + phase).sin()) as f32).collect()
}

fn upload(program: &Program, net: [Var; 3]) {
    for (var, phase) in net.into_iter().zip([0.1, 0.9, 2.0]) {
        program.write(var, &values(program.graph().info(var).len(), phase));
    }
}

#[test]
fn views_are_differentiated_like_what_they_show() {
    let gpu = gpu();
    let wide = |v: &[f32]| v.iter().map(|&a| f64::from(a)).collect::<Vec<f64>>();
    let (xs, ws, cs) =
        (wide(&values(4 * D, 0.1)), wide(&values(D * D, 0.9)), wide(&values(64, 2.0)));
    let objective =
        |x: &[f64], w: &[f64]| -> f64 { reference(x, w).iter().zip(&cs).map(|(y, c)| y * c).sum() };
    for parameter in [false, true] {
        let net = net(gpu.target(), parameter);
        let store = Store::new(&gpu);
        store.write("w", &[D, D], &values(D * D, 0.9)).unwrap();
        let program = Program::new(&gpu, net.graph, &store).unwrap();
        program.write(net.x, &values(4 * D, 0.1));
        program.write(net.dy, &values(64, 2.0));
        if !parameter {
            program.write(net.w, &values(D * D, 0.9));
        }
        program.run();
        for (y, want) in program.read(net.y).unwrap().iter().zip(reference(&xs, &ws)) {
            assert!((f64::from(*y) - want).abs() < 1e-5, "{y} instead of {want}");
        }
        for (which, grad) in net.grads.into_iter().enumerate() {
            let got = program.read(grad).unwrap();
            for i in (0..got.len()).step_by(if which == 0 { 3 } else { 61 }) {
                let at = |h: f64| {
                    let (mut x, mut w) = (xs.clone(), ws.clone());
                    [&mut x, &mut w][which][i] += h;
                    objective(&x, &w)
                };
                let slope = (at(1e-4) - at(-1e-4)) / 2e-4;
                let off = (f64::from(got[i]) - slope).abs();
                assert!(off < 2e-5, "input {which}[{i}]: {} instead of {slope}", got[i]);
            }
        }
        if parameter {
            // A second run adds to the parameter's gradient, through its slice too.
            let once = program.read(net.grads[1]).unwrap();
            program.run();
            let twice = program.read(net.grads[1]).unwrap();
            assert!(once.iter().zip(twice).all(|(a, b)| (2.0 * a - b).abs() < 1e-5));
        }
    }
}

#[test]
fn views_change_no_bit_when_memory_is_shared_and_calls_are_replayed() {
    let gpu = gpu();
    let mut results = Vec::new();
    for reuse in [Reuse::Slots, Reuse::None] {
        let net = net(gpu.target(), false);
        let options = ProgramOptions { reuse, poison: true, checks: Checks::On };
        let program = Program::with_options(&gpu, net.graph, &Store::new(&gpu), options).unwrap();
        upload(&program, [net.x, net.w, net.dy]);
        program.run();
        let bits = |values: Vec<Vec<f32>>| -> Vec<u32> {
            values.concat().iter().map(|v| v.to_bits()).collect()
        };
        let outputs = [net.y, net.grads[0], net.grads[1]];
        results.push(bits(program.read_many(&outputs).unwrap()));
        program.run_checked().unwrap();
        results.push(bits(program.read_many(&outputs).unwrap()));
        if reuse == Reuse::None {
            assert!(program.broken_guards().unwrap().is_empty());
        }
    }
    assert!(results.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn a_replayed_call_writes_to_its_slice_alone() {
    let gpu = gpu();
    let net = net(gpu.target(), true);
    let grad = net.grads[1];
    // The gradient of the slice of W is a slice of W's gradient.
    let at = net.graph.calls().iter().position(|c| {
        let (base, start) = net.graph.place(c.writes[0]);
        base == grad && start > 0
    });
    let at = at.expect("a call that writes to rows 16..48");
    let variant = net.graph.calls()[at].variant;
    let store = Store::new(&gpu);
    store.write("w", &[D, D], &values(D * D, 0.9)).unwrap();
    let program = Program::new(&gpu, net.graph, &store).unwrap();
    program.write(net.x, &values(4 * D, 0.1));
    program.write(net.dy, &values(64, 2.0));
    program.run();
    let replay = program.replay(&[at], variant, Checks::On).unwrap();
    let before = program.read(grad).unwrap();
    let written = program.written(&replay).unwrap();
    assert_eq!(written[0], before[16 * D..48 * D].iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    program.poison_writes(&replay);
    // A run sends the upload off; it would add to the gradient, so a read does that here.
    let poisoned = program.read(grad).unwrap();
    assert_eq!(poisoned[..16 * D], before[..16 * D]);
    assert_eq!(poisoned[48 * D..], before[48 * D..]);
    assert!(poisoned[16 * D..48 * D].iter().all(|v| v.is_nan()));
    program.restore(&replay, &written);
    assert_eq!(program.read(grad).unwrap(), before);
}

#[test]
fn a_view_keeps_its_base_alive_and_takes_no_memory() {
    let mut g = Graph::new(&Target::baseline(Class::Software));
    let x = g.input("x", &[4, D], DType::F32);
    let a = scale(&mut g, x, 2.0);
    let part = g.rows(a, 1, 2);
    let b = scale(&mut g, x, 3.0); // must not share a's slot: `part` is read below
    let b = g.view(b, &[2, 2 * D]);
    let c = scale(&mut g, part, 1.0);
    let both = plan(&g, Reuse::Slots);
    let slot = |v: Var| both.slot_of[g.base(v).index()].unwrap();
    assert_ne!(slot(a), slot(b));
    assert_eq!(both.slot_of[part.index()], None);
    assert_eq!(both.unshared, 4 * (4 * D + 4 * D + 2 * D) as u64);
    assert!(g.listing().contains("<- scale rows 1..3[2, 64]"), "{}", g.listing());
    // A view that the host reads keeps the whole to the end.
    g.output(part);
    let d = scale(&mut g, c, 1.0);
    let kept = plan(&g, Reuse::Slots);
    assert_ne!(kept.slot_of[a.index()], kept.slot_of[d.index()]);
    assert!(matches!(g.info(part).role, Role::View { base, start: 64 } if base == a));
}

#[test]
fn u32_constants_reach_the_kernel_as_they_are() {
    let gpu = gpu();
    let mut g = Graph::new(gpu.target());
    let x = g.input("x", &[3, 2], DType::F32);
    let rows = g.constant_u32("rows", &[4], &[2, 0, 2, 1]);
    let index = oddgrad::ops::gather_index::GatherIndex::inputs(&mut g, "rows", 4, 3);
    let y = oddgrad::ops::gather_rows::gather_rows(&mut g, x, rows, index);
    g.output(y);
    let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
    program.write(x, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    program.run();
    assert_eq!(program.read(y).unwrap(), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0, 3.0, 4.0]);
}

#[test]
#[should_panic(expected = "x rows 1..3 begin at byte 252")]
fn rows_that_cannot_be_bound_are_refused_by_name() {
    let mut g = Graph::new(&Target::baseline(Class::Software));
    let x = g.input("x", &[4, 63], DType::F32);
    g.rows(x, 1, 2);
}

#[test]
#[should_panic(expected = "is bound twice, once for writing")]
fn reading_one_view_and_writing_another_is_refused() {
    let mut g = Graph::new(&Target::baseline(Class::Software));
    let x = g.temp("x", &[4, D]);
    let (a, b) = (g.rows(x, 0, 2), g.rows(x, 2, 2));
    let constants = [("N", (2 * D).into()), ("ACCUMULATE", true.into())];
    g.call(&oddgrad::graph::ACCUMULATE, &constants, &[a], &[b], [2 * D, 1, 1]);
}

#[test]
fn a_second_derivative_pass_is_refused_where_a_gradient_would_be_lost() {
    let twice = |again: fn(&mut Graph, [Var; 3])| {
        std::panic::catch_unwind(move || {
            let mut g = Graph::new(&Target::baseline(Class::Software));
            let x = g.input_with_grad("x", &[1]);
            let loss = scale(&mut g, x, 2.0);
            let other = scale(&mut g, x, 3.0);
            g.backward(loss);
            again(&mut g, [x, loss, other]);
            g.calls().len()
        })
    };
    let refused: [fn(&mut Graph, [Var; 3]); 4] = [
        |g, [_, loss, _]| g.backward(loss),
        // Recorded before the first backward(), which used up the whole tape.
        |g, [_, _, other]| g.backward(other),
        |g, [_, loss, _]| {
            let longer = scale(g, loss, 2.0);
            g.backward(longer);
        },
        |g, [_, loss, other]| {
            let one = g.constant("one", &[1], &[1.0]);
            g.backward_from(&[(other, one), (loss, one)]);
        },
    ];
    for again in refused {
        let message = *twice(again).unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("was differentiated already"), "{message}");
        assert!(message.contains("one backward_from()"), "{message}");
    }
    // What is appended afterwards has a derivative of its own, which adds to the first.
    let calls = twice(|g, [x, ..]| {
        let later = scale(g, x, 5.0);
        g.backward(later);
    });
    assert_eq!(calls.unwrap(), 3 + 2);
}
