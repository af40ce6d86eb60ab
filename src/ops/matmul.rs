//! `matmul`: matrix products, and the linear layer y = x Wᵀ + b made of them.
//!
//! y = x Wᵀ + b with x `[M, K]`, W `[N, K]` (rows are outputs, as PyTorch's
//! `nn.Linear` stores them) and b `[N]`.
//! Backward: dx = dy W, dW = dyᵀ x, db`[n]` = sum over m of dy`[m, n]`.
//!
//! The three ways to multiply that these need are three passes: `nt` (forward), `nn` (dX) and
//! `tn` (dW); `bias_backward` sums columns. `shaders/matmul/README.md` has the ladder of variants
//! with what each one reached.

use crate::graph::{DType, Graph, Sink, Var};
use crate::kernel::Const::{Bool, U32};
use crate::kernel::{Const, Cooperative, HARDWARE, Needs, Pass, SOFTWARE, Takes, Tile, Variant};
use crate::ops::case::{Array, BenchFacts, Decoder, OpCase, largest_of_pairs};
use crate::ops::values::Domain;
use crate::variant;

/// Which operand of a product is stored transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// a `[M, K]`, b `[N, K]`: out = a bᵀ, the forward of a linear layer.
    Nt,
    /// a `[M, K]`, b `[K, N]`: out = a b, the gradient of a linear layer's input.
    Nn,
    /// a `[K, M]`, b `[K, N]`: out = aᵀ b, the gradient of a linear layer's weight.
    Tn,
}

/// One matrix product, out`[M, N]` (+)= op(a) op(b) (+ bias`[N]`).
///
/// b may be a window of rows of a taller variable, and so may out; nothing outside the windows is
/// read or written. The vocabulary of a language model is walked in chunks that way.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Which operand is transposed.
    pub form: Form,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// First row of b that is used.
    pub b_start: usize,
    /// First row of out that is written.
    pub out_start: usize,
}

/// Appends one product and nothing to the tape.
///
/// # Panics
/// When a shape does not fit.
#[track_caller]
pub fn product(g: &mut Graph, p: Product, a: Var, b: Var, bias: Option<Var>, out: Sink) {
    let Product { form, m, n, k, b_start, out_start } = p;
    let (a_shape, b_rows, b_columns) = match form {
        Form::Nt => ([m, k], n, k),
        Form::Nn => ([m, k], k, n),
        Form::Tn => ([k, m], k, n),
    };
    assert_eq!(g.shape(a), a_shape, "matmul: a does not fit {p:?}");
    let tall = |shape: &[usize], last: usize, columns: usize| {
        shape.len() == 2 && shape[0] >= last && shape[1] == columns
    };
    assert!(
        tall(g.shape(b), b_start + b_rows, b_columns),
        "matmul: b of shape {:?} does not hold {p:?}",
        g.shape(b)
    );
    assert!(
        tall(g.shape(out.var), out_start + m, n),
        "matmul: out of shape {:?} does not hold {p:?}",
        g.shape(out.var)
    );
    if let Some(bias) = bias {
        assert_eq!(g.shape(bias), [n], "matmul: bias does not fit {p:?}");
    }
    let dims = dims(g, p, b);
    let constants = [out.constant(), ("BIAS", bias.is_some().into())];
    // Bindings are fixed per pass, so without a bias dims stands in and is not read as one.
    let reads = [a, b, dims, bias.unwrap_or(dims)];
    let pass = match form {
        Form::Nt => &NT,
        Form::Nn => &NN,
        Form::Tn => &TN,
    };
    g.call(pass, &constants, &reads, &[out.var], [n, m, 1]);
}

/// The sizes as a buffer and not as constants of the shader: a model has dozens of different
/// products and a vocabulary in chunks has more, and each set of constants would be a compilation.
fn dims(g: &mut Graph, p: Product, b: Var) -> Var {
    let dims = [p.m, p.n, p.k, p.b_start, p.out_start, g.shape(b)[0]];
    let dims = dims.map(|d| u32::try_from(d).expect("a dimension fits 32 bits"));
    g.constant_u32("dims", &[dims.len()], &dims)
}

impl Product {
    /// A product of whole matrices.
    pub fn whole(form: Form, m: usize, n: usize, k: usize) -> Self {
        Self { form, m, n, k, b_start: 0, out_start: 0 }
    }
}

/// y`[M, N]` = x`[M, K]` · weight`[N, K]`ᵀ + bias`[N]`.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn linear(g: &mut Graph, x: Var, weight: Var, bias: Option<Var>) -> Var {
    let ([m, k], [n, inner]) = (matrix(g, "linear", x), matrix(g, "linear", weight));
    assert_eq!(k, inner, "linear: x {:?} against weight {:?}", g.shape(x), g.shape(weight));
    let y = g.temp("linear", &[m, n]);
    product(
        g,
        Product::whole(Form::Nt, m, n, k),
        x,
        weight,
        bias,
        Sink { var: y, accumulate: false },
    );
    let backward = move |g: &mut Graph, dy: Var| {
        if let Some(dx) = g.grad_into(x) {
            product(g, Product::whole(Form::Nn, m, k, n), dy, weight, None, dx);
        }
        if let Some(dw) = g.grad_into(weight) {
            product(g, Product::whole(Form::Tn, n, k, m), dy, x, None, dw);
        }
        bias_gradient(g, bias, dy);
    };
    let inputs: Vec<Var> = [x, weight].into_iter().chain(bias).collect();
    g.record("linear", &inputs, y, backward);
    y
}

/// The gradient of a bias `[N]` that was added to the rows of y, if one is wanted: the sums of dy's
/// columns.
pub(super) fn bias_gradient(g: &mut Graph, bias: Option<Var>, dy: Var) {
    let Some(db) = bias.and_then(|b| g.grad_into(b)) else { return };
    let &[m, n] = g.shape(dy) else { panic!("dy is a matrix") };
    let constants = [("M", m.into()), ("N", n.into()), db.constant()];
    g.call(&BIAS_BACKWARD, &constants, &[dy], &[db.var], [n, 1, 1]);
}

/// out`[M, N]` = a`[M, K]` · b`[K, N]`. Models here use [`linear`]; this is for graphs of your own.
///
/// Backward: dA = dC Bᵀ, dB = Aᵀ dC.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn matmul(g: &mut Graph, a: Var, b: Var) -> Var {
    let ([m, k], [inner, n]) = (matrix(g, "matmul", a), matrix(g, "matmul", b));
    assert_eq!(k, inner, "matmul: a {:?} against b {:?}", g.shape(a), g.shape(b));
    let c = g.temp("product", &[m, n]);
    product(g, Product::whole(Form::Nn, m, n, k), a, b, None, Sink { var: c, accumulate: false });
    let backward = move |g: &mut Graph, dc: Var| {
        if let Some(da) = g.grad_into(a) {
            product(g, Product::whole(Form::Nt, m, k, n), dc, b, None, da);
        }
        if let Some(db) = g.grad_into(b) {
            product(g, Product::whole(Form::Tn, k, n, m), a, dc, None, db);
        }
    };
    g.record("matmul", &[a, b], c, backward);
    c
}

#[track_caller]
pub(super) fn matrix(g: &Graph, op: &str, var: Var) -> [usize; 2] {
    let shape = g.shape(var);
    assert_eq!(
        shape.len(),
        2,
        "{op}: {} has shape {shape:?} and must be a matrix",
        g.info(var).name
    );
    [shape[0], shape[1]]
}

const SUBGROUPS: Needs = Needs { subgroups: true, ..Needs::NONE };
const EIGHT_LANES: Needs = Needs { lanes: 8, ..SUBGROUPS };
const F16: Needs = Needs { f16: true, ..Needs::NONE };
const COOPERATIVE: Needs =
    Needs { cooperative: Some(Cooperative { size: 8, half: true }), subgroups: true, ..F16 };

/// Error of a sum of products of factors that were rounded to 16 bits (half a step is 2^-11), as a
/// part of the largest.
const HALF: f64 = 2e-3;

/// Rows x columns of out per workgroup and per invocation, terms per step, and how a is stored in a
/// file that serves two forms.
macro_rules! tile {
    ($m:literal x $n:literal, $per_m:literal x $per_n:literal, $step:literal $(, $a:literal)?) => {
        Tile {
            name: concat!($m, "x", $n),
            outputs: [$n, $m, 1],
            constants: &[
                ("TILE_M", U32($m)),
                ("TILE_N", U32($n)),
                ("PER_M", U32($per_m)),
                ("PER_N", U32($per_n)),
                ("STEP", U32($step)),
                $(("A_TRANSPOSED", Bool($a)),)?
            ],
        }
    };
}

/// The tiles of variant 11. Steps of 16 terms would take 16,896 bytes of workgroup memory at
/// 128 x 128, more than every adapter has.
macro_rules! tiles {
    ($($a:literal)?) => {
        [
            tile!(64 x 64, 8 x 4, 16 $(, $a)?),
            tile!(128 x 64, 8 x 8, 16 $(, $a)?),
            tile!(128 x 128, 8 x 8, 8 $(, $a)?),
            tile!(64 x 32, 8 x 4, 16 $(, $a)?),
            tile!(32 x 32, 4 x 4, 16 $(, $a)?),
        ]
    };
}

/// Rows of b and of out are walked in vectors of four; in `nt` b's rows are those of k.
const QUADS: Takes = Takes { quads: &[1, 4], ..Takes::WORDS };
/// As above, rows of a too, and rows of out that fill most of eight lanes.
const ALL_QUADS: Takes = Takes { quads: &[0, 1, 4], long: Some((4, 33)), ..Takes::WORDS };
/// One or two rows of a.
const NT_FEW: Takes = Takes { quads: &[1], few: Some((0, 2)), ..Takes::WORDS };

/// Kernels that decode b.
const NT_12: Variant = variant!("matmul/nt_12_packed_naive.wgsl", tile: [8, 8, 1]);
const NT_13: Variant =
    variant!("matmul/nt_13_packed_tile.wgsl", tile: [64, 64, 1], default_on: HARDWARE)
        .taking(QUADS);
const NT_14: Variant = variant!("matmul/nt_14_packed_subgroup.wgsl", tile: [32, 32, 1], default_on: SOFTWARE, needs: SUBGROUPS).taking(QUADS);
const NN_12: Variant = variant!("matmul/nn_12_packed_naive.wgsl", tile: [8, 8, 1]);
const NN_13: Variant =
    variant!("matmul/nn_13_packed_tile.wgsl", tile: [64, 64, 1], default_on: HARDWARE)
        .taking(QUADS);
const NN_14: Variant = variant!("matmul/nn_14_packed_subgroup.wgsl", tile: [64, 16, 1], default_on: SOFTWARE, needs: SUBGROUPS).taking(QUADS);

const NT_16: Variant = variant!("matmul/nt_16_eight_lanes.wgsl", tile: [64, 32, 1], default_on: SOFTWARE, needs: EIGHT_LANES).taking(ALL_QUADS);
const NN_TN_16: Variant = variant!("matmul/nn_tn_16_eight_lanes.wgsl", tile: [64, 32, 1], default_on: SOFTWARE, needs: EIGHT_LANES).taking(ALL_QUADS);
const NT_17: Variant = variant!("matmul/nt_17_packed_eight_lanes.wgsl", tile: [64, 32, 1], default_on: SOFTWARE, needs: EIGHT_LANES).taking(ALL_QUADS);
const NN_17: Variant = variant!("matmul/nn_17_packed_eight_lanes.wgsl", tile: [64, 32, 1], default_on: SOFTWARE, needs: EIGHT_LANES).taking(ALL_QUADS);

const NT_15: Variant =
    variant!("matmul/nt_15_few_rows.wgsl", tile: [8, 1, 1], default_on: &[]).taking(NT_FEW);

/// Invocations that walk along k together, and outputs they share.
const LANES: [Tile; 2] = [
    Tile { name: "8", outputs: [8, 1, 1], constants: &[("LANES", U32(8)), ("COLUMNS", U32(8))] },
    Tile { name: "32", outputs: [4, 1, 1], constants: &[("LANES", U32(32)), ("COLUMNS", U32(4))] },
];

const NT_11: Variant =
    variant!("matmul/nt_11_tile_table.wgsl", tile: [64, 64, 1], default_on: &[]).taking(QUADS);
const NN_TN_11: Variant =
    variant!("matmul/nn_tn_11_tile_table.wgsl", tile: [64, 64, 1], default_on: &[]).taking(QUADS);

/// Which factor a form stores transposed, for the files that serve all three.
type Transposed = &'static [(&'static str, Const)];
const NT_FORM: Transposed = &[("A_TRANSPOSED", Bool(false)), ("B_TRANSPOSED", Bool(true))];
const NN_FORM: Transposed = &[("A_TRANSPOSED", Bool(false)), ("B_TRANSPOSED", Bool(false))];
const TN_FORM: Transposed = &[("A_TRANSPOSED", Bool(true)), ("B_TRANSPOSED", Bool(false))];

/// The table of a form: the kernels that serve all three, then others.
macro_rules! table {
    ($form:ident; $($other:expr,)*) => {
        &[
            variant!("matmul/product_1_naive.wgsl", tile: [8, 8, 1]).with($form),
            variant!("matmul/product_2_workgroup_tile.wgsl", tile: [16, 16, 1], default_on: HARDWARE).with($form),
            variant!("matmul/product_3_register_tile.wgsl", tile: [64, 64, 1], default_on: HARDWARE).with($form),
            variant!("matmul/product_4_invocation_tile.wgsl", tile: [64, 8, 1], default_on: SOFTWARE).with($form),
            variant!("matmul/product_5_subgroup_tile.wgsl", tile: [64, 16, 1], default_on: SOFTWARE, needs: SUBGROUPS).with($form),
            variant!("matmul/product_8_split_k.wgsl", tile: [16, 16, 1], default_on: &[]).with($form),
            variant!("matmul/product_10_cooperative.wgsl", tile: [32, 32, 1], default_on: &[], needs: COOPERATIVE, tolerance: HALF).with($form),
            $($other,)*
        ]
    };
}

/// The table of `nn` and `tn`, which share more files.
macro_rules! nn_tn_table {
    ($form:ident, $a:literal; $($other:expr,)*) => {
        table![
            $form;
            variant!("matmul/nn_tn_6_subgroup_vec4.wgsl", tile: [64, 16, 1], default_on: SOFTWARE, needs: SUBGROUPS).taking(QUADS).with(&[("A_TRANSPOSED", Bool($a))]),
            variant!("matmul/nn_tn_7_vec4_tile.wgsl", tile: [64, 64, 1], default_on: HARDWARE).taking(QUADS).with(&[("A_TRANSPOSED", Bool($a))]),
            variant!("matmul/nn_tn_9_half_tile.wgsl", tile: [64, 64, 1], default_on: &[], needs: F16, tolerance: HALF).taking(QUADS).with(&[("A_TRANSPOSED", Bool($a))]),
            NN_TN_11.tiled(&tiles!($a)[0]),
            NN_TN_11.tiled(&tiles!($a)[1]),
            NN_TN_11.tiled(&tiles!($a)[2]),
            NN_TN_11.tiled(&tiles!($a)[3]),
            NN_TN_11.tiled(&tiles!($a)[4]),
            NN_TN_16.with(&[("A_TRANSPOSED", Bool($a))]),
            $($other,)*
        ]
    };
}

static NT: Pass = Pass {
    op: "matmul",
    name: "nt",
    variants: table![
        NT_FORM;
        variant!("matmul/nt_6_subgroup_vec4.wgsl", tile: [32, 32, 1], default_on: SOFTWARE, needs: SUBGROUPS).taking(QUADS),
        variant!("matmul/nt_7_vec4_tile.wgsl", tile: [64, 64, 1], default_on: HARDWARE).taking(QUADS),
        variant!("matmul/nt_9_half_tile.wgsl", tile: [64, 64, 1], default_on: &[], needs: F16, tolerance: HALF).taking(QUADS),
        NT_11.tiled(&tiles!()[0]),
        NT_11.tiled(&tiles!()[1]),
        NT_11.tiled(&tiles!()[2]),
        NT_11.tiled(&tiles!()[3]),
        NT_11.tiled(&tiles!()[4]),
        NT_12.decoding(&[(1, DType::F16)]),
        NT_12.decoding(&[(1, DType::BF16)]),
        NT_12.decoding(&[(1, DType::Q8_0)]),
        NT_12.decoding(&[(1, DType::Q4_0)]),
        NT_13.decoding(&[(1, DType::F16)]),
        NT_13.decoding(&[(1, DType::BF16)]),
        NT_13.decoding(&[(1, DType::Q8_0)]),
        NT_13.decoding(&[(1, DType::Q4_0)]),
        NT_14.decoding(&[(1, DType::F16)]),
        NT_14.decoding(&[(1, DType::BF16)]),
        NT_14.decoding(&[(1, DType::Q8_0)]),
        NT_14.decoding(&[(1, DType::Q4_0)]),
        NT_16,
        NT_17.decoding(&[(1, DType::F16)]),
        NT_17.decoding(&[(1, DType::BF16)]),
        NT_17.decoding(&[(1, DType::Q8_0)]),
        NT_17.decoding(&[(1, DType::Q4_0)]),
        Variant { default_on: SOFTWARE, ..NT_15.tiled(&LANES[0]) },
        Variant { default_on: HARDWARE, ..NT_15.tiled(&LANES[1]) },
    ],
};

static NN: Pass = Pass {
    op: "matmul",
    name: "nn",
    variants: nn_tn_table![
        NN_FORM, false;
        NN_12.decoding(&[(1, DType::F16)]),
        NN_12.decoding(&[(1, DType::BF16)]),
        NN_12.decoding(&[(1, DType::Q8_0)]),
        NN_12.decoding(&[(1, DType::Q4_0)]),
        NN_13.decoding(&[(1, DType::F16)]),
        NN_13.decoding(&[(1, DType::BF16)]),
        NN_13.decoding(&[(1, DType::Q8_0)]),
        NN_13.decoding(&[(1, DType::Q4_0)]),
        NN_14.decoding(&[(1, DType::F16)]),
        NN_14.decoding(&[(1, DType::BF16)]),
        NN_14.decoding(&[(1, DType::Q8_0)]),
        NN_14.decoding(&[(1, DType::Q4_0)]),
        NN_17.decoding(&[(1, DType::F16)]),
        NN_17.decoding(&[(1, DType::BF16)]),
        NN_17.decoding(&[(1, DType::Q8_0)]),
        NN_17.decoding(&[(1, DType::Q4_0)]),
    ],
};

static TN: Pass = Pass { op: "matmul", name: "tn", variants: nn_tn_table![TN_FORM, true;] };

static BIAS_BACKWARD: Pass = Pass {
    op: "matmul",
    name: "bias_backward",
    variants: &[
        variant!("matmul/bias_backward_1_naive.wgsl", tile: [64, 1, 1]),
        variant!("matmul/bias_backward_2_workgroup.wgsl", tile: [16, 1, 1], default_on: HARDWARE),
    ],
};

static PASSES: &[&Pass] = &[&NT, &NN, &TN, &BIAS_BACKWARD];

/// Functions the case builds, the first number of its shapes.
const LINEAR: usize = 0;
const LINEAR_BIAS: usize = 1;
const MATMUL: usize = 2;
/// Frozen weights; the second has a bias.
const LINEAR_F16: usize = 3;
const LINEAR_BF16: usize = 4;
const LINEAR_Q8_0: usize = 5;
const LINEAR_Q4_0: usize = 6;

/// How the weight of a function is stored, if it is frozen.
fn frozen(function: usize) -> Option<DType> {
    [DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0]
        .get(function.checked_sub(LINEAR_F16)?)
        .copied()
}

/// out`[m, n]` = sum over k of a(m, k) b(n, k), in f64.
fn multiply(
    [m, n, k]: [usize; 3],
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            out.push((0..k).map(|l| a(i, l) * b(j, l)).sum());
        }
    }
    out
}

fn reference(shape: &[usize], inputs: &[Array]) -> Vec<Vec<f64>> {
    let (m, n, k) = (shape[1], shape[2], shape[3]);
    let (a, b) = (inputs[0].f(), inputs[1].f());
    if shape[0] == MATMUL {
        return vec![multiply([m, n, k], |i, l| a[i * k + l], |j, l| b[l * n + j])];
    }
    let mut y = multiply([m, n, k], |i, l| a[i * k + l], |j, l| b[j * k + l]);
    if let Some(bias) = inputs.get(2) {
        add_to_rows(&mut y, bias.f());
    }
    vec![y]
}

/// Adds a bias`[n]` to every row.
fn add_to_rows(y: &mut [f64], bias: &[f64]) {
    for row in y.chunks_exact_mut(bias.len()) {
        for (y, b) in row.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

/// Rows of a product: a grid of 65,535 workgroups of variant 1, which covers 8 rows each.
pub(super) const MOST_ROWS: usize = 65_535 * 8;

/// Vocabulary rows that one product of the head covers.
const CHUNK: usize = 4096;

/// Products of a decoder's layers: queries, keys or values, into and out of the feed-forward block,
/// a part of the head.
fn linear_layers(l: &Decoder) -> Vec<Vec<usize>> {
    let (t, d) = (l.tokens, l.hidden);
    vec![
        vec![t, l.heads * l.head_dim, d],
        vec![t, l.kv_heads * l.head_dim, d],
        vec![t, l.inner, d],
        vec![t, d, l.inner],
        vec![t, l.vocabulary.min(CHUNK), d],
    ]
}

/// A benchmark asks for each pass by the size of its own product: rows, columns, terms.
fn shape_of_pass(pass: &str, dims: &[usize]) -> Vec<usize> {
    let &[m, n, k] = dims else { panic!("[M, N, K]") };
    match pass {
        "nt" => vec![LINEAR, m, n, k],
        "bias_backward" => vec![LINEAR_BIAS, m, n, k],
        "nn" => vec![MATMUL, m, n, k],
        // The gradient of b in a[K, M] b[M, N]: out[M, N] is a sum over the K rows.
        _ => vec![MATMUL, k, n, m],
    }
}

/// Shapes are [function, m, n, k]: 0 = linear, 1 = linear with bias, 2 = matmul; linear with a frozen
/// weight in 3 = f16, 4 = bf16 with a bias, 5 = q8_0, 6 = q4_0.
pub fn case() -> OpCase {
    OpCase {
        op: "matmul",
        passes: PASSES,
        shapes: &[
            &[LINEAR, 1, 1, 1],
            &[LINEAR, 7, 13, 3],
            &[LINEAR_BIAS, 1, 9, 8],
            &[LINEAR_BIAS, 9, 1, 17],
            &[LINEAR_BIAS, 33, 31, 29],
            &[LINEAR, 64, 64, 16],
            &[LINEAR_BIAS, 65, 129, 63],
            &[LINEAR_BIAS, 31, 68, 20],
            &[LINEAR_BIAS, 70, 72, 36],
            &[LINEAR, 3, 4, 1024],
            &[LINEAR_BIAS, 2, 13, 260],
            &[LINEAR, 1, 70, 36],
            &[MATMUL, 1, 1, 1],
            &[MATMUL, 8, 8, 8],
            &[MATMUL, 63, 67, 65],
            &[MATMUL, 17, 36, 12],
            &[MATMUL, 67, 72, 35],
            &[LINEAR_F16, 1, 1, 1],
            &[LINEAR_F16, 7, 13, 3],
            &[LINEAR_F16, 33, 68, 36],
            &[LINEAR_BF16, 9, 5, 17],
            &[LINEAR_BF16, 1, 72, 64],
            &[LINEAR_BF16, 65, 132, 20],
            &[LINEAR_BF16, 40, 36, 68],
            &[LINEAR_Q8_0, 1, 3, 32],
            &[LINEAR_Q8_0, 33, 68, 96],
            &[LINEAR_Q4_0, 9, 5, 64],
            &[LINEAR_Q4_0, 65, 36, 32],
            &[LINEAR_Q4_0, 34, 36, 64],
        ],
        large: &[],
        inputs: |s, rng| {
            let (m, n, k) = (s[1], s[2], s[3]);
            let weight = if s[0] == MATMUL { [k, n] } else { [n, k] };
            let mut inputs =
                vec![Array::normal("a", &[m, k], rng), Array::normal("b", &weight, rng)];
            if matches!(s[0], LINEAR_BIAS | LINEAR_BF16) {
                inputs.push(Array::normal("bias", &[n], rng));
            }
            if let Some(dtype) = frozen(s[0]) {
                inputs[1] = inputs[1].clone().frozen(dtype);
            }
            inputs
        },
        build: |g, s, v| match s[0] {
            MATMUL => vec![matmul(g, v[0], v[1])],
            _ => vec![linear(g, v[0], v[1], v.get(2).copied())],
        },
        reference,
        tolerance: 1e-6,
        // Below 65,504, where 16 bits end, and rounded as ordinary values are.
        domain: Domain { large: 1024.0, ..Domain::ALL },
        differentiable: true,
        bench: BenchFacts {
            dims: &["M", "N", "K"],
            layers: linear_layers,
            sets: &[
                ("square", &[&[256; 3], &[512; 3], &[1024; 3]]),
                // For hardware: a naive product of this size takes a software adapter minutes.
                ("large", &[&[2048; 3], &[4096; 3]]),
                (
                    "skinny",
                    &[
                        &[1, 1536, 576],
                        &[8, 576, 1536],
                        &[4096, 16, 576],
                        &[64, 64, 16384],
                        &[2048, 2048, 16],
                    ],
                ),
                ("batched", &[&[8 * 1024, 128, 128], &[8 * 1024, 576, 576]]),
            ],
            largest: |dims| largest_of_pairs(dims).filter(|_| dims.iter().all(|&d| d <= MOST_ROWS)),
            case_shape: shape_of_pass,
            flops: |pass, s, _| {
                (pass != BIAS_BACKWARD.name).then(|| 2.0 * (s[1] * s[2] * s[3]) as f64)
            },
            ..BenchFacts::ELEMENTWISE
        },
    }
}

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;
