//! `oddgrad bench step`

use super::super::DeviceArgs;
use super::super::import::model_folder;
use crate::bench::step::{StepBench, bench_step};
use crate::error::Result;
use crate::model::lora::{Base, Lora, Targets};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct StepArgs {
    /// A model folder (its config.json is enough) or a GGUF file.
    #[arg(long, default_value = "models/nano")]
    model: PathBuf,
    /// Tokens of a stream.
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Timed steps after one warm-up.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Train low-rank additions of this rank to all linear layers, not the model.
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u16).range(1..))]
    lora: Option<u16>,
    /// How the model under the additions is kept.
    #[arg(long, value_enum, default_value = "bf16", requires = "lora")]
    base: Base,
    /// Print every dispatch.
    #[arg(long)]
    listing: bool,
}

pub(super) fn run(args: &StepArgs, device: &DeviceArgs) -> Result<()> {
    let gpu = device.open()?;
    let lora = args.lora.map(|rank| {
        let (rank, targets) = (usize::from(rank), Targets::AllLinear);
        (Lora { rank, alpha: 2.0 * rank as f64, rslora: false, targets }, args.base)
    });
    let bench: StepBench =
        bench_step(&gpu, &model_folder(&args.model)?, lora.as_ref(), args.tokens, args.steps)?;
    outln!("adapter            {}", gpu.describe());
    outln!("model              {} ({} parameters)", args.model.display(), bench.parameters);
    outln!(
        "step               {:.1} ms median of {} ({:.1} .. {:.1})",
        1e3 * bench.median,
        bench.seconds.len(),
        1e3 * bench.seconds[0],
        1e3 * bench.seconds[bench.seconds.len() - 1]
    );
    outln!("stream tokens/s    {:.0}", bench.tokens as f64 / bench.median);
    outln!("CPU per step       {:.2} ms to encode", 1e3 * bench.host);
    outln!("dispatches         {}", bench.dispatches);
    outln!("submissions        {}", bench.submissions);
    outln!(
        "planned bytes      {} ({:.2} MiB); allocated {}",
        bench.planned,
        bench.planned as f64 / 1048576.0,
        bench.allocated
    );
    outln!("\n{:<34} {:>10} {:>10} {:>8}", "operation", "dispatches", "ms", "%");
    let sum: f64 = bench.per_op.iter().map(|o| o.seconds).sum();
    for op in &bench.per_op {
        outln!(
            "{:<34} {:>10} {:>10.2} {:>8.1}",
            op.name,
            op.dispatches,
            1e3 * op.seconds,
            100.0 * op.seconds / sum
        );
    }
    outln!("(one dispatch at a time, wall clock; the sum is {:.1} ms)", 1e3 * sum);
    if args.listing {
        out!("\n{}", bench.listing);
    }
    Ok(())
}
