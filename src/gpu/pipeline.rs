//! WGSL and constants to a compute pipeline, compiled once per device.

use super::Gpu;
use crate::error::{Error, Result};
use crate::graph::Call;
use std::collections::HashSet;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A pipeline with the layout its bind groups need.
#[derive(Clone)]
pub struct Compiled {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// What pipelines are kept by: WGSL text, constants, checks.
pub(super) type Key = (&'static str, String, Checks);

/// By the text, not the path: two kernels outside the tables may have one path.
fn key(call: &Call, checks: Checks) -> Key {
    let constants = call.variant.constants.iter().chain(&call.constants);
    let constants: Vec<_> = constants.map(|(n, v)| format!("{n}={v}")).collect();
    (call.variant.source, constants.join(" "), checks)
}

/// Whether the driver's bounds and loop checks stay in the shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checks {
    /// Our own kernels: tested, so they run without.
    Off,
    /// Someone else's kernel.
    On,
}

impl Gpu {
    /// The pipelines of `calls`, in their order, and which of them are new. Kernels that were not
    /// compiled with the same constants before are compiled now, as many at a time as there are
    /// cores: drivers that compile when a pipeline is made take most of the time of a start for it.
    pub(crate) fn pipelines(&self, calls: &[Call], checks: Checks) -> Vec<(Compiled, bool)> {
        let keys: Vec<Key> = calls.iter().map(|call| key(call, checks)).collect();
        let known = || self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = HashSet::new();
        let missing: Vec<usize> = {
            let known = known();
            (0..calls.len())
                .filter(|&i| !known.contains_key(&keys[i]) && new.insert(&keys[i]))
                .collect()
        };
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(&i) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.compiles(Some(&calls[i].variant.label()));
                let compiled = self.compile(&calls[i], checks);
                known().insert(keys[i].clone(), compiled);
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..cores.min(missing.len())).map(|_| scope.spawn(work)).collect();
            work();
            for other in others {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        });
        let known = known();
        // Of several calls of a new kernel the first is the new one.
        keys.iter().map(|key| (known[key].clone(), new.remove(key))).collect()
    }

    /// The pipeline of a kernel that may be wrong, compiled afresh.
    ///
    /// # Errors
    /// What the device says against it.
    pub(crate) fn try_pipeline(&self, call: &Call, checks: Checks) -> Result<Compiled> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let compiled = self.compile(call, checks);
        match pollster::block_on(scope.pop()) {
            None => Ok(compiled),
            Some(e) => Err(Error::file(call.variant.label(), e.to_string())),
        }
    }

    /// Compiles afresh, without the cache of [`Gpu::pipelines`].
    pub(crate) fn compile(&self, call: &Call, checks: Checks) -> Compiled {
        let path = call.variant.path;
        let source =
            call.variant.specialise(&call.constants).unwrap_or_else(|e| panic!("{path}: {e}"));
        let desc = wgpu::ShaderModuleDescriptor {
            label: Some(path),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        let module = match checks {
            Checks::On => self.device.create_shader_module(desc),
            // SAFETY: only kernels of this crate come here. Their tests run each of them with
            // awkward shapes, NaN-filled outputs and guard zones, so no access is out of bounds
            // and every loop ends.
            Checks::Off => unsafe {
                self.device
                    .create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked())
            },
        };
        let entry = |binding: usize, read_only: bool| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let reads = call.reads.len();
        let entries: Vec<_> = (0..reads + call.writes.len()).map(|i| entry(i, i < reads)).collect();
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(path),
            entries: &entries,
        });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(path),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(path),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        self.count_created();
        Compiled { pipeline, layout }
    }
}
