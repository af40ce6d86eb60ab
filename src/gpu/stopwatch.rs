//! The device's own clock, read at the beginning and the end of a compute pass.

use super::Gpu;
use crate::error::Result;

/// Two timestamps and the buffers they come back through.
pub(crate) struct Stopwatch {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    /// Seconds of one tick.
    tick: f64,
}

const BYTES: u64 = 16;

impl Stopwatch {
    /// None where the adapter has no timestamps.
    pub(crate) fn new(gpu: &Gpu) -> Option<Self> {
        if !gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("stopwatch"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let buffer = |usage| {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("stopwatch"),
                size: BYTES,
                usage,
                mapped_at_creation: false,
            })
        };
        Some(Self {
            queries,
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            tick: 1e-9 * f64::from(gpu.queue.get_timestamp_period()),
        })
    }

    /// What a compute pass writes its two times to.
    pub(crate) fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    /// To be encoded after the pass.
    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, BYTES);
    }

    /// Seconds between the two times of a finished submission, as the device has them: zero or
    /// nonsense where its clock is bad.
    pub(crate) fn seconds(&self, gpu: &Gpu) -> Result<f64> {
        let mapping = gpu.start_map(&self.staging);
        gpu.wait()?;
        let data = gpu.finish_map(&self.staging, BYTES, mapping)?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&data);
        Ok(ticks[1].wrapping_sub(ticks[0]) as i64 as f64 * self.tick)
    }
}
