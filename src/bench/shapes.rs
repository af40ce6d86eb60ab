//! The shapes an operation is timed at: sets by name, and numbers as a person writes them.

use crate::error::{Error, Problem, Result};
use crate::ops::case::{Decoder, OpCase};

/// A shape as a person writes it, with the set it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The numbers of [`BenchFacts::dims`](crate::ops::case::BenchFacts::dims).
    pub dims: Vec<usize>,
    /// The set, empty for a shape given as numbers.
    pub set: &'static str,
}

/// Decoders whose layers are sets: `models/nano` and SmolLM2-135M.
const DECODERS: [(&str, Decoder); 2] = [
    (
        "nano",
        Decoder {
            tokens: 1024,
            vocabulary: 2048,
            hidden: 128,
            inner: 352,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
        },
    ),
    (
        "smollm2",
        Decoder {
            tokens: 1024,
            vocabulary: 49152,
            hidden: 576,
            inner: 1536,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
        },
    ),
];

/// The meaning of an operation's shape, `M x N x K`.
pub fn legend(case: &OpCase) -> String {
    case.bench.dims.join(" x ")
}

/// The sets of an operation, each with its shapes.
pub fn sets(case: &OpCase) -> Vec<(&'static str, Vec<Vec<usize>>)> {
    let layers = DECODERS.iter().map(|(name, decoder)| (*name, (case.bench.layers)(decoder)));
    let more = case.bench.sets.iter();
    let more = more.map(|(name, shapes)| (*name, shapes.iter().map(|s| s.to_vec()).collect()));
    layers.chain(more).collect()
}

/// Shapes from a comma-separated list of set names and `512x512x512`.
///
/// # Errors
/// Names every entry that is neither, with what there is.
pub fn parse(case: &OpCase, text: &str) -> Result<Vec<Shape>> {
    let sets = sets(case);
    let mut shapes = Vec::new();
    let mut problems = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        if let Some((set, of_set)) = sets.iter().find(|(name, _)| *name == entry) {
            shapes.extend(of_set.iter().map(|dims| Shape { dims: dims.clone(), set }));
            continue;
        }
        let numbers: Option<Vec<usize>> = entry.split('x').map(|d| d.parse().ok()).collect();
        match numbers.filter(|dims| fits(case, dims)) {
            Some(dims) => shapes.push(Shape { dims, set: "" }),
            None => {
                let names: Vec<_> = sets.iter().map(|(name, _)| *name).collect();
                let what = format!(
                    "write {} in numbers that fit together, with no buffer above 1 GiB, or a set of {}: {}",
                    legend(case),
                    case.op,
                    names.join(", ")
                );
                problems.push(Problem::new(format!("--shapes {entry}"), what));
            }
        }
    }
    if shapes.is_empty() && problems.is_empty() {
        problems.push(Problem::new("--shapes", "the list is empty"));
    }
    if problems.is_empty() { Ok(shapes) } else { Err(Error::input("unknown shapes", problems)) }
}

/// Elements of the largest buffer a shape may ask for: 1 GiB.
const MOST: usize = 1 << 28;

/// True if an operation can be built at `dims`: what its own assertions would panic about.
fn fits(case: &OpCase, dims: &[usize]) -> bool {
    let names = case.bench.dims;
    let count = match names.split_last() {
        Some((&"…", before)) => dims.len() >= before.len(),
        _ => dims.len() == names.len(),
    };
    count && (case.bench.largest)(dims).is_some_and(|n| n <= MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cases;

    fn case(op: &str) -> OpCase {
        cases().into_iter().find(|c| c.op == op).unwrap()
    }

    #[test]
    fn shapes_of_every_set_fit_their_operation() {
        for case in cases() {
            for (set, shapes) in sets(&case) {
                assert!(!shapes.is_empty(), "{} {set}", case.op);
                for dims in shapes {
                    assert!(fits(&case, &dims), "{} {set} {dims:?}", case.op);
                }
            }
        }
    }

    #[test]
    fn shapes_are_parsed_or_named_with_what_to_write() {
        let product = case("matmul");
        let shapes = parse(&product, "7x5x3, nano").unwrap();
        assert_eq!(shapes[0], Shape { dims: vec![7, 5, 3], set: "" });
        assert_eq!(shapes.len(), 6);
        for bad in ["7x5", "0x1x1", "7x5x3x", "huge", "", "99999999999x1x1", "600000x1x1"] {
            assert!(parse(&product, bad).is_err(), "{bad}");
        }
        let text = parse(&case("add"), "skinny").unwrap_err().to_string();
        assert!(text.contains("nano, smollm2, square"), "{text}");
    }

    /// What the assertions of operations would panic about is refused, and what they take is not.
    #[test]
    fn shapes_refuse_what_an_operation_cannot_be_built_at() {
        let bad = [
            ("embedding", "200000000x1x4000"),
            ("attention", "64x3x2x32x1"),
            ("attention", "0x2x2x32x1"),
            ("attention", "64x2x2x32x9"),
            ("rope", "8x2x33"),
            ("token_logp", "1x600000x1"),
            ("add", "8x8"),
            ("grad_norm", "7x0"),
        ];
        for (op, text) in bad {
            assert!(parse(&case(op), text).is_err(), "{op} {text}");
        }
        for (op, text) in [("attention", "64x4x2x32x0"), ("grad_norm", "7"), ("grad_norm", "7x9x1")]
        {
            assert!(parse(&case(op), text).is_ok(), "{op} {text}");
        }
    }
}
