//! Kernels of ours with one known mistake planted in each: the gate of `oddgrad bench --with` refuses
//! every one, and says where it is wrong.

use crate::gpu;
use oddgrad::bench::gate::judge;
use oddgrad::gpu::Checks;
use oddgrad::kernel::Variant;
use oddgrad::ops::cases;
use oddgrad::ops::trial::Replacement;

struct Planted {
    /// Operation, pass and variant.
    kernel: (&'static str, &'static str, u32),
    /// The mistake in words.
    idea: &'static str,
    /// What stands there, and what the mistake makes of it.
    from: &'static str,
    to: &'static str,
    /// What the refusal must name; the operation's own output where it is empty.
    named: &'static str,
}

const fn planted(
    kernel: (&'static str, &'static str, u32),
    idea: &'static str,
    from: &'static str,
    to: &'static str,
    named: &'static str,
) -> Planted {
    Planted { kernel, idea, from, to, named }
}

static PLANTED: [Planted; 27] = [
    planted(
        ("softmax", "forward", 1),
        "no maximum is subtracted",
        "exp(x[start + j] - largest)",
        "exp(x[start + j])",
        "",
    ),
    planted(
        ("softmax", "forward", 1),
        "a row too many",
        "if row >= R {",
        "if row > R {",
        "beyond the end",
    ),
    planted(
        ("softmax", "backward", 1),
        "the sum is left out of the derivative",
        "(dy[i] - sum)",
        "dy[i]",
        "d x",
    ),
    planted(("rms_norm", "forward", 1), "eps is left out", " + EPS", "", ""),
    planted(("rms_norm", "forward", 1), "a sum for a mean", "squares / f32(D)", "squares", ""),
    planted(
        ("gelu", "backward", 1),
        "overflow at large inputs",
        "clamp(-2.0 * u, -80.0, 80.0)",
        "-2.0 * u",
        "d x",
    ),
    planted(
        ("silu_mul", "backward", 1),
        "a wrong derivative",
        "(1.0 + z * t)",
        "(1.0 + z * s)",
        "d gate",
    ),
    planted(
        ("silu_mul", "backward", 1),
        "overflow at large inputs",
        "clamp(gate[i], -80.0, 80.0)",
        "gate[i]",
        "d gate",
    ),
    planted(
        ("rope", "rotate", 1),
        "the gradient turns the wrong way",
        "SIGN * turn.y",
        "turn.y",
        "d x",
    ),
    planted(
        ("rope", "rotate", 1),
        "positions are counted, not read",
        "position[head / HEADS]",
        "head / HEADS",
        "",
    ),
    planted(
        ("token_logp", "update", 1),
        "no maximum is subtracted",
        "exp(logits[row + c] - largest)",
        "exp(logits[row + c])",
        "logp[",
    ),
    planted(
        ("token_logp", "update", 1),
        "the target counts twice",
        "select(e, 0.0, c == target_at)",
        "e",
        "logp[",
    ),
    planted(("gather_rows", "backward", 1), "lost accumulation", "dx[at] + sum", "sum", "d x"),
    planted(
        ("segment_mean", "forward", 1),
        "a sum for a mean",
        "total / f32(end - start)",
        "total",
        "segment mean[",
    ),
    planted(
        ("adamw", "update", 1),
        "no bias correction of the second moment",
        "sqrt(square) * hyper[5]",
        "sqrt(square)",
        "p[",
    ),
    planted(
        ("adamw", "update", 1),
        "decay that the learning rate scales twice",
        "hyper[7] * weight",
        "hyper[0] * hyper[7] * weight",
        "p[",
    ),
    planted(
        ("odds_ratio", "forward", 1),
        "no log(1 - p)",
        "ratio * (q_w / q_l)",
        "ratio",
        "odds-ratio loss[",
    ),
    planted(
        ("odds_ratio", "forward", 1),
        "a race: no barrier before the sums are read",
        "sums[lane] = sum;\n    workgroupBarrier();",
        "sums[lane] = sum;",
        "odds-ratio loss[",
    ),
    planted(
        ("matmul", "nt", 2),
        "the last part of a tile counts again",
        "select(0.0, x, k0 + of_a.y < d.k)",
        "x",
        "linear[",
    ),
    planted(
        ("matmul", "nn", 2),
        "an operand transposed",
        "tile_b[k * PITCH + local.x]",
        "tile_b[local.x * PITCH + k]",
        "d a[",
    ),
    planted(
        ("attention", "forward", 1),
        "scores that are not scaled",
        " / sqrt(f32(HEAD_DIM))",
        "",
        "d v[",
    ),
    planted(
        ("attention", "forward", 1),
        "a causal mask off by one",
        "j < s.w && !context",
        "j <= s.w && !context",
        "attended[",
    ),
    planted(
        ("adamw", "update", 1),
        "a step although the norm is not finite",
        "finite(clip[0]) && finite(clip[1])",
        "true",
        "p[",
    ),
    planted(
        ("grad_norm", "finish", 1),
        "a factor although the norm is not finite",
        "select(0.0, factor, finite(sums[0]))",
        "factor",
        "clip factor[1]",
    ),
    planted(
        ("silu_mul", "forward", 1),
        "a folded grid is ignored",
        "group.x + group.y * groups.x",
        "group.x",
        "folded",
    ),
    planted(
        ("silu_mul", "backward", 1),
        "a folded grid is ignored",
        "group.x + group.y * groups.x",
        "group.x",
        "folded",
    ),
    planted(
        ("softmax", "forward", 2),
        "a folded grid is ignored",
        "group.x + group.y * groups.x",
        "group.x",
        "folded",
    ),
];

#[test]
fn every_planted_mistake_is_refused_and_named() {
    let gpu = gpu();
    let mut passed = Vec::new();
    for Planted { kernel: (op, pass, number), idea, from, to, named } in &PLANTED {
        let case = cases().into_iter().find(|c| c.op == *op).unwrap();
        let pass = case.passes.iter().find(|p| p.name == *pass).unwrap();
        let ours = pass.variants.iter().find(|v| v.number() == *number).unwrap();
        let source = ours.source.replace(from, to);
        assert_ne!(source, ours.source, "{op} {idea}: nothing to replace");
        let wrong: &'static Variant = Box::leak(Box::new(Variant {
            source: source.leak(),
            needs: ours.needs,
            takes: ours.takes,
            ..*ours
        }));
        let replacement = Replacement { pass, variant: wrong, checks: Checks::On };
        let verdict = judge(&gpu, &case, &[replacement], 1, &mut |_| ()).unwrap().remove(0);
        match verdict.fault {
            None => passed.push(format!("{op}.{}: {idea}", pass.name)),
            Some(fault) => {
                let text = fault.to_string();
                eprintln!("{op}.{} ({idea}): {text}", pass.name);
                let named = if named.is_empty() { op } else { named };
                if !text.contains(named) {
                    passed.push(format!("{op}.{}: {idea}: not {named} but {text}", pass.name));
                }
            }
        }
    }
    assert!(passed.is_empty(), "the gate passes, or names otherwise, {passed:#?}");
}

/// Ours pass at any seed: what a kernel may leave where nothing should be is no fault.
#[test]
fn our_own_kernels_pass_the_gate_at_any_seed() {
    let gpu = gpu();
    for op in ["silu_mul", "gelu", "softmax", "adamw", "grad_norm"] {
        let case = cases().into_iter().find(|c| c.op == op).unwrap();
        for pass in case.passes {
            let ours = Replacement { pass, variant: &pass.variants[0], checks: Checks::On };
            for seed in 1..=3 {
                let verdict = judge(&gpu, &case, &[ours], seed, &mut |_| ()).unwrap().remove(0);
                assert_eq!(verdict.fault, None, "{op}.{} at seed {seed}", pass.name);
            }
        }
    }
}
