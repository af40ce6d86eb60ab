//! One [`OpCase`] drives an operation's kernel test, its gradient check and its benchmark.
//!
//! [`trial`](super::trial) runs a case.

use crate::graph::{DType, Graph, Var};
use crate::kernel::Pass;
use crate::ops::values::{Domain, Values};

/// The random numbers of tests and benchmarks: the same on every machine.
pub type TestRng = fastrand::Rng;

/// An input of an operation, held in f64 so that a reference can be differentiated numerically.
#[derive(Debug, Clone)]
pub struct Array {
    /// Name in messages.
    pub name: &'static str,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Floats or indices, row-major.
    pub data: Data,
    /// How they are stored; integers always as they are.
    pub stored: DType,
}

/// Values of an [`Array`].
#[derive(Debug, Clone)]
pub enum Data {
    /// Floats (each exactly an f32 at first); `grad` says whether a gradient is wanted.
    Float {
        /// Row-major, in double precision.
        values: Vec<f64>,
        /// Check the gradient with respect to this input.
        grad: bool,
    },
    /// Unsigned integers, such as token ids.
    Index(Vec<u32>),
}

impl Array {
    /// Standard-normal values (by summing uniforms) with a gradient.
    pub fn normal(name: &'static str, shape: &[usize], rng: &mut TestRng) -> Self {
        let n = shape.iter().product();
        let values = (0..n).map(|_| f64::from(normal(rng))).collect();
        let data = Data::Float { values, grad: true };
        Self { name, shape: shape.to_vec(), data, stored: DType::F32 }
    }

    /// Given values (rounded to f32) without a gradient.
    pub fn fixed(name: &'static str, shape: &[usize], values: Vec<f64>) -> Self {
        Self::exact(name, shape, values.into_iter().map(|v| f64::from(v as f32)).collect())
    }

    /// Given values as they are, for a reference that is to see more than f32 holds; no gradient.
    pub fn exact(name: &'static str, shape: &[usize], values: Vec<f64>) -> Self {
        let data = Data::Float { values, grad: false };
        Self { name, shape: shape.to_vec(), data, stored: DType::F32 }
    }

    /// Given values (rounded to f32) with a gradient.
    pub fn float(name: &'static str, shape: &[usize], values: Vec<f64>) -> Self {
        let values = values.into_iter().map(|v| f64::from(v as f32)).collect();
        let data = Data::Float { values, grad: true };
        Self { name, shape: shape.to_vec(), data, stored: DType::F32 }
    }

    /// Given unsigned integers.
    pub fn index(name: &'static str, shape: &[usize], values: Vec<u32>) -> Self {
        Self { name, shape: shape.to_vec(), data: Data::Index(values), stored: DType::U32 }
    }

    /// Rounded to `dtype`, stored so, and without a gradient.
    #[must_use]
    pub fn frozen(mut self, dtype: DType) -> Self {
        if let Data::Float { values, grad } = &mut self.data {
            *grad = false;
            self.stored = dtype;
            let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            let rounded = dtype.decode(&dtype.encode(&narrow));
            *values = rounded.into_iter().map(f64::from).collect();
        }
        self
    }

    /// True if a gradient with respect to it is checked.
    pub fn wants_gradient(&self) -> bool {
        matches!(self.data, Data::Float { grad: true, .. })
    }

    /// The values of a float array.
    ///
    /// # Panics
    /// When it holds indices.
    pub fn f(&self) -> &[f64] {
        match &self.data {
            Data::Float { values, .. } => values,
            Data::Index(_) => panic!("{} holds indices", self.name),
        }
    }

    /// The values of an index array.
    ///
    /// # Panics
    /// When it holds floats.
    pub fn u(&self) -> &[u32] {
        match &self.data {
            Data::Index(values) => values,
            Data::Float { .. } => panic!("{} holds floats", self.name),
        }
    }
}

/// A roughly normal number: twelve uniforms summed (Irwin-Hall), enough for tests.
pub fn normal(rng: &mut TestRng) -> f32 {
    (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0
}

/// What drives an operation's tests and benchmark.
pub struct OpCase {
    /// The operation: its folder below `shaders/`, its file, its function.
    pub op: &'static str,
    /// All its passes.
    pub passes: &'static [&'static Pass],
    /// Awkward shapes (1, prime, tile - 1, tile, tile + 1); the meaning of the numbers is the
    /// operation's own and said in its file.
    pub shapes: &'static [&'static [usize]],
    /// Shapes too large for the gradient check (grids beyond 65,535 groups).
    pub large: &'static [&'static [usize]],
    /// Random inputs for a shape.
    pub inputs: fn(&[usize], &mut TestRng) -> Vec<Array>,
    /// Appends the operation; returns the outputs to compare.
    pub build: fn(&mut Graph, &[usize], &[Var]) -> Vec<Var>,
    /// The outputs in f64.
    pub reference: fn(&[usize], &[Array]) -> Vec<Vec<f64>>,
    /// Largest allowed |kernel - reference| as a part of the largest |reference| of that output.
    pub tolerance: f64,
    /// The kinds of values it is tried with.
    pub domain: Domain,
    /// Has a derivative, at the shapes at which an input wants a gradient.
    pub differentiable: bool,
    /// What a benchmark of it has to know.
    pub bench: BenchFacts,
}

/// The shapes a benchmark runs an operation at, and what one dispatch of each pass costs there.
///
/// The shapes are a benchmark's own, as a person writes them (`512x512x512`); `case_shape` turns one
/// into a shape of the [`OpCase`]. [`Self::ELEMENTWISE`] and [`Self::ROWS`] are what most operations start from.
#[derive(Clone, Copy)]
pub struct BenchFacts {
    /// What the numbers of a shape are called. A last `…` says that more like the one before may
    /// follow.
    pub dims: &'static [&'static str],
    /// The shapes of a decoder's layers.
    pub layers: fn(&Decoder) -> Vec<Vec<usize>>,
    /// Further shapes, by the name of their set.
    pub sets: &'static [(&'static str, &'static [&'static [usize]])],
    /// Elements of the largest buffer; None where the operation cannot be built.
    pub largest: fn(&[usize]) -> Option<usize>,
    /// The case's shape at which a pass, given by name, does the work that the numbers name.
    pub case_shape: fn(&str, &[usize]) -> Vec<usize>,
    /// Floating-point operations of all dispatches of a pass at a shape and inputs of the case;
    /// None where they are not counted.
    pub flops: fn(&str, &[usize], &[Array]) -> Option<f64>,
    /// Bytes that these dispatches must move; None where it is each buffer they bind, once.
    pub bytes: fn(&str, &[usize], &[Array]) -> Option<f64>,
}

impl BenchFacts {
    /// Operations on N elements, each for itself.
    pub const ELEMENTWISE: Self = Self {
        dims: &["N"],
        layers: |l| vec![vec![l.tokens * l.hidden]],
        sets: &[("square", &[&[256 * 256], &[512 * 512], &[1024 * 1024], &[2048 * 2048]])],
        largest: product,
        case_shape: |_, dims| dims.to_vec(),
        flops: |_, _, _| None,
        bytes: |_, _, _| None,
    };

    /// Operations on the rows of a matrix.
    pub const ROWS: Self = Self {
        dims: &["T", "D"],
        layers: |l| vec![vec![l.tokens, l.hidden]],
        sets: &[
            ("square", &[&[256; 2], &[512; 2], &[1024; 2], &[2048; 2]]),
            ("skinny", &[&[4, 49_152], &[65_536, 16], &[1, 65_536]]),
            ("batched", &[&[16 * 1024, 64]]),
        ],
        ..Self::ELEMENTWISE
    };
}

/// Sizes of a decoder and of the stream it runs on.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// Tokens of the stream.
    pub tokens: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Columns of the embedding.
    pub hidden: usize,
    /// Columns inside the feed-forward block.
    pub inner: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
}

/// Elements of a buffer with these sides; None if one is zero or there are too many to count.
pub fn product(sides: &[usize]) -> Option<usize> {
    sides.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n > 0)
}

/// Elements of the largest of the matrices whose sides are two of three numbers.
pub fn largest_of_pairs(sides: &[usize]) -> Option<usize> {
    let &[a, b, c] = sides else { return None };
    Some(product(&[a, b])?.max(product(&[a, c])?).max(product(&[b, c])?))
}

/// Largest [`size`] of a shape that is tried with every kind of values.
pub const SMALL: usize = 1 << 16;
/// The same for gradients, which differences take time for. In the very smallest shapes, such as a
/// norm of one element, large terms cancel to nothing that could be compared.
pub const SMALL_GRADIENT: std::ops::RangeInclusive<usize> = 32..=1 << 13;

/// Product of a shape's numbers, zeros left out: how much work a trial of it is, roughly.
pub fn size(shape: &[usize]) -> usize {
    shape.iter().map(|&d| d.max(1)).product()
}

impl OpCase {
    /// True if there is a gradient to check at this shape.
    pub fn differentiable_at(&self, shape: &[usize]) -> bool {
        let inputs = || (self.inputs)(shape, &mut TestRng::with_seed(0));
        self.differentiable && inputs().iter().any(Array::wants_gradient)
    }

    /// The inputs at a shape.
    pub fn inputs_of(&self, shape: &[usize], values: Values, rng: &mut TestRng) -> Vec<Array> {
        let mut inputs = (self.inputs)(shape, rng);
        self.domain.apply(values, &mut inputs);
        inputs
    }

    /// The kinds of values that `shape` is tried with: normal ones, and the others where it is no
    /// larger than [`SMALL`], an input varies and the operation is defined for them.
    pub fn values_at(&self, shape: &[usize]) -> Vec<Values> {
        let mut all = vec![Values::Normal];
        let inputs = || (self.inputs)(shape, &mut TestRng::with_seed(0));
        if size(shape) <= SMALL && inputs().iter().any(|a| self.domain.varies(a)) {
            all.extend(Values::SPECIAL.into_iter().filter(|&v| self.domain.holds(v)));
        }
        if !self.domain.not_a_number.is_empty() {
            all.push(Values::NotANumber);
        }
        all
    }

    /// Those of [`Self::values_at`] at which the gradient is compared: only normal ones where the
    /// shape's size is not in [`SMALL_GRADIENT`].
    pub fn gradient_values_at(&self, shape: &[usize]) -> Vec<Values> {
        let mut all = self.values_at(shape);
        let small = SMALL_GRADIENT.contains(&size(shape));
        all.retain(|&v| v == Values::Normal || small && self.domain.holds_gradient(v));
        all
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::OpCase;
    use crate::gpu::{AdapterChoice, Gpu};
    use crate::ops::trial::{check_forward, check_gradient};
    use std::rc::Rc;

    /// The adapter tests run on. No adapter is never a pass.
    pub(crate) fn gpu() -> Rc<Gpu> {
        Rc::new(
            Gpu::open(&AdapterChoice::default())
                .unwrap_or_else(|e| panic!("tests need an adapter: {e}")),
        )
    }

    /// Forward test of a case.
    pub(crate) fn forward(case: &OpCase) {
        check_forward(&gpu(), case).unwrap();
    }

    /// Gradient test of a case.
    pub(crate) fn gradient(case: &OpCase) {
        check_gradient(&gpu(), case).unwrap();
    }
}
