//! Fresh weights for a model that has none.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::config::ModelConfig;
use super::weights::{ParameterValues, Put, Tensor, collect};
use crate::error::Result;
use crate::graph::{Init, Parameter};

/// Every parameter as its [`Init`] says.
///
/// Each has a generator of its own, seeded by `seed` and the parameter's name, so that neither the
/// order nor the presence of others changes it.
pub struct RandomWeights<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// The seed.
    pub seed: u64,
}

impl ParameterValues for RandomWeights<'_> {
    fn each(&self, put: &mut Put) -> Result<()> {
        self.config
            .parameters()
            .iter()
            .try_for_each(|p| put(&p.name, &p.shape, &drawn(self.seed, p)))
    }
}

/// The values that a parameter begins with, drawn from `seed` where they are drawn.
pub(super) fn drawn(seed: u64, p: &Parameter) -> Vec<f32> {
    match p.init {
        Init::Ones => vec![1.0; p.len()],
        Init::Zeros => vec![0.0; p.len()],
        Init::Normal(std) => normal(seed, &p.name, std, p.len()),
        Init::Uniform(bound) => uniform(seed, &p.name, bound, p.len()),
    }
}

/// All of [`RandomWeights`] at once: for small models and tests.
pub fn init_weights(config: &ModelConfig, seed: u64) -> BTreeMap<String, Tensor> {
    collect(&RandomWeights { config, seed }).expect("drawing cannot fail")
}

/// A parameter's own generator.
fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// In (0, 1]: a logarithm never sees zero.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// `count` values between -`bound` and `bound`.
fn uniform(seed: u64, name: &str, bound: f64, count: usize) -> Vec<f32> {
    let mut rng = generator(seed, name);
    (0..count).map(|_| (bound * (2.0 * unit(&mut rng) - 1.0)) as f32).collect()
}

/// `count` normal values by Box and Muller, two from each pair of uniform ones.
fn normal(seed: u64, name: &str, std: f64, count: usize) -> Vec<f32> {
    let mut rng = generator(seed, name);
    let mut data = Vec::with_capacity(count + 1);
    while data.len() < count {
        let radius = std * (-2.0 * unit(&mut rng).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit(&mut rng)).sin_cos();
        data.push((radius * cos) as f32);
        data.push((radius * sin) as f32);
    }
    data.truncate(count);
    data
}
