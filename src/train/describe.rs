//! The lines that describe a run before it starts.

use crate::error::Problem;
use crate::gpu::Gpu;
use crate::graph::Parameter;
use crate::model::lora::{Targets, is_factor};
use crate::train::learner::MemoryPlan;
use crate::train::prepare::Prepared;

/// The lines that describe a run before it starts.
pub(super) fn describe(gpu: &Gpu, prepared: &Prepared, memory: &MemoryPlan) -> Vec<String> {
    let Prepared { recipe, config, capacity, train, .. } = prepared;
    let mib = |b: u64| b as f64 / 1048576.0;
    let mut lines = vec![format!("adapter    {}", gpu.describe())];
    if gpu.is_software() {
        lines.push(
            "           this is a software adapter: no GPU was found, the CPU does the work".into(),
        );
    }
    if !gpu.target().tuned.is_empty() {
        let n = gpu.target().tuned.len();
        lines.push(format!("kernels    {n} choices of `oddgrad tune`; --untuned leaves them out"));
    }
    lines.push(format!(
        "model      {} ({} parameters, {} layers, vocabulary {})",
        recipe.model.display(),
        config.parameter_count(),
        config.layers,
        config.vocab_size
    ));
    if let Some(lora) = config.lora() {
        let factors = config.parameters().iter().filter(|p| is_factor(&p.name));
        let values: usize = factors.map(Parameter::len).sum();
        let Targets::Named(targets) = &lora.targets else { unreachable!("a model's are by name") };
        lines.push(format!(
            "lora       LoRA of rank {}, scale {:.4}, on {}: {values} values train",
            lora.rank,
            lora.scale(),
            targets.join(", ")
        ));
    }
    lines.push(format!("loss       {}", recipe.loss));
    lines.push(format!(
        "memory     {:.1} MiB planned: {:.1} weights, gradients and moments, {:.1} for a stream of {} tokens",
        mib(memory.total()),
        mib(memory.state),
        mib(memory.micro.temporaries()),
        capacity.tokens
    ));
    if prepared.placement.recompute {
        lines.push("           blocks are computed again for the derivative, to keep less".into());
    }
    lines.push(format!("train      {}", prepared.report));
    lines.extend(prepared.heldout.as_ref().map(|(_, report)| format!("held out   {report}")));
    let size = recipe.batch.size;
    let per_epoch = train.steps_per_epoch(size);
    let total = recipe.train.total_steps(per_epoch);
    lines.push(format!("steps      {total} of {size} rows, {per_epoch} to a pass over the rows"));
    lines.extend(skipped_lines("train", &train.skipped));
    if let Some((eval, _)) = &prepared.heldout {
        lines.extend(skipped_lines("held-out", &eval.skipped));
    }
    lines
}

fn skipped_lines(name: &str, skipped: &[Problem]) -> Vec<String> {
    if skipped.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("skipped    {} unusable {name} rows, for example", skipped.len())];
    lines.extend(skipped.iter().take(5).map(|p| format!("           {}: {}", p.place, p.what)));
    lines
}
