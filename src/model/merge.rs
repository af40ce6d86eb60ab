//! One model of an adapter and its base.

use std::path::Path;

use super::adapter::Adapter;
use super::config::ModelConfig;
use super::folder::{recorded_form, save_model_folder};
use super::lora::factors_of;
use super::weights::FolderWeights;
use crate::error::{Error, Result};

/// Writes the model that the adapter in `folder` and its base are together: W + scale B A in the
/// place of each adapted W, computed in double precision and written in F32.
///
/// # Errors
/// A folder without an adapter; an adapter or a base that cannot be used; an existing `destination`.
pub fn merge(folder: &Path, destination: &Path) -> Result<()> {
    let Some(adapter) = Adapter::of(folder)? else {
        return Err(Error::file(
            folder,
            "holds no adapter to merge; name a folder with adapter_config.json and adapter_model.safetensors",
        ));
    };
    let (base, config) = (ModelConfig::load(&adapter.base)?, adapter.config()?);
    let weights = FolderWeights::open(folder, &config)?;
    let scale = adapter.lora.scale();
    let read = |name: &str| {
        let mut w = weights.read(name)?;
        let factors = factors_of(&*base.decoder, name);
        let Some([a, b]) = factors.filter(|[_, b]| config.has_parameter(b)) else { return Ok(w) };
        let (a, b) = (weights.read(&a)?, weights.read(&b)?);
        let rank = adapter.lora.rank;
        let inputs = a.len() / rank;
        for (row, b) in w.chunks_exact_mut(inputs).zip(b.chunks_exact(rank)) {
            for (i, w) in row.iter_mut().enumerate() {
                let terms = b.iter().zip(a.iter().skip(i).step_by(inputs));
                let sum: f64 = terms.map(|(&b, &a)| f64::from(b) * f64::from(a)).sum();
                *w = (f64::from(*w) + scale * sum) as f32;
            }
        }
        Ok(w)
    };
    let source = adapter.tokenizer_folder(folder);
    save_model_folder(destination, Some(source), recorded_form(folder)?, &base, &read)
}
