//! `rope`: rotary position embedding in the "half" layout of Hugging Face checkpoints.
//!
//! Of the first r elements of a head, mostly all, entry i pairs with entry i + r/2, and a token at
//! position p turns the pair by the angle a = p * theta^(-2i/r):
//!
//! ```text
//! y[i]       = x[i] cos a - x[i + r/2] sin a
//! y[i + r/2] = x[i + r/2] cos a + x[i] sin a
//! ```
//!
//! and y = x behind them. Backward: a rotation's transpose is the rotation by the negative angle, so
//! the same kernel turns dy back.
//!
//! Source: Su et al., RoFormer, arXiv:2104.09864.

use crate::graph::{DType, Graph, Sink, Var};
use crate::kernel::Pass;
use crate::ops::case::{Array, BenchFacts, OpCase, product};
use crate::ops::values::Domain;
use crate::variant;

/// Turns each head of `x` `[T, H * head_dim]` by the angles of its token's `position` `[T]` (u32).
///
/// `table` is `[max_position, r / 2, 2]`, cosine and sine, as [`rope_table`] makes it, for the first
/// r elements of a head; the others stay as they are. A position beyond the table is treated as its
/// last; whoever writes positions checks them first.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn rope(g: &mut Graph, x: Var, position: Var, table: Var, head_dim: usize) -> Var {
    let &[t, width] = g.shape(x) else {
        panic!("rope: x is [T, H * head_dim], not {:?}", g.shape(x))
    };
    assert!(
        head_dim > 0 && width.is_multiple_of(head_dim),
        "rope: x {:?} is no whole number of heads of {head_dim}",
        g.shape(x)
    );
    assert_eq!(g.shape(position), [t], "rope: position does not fit x {:?}", g.shape(x));
    assert_eq!(g.info(position).dtype, DType::U32, "rope: position holds u32");
    let &[positions, half, 2] = g.shape(table) else {
        panic!("rope: table is [max_position, r / 2, 2], not {:?}", g.shape(table))
    };
    assert!(
        half > 0 && 2 * half <= head_dim && positions > 0,
        "rope: head_dim {head_dim}, table {:?}",
        g.shape(table)
    );
    let heads = width / head_dim;
    let units = t * heads * (head_dim - half);
    let rotate = move |g: &mut Graph, x: Var, sign: f32, to: Sink| {
        let constants = [
            ("T", t.into()),
            ("HEADS", heads.into()),
            ("HEAD_DIM", head_dim.into()),
            ("HALF", half.into()),
            ("POSITIONS", positions.into()),
            ("SIGN", sign.into()),
            to.constant(),
        ];
        g.call(&ROTATE, &constants, &[x, position, table], &[to.var], [units, 1, 1]);
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

/// theta^(-2i/r) for each of the r/2 pairs, r = `rotary`.
pub fn rope_frequencies(rotary: usize, theta: f64) -> Vec<f64> {
    (0..rotary / 2).map(|i| theta.powf(-((2 * i) as f64) / rotary as f64)).collect()
}

/// Cosines and sines of every position by the `frequencies` of the pairs, times `factor`:
/// `[max_position, pairs, 2]`, computed in double precision (the angle of a far position has few
/// digits left in single).
pub fn rope_table(max_position: usize, frequencies: &[f64], factor: f64) -> Vec<f32> {
    let mut table = Vec::with_capacity(max_position * 2 * frequencies.len());
    for position in 0..max_position {
        for frequency in frequencies {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            table.extend([(factor * cosine) as f32, (factor * sine) as f32]);
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

/// Elements of a head that turn: all of them, or as many as a fourth number says.
fn rotary(s: &[usize]) -> usize {
    s.get(3).copied().unwrap_or(s[2])
}

/// As Hugging Face writes it: x * cos + rotate_half(x) * sin, with cosines and sines repeated.
fn reference(s: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let &[_, heads, dim, ..] = s else { panic!("shapes are [T, H, head_dim]") };
    let (x, position, table) = (inputs[0].f(), inputs[1].u(), inputs[2].f());
    let r = rotary(s);
    let half = r / 2;
    let mut y = Vec::with_capacity(x.len());
    for (token, row) in x.chunks(heads * dim).enumerate() {
        let angles = &table[position[token] as usize * r..][..r];
        for head in row.chunks(dim) {
            let mut rotated: Vec<f64> = head[half..r].iter().map(|v| -v).collect();
            rotated.extend(&head[..half]);
            y.extend((0..r).map(|k| {
                let (cosine, sine) = (angles[2 * (k % half)], angles[2 * (k % half) + 1]);
                head[k] * cosine + rotated[k] * sine
            }));
            y.extend(&head[r..]);
        }
    }
    vec![y]
}

/// Shapes are `[T, H, head_dim]`, perhaps with how many elements of a head turn.
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
            &[19, 3, 10, 4],
            &[33, 2, 7, 6],
        ],
        large: &[&[65_535 * 64 + 3, 1, 2]],
        inputs: |s, rng| {
            let frequencies = rope_frequencies(rotary(s), 10_000.0);
            let table = rope_table(POSITIONS, &frequencies, 1.0);
            let table = table.into_iter().map(f64::from).collect();
            let positions = (0..s[0]).map(|_| rng.u32(0..POSITIONS as u32)).collect();
            vec![
                Array::normal("x", &[s[0], s[1] * s[2]], rng),
                Array::index("position", &[s[0]], positions),
                Array::fixed("table", &[POSITIONS, rotary(s) / 2, 2], table),
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
        let table = rope_table(3, &rope_frequencies(4, 10_000.0), 1.0);
        let want = [
            [1.0, 0.0, 1.0, 0.0],
            [0.540_302_3, 0.841_471, 0.999_95, 0.009_999_833],
            [-0.416_146_84, 0.909_297_4, 0.999_8, 0.019_998_667],
        ];
        for (got, want) in table.iter().zip(want.as_flattened()) {
            assert!((got - want).abs() < 1e-7, "{got} instead of {want}");
        }
        // Far positions keep their digits: this is the cosine of 100,000 rad.
        let far = rope_table(100_001, &[1.0], 1.0);
        assert!((far[200_000] - -0.999_360_8).abs() < 1e-6, "{}", far[200_000]);
    }

    /// A position beyond the table reads its last row, never memory behind it.
    #[test]
    fn rope_keeps_positions_inside_the_table() {
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        let x = g.input("x", &[2, 2], DType::F32);
        let position = g.input("position", &[2], DType::U32);
        let table = g.constant("table", &[4, 1, 2], &rope_table(4, &[1.0], 1.0));
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
