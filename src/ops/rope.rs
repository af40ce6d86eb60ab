//! `rope`: rotary position embedding in the "half" layout of Hugging Face checkpoints.
//!
//! Entry i of a head of width d pairs with entry i + d/2, and a token at position p turns the pair
//! by the angle a = p * theta^(-2i/d):
//!
//! ```text
//! y[i]       = x[i] cos a - x[i + d/2] sin a
//! y[i + d/2] = x[i + d/2] cos a + x[i] sin a
//! ```
//!
//! Backward: a rotation's transpose is the rotation by the negative angle, so the same kernel
//! turns dy back.
//!
//! Source: Su et al., RoFormer, arXiv:2104.09864.

use crate::graph::{DType, Graph, Sink, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase, product};
use crate::ops::values::Domain;
use crate::variant;

/// Turns each head of `x` `[T, H * head_dim]` by the angles of its token's `position` `[T]` (u32).
///
/// `table` is `[max_position, head_dim / 2, 2]`, cosine and sine, as [`rope_table`] makes it. A
/// position beyond the table is treated as its last; whoever writes positions checks them first.
///
/// # Panics
/// When the shapes do not fit or `head_dim` is odd.
#[track_caller]
pub fn rope(g: &mut Graph, x: Var, position: Var, table: Var, head_dim: usize) -> Var {
    let &[t, width] = g.shape(x) else {
        panic!("rope: x is [T, H * head_dim], not {:?}", g.shape(x))
    };
    assert!(head_dim > 0 && head_dim.is_multiple_of(2), "rope: head_dim {head_dim} is not even");
    assert!(
        width.is_multiple_of(head_dim),
        "rope: x {:?} is no whole number of heads of {head_dim}",
        g.shape(x)
    );
    assert_eq!(g.shape(position), [t], "rope: position does not fit x {:?}", g.shape(x));
    assert_eq!(g.info(position).dtype, DType::U32, "rope: position holds u32");
    let &[positions, half, 2] = g.shape(table) else {
        panic!("rope: table is [max_position, head_dim / 2, 2], not {:?}", g.shape(table))
    };
    assert!(
        half == head_dim / 2 && positions > 0,
        "rope: head_dim {head_dim}, table {:?}",
        g.shape(table)
    );
    let rotate = move |g: &mut Graph, x: Var, sign: f32, to: Sink| {
        let constants = [
            ("T", t.into()),
            ("HEADS", (width / head_dim).into()),
            ("HALF", half.into()),
            ("POSITIONS", positions.into()),
            ("SIGN", sign.into()),
            to.constant(),
        ];
        g.call(&ROTATE, &constants, &[x, position, table], &[to.var], [t * width / 2, 1, 1]);
    };
    let y = g.temp("rope", &[t, width]);
    rotate(g, x, 1.0, Sink { var: y, accumulate: false });
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            rotate(g, dy, -1.0, dx);
        }
    };
    g.record("rope", &[x], y, backward);
    y
}

/// Cosines and sines of every position: `[max_position, head_dim / 2, 2]`, computed in double
/// precision (the angle of a far position has few digits left in single).
pub fn rope_table(max_position: usize, head_dim: usize, theta: f64) -> Vec<f32> {
    let half = head_dim / 2;
    let frequencies: Vec<f64> =
        (0..half).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64)).collect();
    let mut table = Vec::with_capacity(max_position * head_dim);
    for position in 0..max_position {
        for frequency in &frequencies {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            table.extend([cosine as f32, sine as f32]);
        }
    }
    table
}

static ROTATE: Pass = Pass {
    op: "rope",
    name: "rotate",
    variants: &[variant!("rope/rotate_1_naive.wgsl", tile: [64, 1, 1])],
};

static PASSES: &[&Pass] = &[&ROTATE];

/// Positions in the table of the case.
const POSITIONS: usize = 97;

/// As Hugging Face writes it: x * cos + rotate_half(x) * sin, with cosines and sines repeated.
fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let &[_, heads, dim] = s else { panic!("shapes are [T, H, head_dim]") };
    let (x, position, table) = (inputs[0].f(), inputs[1].u(), inputs[2].f());
    let half = dim / 2;
    let mut y = Vec::with_capacity(x.len());
    for (token, row) in x.chunks(heads * dim).enumerate() {
        let angles = &table[position[token] as usize * dim..][..dim];
        for head in row.chunks(dim) {
            let mut rotated: Vec<f64> = head[half..].iter().map(|v| -v).collect();
            rotated.extend(&head[..half]);
            y.extend((0..dim).map(|k| {
                let (cosine, sine) = (angles[2 * (k % half)], angles[2 * (k % half) + 1]);
                head[k] * cosine + rotated[k] * sine
            }));
        }
    }
    vec![y]
}

/// Shapes are `[T, H, head_dim]`.
pub fn case() -> OpCase {
    OpCase {
        op: "rope",
        passes: PASSES,
        shapes: &[
            &[1, 1, 2],
            &[17, 3, 10],
            &[5, 17, 6],
            &[8, 2, 32],
            &[63, 1, 2],
            &[65, 1, 2],
            &[31, 9, 64],
        ],
        large: &[&[65_535 * 64 + 3, 1, 2]],
        inputs: |s, rng| {
            let table = rope_table(POSITIONS, s[2], 10_000.0).into_iter().map(f64::from).collect();
            let positions = (0..s[0]).map(|_| rng.u32(0..POSITIONS as u32)).collect();
            vec![
                Array::normal("x", &[s[0], s[1] * s[2]], rng),
                Array::index("position", &[s[0]], positions),
                Array::fixed("table", &[POSITIONS, s[2] / 2, 2], table),
            ]
        },
        build: |g, s, v| vec![rope(g, v[0], v[1], v[2], s[2])],
        reference,
        tolerance: 1e-6,
        domain: Domain::LINEAR,
        differentiable: true,
        bench: BenchFacts {
            dims: &["T", "HEADS", "HEAD_DIM"],
            layers: |l| [l.heads, l.kv_heads].map(|h| vec![l.tokens, h, l.head_dim]).to_vec(),
            sets: &[("batched", &[&[8 * 1024, 9, 64]])],
            largest: |dims| product(dims).filter(|_| dims[2].is_multiple_of(2)),
            flops: |_, s, _| Some(3.0 * (s[0] * s[1] * s[2]) as f64),
            // Rows of the table are read once a token, and most of the table not at all.
            bytes: |_, s, _| Some((4 * s[0] * (2 * s[1] * s[2] + 1 + s[2])) as f64),
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::tests::{forward, gpu, gradient};
    use crate::program::{Program, Store};

    #[test]
    fn rope_forward() {
        forward(&case());
    }

    #[test]
    fn rope_gradient() {
        gradient(&case());
    }

    /// Angles written out by hand: theta 10,000, head_dim 4 has frequencies 1 and 0.01.
    #[test]
    fn rope_table_holds_cosines_and_sines() {
        let table = rope_table(3, 4, 10_000.0);
        let want = [
            [1.0, 0.0, 1.0, 0.0],
            [0.540_302_3, 0.841_471, 0.999_95, 0.009_999_833],
            [-0.416_146_84, 0.909_297_4, 0.999_8, 0.019_998_667],
        ];
        for (got, want) in table.iter().zip(want.as_flattened()) {
            assert!((got - want).abs() < 1e-7, "{got} instead of {want}");
        }
        // Far positions keep their digits: this is the cosine of 100,000 rad.
        let far = rope_table(100_001, 2, 10_000.0);
        assert!((far[200_000] - -0.999_360_8).abs() < 1e-6, "{}", far[200_000]);
    }

    /// A position beyond the table reads its last row, never memory behind it.
    #[test]
    fn rope_keeps_positions_inside_the_table() {
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        let x = g.input("x", &[2, 2], DType::F32);
        let position = g.input("position", &[2], DType::U32);
        let table = g.constant("table", &[4, 1, 2], &rope_table(4, 2, 10_000.0));
        let y = rope(&mut g, x, position, table, 2);
        g.output(y);
        let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
        program.write(x, &[1.0, 2.0, 1.0, 2.0]);
        program.write_u32(position, &[3, u32::MAX]);
        program.run();
        let y = program.read(y).unwrap();
        assert_eq!(y[..2], y[2..]);
    }
}
