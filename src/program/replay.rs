//! Single calls of a step run on their own, with another kernel if wanted: what a benchmark of
//! kernels times. The buffers are the step's, so all kernels work on the same memory.

use super::{Dispatch, POISON, Program};
use crate::error::Result;
use crate::gpu::{Checks, Stopwatch};
use crate::graph::Var;
use crate::kernel::Variant;
use crate::plan::padded;
use std::time::Instant;

/// Calls of a step ready to be run alone.
pub struct Replay {
    dispatches: Vec<Dispatch>,
    /// What they write.
    writes: Vec<Var>,
    /// Seconds the pipelines took to make.
    pub compiled_in: f64,
}

/// How long a sample took.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// Seconds from before encoding until the device was idle.
    pub wall: f64,
    /// Seconds between the device's timestamps, if it was asked for them.
    pub device: Option<f64>,
}

/// Dispatches encoded into one submission at most.
const MOST_AT_ONCE: usize = 4096;

impl Program {
    /// The calls at the positions `calls` of the graph, with `variant` instead of the kernel
    /// chosen there. Pipelines are made afresh.
    ///
    /// # Errors
    /// When the device refuses the kernel.
    ///
    /// # Panics
    /// When a grid is too large, or the kernel lacks a constant.
    #[track_caller]
    pub fn replay(
        &self,
        calls: &[usize],
        variant: &'static Variant,
        checks: Checks,
    ) -> Result<Replay> {
        let (mut dispatches, mut writes): (Vec<Dispatch>, Vec<Var>) = Default::default();
        let mut compiled_in = 0.0;
        let mut known: Vec<(crate::graph::Call, crate::gpu::Compiled)> = Vec::new();
        for &at in calls {
            let call = self.graph.calls()[at].with_variant(variant);
            let same = known.iter().find(|(c, _)| c.constants == call.constants);
            let compiled = match same {
                Some((_, compiled)) => compiled.clone(),
                None => {
                    let start = Instant::now();
                    let compiled = self.gpu.try_pipeline(&call, checks)?;
                    compiled_in += start.elapsed().as_secs_f64();
                    known.push((call.clone(), compiled.clone()));
                    compiled
                }
            };
            writes.extend(
                call.writes.iter().filter(|w| !writes.contains(w)).copied().collect::<Vec<_>>(),
            );
            dispatches.push(self.bind(&call, compiled));
        }
        Ok(Replay { dispatches, writes, compiled_in })
    }

    /// Runs a replay `repeats` times in one submission, or several where that would be very many
    /// dispatches, and waits.
    ///
    /// # Errors
    /// When the device is lost.
    pub(crate) fn time(
        &self,
        replay: &Replay,
        repeats: usize,
        watch: Option<&Stopwatch>,
    ) -> Result<Time> {
        self.gpu.wait()?;
        let per_submission = (MOST_AT_ONCE / replay.dispatches.len().max(1)).max(1);
        let (mut wall, mut device) = (0.0, watch.map(|_| 0.0));
        let what = replay.dispatches.first().map_or_else(|| "nothing".into(), |d| d.what.clone());
        let mut left = repeats;
        while left > 0 {
            let now = left.min(per_submission);
            left -= now;
            let start = Instant::now();
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: watch.map(Stopwatch::writes),
                });
                for _ in 0..now {
                    for d in &replay.dispatches {
                        pass.set_pipeline(&d.pipeline);
                        pass.set_bind_group(0, &d.group, &[]);
                        pass.dispatch_workgroups(d.grid[0], d.grid[1], d.grid[2]);
                    }
                }
            }
            if let Some(watch) = watch {
                watch.resolve(&mut encoder);
            }
            self.gpu.submit([encoder.finish()], &what);
            self.gpu.wait()?;
            wall += start.elapsed().as_secs_f64();
            if let (Some(watch), Some(device)) = (watch, &mut device) {
                *device += watch.seconds(&self.gpu)?;
            }
        }
        Ok(Time { wall, device })
    }

    /// Bits of everything a replay writes.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn written(&self, replay: &Replay) -> Result<Vec<Vec<u32>>> {
        replay.writes.iter().map(|&var| self.read_now(var)).collect()
    }

    /// Puts `bits` back where [`Program::written`] read them.
    pub fn restore(&self, replay: &Replay, bits: &[Vec<u32>]) {
        for (&var, bits) in replay.writes.iter().zip(bits) {
            let (buffer, offset) = (&self.held(var).buffer, self.offset(var));
            self.gpu.queue.write_buffer(buffer, offset, bytemuck::cast_slice(bits));
        }
    }

    /// Fills everything a replay writes with [`POISON`].
    pub fn poison_writes(&self, replay: &Replay) {
        for &var in &replay.writes {
            let words = (padded(self.graph.info(var).bytes()) / 4) as usize;
            let pattern = vec![POISON; words];
            let (buffer, offset) = (&self.held(var).buffer, self.offset(var));
            self.gpu.queue.write_buffer(buffer, offset, bytemuck::cast_slice(&pattern));
        }
    }
}
