//! Fresh weights for a model that has none.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::config::ModelConfig;
use super::weights::{ParameterValues, Put, Tensor, collect};
use crate::error::Result;
use crate::graph::Init;

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
        for p in self.config.parameters() {
            let data = match p.init {
                Init::Ones => vec![1.0; p.len()],
                Init::Zeros => vec![0.0; p.len()],
                Init::Normal(std) => normal(self.seed, &p.name, std, p.len()),
            };
            put(&p.name, &p.shape, &data)?;
        }
        Ok(())
    }
}

/// All of [`RandomWeights`] at once: for small models and tests.
pub fn init_weights(config: &ModelConfig, seed: u64) -> BTreeMap<String, Tensor> {
    collect(&RandomWeights { config, seed }).expect("drawing cannot fail")
}

/// `count` normal values by Box and Muller, two from each pair of uniform ones.
fn normal(seed: u64, name: &str, std: f64, count: usize) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    // In (0, 1]: the logarithm never sees zero.
    let mut uniform = || ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let mut data = Vec::with_capacity(count + 1);
    while data.len() < count {
        let radius = std * (-2.0 * uniform().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform()).sin_cos();
        data.push((radius * cos) as f32);
        data.push((radius * sin) as f32);
    }
    data.truncate(count);
    data
}
