//! `oddgrad doctor`

use super::DeviceArgs;
use crate::error::{Error, Result};
use crate::gpu::{cooperative_matrices, list_adapters};
use crate::kernel::Cooperative;
use clap::Args;

/// Arguments of `oddgrad doctor`.
#[derive(Args)]
pub struct DoctorArgs {
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

pub(super) fn run(args: &DoctorArgs, device: &DeviceArgs) -> Result<()> {
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
            // A table's order decides which is the usual choice; stable, so tiles keep theirs.
            variants.sort_by_key(|v| v.number());
            for v in variants {
                let mark = if chosen.iter().any(|c| std::ptr::eq(*c, v)) { "*" } else { " " };
                println!("  {mark} {:<28} {}", pass.full_name(), v.name());
            }
        }
    }
    Ok(())
}
