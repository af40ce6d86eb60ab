//! What tests and benchmarks look into a program with: poisoned memory, guard zones, a run call by
//! call.

use super::Program;
use crate::error::{Error, Result};
use crate::graph::{DType, Role};
use crate::plan::{Reuse, padded};

/// Bytes behind each buffer that no kernel may write, when guards are on.
pub(super) const GUARD_BYTES: u64 = 256;
/// What poisoned outputs hold: a NaN with a recognisable payload.
pub const POISON: u32 = 0x7fc0_dead;

/// What the guard zone of a variable holds: each buffer gets its own pattern. Arithmetic keeps the
/// payload of a NaN, so with one pattern for all, a kernel that reads beyond one buffer and writes
/// beyond another would write what is there already.
fn guard(var: usize) -> u32 {
    0x7fc1_0000 + (var % 0x1_0000) as u32
}

impl Program {
    /// Seconds the CPU needs to encode one run, without submitting it: what replaying costs on an
    /// adapter whose work the CPU does not do itself.
    pub fn encoding_seconds(&self) -> f64 {
        let start = std::time::Instant::now();
        for submission in self.submissions.borrow().iter() {
            drop(self.encode(&self.dispatches[submission.dispatches.clone()]));
        }
        start.elapsed().as_secs_f64()
    }

    /// Runs one call at a time and scans what each wrote; names the first call whose result holds
    /// a NaN or an infinity. Slow: for finding out, not for training.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the call's listing line, or a lost device.
    pub fn run_checked(&self) -> Result<()> {
        for (i, (call, dispatch)) in self.graph.calls().iter().zip(&self.dispatches).enumerate() {
            self.submit(dispatch);
            for &var in &call.writes {
                let info = self.graph.info(var);
                let data = self.read_now(var)?;
                // By bits: compilers may assume that NaN does not exist.
                let bad = data.iter().position(|b| b & 0x7f80_0000 == 0x7f80_0000);
                if let (Some(at), DType::F32) = (bad, info.dtype) {
                    let listing = self.graph.listing();
                    let line = listing.lines().nth(i).unwrap_or_default();
                    return Err(Error::NonFinite(format!(
                        "element {at} of {} is {} after call\n{line}",
                        info.name,
                        f32::from_bits(data[at])
                    )));
                }
            }
        }
        Ok(())
    }

    /// Runs one call at a time and waits for each: wall-clock seconds per call.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn run_timed(&self) -> Result<Vec<f64>> {
        self.gpu.wait()?;
        self.dispatches
            .iter()
            .map(|d| {
                let start = std::time::Instant::now();
                self.submit(d);
                self.gpu.wait()?;
                Ok(start.elapsed().as_secs_f64())
            })
            .collect()
    }

    pub(super) fn poison(&self) {
        for (i, info) in self.graph.vars().iter().enumerate() {
            let Some(held) = &self.buffers[i] else { continue };
            let words = (held.buffer.size() / 4) as usize;
            let inside = (padded(info.bytes()) / 4) as usize;
            let from = if matches!(info.role, Role::Temp) { 0 } else { inside };
            let mut pattern = vec![POISON; inside - from];
            pattern.resize(words - from, guard(i));
            let offset = 4 * from as u64;
            self.gpu.queue.write_buffer(&held.buffer, offset, bytemuck::cast_slice(&pattern));
        }
    }

    /// Names variables whose guard zone was written (only with [`ProgramOptions::poison`](super::ProgramOptions::poison) and without
    /// slot sharing).
    ///
    /// # Errors
    /// When the device is lost.
    pub fn broken_guards(&self) -> Result<Vec<String>> {
        assert!(
            self.options.poison && self.options.reuse == Reuse::None,
            "guards need poison and no sharing"
        );
        let mut broken = Vec::new();
        for (i, info) in self.graph.vars().iter().enumerate() {
            let Some(held) = &self.buffers[i] else { continue };
            let data: Vec<u32> = bytemuck::pod_collect_to_vec(&self.gpu.read_buffer(
                &held.buffer,
                0,
                held.buffer.size(),
            )?);
            if data[(padded(info.bytes()) / 4) as usize..].iter().any(|&w| w != guard(i)) {
                broken.push(info.name.clone());
            }
        }
        Ok(broken)
    }
}
