//! How far a model is from the one that its run started from, by answers to other prompts, for
//! objectives that compare a row's answer with it.

use crate::data::pack::Capacity;
use crate::error::Result;
use crate::train::dataset::Dataset;
use crate::train::learner::Learner;
use crate::train::objectives::Objective;
use crate::train::objectives::pairwise::Score;
use crate::train::reference_logps::answers;

/// The mean, over the answers at `indices` of `mismatched`, of their log-probability by the weights on
/// the device less that by the reference model, in nats per answer; not below 0, as the divergence
/// that it estimates. `go_on` is asked before every part.
///
/// # Errors
/// A lost device, or what `go_on` says.
pub(super) fn divergence(
    learner: &Learner,
    objective: &dyn Objective,
    mismatched: &Dataset,
    indices: &[usize],
    capacity: Capacity,
    go_on: impl Fn() -> Result<()>,
) -> Result<f64> {
    let mut sum = 0.0;
    for part in indices.chunks(capacity.pairs) {
        go_on()?;
        let streams = mismatched.pack(part, capacity)?;
        answers(learner, objective, streams, |stream, answers| {
            for (pair, [mean, _]) in stream.pairs().zip(answers) {
                let reference = f64::from(stream.reference[pair.chosen]);
                let length = Score::Sum.factor(stream, pair.chosen);
                sum += length * (f64::from(*mean) - reference);
            }
            Ok(())
        })?;
    }
    let mean = sum / indices.len().max(1) as f64;
    // Not f64::max, which would hide what is not a number.
    Ok(if mean < 0.0 { 0.0 } else { mean })
}
