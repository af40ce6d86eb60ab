//! `embedding`: `y[t, :] = table[ids[t], :]`, a row of the table for each token id.
//!
//! Backward: dtable`[v]` = sum of dy`[t]` over the t with ids`[t]` = v; only rows of ids that occur are touched. It
//! is [`super::gather_rows`] from a parameter and runs the same kernels.

use crate::graph::{DType, Graph, Var};
use crate::ops::case::{BenchFacts, OpCase};
use crate::ops::gather_index::GatherIndex;
use crate::ops::gather_rows;
use crate::ops::values::Domain;

/// y `[T, D]` = rows of `table` `[V, D]` named by `ids` `[T]` u32; `index` holds
/// [`build_index`](super::gather_index::build_index) of the same ids.
///
/// # Panics
/// When the table is no matrix, `ids` no vector, or the index is for another number of ids.
#[track_caller]
pub fn embedding(g: &mut Graph, table: Var, ids: Var, index: GatherIndex) -> Var {
    assert!(
        g.shape(table).len() == 2 && g.shape(ids).len() == 1,
        "embedding: table is [V, D] and ids [T], not {:?} and {:?}",
        g.shape(table),
        g.shape(ids)
    );
    gather_rows::gather_rows(g, table, ids, index)
}

/// How a frozen table is stored, by the fourth number of a shape.
const STORED: [DType; 4] = [DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0];

/// Shapes are `[V, T, D]`: rows of the table, ids, columns. A fourth number is how a frozen table
/// is stored: 0 as f16, 1 as bf16, 2 as q8_0, 3 as q4_0.
pub fn case() -> OpCase {
    OpCase {
        op: "embedding",
        passes: gather_rows::PASSES,
        shapes: &[
            &[1, 1, 1],
            &[257, 31, 17],
            &[31, 257, 16],
            &[512, 64, 64],
            &[31, 7, 17, 0],
            &[257, 31, 8, 1],
            &[31, 9, 32, 2],
            &[7, 31, 64, 3],
        ],
        large: &[],
        inputs: |s, rng| {
            let mut inputs = gather_rows::inputs(&s[..3], rng);
            if let Some(&at) = s.get(3) {
                inputs[0] = inputs[0].clone().frozen(STORED[at]);
            }
            inputs
        },
        build: |g, _, v| {
            vec![embedding(g, v[0], v[1], GatherIndex { unique: v[2], offsets: v[3], list: v[4] })]
        },
        reference: gather_rows::reference,
        tolerance: 1e-6,
        domain: Domain::LINEAR,
        differentiable: true,
        bench: BenchFacts {
            dims: &["V", "T", "D"],
            layers: |l| vec![vec![l.vocabulary, l.tokens, l.hidden]],
            ..gather_rows::bench()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::ops::gather_index::build_index;
    use crate::program::{Program, Store};

    #[test]
    fn embedding_forward() {
        forward(&case());
    }

    #[test]
    fn embedding_gradient() {
        gradient(&case());
    }

    #[test]
    fn embedding_gradient_of_a_parameter_accumulates_over_runs() {
        let gpu = gpu();
        let store = Store::new(&gpu);
        let mut g = Graph::new(gpu.target());
        let table = g.parameter("embedding", &[4, 2], crate::graph::Init::Zeros);
        let ids = g.input("ids", &[3], DType::U32);
        let index = GatherIndex::inputs(&mut g, "ids", 3, 3);
        let y = embedding(&mut g, table, ids, index);
        let dy = g.input("cotangent", &[3, 2], DType::F32);
        g.backward_from(&[(y, dy)]);
        let grad = g.output(g.grad(table).unwrap());
        let program = Program::new(&gpu, g, &store).unwrap();
        program.write(dy, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        for batch in [[3, 1, 3], [0, 0, 0]] {
            let arrays = build_index(&batch, 3);
            program.write_u32(ids, &batch);
            program.write_u32(index.unique, &arrays.unique);
            program.write_u32(index.offsets, &arrays.offsets);
            program.write_u32(index.list, &arrays.list);
            program.run();
        }
        assert_eq!(program.read(grad).unwrap(), [9.0, 12.0, 3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
    }
}
