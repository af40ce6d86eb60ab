//! `segment_mean`: the mean of listed elements per segment; one average log-probability per answer.
//!
//! y`[s]` = mean of x over the m`[s]` members of segment s, 0 where it has none.
//!
//! Backward: dx`[n]` = sum of dy`[s]` / m`[s]` over the segments s that hold n. An element belongs to at most two segments (a token
//! that the chosen and the rejected answer share), so the sum is a gather from its owners.

use crate::graph::{Graph, Var};
use crate::kernel::{HARDWARE, Pass};
use crate::ops::case::{Array, BenchFacts, OpCase};
use crate::ops::values::{Domain, Values};
use crate::variant;

/// In `owner`: no segment.
pub const NO_OWNER: u32 = u32::MAX;

/// y `[S]` from x `[N]`.
///
/// - `seq_offset` `[S + 1]` u32, ascending: segment s lists `seq_target[seq_offset[s]..seq_offset[s + 1]]`;
/// - `seq_target` `[cap]` u32: indices into x, what lies beyond the last offset is not read;
/// - `owner` `[N, 2]` u32: the segments that list each element, [`NO_OWNER`] where there are fewer.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn segment_mean(g: &mut Graph, x: Var, seq_offset: Var, seq_target: Var, owner: Var) -> Var {
    let (&[n], &[ends], &[cap]) = (g.shape(x), g.shape(seq_offset), g.shape(seq_target)) else {
        panic!("segment_mean: x, seq_offset and seq_target are vectors");
    };
    assert!(ends >= 1, "segment_mean: seq_offset has one element more than there are segments");
    assert_eq!(g.shape(owner), [n, 2], "segment_mean: owner");
    let s = ends - 1;
    let y = g.temp("segment mean", &[s]);
    let constants = [("S", s.into()), ("N", n.into()), ("CAP", cap.into())];
    g.call(&FORWARD, &constants, &[x, seq_offset, seq_target], &[y], [s, 1, 1]);
    let backward = move |g: &mut Graph, dy: Var| {
        let Some(sink) = g.grad_into(x) else { return };
        let constants = [("S", s.into()), ("N", n.into()), sink.constant()];
        g.call(&BACKWARD, &constants, &[dy, seq_offset, owner], &[sink.var], [n, 1, 1]);
    };
    g.record("segment_mean", &[x], y, backward);
    y
}

static FORWARD: Pass = Pass {
    op: "segment_mean",
    name: "forward",
    variants: &[
        variant!("segment_mean/forward_1_naive.wgsl", tile: [64, 1, 1]),
        variant!("segment_mean/forward_2_workgroup_segment.wgsl", tile: [1, 1, 1], default_on: HARDWARE),
    ],
};

static BACKWARD: Pass = Pass {
    op: "segment_mean",
    name: "backward",
    variants: &[variant!("segment_mean/backward_1_naive.wgsl", tile: [256, 1, 1])],
};

static PASSES: &[&Pass] = &[&FORWARD, &BACKWARD];

fn reference(_: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let (x, offset, target) = (inputs[0].f(), inputs[1].u(), inputs[2].u());
    let mean = |ends: &[u32]| -> f64 {
        let members = &target[ends[0] as usize..ends[1] as usize];
        let sum: f64 = members.iter().map(|&t| x[t as usize]).sum();
        if members.is_empty() { 0.0 } else { sum / members.len() as f64 }
    };
    vec![offset.windows(2).map(mean).collect()]
}

const DOMAIN: Domain = Domain {
    looser: &[(Values::Alternating, 10.0, "a mean over all may cancel nearly to nothing")],
    ..Domain::LINEAR
};

/// Shapes are `[N, S]`: elements and segments. Of three elements one has two owners, one has one
/// and some have none; the last segment is empty where there is more than one.
pub fn case() -> OpCase {
    OpCase {
        op: "segment_mean",
        passes: PASSES,
        shapes: &[&[1, 1], &[7, 2], &[63, 5], &[257, 4], &[1009, 66], &[3001, 2]],
        large: &[&[1009, 70_001]],
        inputs: |s, rng| {
            let &[n, segments] = s else { panic!("[N, S]") };
            let used = (segments - 1).max(1);
            let mut members = vec![Vec::new(); segments];
            let mut owner = vec![NO_OWNER; 2 * n];
            for i in 0..n {
                let mut owners: Vec<usize> = (0..[2, 1, usize::from(i % 5 != 2)][i % 3])
                    .map(|_| rng.usize(0..used))
                    .collect();
                owners.dedup();
                for (k, &s) in owners.iter().enumerate() {
                    members[s].push(i as u32);
                    owner[2 * i + k] = s as u32;
                }
            }
            let mut offset = vec![0];
            let mut target = Vec::new();
            for m in &members {
                target.extend(m);
                offset.push(target.len() as u32);
            }
            target.resize(2 * n, 0); // capacity is more than what is used
            vec![
                Array::normal("x", &[n], rng),
                Array::index("seq_offset", &[segments + 1], offset),
                Array::index("seq_target", &[2 * n], target),
                Array::index("owner", &[n, 2], owner),
            ]
        },
        build: |g, _, v| vec![segment_mean(g, v[0], v[1], v[2], v[3])],
        reference,
        tolerance: 1e-6,
        domain: DOMAIN,
        differentiable: true,
        bench: BenchFacts {
            dims: &["N", "SEGMENTS"],
            layers: |l| vec![vec![l.tokens, 64]],
            sets: &[],
            flops: |pass, s, _| (pass == "forward").then(|| s[0] as f64),
            // Of the list as much as is used, which is one owner for each value on average.
            bytes: |pass, s, _| (pass == "forward").then(|| 8.0 * s[0] as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::case::tests::{forward, gradient};

    #[test]
    fn segment_mean_forward() {
        forward(&super::case());
    }

    #[test]
    fn segment_mean_gradient() {
        gradient(&super::case());
    }
}
