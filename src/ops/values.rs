//! What the numbers of a trial look like.
//!
//! Random numbers of ordinary size let a softmax through that forgets to subtract the maximum. So
//! the float inputs of a case come in several kinds; [`Domain`] says which of them an operation's
//! formula can hold in f32, and how closely.

use crate::graph::DType;
use crate::ops::case::{Array, Data};
use std::fmt;

/// A kind of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// As the case draws them: about the size of 1.
    Normal,
    /// Each [`Domain::large`] times as large: what overflows, and what an epsilon hides.
    Large,
    /// Each [`TINY`] times as large: what underflows, and an epsilon in the wrong place.
    Tiny,
    /// Each like the first of its array: no variance, and all of a row the largest.
    Equal,
    /// All zero: what divides by a sum.
    Zeros,
    /// One in seven is larger by [`Domain::large`], [`SPIKE`] at most, and one in five is zero.
    Spikes,
    /// One positive, one negative: sums that cancel.
    Alternating,
    /// The first of each array of [`Domain::not_a_number`] is NaN.
    NotANumber,
}

/// What [`Values::Tiny`] multiplies by. A product of two is still far above the smallest f32.
pub const TINY: f64 = 1e-12;
/// The most that [`Values::Spikes`] multiplies by: beside larger ones nothing of the others is left.
pub const SPIKE: f64 = 100.0;

impl Values {
    /// What every operation is tried with beside [`Values::Normal`].
    pub const SPECIAL: [Self; 6] =
        [Self::Large, Self::Tiny, Self::Equal, Self::Zeros, Self::Spikes, Self::Alternating];
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "normal values",
            Self::Large => "large values",
            Self::Tiny => "tiny values",
            Self::Equal => "equal values",
            Self::Zeros => "zeros",
            Self::Spikes => "spikes and zeros",
            Self::Alternating => "alternating signs",
            Self::NotANumber => "a NaN",
        })
    }
}

const AS_DRAWN: &[(Values, &str)] = &{
    let mut all = [(Values::Normal, "the case has values of its own"); Values::SPECIAL.len()];
    let mut i = 0;
    while i < all.len() {
        all[i].0 = Values::SPECIAL[i];
        i += 1;
    }
    all
};

/// The values that an operation's formula can hold in f32.
#[derive(Debug, Clone, Copy)]
pub struct Domain {
    /// Names of the inputs that take other values than normal; none means those that want a gradient.
    pub inputs: &'static [&'static str],
    /// What [`Values::Large`] multiplies by.
    pub large: f64,
    /// Kinds at which the formula itself rounds worse: factor on the tolerance, and why.
    pub looser: &'static [(Values, f64, &'static str)],
    /// Kinds that the operation is not defined for, and why.
    pub without: &'static [(Values, &'static str)],
    /// Names of the inputs in which a NaN has a meaning; mostly none.
    pub not_a_number: &'static [&'static str],
    /// Further kinds at which differences of the reference say nothing about the derivative, and why.
    pub without_gradient: &'static [(Values, &'static str)],
}

impl Domain {
    /// Every kind; large values of which products and squares are far from the end of f32.
    pub const ALL: Self = Self {
        inputs: &[],
        large: 1e4,
        looser: &[],
        without: &[],
        not_a_number: &[],
        without_gradient: &[],
    };

    /// For operations that add and select: near the end of f32.
    pub const LINEAR: Self = Self { large: 1e30, ..Self::ALL };

    /// For cases whose inputs are special by themselves.
    pub const AS_DRAWN: Self = Self { without: AS_DRAWN, ..Self::ALL };

    /// True if the operation is defined for such values.
    pub fn holds(&self, values: Values) -> bool {
        !self.without.iter().any(|(v, _)| *v == values)
    }

    /// True if its derivative can be compared there.
    pub fn holds_gradient(&self, values: Values) -> bool {
        self.holds(values) && !self.without_gradient.iter().any(|(v, _)| *v == values)
    }

    /// Factor on the tolerance.
    pub fn slack(&self, values: Values) -> f64 {
        self.looser.iter().find(|(v, ..)| *v == values).map_or(1.0, |(_, factor, _)| *factor)
    }

    /// True if other kinds of values change this input. What is stored in 16 bits keeps its values.
    pub fn varies(&self, array: &Array) -> bool {
        let named = self.inputs.contains(&array.name);
        let ours = if self.inputs.is_empty() { array.wants_gradient() } else { named };
        ours && array.stored == DType::F32 && matches!(array.data, Data::Float { .. })
    }

    /// Gives the inputs that vary such values instead of those they have.
    pub fn apply(&self, values: Values, inputs: &mut [Array]) {
        if values == Values::NotANumber {
            for array in inputs.iter_mut().filter(|a| self.not_a_number.contains(&a.name)) {
                let Data::Float { values: all, .. } = &mut array.data else { continue };
                all.iter_mut().take(1).for_each(|v| *v = f64::NAN);
            }
            return;
        }
        for array in inputs.iter_mut().filter(|a| self.varies(a)) {
            let Data::Float { values: all, .. } = &mut array.data else { continue };
            let first = all.first().copied().unwrap_or(0.0);
            for (i, v) in all.iter_mut().enumerate() {
                let new = match values {
                    Values::Normal | Values::NotANumber => continue,
                    Values::Large => *v * self.large,
                    Values::Tiny => *v * TINY,
                    Values::Equal => first,
                    Values::Zeros => 0.0,
                    Values::Spikes if i % 7 == 3 => *v * self.large.min(SPIKE),
                    Values::Spikes if i % 5 == 2 => 0.0,
                    Values::Spikes => *v,
                    Values::Alternating => v.abs() * if i % 2 == 0 { 1.0 } else { -1.0 },
                };
                *v = f64::from(new as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::TestRng;

    #[test]
    fn values_change_what_varies_and_nothing_else() {
        let rng = &mut TestRng::with_seed(1);
        let base = vec![
            Array::normal("x", &[14], rng),
            Array::fixed("table", &[2], vec![3.0, 4.0]),
            Array::index("rows", &[2], vec![1, 0]),
            Array::normal("w", &[2], rng).frozen(DType::F16),
        ];
        let x = base[0].f().to_vec();
        for values in Values::SPECIAL {
            let mut inputs = base.clone();
            Domain::LINEAR.apply(values, &mut inputs);
            let f32_of = |v: f64| f64::from(v as f32);
            let want: Vec<f64> = match values {
                Values::Large => x.iter().map(|v| f32_of(1e30 * v)).collect(),
                Values::Tiny => x.iter().map(|v| f32_of(TINY * v)).collect(),
                Values::Equal => vec![x[0]; 14],
                Values::Zeros => vec![0.0; 14],
                Values::Alternating => x
                    .iter()
                    .enumerate()
                    .map(|(i, v)| v.abs() * (1.0 - (i % 2 * 2) as f64))
                    .collect(),
                _ => {
                    let mut want = x.clone();
                    [2, 7, 12].into_iter().for_each(|i| want[i] = 0.0);
                    [3, 10].into_iter().for_each(|i| want[i] = f32_of(SPIKE * x[i]));
                    want
                }
            };
            assert_eq!(inputs[0].f(), want, "{values}");
            assert_eq!(inputs[1].f(), base[1].f());
            assert_eq!(inputs[2].u(), base[2].u());
            assert_eq!(inputs[3].f(), base[3].f());
        }
        let named = Domain { inputs: &["table"], ..Domain::ALL };
        let mut inputs = base.clone();
        named.apply(Values::Zeros, &mut inputs);
        assert_eq!((inputs[0].f(), inputs[1].f()), (&x[..], &[0.0, 0.0][..]));
    }
}
