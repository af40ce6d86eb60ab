//! Parameters after a few steps of AdamW, compared with PyTorch's: the part of
//! [`verify`](super::verify) that goes through the optimizer.
//!
//! `adamw.json` in a model folder with expected values holds `steps`, `learning_rate`, `beta1`,
//! `beta2`, `eps`, `weight_decay` and `max_grad_norm`; `adamw.safetensors` how far those steps, all on
//! the folder's batch, moved every tensor of the file, in learning rates.

use crate::error::{Error, Problem, Result};
use crate::gpu::Gpu;
use crate::model::layout::layout;
use crate::model::source::read_safetensors_f64;
use crate::train::program::Placement;
use crate::train::recipe::OptimSettings;
use crate::train::reference::{count, number, read_json};
use crate::train::verify::{Comparison, ModelReference, worse};
use std::path::Path;
use std::rc::Rc;

/// Largest difference of a parameter, which moves by up to 2e-4. PyTorch in single precision is off by
/// up to 5e-7.
const PARAMETER_BAR: f64 = 1e-6;

/// The parameters of `reference`, in `folder`, after its `steps` steps.
pub(super) fn compare(
    reference: &ModelReference,
    folder: &Path,
    gpu: &Rc<Gpu>,
    steps: usize,
) -> Result<Comparison> {
    let path = folder.join("adamw.json");
    if !path.is_file() {
        let what = "has no adamw.json with adamw.safetensors, the parameters after steps of AdamW; leave out --steps";
        return Err(Error::file(folder, what));
    }
    let json = read_json(&path)?;
    let recorded = count(&path, &json, &["steps"])?;
    if steps != recorded {
        let problem = Problem::new("--steps", format!("is {steps}; recorded are {recorded}"));
        return Err(Error::input(format!("cannot verify {}", folder.display()), vec![problem]));
    }
    let setting = |key: &str| number(&path, &json, &[key]);
    let rate = setting("learning_rate")?;
    let optim = OptimSettings {
        beta1: setting("beta1")?,
        beta2: setting("beta2")?,
        eps: setting("eps")?,
        weight_decay: setting("weight_decay")?,
        max_grad_norm: setting("max_grad_norm")?,
        ..OptimSettings::new(rate)
    };
    let path = folder.join("adamw.safetensors");
    let moved = read_safetensors_f64(&path)?;

    let (mut learner, stream, coefficients) = reference.learner(gpu, &optim, Placement::all())?;
    let tensors = layout(&learner.config);
    let values = |learner: &crate::train::learner::Learner| -> Result<Vec<Vec<f32>>> {
        tensors.iter().map(|tensor| tensor.join(&|parameter| learner.read(parameter))).collect()
    };
    let before = values(&learner)?;
    for _ in 0..steps {
        learner.accumulate(&stream, &coefficients)?;
        learner.update(rate)?;
    }
    let after = values(&learner)?;
    let (mut largest, mut which, mut compared) = (0.0, "", 0);
    for ((tensor, before), after) in tensors.iter().zip(&before).zip(&after) {
        let name = &tensor.name;
        let want = moved.get(name).filter(|t| t.data.len() == after.len());
        let want = want.ok_or_else(|| {
            Error::file(&path, format!("does not hold how far all of {name} moved"))
        })?;
        for ((&from, &to), want) in before.iter().zip(after).zip(&want.data) {
            let difference = f64::from(to) - f64::from(from) - rate * want;
            let next = worse(largest, difference);
            if next != largest {
                (largest, which) = (next, name);
            }
        }
        compared += after.len();
    }
    Ok(Comparison {
        what: format!("parameters after {steps} steps ({which})"),
        values: compared,
        difference: largest,
        bar: PARAMETER_BAR,
        measure: "absolute",
    })
}
