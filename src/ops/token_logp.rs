//! `token_logp`: the log-probability of one target token per row, without the logits of all rows.
//!
//! logp`[n]` = h`[n]` · w`[t[n]]` - ln(sum over v of exp(h`[n]` · w`[v]`)) for hidden rows h `[N, D]`,
//! the head's weight w `[V, D]` and targets t `[N]`. The vocabulary is walked in chunks of C rows: a
//! product gives the chunk's logits `[N, C]`, `update` folds them into a running maximum, the sum
//! of the other tokens' exponentials and the target's logit, and `finish` makes log p of these.
//! (The running logsumexp is Milakov and Gimelshein's, arXiv 1805.02867.) The sum leaves the
//! target out, so that log p and 1 - p keep their digits where p is almost 1: the odds ratio needs
//! exactly those.
//!
//! Backward: the gradient of a chunk's logits, dz`[n, c]` = dlogp`[n]` * ((1 if c = t`[n]`, else 0) -
//! softmax(z`[n]`)`[c]`), then dh += dz w and dw += dzᵀ h, chunk by chunk with the logits computed
//! again. Logits that are bounded (`soft_cap`) are so between product and `update`, and dz is times the
//! derivative of that.

use crate::graph::{DType, Graph, RowBlock, Sink, Var, chunk_rows};
use crate::kernel::{HARDWARE, Needs, Pass, SOFTWARE, Takes};
use crate::ops::case::{Array, BenchFacts, OpCase, largest_of_pairs};
use crate::ops::matmul::{Form, MOST_ROWS, Product, product};
use crate::ops::soft_cap::soft_capped;
use crate::ops::values::{Domain, Values};
use crate::variant;

/// As [`token_logp_capped`], of logits as they are.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn token_logp(g: &mut Graph, hidden: Var, weight: Var, targets: Var) -> Var {
    token_logp_capped(g, hidden, weight, targets, None)
}

/// log p `[N]` of `targets` `[N]` u32 under softmax(`hidden` `[N, D]` · `weight` `[V, D]`ᵀ).
///
/// Targets must be below V; a target that is not gives a meaningless number but touches no memory
/// outside its buffers. With `cap` the logits z are `cap` * tanh(z / `cap`).
///
/// # Panics
/// When the shapes do not fit; when `cap` is not above 0 and finite.
#[track_caller]
pub fn token_logp_capped(
    g: &mut Graph,
    hidden: Var,
    weight: Var,
    targets: Var,
    cap: Option<f32>,
) -> Var {
    let (&[n, d], &[v, inner]) = (g.shape(hidden), g.shape(weight)) else {
        panic!(
            "token_logp: hidden {:?} and weight {:?} are matrices",
            g.shape(hidden),
            g.shape(weight)
        );
    };
    assert_eq!(
        d,
        inner,
        "token_logp: hidden {:?} against weight {:?}",
        g.shape(hidden),
        g.shape(weight)
    );
    assert_eq!(g.shape(targets), [n], "token_logp: targets");
    let blocks = g.row_blocks(weight);
    // The chunk's first row is data, not a constant: one kernel serves all chunks but the last.
    let chunks: Vec<Chunk> = (0..v)
        .step_by(chunk_rows(v))
        .map(|start| {
            let size = chunk_rows(v).min(v - start);
            let first = u32::try_from(start).expect("a vocabulary fits 32 bits");
            let start_var = g.constant_u32("chunk start", &[1], &[first]);
            let (block, weight, start) = place(&blocks, start);
            Chunk { block, weight, start, size, start_var }
        })
        .collect();
    let state = g.temp("logsumexp state", &[n, 3]);
    for chunk in &chunks {
        let logits = chunk_logits(g, chunk, hidden, cap);
        let constants = [("N", n.into()), ("C", chunk.size.into())];
        g.call(&UPDATE, &constants, &[logits, targets, chunk.start_var], &[state], [n, 1, 1]);
    }
    let logp = g.temp("logp", &[n]);
    g.call(&FINISH, &[("N", n.into())], &[state], &[logp], [n, 1, 1]);
    let backward = move |g: &mut Graph, dlogp: Var| {
        let (mut dh, dw) = (g.grad_into(hidden), g.grad_into(weight));
        let dw = dw.map(|sink| (g.row_blocks(sink.var), sink.accumulate));
        for chunk in &chunks {
            let &Chunk { block, weight, start, size, start_var } = chunk;
            let logits = chunk_logits(g, chunk, hidden, cap);
            let constants = [
                ("N", n.into()),
                ("C", size.into()),
                ("CAPPED", cap.is_some().into()),
                ("CAP", cap.unwrap_or(1.0).into()),
            ];
            let reads = [targets, state, start_var, dlogp];
            g.call(&BACKWARD_LOGITS, &constants, &reads, &[logits], [size, n, 1]);
            if let Some(sink) = &mut dh {
                let p =
                    Product { form: Form::Nn, m: n, n: d, k: size, b_start: start, out_start: 0 };
                product(g, p, logits, weight, None, *sink);
                sink.accumulate = true; // the next chunk adds to this one's
            }
            if let Some((blocks, accumulate)) = &dw {
                let sink = Sink { var: blocks[block].var, accumulate: *accumulate };
                let p =
                    Product { form: Form::Tn, m: size, n: d, k: n, b_start: 0, out_start: start };
                product(g, p, logits, hidden, None, sink);
            }
        }
    };
    g.record("token_logp", &[hidden, weight], logp, backward);
    logp
}

/// The block that holds a row, by its number and itself, and the row's place in it.
fn place(blocks: &[RowBlock], row: usize) -> (usize, Var, usize) {
    let number = blocks.partition_point(|block| block.start <= row) - 1;
    (number, blocks[number].var, row - blocks[number].start)
}

#[derive(Clone, Copy)]
struct Chunk {
    /// The block of the weight that it lies in, by its number and itself.
    block: usize,
    weight: Var,
    /// Its first row there.
    start: usize,
    size: usize,
    start_var: Var,
}

fn chunk_logits(g: &mut Graph, chunk: &Chunk, hidden: Var, cap: Option<f32>) -> Var {
    let &[n, d] = g.shape(hidden) else { unreachable!("checked by token_logp") };
    let logits = g.temp("chunk logits", &[n, chunk.size]);
    let p =
        Product { form: Form::Nt, m: n, n: chunk.size, k: d, b_start: chunk.start, out_start: 0 };
    product(g, p, hidden, chunk.weight, None, Sink { var: logits, accumulate: false });
    match cap {
        None => logits,
        Some(cap) => soft_capped(g, logits, cap),
    }
}

const SUBGROUPS: Needs = Needs { subgroups: true, ..Needs::NONE };

static UPDATE: Pass = Pass {
    op: "token_logp",
    name: "update",
    variants: &[
        variant!("token_logp/update_1_naive.wgsl", tile: [8, 1, 1]),
        variant!("token_logp/update_2_workgroup_row.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
        variant!(
            "token_logp/update_3_subgroup_row.wgsl",
            tile: [1, 1, 1],
            default_on: HARDWARE,
            needs: SUBGROUPS
        ),
        variant!("token_logp/update_4_vec4.wgsl", tile: [8, 1, 1], default_on: SOFTWARE)
            .taking(Takes { quads: &[0], ..Takes::WORDS }),
    ],
};

static FINISH: Pass = Pass {
    op: "token_logp",
    name: "finish",
    variants: &[variant!("token_logp/finish_1_naive.wgsl", tile: [64, 1, 1])],
};

static BACKWARD_LOGITS: Pass = Pass {
    op: "token_logp",
    name: "backward_logits",
    variants: &[
        variant!("token_logp/backward_logits_1_naive.wgsl", tile: [256, 1, 1]),
        variant!("token_logp/backward_logits_2_span.wgsl", tile: [64, 8, 1], default_on: SOFTWARE),
        variant!("token_logp/backward_logits_3_vec4.wgsl", tile: [64, 8, 1], default_on: SOFTWARE)
            .taking(Takes { quads: &[4], ..Takes::WORDS }),
    ],
};

static PASSES: &[&Pass] = &[&UPDATE, &FINISH, &BACKWARD_LOGITS];

/// The bound of a shape's logits: its fifth number.
fn cap_of(s: &[usize]) -> Option<f32> {
    s.get(4).map(|&cap| cap as f32)
}

fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let [n, _, d, ..] = *s else { panic!("[N, V, D]") };
    let (h, w, targets) = (inputs[0].f(), inputs[1].f(), inputs[2].u());
    let cap = cap_of(s).map(f64::from);
    let bounded = |z: f64| cap.map_or(z, |c| c * (z / c).tanh());
    let logp = |row: usize| -> f64 {
        let h = &h[row * d..][..d];
        let logits: Vec<f64> = w
            .chunks(d)
            .map(|w| bounded(w.iter().zip(h).map(|(a, b)| a * b).sum::<f64>()))
            .collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|z| (z - largest).exp()).sum();
        logits[targets[row] as usize] - largest - sum.ln()
    };
    vec![(0..n).map(logp).collect()]
}

/// Logits of up to some thousands, rounded by a part in 10^7 of them, and so are the exponentials.
const DOMAIN: Domain = Domain {
    large: 10.0,
    looser: &[
        (Values::Large, 100.0, "logits of some hundreds are rounded before the exponential"),
        (Values::Spikes, 30.0, "logits of some dozens are rounded before the exponential"),
    ],
    without_gradient: &[
        (Values::Tiny, "the gradient of hidden is smaller than a rounding of the output"),
        (Values::Equal, "the gradient of hidden cancels to zero"),
    ],
    ..Domain::ALL
};

/// Shapes are `[N, V, D]`: rows, vocabulary, hidden size. With a fourth number the weight is frozen in
/// bf16, unless that is 0; a fifth bounds the logits.
pub fn case() -> OpCase {
    OpCase {
        op: "token_logp",
        passes: PASSES,
        shapes: &[
            &[1, 1, 1],
            &[5, 7, 3],
            &[9, 128, 8],
            &[33, 129, 16],
            &[8, 513, 5],
            &[17, 1009, 16],
            &[5, 129, 8, 1],
            &[9, 300, 16, 0, 2],
        ],
        large: &[&[3, 20_011, 8]],
        inputs: |s, rng| {
            let [n, v, d, ..] = *s else { panic!("[N, V, D]") };
            let targets = (0..n).map(|_| rng.u32(0..v as u32)).collect();
            let hidden = Array::normal("hidden", &[n, d], rng);
            let mut weight = Array::normal("weight", &[v, d], rng);
            if s.get(3).is_some_and(|&frozen| frozen == 1) {
                weight = weight.frozen(DType::BF16);
            }
            vec![hidden, weight, Array::index("targets", &[n], targets)]
        },
        build: |g, s, v| vec![token_logp_capped(g, v[0], v[1], v[2], cap_of(s))],
        reference,
        tolerance: 1e-6,
        domain: DOMAIN,
        differentiable: true,
        bench: BenchFacts {
            dims: &["N", "V", "D"],
            layers: |l| vec![vec![l.tokens / 4, l.vocabulary, l.hidden]],
            sets: &[],
            largest: |dims| largest_of_pairs(dims).filter(|_| dims.iter().all(|&d| d <= MOST_ROWS)),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::program::{Program, Store};

    #[test]
    fn token_logp_forward() {
        forward(&case());
    }

    #[test]
    fn token_logp_gradient() {
        gradient(&case());
    }

    #[test]
    fn token_logp_holds_no_row_of_the_whole_vocabulary() {
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        let (n, v) = (16, 1009);
        let hidden = g.input_with_grad("hidden", &[n, 4]);
        let weight = g.parameter("head", &[v, 4], crate::graph::Init::Zeros);
        let targets = g.input("targets", &[n], DType::U32);
        let logp = token_logp(&mut g, hidden, weight, targets);
        let seed = g.input("cotangent", &[n], DType::F32);
        g.backward_from(&[(logp, seed)]);
        assert_eq!(chunk_rows(v), 256);
        assert!(g.vars().iter().all(|info| info.len() <= n * 256), "{}", g.listing());
        let plan = crate::plan::plan(&g, crate::plan::Reuse::Slots);
        // Every chunk's logits share one slot; the rest is a few numbers per row.
        assert!(plan.temporaries() < 4 * (n * 256 + 16 * n) as u64, "{plan:?}");
    }

    /// Logits (20, 0, 0, …, 0) over 301 tokens: p of the first is 1 - 6e-7, and its log and 1 - p
    /// are wanted with all their digits.
    #[test]
    fn token_logp_keeps_its_digits_where_p_is_almost_one() {
        let gpu = gpu();
        let v = 301;
        for update in [1, 2] {
            let mut target = gpu.target().clone();
            target.pinned.insert("token_logp.update".to_owned(), update.into());
            let mut g = Graph::new(&target);
            let hidden = g.input_with_grad("hidden", &[1, 1]);
            let weight = g.input("weight", &[v, 1], DType::F32);
            let targets = g.input("targets", &[1], DType::U32);
            let logp = token_logp(&mut g, hidden, weight, targets);
            g.output(logp);
            g.backward(logp);
            let grad = g.output(g.grad(hidden).unwrap());
            let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
            let mut w = vec![0.0; v];
            w[0] = 20.0;
            program.write(weight, &w);
            program.write(hidden, &[1.0]);
            program.write_u32(targets, &[0]);
            program.run();
            let others = 300.0 * (-20.0f64).exp();
            let want = [-others.ln_1p(), 20.0 * others / (1.0 + others)];
            let got = [program.read(logp).unwrap()[0], program.read(grad).unwrap()[0]];
            for (got, want) in got.into_iter().zip(want) {
                assert!((f64::from(got) / want - 1.0).abs() < 1e-5, "{got} instead of {want}");
            }
        }
    }

    #[test]
    fn token_logp_gradient_of_a_parameter_accumulates_over_runs() {
        let gpu = gpu();
        let store = Store::new(&gpu);
        let (n, v, d) = (3, 300, 2);
        let weights: Vec<f32> = (0..v * d).map(|i| (i as f32 * 0.37).sin()).collect();
        store.write("head", &[v, d], &weights).unwrap();
        let mut g = Graph::new(gpu.target());
        let hidden = g.input_with_grad("hidden", &[n, d]);
        let weight = g.parameter("head", &[v, d], crate::graph::Init::Zeros);
        let targets = g.input("targets", &[n], DType::U32);
        let logp = token_logp(&mut g, hidden, weight, targets);
        let seed = g.input("cotangent", &[n], DType::F32);
        g.backward_from(&[(logp, seed)]);
        let program = Program::new(&gpu, g, &store).unwrap();
        program.write(hidden, &[0.5, -1.0, 2.0, 0.25, -0.75, 1.5]);
        program.write(seed, &[1.0, -2.0, 0.0]);
        program.write_u32(targets, &[0, 299, 128]);
        program.run();
        let once = store.read("head.grad").unwrap().unwrap();
        program.run();
        let twice = store.read("head.grad").unwrap().unwrap();
        assert!(once.iter().any(|&x| x.abs() > 0.1));
        assert!(
            once.iter().zip(&twice).all(|(a, b)| (2.0 * a - b).abs() <= 1e-6 * b.abs().max(1e-3))
        );
    }
}
