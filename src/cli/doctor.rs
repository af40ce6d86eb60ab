//! `oddgrad doctor`

use super::DeviceArgs;
use crate::data::messages::Message;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::gpu::{cooperative_matrices, list_adapters};
use crate::kernel::Cooperative;
use crate::model::config::ModelConfig;
use crate::model::weights::FolderWeights;
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `oddgrad doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// A model folder: what its files say of tokens, ends and template is compared with what was
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
    let tokenizer = Tokenizer::from_folder(folder)?;
    let named = |id: u32| format!("{id} {:?}", tokenizer.token(id).unwrap_or_default());
    let one = |id: Option<u32>| id.map_or_else(|| "none".to_owned(), named);
    println!("{}", folder.display());
    match FolderWeights::open(folder, &config) {
        Ok(weights) => {
            let mib = weights.stored_bytes() as f64 / 1048576.0;
            println!("  weights           {} parameters, {mib:.1} MiB", config.parameter_count());
        }
        Err(error) => println!("  weights           cannot be used: {error}"),
    }
    println!("  vocabulary        {} tokens", tokenizer.vocab_size());
    println!("  embedding         {} rows", config.vocab_size);
    println!("  begin of sequence {}", one(tokenizer.bos()));
    println!("  end of sequence   {}", one(tokenizer.eos()));
    let (ends, from) = tokenizer.ends();
    let list: Vec<String> = ends.iter().map(|&id| named(id)).collect();
    println!("  generation ends   {} ({from})", list.join(", "));
    let (begin, end) = (tokenizer.bos().is_some(), tokenizer.eos().is_some());
    let added = match (begin, end) {
        (true, true) => "begin in front, end behind, each unless it is there",
        (true, false) => "begin in front unless it is there; no end",
        (false, true) => "end behind unless it is there",
        (false, false) => "nothing",
    };
    println!("  added to a row    {added}");
    if tokenizer.has_template() {
        let prompt = tokenizer.render_prompt(&[Message::new("user", "Hello")])?;
        println!("  chat template     \"Hello\" becomes {prompt:?}");
        println!("  its tokens        {:?}", tokenizer.encode(&prompt)?);
    } else {
        println!("  chat template     none: rows and prompts are plain text");
    }
    for note in config.notes.iter().chain(tokenizer.notes()) {
        println!("  note: {note}");
    }
    Ok(())
}

pub(super) fn run(args: &DoctorArgs, device: &DeviceArgs) -> Result<()> {
    if let Some(model) = &args.model {
        return look_at(model);
    }
    let opened = device.open();
    // An adapter that is there and does not open is what the list is good for.
    if let Err(error @ (Error::Adapter(_) | Error::Input { .. })) = opened {
        return Err(error);
    }
    let adapters = list_adapters(device.backend);
    println!("adapters");
    for (i, adapter) in adapters.iter().enumerate() {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let features = adapter.features();
        println!("  {i}: {} ({:?}, {:?})", info.name, info.device_type, info.backend);
        println!("     driver               {} {}", info.driver, info.driver_info);
        println!(
            "     storage binding      {} MiB    largest tensor",
            limits.max_storage_buffer_binding_size >> 20
        );
        println!("     buffer               {} MiB", limits.max_buffer_size >> 20);
        println!(
            "     workgroup memory     {} KiB    tiles of matmul and attention",
            limits.max_compute_workgroup_storage_size >> 10
        );
        println!(
            "     invocations          {}    per workgroup",
            limits.max_compute_invocations_per_workgroup
        );
        let yes = |f| if features.contains(f) { "yes" } else { "no " };
        println!(
            "     subgroups            {}       {}..{} lanes; faster reductions and broadcasts",
            yes(wgpu::Features::SUBGROUP),
            info.subgroup_min_size,
            info.subgroup_max_size
        );
        println!(
            "     f16                  {}       matmul 9 and 10, by --f16 or --kernel",
            yes(wgpu::Features::SHADER_F16)
        );
        println!(
            "     timestamps           {}       `oddgrad bench OP`, where they can be believed",
            yes(wgpu::Features::TIMESTAMP_QUERY)
        );
        println!(
            "     cooperative matrix   {}       matmul 10, by --f16 or --kernel{}",
            yes(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
            usable(&cooperative_matrices(adapter))
        );
    }
    let gpu = opened?;
    println!("\nchosen: {}", gpu.describe());
    if gpu.is_software() {
        println!("  a software adapter: nothing else is there, so the CPU does the work");
    }
    if let n @ 1.. = gpu.target().tuned.len() {
        println!("  {n} choices of kernels by `oddgrad tune`; --untuned leaves them out");
    }
    if args.kernels {
        println!(
            "\nkernels (* = chosen for this adapter; --kernel OP=NUMBER, OP.PASS=NUMBER or …=NUMBER/TILE changes that)"
        );
        for pass in crate::ops::passes() {
            let chosen = pass.in_use(gpu.target());
            let mut variants: Vec<_> = pass.variants.iter().collect();
            // A table's order decides which is the default; stable, so tiles keep theirs.
            variants.sort_by_key(|v| v.number());
            for v in variants {
                let mark = if chosen.iter().any(|c| std::ptr::eq(*c, v)) { "*" } else { " " };
                println!("  {mark} {:<28} {}", pass.full_name(), v.name());
            }
        }
    }
    Ok(())
}
