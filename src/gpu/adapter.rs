//! Which adapter: the discrete one by default, a software one only when nothing else is there.

use crate::error::{Error, Result};
use crate::kernel::{Class, Cooperative, VariantId};
use std::collections::BTreeMap;

/// Graphics interfaces that can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Backend {
    /// Linux, Windows, Android; software Vulkan too.
    Vulkan,
    /// macOS and iOS.
    Metal,
    /// Windows.
    Dx12,
    /// OpenGL ES 3.1, where nothing better is there.
    Gl,
}

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct AdapterChoice {
    /// Part of a name (case does not matter) or an index of `oddgrad doctor`'s list.
    pub adapter: Option<String>,
    /// Only this backend.
    pub backend: Option<Backend>,
    /// Kernel variants by number (`softmax=1`) and tile (`matmul.nt=11/128x64`).
    pub kernels: BTreeMap<String, VariantId>,
}

pub(super) fn class(info: &wgpu::AdapterInfo) -> Class {
    match info.device_type {
        wgpu::DeviceType::Cpu => Class::Software,
        wgpu::DeviceType::DiscreteGpu => Class::Discrete,
        _ => Class::Integrated,
    }
}

fn backends(choice: Option<Backend>) -> wgpu::Backends {
    match choice {
        None => wgpu::Backends::all(),
        Some(Backend::Vulkan) => wgpu::Backends::VULKAN,
        Some(Backend::Metal) => wgpu::Backends::METAL,
        Some(Backend::Dx12) => wgpu::Backends::DX12,
        Some(Backend::Gl) => wgpu::Backends::GL,
    }
}

/// All adapters of the asked-for backend (all backends by default), in a stable order.
pub fn list_adapters(backend: Option<Backend>) -> Vec<wgpu::Adapter> {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = backends(backend);
    // Validation layers are for the people who write the engine; they cost time at every call.
    desc.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(desc);
    pollster::block_on(instance.enumerate_adapters(backends(backend)))
        .into_iter()
        .filter(|a| {
            a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
        })
        .collect()
}

/// The cooperative matrices of an adapter that kernels can use: square ones of 8 or 16 with sums in
/// single precision. An adapter lists others too; WGSL has no name for those.
pub fn cooperative_matrices(adapter: &wgpu::Adapter) -> Vec<Cooperative> {
    use wgpu::CooperativeScalarType::{F16, F32};
    if !adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return Vec::new();
    }
    let mut kinds = Vec::new();
    for p in adapter.cooperative_matrix_properties() {
        let square = p.m_size == p.n_size && p.n_size == p.k_size && matches!(p.m_size, 8 | 16);
        let kind = Cooperative { size: p.m_size, half: p.ab_type == F16 };
        if square
            && p.cr_type == F32
            && matches!(p.ab_type, F16 | F32)
            && !p.saturating_accumulation
            && !kinds.contains(&kind)
        {
            kinds.push(kind);
        }
    }
    kinds
}

/// Lower is better: hardware before software, discrete before integrated, native before GL.
fn rank(info: &wgpu::AdapterInfo) -> (u8, u8) {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    (kind, u8::from(info.backend == wgpu::Backend::Gl))
}

pub(super) fn choose(choice: &AdapterChoice) -> Result<wgpu::Adapter> {
    let mut adapters = list_adapters(choice.backend);
    if adapters.is_empty() {
        let which = choice.backend.map_or(String::new(), |b| format!(" for {b:?}"));
        let advice = match choice.backend {
            None | Some(Backend::Vulkan) => {
                "Install your GPU's Vulkan driver; without a GPU, install software Vulkan: \
                 `apt-get install mesa-vulkan-drivers` (Debian, Ubuntu), `dnf install mesa-vulkan-drivers` (Fedora)."
            }
            Some(_) => "Ask for no backend to take whatever this machine has.",
        };
        return Err(Error::Adapter(format!("no GPU adapter found{which}. {advice}")));
    }
    let infos: Vec<_> = adapters.iter().map(wgpu::Adapter::get_info).collect();
    let Some(wanted) = &choice.adapter else {
        let best = (0..infos.len()).min_by_key(|&i| (rank(&infos[i]), i)).expect("not empty");
        return Ok(adapters.swap_remove(best));
    };
    let found = match wanted.parse::<usize>() {
        Ok(index) => (index < infos.len()).then_some(index),
        Err(_) if wanted.trim().is_empty() => None,
        Err(_) => infos.iter().position(|i| i.name.to_lowercase().contains(&wanted.to_lowercase())),
    };
    match found {
        Some(index) => Ok(adapters.swap_remove(index)),
        None => {
            let line =
                |(i, a): (usize, &wgpu::AdapterInfo)| format!("{i}: {} ({:?})", a.name, a.backend);
            let names: Vec<_> = infos.iter().enumerate().map(line).collect();
            Err(Error::Adapter(format!(
                "no adapter matches `{wanted}`; give an index or a part of a name. There are: {}.",
                names.join("; ")
            )))
        }
    }
}
