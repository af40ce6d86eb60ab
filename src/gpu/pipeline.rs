//! WGSL and constants to a compute pipeline, compiled once per device.

use super::Gpu;
use crate::error::{Error, Result};
use crate::graph::Call;

/// A pipeline with the layout its bind groups need.
#[derive(Clone)]
pub struct Compiled {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// What pipelines are kept by: WGSL text, constants, checks.
pub(super) type Key = (&'static str, String, Checks);

/// Whether the driver's bounds and loop checks stay in the shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checks {
    /// Our own kernels: tested, so they run without.
    Off,
    /// Someone else's kernel.
    On,
}

impl Gpu {
    /// The pipeline of `call`, from the cache if the same kernel was compiled with the same
    /// constants before, and whether it is new.
    pub(crate) fn pipeline(&self, call: &Call, checks: Checks) -> (Compiled, bool) {
        let constants = call.variant.constants.iter().chain(&call.constants);
        let constants: Vec<_> = constants.map(|(n, v)| format!("{n}={v}")).collect();
        // By the text, not the path: two kernels outside the tables may have one path.
        let key = (call.variant.source, constants.join(" "), checks);
        let mut cache = self.pipelines.lock().unwrap_or_else(|e| e.into_inner());
        match cache.get(&key) {
            Some(compiled) => (compiled.clone(), false),
            None => {
                let compiled = self.compile(call, checks);
                cache.insert(key, compiled.clone());
                (compiled, true)
            }
        }
    }

    /// As [`Gpu::pipeline`] for a kernel that may be wrong.
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

    /// Compiles afresh, without the cache of [`Gpu::pipeline`].
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
