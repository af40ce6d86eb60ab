//! Named sets of shapes, and what the numbers of a shape mean.

use crate::error::{Error, Problem, Result};

/// A shape as a person writes it, with the set it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The numbers of [`legend`].
    pub dims: Vec<usize>,
    /// The set, empty for a shape given as numbers.
    pub set: &'static str,
}

/// Names of the sets.
pub const SETS: &[&str] = &["nano", "smollm2", "square", "large", "skinny", "batched"];

/// Tokens of a stream in the sets of model layers.
const T: usize = 1024;

/// The meaning of an operation's shape, `M x N x K`.
pub fn legend(op: &str) -> &'static str {
    match op {
        "matmul" => "M x N x K",
        "softmax" => "ROWS x COLUMNS",
        "rms_norm" | "layer_norm" => "T x D",
        "attention" => "T x HEADS x KV_HEADS x HEAD_DIM x LAYOUT (0 causal documents, 1 pairs)",
        "embedding" => "V x T x D",
        "gather_rows" => "ROWS x GATHERED x D",
        "rope" => "T x HEADS x HEAD_DIM",
        "token_logp" => "N x V x D",
        "segment_mean" => "N x SEGMENTS",
        "odds_ratio" | "bradley_terry" => "PAIRS",
        "grad_norm" => "N of each gradient",
        _ => "N",
    }
}

/// Sizes of a decoder that shapes are made of.
struct Layers {
    vocabulary: usize,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
}

/// `models/nano`.
const NANO: Layers =
    Layers { vocabulary: 2048, hidden: 128, inner: 352, heads: 4, kv_heads: 2, head: 32 };

/// SmolLM2-135M.
const SMOLLM2: Layers =
    Layers { vocabulary: 49152, hidden: 576, inner: 1536, heads: 9, kv_heads: 3, head: 64 };

/// Vocabulary rows that one product of the head covers.
const CHUNK: usize = 4096;

fn layers(op: &str, l: &Layers) -> Vec<Vec<usize>> {
    let (d, f) = (l.hidden, l.inner);
    match op {
        "matmul" => vec![
            vec![T, l.heads * l.head, d],
            vec![T, l.kv_heads * l.head, d],
            vec![T, f, d],
            vec![T, d, f],
            vec![T, l.vocabulary.min(CHUNK), d],
        ],
        "attention" => vec![vec![T, l.heads, l.kv_heads, l.head, 1]],
        "rope" => vec![vec![T, l.heads, l.head], vec![T, l.kv_heads, l.head]],
        "rms_norm" | "layer_norm" => vec![vec![T, d]],
        "embedding" => vec![vec![l.vocabulary, T, d]],
        "gather_rows" => vec![vec![T, T / 2, d]],
        "token_logp" => vec![vec![T / 4, l.vocabulary, d]],
        "softmax" => vec![vec![T, T]],
        "silu_mul" | "gelu" | "relu" => vec![vec![T * f]],
        "add" | "scale" => vec![vec![T * d]],
        "adamw" => vec![vec![f * d], vec![l.vocabulary * d]],
        "grad_norm" => vec![vec![d * d, f * d, f * d, f * d, l.vocabulary * d]],
        "segment_mean" => vec![vec![T, 64]],
        "nll" => vec![vec![T]],
        "odds_ratio" | "bradley_terry" => vec![vec![T / 32]],
        _ => Vec::new(),
    }
}

/// The shapes of a named set, empty where the set makes no sense for the operation.
fn named(op: &str, set: &str) -> Vec<Vec<usize>> {
    let elementwise = legend(op) == "N" && op != "nll";
    match (set, op) {
        ("nano", _) => layers(op, &NANO),
        ("smollm2", _) => layers(op, &SMOLLM2),
        ("square", "matmul") => [256, 512, 1024].map(|n| vec![n; 3]).to_vec(),
        // For hardware: a naive product of this size takes a software adapter minutes.
        ("large", "matmul") => [2048, 4096].map(|n| vec![n; 3]).to_vec(),
        ("square", "softmax" | "rms_norm" | "layer_norm") => {
            [256, 512, 1024, 2048].map(|n| vec![n; 2]).to_vec()
        }
        ("square", _) if elementwise => [256, 512, 1024, 2048].map(|n| vec![n * n]).to_vec(),
        ("skinny", "matmul") => vec![
            vec![1, 1536, 576],
            vec![8, 576, 1536],
            vec![4096, 16, 576],
            vec![64, 64, 16384],
            vec![2048, 2048, 16],
        ],
        ("skinny", "softmax" | "rms_norm" | "layer_norm") => {
            vec![vec![4, 49152], vec![65536, 16], vec![1, 65536]]
        }
        ("skinny", "attention") => vec![vec![4096, 1, 1, 64, 1]],
        ("batched", "matmul") => vec![vec![8 * T, 128, 128], vec![8 * T, 576, 576]],
        ("batched", "softmax" | "rms_norm" | "layer_norm") => vec![vec![16 * T, 64]],
        ("batched", "attention") => vec![vec![T, 32, 8, 32, 0], vec![T, 32, 8, 64, 0]],
        ("batched", "rope") => vec![vec![8 * T, 9, 64]],
        _ => Vec::new(),
    }
}

/// Shapes from a comma-separated list of set names and `512x512x512`.
///
/// # Errors
/// Names every entry that is neither, with what there is.
pub fn parse(op: &str, text: &str) -> Result<Vec<Shape>> {
    let mut shapes = Vec::new();
    let mut problems = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let known = SETS.iter().find(|s| **s == entry);
        let numbers: Option<Vec<usize>> = entry
            .split('x')
            .map(|d| d.parse().ok().filter(|&d| d > 0 || op == "attention"))
            .collect();
        match (known, numbers) {
            (Some(set), _) if named(op, set).is_empty() => {
                let there: Vec<_> =
                    SETS.iter().copied().filter(|s| !named(op, s).is_empty()).collect();
                problems.push(Problem::new(
                    format!("--shapes {entry}"),
                    format!("{op} has no such set; it has {}", there.join(", ")),
                ));
            }
            (Some(set), _) => {
                shapes.extend(named(op, set).into_iter().map(|dims| Shape { dims, set }));
            }
            (None, Some(dims)) if fits(op, &dims) => shapes.push(Shape { dims, set: "" }),
            (None, _) => problems.push(Problem::new(
                format!("--shapes {entry}"),
                format!(
                    "write {} in numbers above zero, or one of {}",
                    legend(op),
                    SETS.join(", ")
                ),
            )),
        }
    }
    if shapes.is_empty() && problems.is_empty() {
        problems.push(Problem::new("--shapes", "the list is empty"));
    }
    if problems.is_empty() { Ok(shapes) } else { Err(Error::input("unknown shapes", problems)) }
}

/// Elements of the largest buffer a shape may ask for: 1 GiB.
const MOST: usize = 1 << 28;
/// Rows of a product: a grid of 65,535 workgroups of variant 1, which covers 8 rows each.
const MOST_ROWS: usize = 65_535 * 8;

/// True if an operation can be built at `dims`: what its own assertions would panic about.
fn fits(op: &str, dims: &[usize]) -> bool {
    if dims.iter().any(|&d| d > MOST) {
        return false;
    }
    let product = |dims: &[usize]| dims.iter().fold(1usize, |n, &d| n.saturating_mul(d));
    // Buffers of these have all dimensions, those of products two of three.
    let size = match (op, dims) {
        ("attention", &[t, h, _, d, _]) => product(&[t, h, d]),
        ("rope", dims) => product(dims),
        (_, &[a, b, c]) => product(&[a, b]).max(product(&[a, c])).max(product(&[b, c])),
        (_, dims) if op != "grad_norm" => product(dims),
        _ => 1,
    };
    if size > MOST {
        return false;
    }
    match (op, dims) {
        ("grad_norm", _) => dims.len() <= 64,
        ("attention", &[t, h, hkv, d, layout]) => {
            t > 0
                && hkv > 0
                && h > 0
                && h <= 65_535
                && h % hkv == 0
                && (1..=128).contains(&d)
                && layout < 5
        }
        ("attention", _) => false,
        ("rope", &[_, _, d]) => d % 2 == 0,
        ("matmul" | "token_logp", &[_, _, _]) => dims.iter().all(|&d| d <= MOST_ROWS),
        _ => dims.len() == legend(op).split(" x ").count(),
    }
}

/// The case's own shape at which `pass` does the work that `dims` names. For matmul every pass is
/// asked for by the size of its own product, rows x columns x terms.
pub fn of_case(op: &str, pass: &str, dims: &[usize]) -> Vec<usize> {
    let (&[m, n, k], "matmul") = (dims, op) else { return dims.to_vec() };
    match pass {
        "nt" => vec![0, m, n, k],
        "bias_backward" => vec![1, m, n, k],
        "nn" => vec![2, m, n, k],
        // The gradient of b in a[K, M] b[M, N]: out[M, N] is a sum over the K rows.
        _ => vec![2, k, n, m],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_every_set_fit_their_operation() {
        for case in crate::ops::cases() {
            let mut sets = 0;
            for set in SETS {
                for dims in named(case.op, set) {
                    assert!(fits(case.op, &dims), "{} {set} {dims:?}", case.op);
                    sets += 1;
                }
            }
            assert!(sets >= 2, "{} has shapes of nano and smollm2", case.op);
        }
    }

    #[test]
    fn shapes_are_parsed_or_named_with_what_to_write() {
        let shapes = parse("matmul", "7x5x3, nano").unwrap();
        assert_eq!(shapes[0], Shape { dims: vec![7, 5, 3], set: "" });
        assert_eq!(shapes.len(), 6);
        for bad in ["7x5", "0x1x1", "7x5x3x", "huge", "", "99999999999x1x1", "600000x1x1"] {
            assert!(parse("matmul", bad).is_err(), "{bad}");
        }
        assert!(parse("embedding", "200000000x1x4000").is_err());
        assert!(parse("attention", "64x3x2x32x1").is_err());
        let text = parse("add", "skinny").unwrap_err().to_string();
        assert!(text.contains("nano, smollm2, square"), "{text}");
    }
}
