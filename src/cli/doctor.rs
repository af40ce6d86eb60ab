//! `oddgrad doctor`

use super::DeviceArgs;
use super::import::model_folder;
use crate::data::messages::Message;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::gpu::{cooperative_matrices, list_adapters};
use crate::kernel::Cooperative;
use crate::model::adapter::{Adapter, tokenizer_folder};
use crate::model::config::ModelConfig;
use crate::model::folder::recorded_form;
use crate::model::weights::FolderWeights;
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `oddgrad doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// A model folder or a GGUF file: what its files say of tokens, ends and template is compared with what was
    /// loaded, and printed.
    model: Option<PathBuf>,
    /// List every kernel with its variants and the one chosen here.
    #[arg(long)]
    kernels: bool,
}

/// The kinds of cooperative matrix that kernels can use, as the end of a line.
fn usable(kinds: &[Cooperative]) -> String {
    let name = |c: &Cooperative| {
        format!("{size} x {size} of {}", if c.half { "f16" } else { "f32" }, size = c.size)
    };
    match kinds {
        [] => String::new(),
        _ => format!("; {}", kinds.iter().map(name).collect::<Vec<_>>().join(", ")),
    }
}

/// What is known of a model folder's tokens.
fn look_at(folder: &Path) -> Result<()> {
    let config = ModelConfig::load(folder)?;
    let tokenizer = Tokenizer::from_folder(&tokenizer_folder(folder)?)?;
    let named = |id: u32| format!("{id} {:?}", tokenizer.token(id).unwrap_or_default());
    let one = |id: Option<u32>| id.map_or_else(|| "none".to_owned(), named);
    outln!("{}", folder.display());
    if let Some(Adapter { base, lora, .. }) = Adapter::of(folder)? {
        outln!(
            "  adapter           LoRA of rank {}, scale {}, on {}",
            lora.rank,
            lora.scale(),
            base.display()
        );
    }
    match FolderWeights::open(folder, &config) {
        Ok(weights) => {
            let mib = weights.stored_bytes() as f64 / 1048576.0;
            outln!("  weights           {} parameters, {mib:.1} MiB", config.parameter_count());
        }
        Err(error) => outln!("  weights           cannot be used: {error}"),
    }
    outln!("  vocabulary        {} tokens", tokenizer.vocab_size());
    outln!("  embedding         {} rows", config.vocab_size);
    outln!("  begin of sequence {}", one(tokenizer.bos()));
    outln!("  end of sequence   {}", one(tokenizer.eos()));
    let (ends, from) = tokenizer.ends();
    let list: Vec<String> = ends.iter().map(|&id| named(id)).collect();
    outln!("  generation ends   {} ({from})", list.join(", "));
    let (begin, end) = (tokenizer.bos().is_some(), tokenizer.eos().is_some());
    let added = match (begin, end) {
        (true, true) => "begin in front, end behind, each unless it is there",
        (true, false) => "begin in front unless it is there; no end",
        (false, true) => "end behind unless it is there",
        (false, false) => "nothing",
    };
    outln!("  added to a row    {added}");
    if tokenizer.has_template() {
        let prompt = tokenizer.render_prompt(&[Message::new("user", "Hello")])?;
        outln!("  chat template     \"Hello\" becomes {prompt:?}");
        outln!("  its tokens        {:?}", tokenizer.encode(&prompt)?);
    } else {
        outln!("  chat template     none: rows and prompts are plain text");
    }
    if let Some(form) = recorded_form(folder)? {
        outln!("  prompts           {form}, as it was trained");
    }
    for note in config.notes.iter().chain(tokenizer.notes()) {
        outln!("  note: {note}");
    }
    Ok(())
}

pub(super) fn run(args: &DoctorArgs, device: &DeviceArgs) -> Result<()> {
    if let Some(model) = &args.model {
        return look_at(&model_folder(model)?);
    }
    let opened = device.open();
    // An adapter that is there and does not open is what the list is good for.
    if let Err(error @ (Error::Adapter(_) | Error::Input { .. })) = opened {
        return Err(error);
    }
    let adapters = list_adapters(device.backend);
    outln!("adapters");
    for (i, adapter) in adapters.iter().enumerate() {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let features = adapter.features();
        outln!("  {i}: {} ({:?}, {:?})", info.name, info.device_type, info.backend);
        outln!("     driver               {} {}", info.driver, info.driver_info);
        outln!(
            "     storage binding      {} MiB    bound at once: tables and heads in blocks, all else in one piece",
            limits.max_storage_buffer_binding_size >> 20
        );
        outln!("     buffer               {} MiB   largest tensor", limits.max_buffer_size >> 20);
        outln!(
            "     workgroup memory     {} KiB    tiles of matmul and attention",
            limits.max_compute_workgroup_storage_size >> 10
        );
        outln!(
            "     invocations          {}    per workgroup",
            limits.max_compute_invocations_per_workgroup
        );
        let yes = |f| if features.contains(f) { "yes" } else { "no " };
        outln!(
            "     subgroups            {}       {}..{} lanes; faster reductions and broadcasts",
            yes(wgpu::Features::SUBGROUP),
            info.subgroup_min_size,
            info.subgroup_max_size
        );
        outln!(
            "     f16                  {}       matmul 9 and 10, by --f16 or --kernel",
            yes(wgpu::Features::SHADER_F16)
        );
        outln!(
            "     timestamps           {}       `oddgrad bench OP`, where they can be believed",
            yes(wgpu::Features::TIMESTAMP_QUERY)
        );
        outln!(
            "     cooperative matrix   {}       matmul 10, by --f16 or --kernel{}",
            yes(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
            usable(&cooperative_matrices(adapter))
        );
    }
    let gpu = opened?;
    outln!("\nchosen: {}", gpu.describe());
    if gpu.is_software() {
        outln!("  a software adapter: nothing else is there, so the CPU does the work");
    }
    if let n @ 1.. = gpu.target().tuned.len() {
        outln!("  {n} choices of kernels by `oddgrad tune`; --untuned leaves them out");
    }
    if args.kernels {
        outln!(
            "\nkernels (* = chosen for this adapter; --kernel OP=NUMBER, OP.PASS=NUMBER or …=NUMBER/TILE changes that)"
        );
        for pass in crate::ops::passes() {
            let chosen = pass.in_use(gpu.target());
            let mut variants: Vec<_> = pass.variants.iter().collect();
            // A table's order decides which is the default; stable, so tiles keep theirs.
            variants.sort_by_key(|v| v.number());
            for v in variants {
                let mark = if chosen.iter().any(|c| std::ptr::eq(*c, v)) { "*" } else { " " };
                outln!("  {mark} {:<28} {}", pass.full_name(), v.name());
            }
        }
    }
    Ok(())
}
