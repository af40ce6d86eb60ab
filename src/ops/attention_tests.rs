use super::*;
use crate::kernel::{Class, Operand, Target, Variant};
use crate::ops::case::tests::{forward, gradient};
use crate::plan::{Reuse, plan};
use std::collections::BTreeSet;

#[test]
fn attention_forward() {
    forward(&case());
}

#[test]
fn attention_gradient() {
    gradient(&case());
}

/// The causal triangle of documents of 2 and 3 tokens, a pair, and a range met twice.
#[test]
fn attention_counts_the_pairs_it_attends_to() {
    let count = |push: &dyn Fn(&mut Vec<[u32; 4]>)| {
        let mut spans = Vec::new();
        push(&mut spans);
        pairs(&causal_spans(spans.as_flattened())[..4 * spans.len()])
    };
    let documents = |spans: &mut Vec<[u32; 4]>| {
        push_document(spans, 2);
        push_document(spans, 3);
    };
    assert_eq!(count(&documents), 3 + 6);
    assert_eq!(count(&|spans| push_pair(spans, 3, [2, 1])), 6 + (4 + 5) + 4);
    // Queries 2 and 3 have the context 0..2 and their own range from 1.
    assert_eq!(count(&|spans| push_overlapping(spans, 4)), (1 + 2) + (3 + 4));
    let by_reference = |kind: usize| -> u64 {
        let shape = [131, 1, 1, 8, kind];
        let (spans, queries) = (spans_of(&shape), queries_of(&shape));
        let all = (0..queries).flat_map(|i| (0..131).map(move |j| (i, j)));
        let counted = pairs(&spans[..4 * queries]);
        assert_eq!(counted, all.filter(|&(i, j)| attends(&spans, i, j)).count() as u64);
        counted
    };
    assert!(by_reference(CAUSAL) < 131 * 132 / 2);
    for kind in [PAIRS, PADDED, NO_PREFIX, OVERLAPPING, CACHED] {
        by_reference(kind);
    }
}

#[test]
fn attention_logsumexp() {
    forward(&OpCase {
        build: |g, s, v| {
            let dims = Dims::of(g, v[0], v[1], v[2], v[3], s[3], cap_of(s));
            let (o, lse) = super::forward(g, dims, v[0], v[1], v[2], v[3]);
            vec![o, lse]
        },
        reference: |s, i| reference_with_lse(s, i[0].f(), i[1].f(), i[2].f(), i[3].u()),
        ..case()
    });
}

/// Capped scores of wide heads, with the adapter's default kernels only: the others take minutes to
/// compile for such heads.
#[test]
fn attention_capped_wide_heads() {
    let wide = OpCase {
        passes: &[],
        shapes: &[&[33, 2, 1, 130, PAIRS, 1], &[40, 2, 2, 130, CACHED, 2]],
        ..case()
    };
    forward(&wide);
    gradient(&wide);
}

/// Scores near 240, whose exponentials single precision cannot hold. What is left of their
/// differences after rounding sets the tolerance.
#[test]
fn attention_large_scores() {
    let large = OpCase {
        shapes: &[&[70, 2, 1, 16, PAIRS]],
        inputs: |shape, rng| {
            let shift = |a: Array| {
                let values = a.f().iter().map(|x| x + 8.0).collect();
                Array::float(a.name, &a.shape, values)
            };
            let mut all = inputs(shape, rng);
            let v = all.remove(2);
            let k = shift(all.remove(1));
            let q = shift(all.remove(0));
            vec![q, k, v, all.remove(0)]
        },
        tolerance: 1e-4,
        domain: Domain::AS_DRAWN,
        ..case()
    };
    forward(&large);
    gradient(&large);
}

/// Two calls on the same inputs: the second contribution is added to the first.
#[test]
fn attention_gradient_accumulates() {
    gradient(&OpCase {
        shapes: &[&[45, 4, 2, 16, PAIRS]],
        build: |g, s, v| {
            let first = attention(g, v[0], v[1], v[2], v[3], s[3]);
            vec![first, attention(g, v[0], v[2], v[1], v[3], s[3])]
        },
        reference: |s, i| {
            let [q, k, v] = [0, 1, 2].map(|n| i[n].f());
            let first = reference_with_lse(s, q, k, v, i[3].u()).remove(0);
            vec![first, reference_with_lse(s, q, v, k, i[3].u()).remove(0)]
        },
        ..case()
    });
}

/// One variable as k and v, and one as all three.
#[test]
fn attention_gradient_of_shared_inputs() {
    let shapes: &[&[usize]] = &[&[45, 2, 2, 16, PAIRS]];
    gradient(&OpCase {
        shapes,
        inputs: |s, rng| {
            let mut all = inputs(s, rng);
            all.remove(2);
            all
        },
        build: |g, s, v| vec![attention(g, v[0], v[1], v[1], v[2], s[3])],
        reference: |s, i| {
            let mut both = reference_with_lse(s, i[0].f(), i[1].f(), i[1].f(), i[2].u());
            both.truncate(1);
            both
        },
        ..case()
    });
    gradient(&OpCase {
        shapes,
        inputs: |s, rng| {
            let mut all = inputs(s, rng);
            all.drain(1..3);
            all
        },
        build: |g, s, v| vec![attention(g, v[0], v[0], v[0], v[1], s[3])],
        reference: |s, i| {
            let mut both = reference_with_lse(s, i[0].f(), i[0].f(), i[0].f(), i[1].u());
            both.truncate(1);
            both
        },
        ..case()
    });
}

/// The variant for reading stands first in the tables and must not be taken for that; software
/// adapters take other kernels for wide heads, sooner forward than backward.
#[test]
fn attention_chooses_kernels_by_adapter_and_width_of_a_head() {
    for class in [Class::Software, Class::Integrated, Class::Discrete] {
        for (head_dim, wide) in [(64, [1, 1, 1]), (128, [3, 1, 1]), (256, [3, 3, 3])] {
            let operands = [Operand { dtype: DType::F32, row: head_dim, rows: 1 }];
            let wanted = if class == Class::Software { wide } else { [2, 2, 2] };
            let chosen = [&FORWARD, &DQ, &DK_DV].map(|pass| {
                pass.default_for(&Target::baseline(class), &operands).unwrap().number()
            });
            assert_eq!(chosen, wanted, "{head_dim} for {class:?}");
        }
    }
}

/// Every variant recomputes the scores, so nothing grows with the square of T.
#[test]
fn attention_memory_is_linear_in_tokens() {
    let numbers: BTreeSet<u32> =
        PASSES.iter().flat_map(|p| p.variants.iter().map(Variant::number)).collect();
    for &number in &numbers {
        let memory = |tokens: usize| {
            let mut target = Target::baseline(Class::Discrete);
            target.pinned.insert("attention".into(), number.into());
            let mut g = Graph::new(&target);
            let q = g.input_with_grad("q", &[tokens, 9 * 64]);
            let k = g.input_with_grad("k", &[tokens, 3 * 64]);
            let v = g.input_with_grad("v", &[tokens, 3 * 64]);
            let spans = g.input("spans", &[2 * tokens, 4], DType::U32);
            let o = attention(&mut g, q, k, v, spans, 64);
            let d_o = g.input("cotangent", &[tokens, 9 * 64], DType::F32);
            g.backward_from(&[(o, d_o)]);
            let plan = plan(&g, Reuse::Slots);
            assert!(plan.temporaries() > 0);
            (plan.temporaries(), plan.total())
        };
        let (short, long) = (memory(256), memory(8192));
        assert_eq!((32 * short.0, 32 * short.1), long, "variant {number}");
    }
}

/// A gradient is right, and nothing else is computed, when only one input wants one.
#[test]
fn attention_gradient_of_one_input() {
    fn only(which: usize, s: &[usize], rng: &mut TestRng) -> Vec<Array> {
        let fix = |(n, a): (usize, Array)| {
            if n == which || n == 3 { a } else { Array::fixed(a.name, &a.shape, a.f().to_vec()) }
        };
        inputs(s, rng).into_iter().enumerate().map(fix).collect()
    }
    let shapes: &[&[usize]] = &[&[45, 4, 2, 16, PAIRS]];
    gradient(&OpCase { shapes, inputs: |s, rng| only(0, s, rng), ..case() });
    gradient(&OpCase { shapes, inputs: |s, rng| only(1, s, rng), ..case() });
    gradient(&OpCase { shapes, inputs: |s, rng| only(2, s, rng), ..case() });
}
