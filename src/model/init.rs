//! Fresh weights for a model that has none.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::config::{ModelConfig, ParameterKind};
use super::weights::Tensor;

/// Fresh weights: normal with `initializer_range`, norms 1, biases 0. The two projections that
/// write into the residual stream (o_proj, down_proj) are scaled by `1/sqrt(2 * layers)`, so that
/// the stream's variance does not grow with depth (Radford et al. 2019, GPT-2).
///
/// Each tensor has a generator of its own, seeded by `seed` and the tensor's name, so that neither
/// the order nor the presence of other tensors changes it.
pub fn init_weights(config: &ModelConfig, seed: u64) -> BTreeMap<String, Tensor> {
    let residual = 1.0 / (2.0 * config.layers as f64).sqrt();
    let mut tensors = BTreeMap::new();
    for spec in config.parameters() {
        let data = match spec.kind {
            ParameterKind::Norm => vec![1.0; spec.len()],
            ParameterKind::Bias => vec![0.0; spec.len()],
            ParameterKind::Embedding | ParameterKind::Linear => {
                let into_residual =
                    spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
                let std = config.initializer_range * if into_residual { residual } else { 1.0 };
                normal(seed, &spec.name, std, spec.len())
            }
        };
        tensors.insert(spec.name, Tensor { shape: spec.shape, data });
    }
    tensors
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
