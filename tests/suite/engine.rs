//! The engine: derivative of a graph with fan-out, sharing memory, replay, bytes, nothing created
//! while a step runs.

use crate::gpu;
use oddgrad::data::example::{Example, Sequence};
use oddgrad::data::pack::{Capacity, pack};
use oddgrad::gpu::Checks;
use oddgrad::gpu::Gpu;
use oddgrad::graph::{DType, Graph, Var};
use oddgrad::kernel::{Class, Target};
use oddgrad::model::config::ModelConfig;
use oddgrad::model::generate::{Generator, Room, Sampling, unwatched};
use oddgrad::model::weights::init_weights;
use oddgrad::ops::add::add;
use oddgrad::ops::matmul::linear;
use oddgrad::ops::scale::scale;
use oddgrad::ops::silu_mul::silu_mul;
use oddgrad::plan::{Reuse, plan};
use oddgrad::program::{Program, ProgramOptions, Store};
use oddgrad::train::learner::{Learner, memory_plan};
use oddgrad::train::objectives::Loss;
use oddgrad::train::program::{Placement, micro_graph};
use oddgrad::train::recipe::OptimSettings;
use std::rc::Rc;

/// y = silu(x W) * 2 x W + 1.5 x, with the product and the input used twice: fan-out two and
/// coefficients that are not one.
fn fan_out(target: &Target) -> (Graph, [Var; 4], [Var; 2]) {
    let mut g = Graph::new(target);
    let x = g.input_with_grad("x", &[3, 4]);
    let w = g.input_with_grad("w", &[4, 4]);
    let dy = g.input("dy", &[3, 4], DType::F32);
    let h = linear(&mut g, x, w, None);
    let twice = scale(&mut g, h, 2.0);
    let s = silu_mul(&mut g, h, twice);
    let half = scale(&mut g, x, 0.5);
    let y = add(&mut g, s, half);
    let y = add(&mut g, y, x);
    g.backward_from(&[(y, dy)]);
    let grads = [g.grad(x).unwrap(), g.grad(w).unwrap()];
    g.output(y);
    for &v in &grads {
        g.output(v);
    }
    (g, [x, w, dy, y], grads)
}

fn values(n: usize, phase: f64) -> Vec<f32> {
    (0..n).map(|i| ((i as f64 * 1.7 + phase).sin()) as f32).collect()
}

fn fan_out_reference(x: &[f64], w: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; 12];
    for i in 0..3 {
        for j in 0..4 {
            let h: f64 = (0..4).map(|k| x[4 * i + k] * w[4 * j + k]).sum();
            y[4 * i + j] = 2.0 * h * h / (1.0 + (-h).exp()) + 1.5 * x[4 * i + j];
        }
    }
    y
}

#[test]
fn derivative_is_right_with_fan_out_and_coefficients() {
    let gpu = gpu();
    let (graph, [x, w, dy, _], grads) = fan_out(gpu.target());
    let program = Program::new(&gpu, graph, &Store::new(&gpu)).unwrap();
    let (xs, ws, cs) = (values(12, 0.1), values(16, 0.9), values(12, 2.0));
    program.write(x, &xs);
    program.write(w, &ws);
    program.write(dy, &cs);
    program.run();
    let wide = |v: &[f32]| v.iter().map(|&a| f64::from(a)).collect::<Vec<f64>>();
    let objective = |x: &[f64], w: &[f64]| -> f64 {
        fan_out_reference(x, w).iter().zip(&cs).map(|(y, &c)| y * f64::from(c)).sum()
    };
    for (which, grad) in grads.iter().enumerate() {
        let got = program.read(*grad).unwrap();
        for (i, &g) in got.iter().enumerate() {
            let at = |h: f64| {
                let (mut x, mut w) = (wide(&xs), wide(&ws));
                [&mut x, &mut w][which][i] += h;
                objective(&x, &w)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!(
                (f64::from(g) - slope).abs() < 1e-5,
                "input {which}[{i}]: {g} instead of {slope}"
            );
        }
    }
}

#[test]
fn sharing_memory_and_replaying_change_no_bit() {
    let gpu = gpu();
    let mut results = Vec::new();
    for reuse in [Reuse::Slots, Reuse::None] {
        let (graph, [x, w, dy, y], grads) = fan_out(gpu.target());
        let options = ProgramOptions { reuse, poison: true, checks: Checks::On };
        let program = Program::with_options(&gpu, graph, &Store::new(&gpu), options).unwrap();
        program.write(x, &values(12, 0.1));
        program.write(w, &values(16, 0.9));
        program.write(dy, &values(12, 2.0));
        for _ in 0..2 {
            program.run();
            let all = program.read_many(&[y, grads[0], grads[1]]).unwrap();
            results.push(all.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
    }
    assert!(results.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn run_checked_names_the_call_that_made_the_first_nan() {
    let gpu = gpu();
    let (graph, [x, w, dy, _], _) = fan_out(gpu.target());
    let program = Program::new(&gpu, graph, &Store::new(&gpu)).unwrap();
    let mut xs = values(12, 0.1);
    xs[5] = f32::INFINITY;
    program.write(x, &xs);
    program.write(w, &values(16, 0.9));
    program.write(dy, &values(12, 2.0));
    let error = program.run_checked().unwrap_err().to_string();
    assert!(error.contains("matmul.nt"), "{error}");
    program.write(x, &values(12, 0.1));
    program.run_checked().unwrap();
}

/// A small decoder for tests: 2 layers, 64 wide.
pub fn small_config() -> ModelConfig {
    ModelConfig::load(&crate::golden("llama_tied")).unwrap()
}

fn pairs(n: usize, vocab: u32) -> Vec<Example> {
    let token = |i: usize, j: usize| ((i * 131 + j * 37 + 11) as u32) % vocab;
    (0..n)
        .map(|i| {
            let prompt: Vec<u32> = (0..5 + i % 4).map(|j| token(i, j)).collect();
            let side = |shift: usize, len: usize| {
                let mut ids = prompt.clone();
                ids.extend((0..len).map(|j| token(i + shift, j + 50)));
                Sequence { ids, response_start: prompt.len() }
            };
            Example {
                row: i,
                chosen: side(3, 4 + i % 3),
                rejected: Some(side(8, 6 - i % 3)),
                desirable: None,
            }
        })
        .collect()
}

fn learner(gpu: &Rc<Gpu>, config: &ModelConfig, capacity: Capacity) -> Learner {
    let (weights, loss) = (init_weights(config, 0), Loss::default());
    let optim = OptimSettings::new(1e-3);
    Learner::new(gpu, config, &weights, capacity, &*loss.objective, &optim).unwrap()
}

fn greedy(max_tokens: usize) -> Sampling {
    Sampling::greedy(max_tokens)
}

#[test]
fn planned_bytes_are_the_bytes_allocated() {
    let gpu = gpu();
    let config = small_config();
    let capacity = Capacity { tokens: 256, targets: 256, pairs: 16 };
    let (before, device_before) = (gpu.buffer_bytes(), gpu.allocator_bytes());
    let mut learner = learner(&gpu, &config, capacity);
    let (loss, room) = (Loss::default(), Room { sequences: 6, length: 100 });
    let generator = Generator::new(&gpu, learner.store(), &config, room).unwrap();
    let (objective, all) = (&*loss.objective, Placement::all());
    let planned =
        memory_plan(gpu.target(), &config, capacity, objective, &all, Some(room)).unwrap();
    assert!(planned.cache() > 0);
    let planned = planned.total();
    assert_eq!(gpu.buffer_bytes() - before, planned);
    generator.generate(&[vec![1, 2, 3]], &[], &greedy(2), &mut unwatched).unwrap();
    assert_eq!(gpu.buffer_bytes() - before, planned, "generating allocates nothing");
    let planned = planned as f64;
    // A run sends off what was uploaded, and waiting lets the staging memory of that go.
    learner.update(0.0).unwrap();
    gpu.wait().unwrap();
    if let (Some(now), Some(then)) = (gpu.allocator_bytes(), device_before) {
        let device = (now - then) as f64;
        assert!(
            (device / planned - 1.0).abs() < 0.01,
            "planned {planned}, the device has {device}"
        );
    }
}

#[test]
fn nothing_is_created_while_a_step_runs() {
    let gpu = gpu();
    let config = small_config();
    let examples = pairs(6, 512);
    let capacity = Capacity { tokens: 128, targets: 128, pairs: 8 };
    let mut learner = learner(&gpu, &config, capacity);
    let stream = pack(&examples.iter().collect::<Vec<_>>(), capacity).unwrap().remove(0);
    let coefficients = Loss::default().objective.coefficients(&[&stream], 1).remove(0);
    let created = gpu.created();
    for _ in 0..3 {
        learner.accumulate(&stream, &coefficients).unwrap();
        learner.update(1e-3).unwrap();
        learner.evaluate(&stream, &coefficients).unwrap();
    }
    assert_eq!(gpu.created(), created);
}

#[test]
fn no_buffer_of_rows_by_vocabulary_or_tokens_by_tokens() {
    let config = small_config();
    let capacity = Capacity { tokens: 320, targets: 320, pairs: 16 };
    let (target, loss) = (Target::baseline(Class::Software), Loss::default());
    let g = Placement::all().training_graph(&target);
    let (g, _) = micro_graph(g, &config, capacity, &*loss.objective);
    let vocab = config.vocab_size;
    for call in g.calls() {
        for &v in call.writes.iter().chain(&call.reads) {
            let shape = g.shape(v);
            assert!(
                shape != [320, vocab]
                    && shape != [320, 320]
                    && g.info(v).len() < 320 * vocab.min(320),
                "{} {shape:?}",
                g.info(v).name
            );
        }
    }
    assert!(plan(&g, Reuse::Slots).temporaries() < plan(&g, Reuse::None).temporaries() / 2);
}
