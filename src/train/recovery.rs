//! A run that outlives its device: when that is lost, it goes on from its last checkpoint on a new
//! one, with the same bits.

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::train::prepare::{Prepared, prepare};
use crate::train::trainer::{TrainEvent, TrainOutcome, run};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Devices that may be lost without a step further than before: then it is no accident.
const MOST_LOSSES: u32 = 3;
/// How long a driver may take to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// As [`run`], with a device from `open`; each time it is lost, on a new one of the same adapter from
/// the last checkpoint.
///
/// # Errors
/// As [`run`]; [`Error::Lost`] when devices are lost again and again without a step forward; that of
/// `open` when it gives no device for a minute, or only one of another adapter.
pub fn run_recovering(
    mut prepared: Prepared,
    open: &mut dyn FnMut() -> Result<Rc<Gpu>>,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<TrainOutcome> {
    let (recipe, stop, cache) =
        (prepared.recipe.clone(), prepared.stop.clone(), prepared.cache.clone());
    let mut gpu = open()?;
    let (mut furthest, mut losses) = (0, 0);
    loop {
        let before = furthest;
        let mut watch = |event: TrainEvent| {
            if let TrainEvent::Step(record) = &event {
                furthest = furthest.max(record.step);
            }
            on_event(event);
        };
        let lost = match run(prepared, &gpu, &mut watch) {
            Err(Error::Lost(text)) => text,
            other => return other,
        };
        losses = if furthest > before { 1 } else { losses + 1 };
        if losses == MOST_LOSSES {
            return Err(Error::Lost(format!("{lost} It is lost each time after step {furthest}.")));
        }
        on_event(TrainEvent::Note(lost));
        gpu = reopen(gpu, open, &stop)?;
        on_event(TrainEvent::Note(format!(
            "{} is open again: the run goes on from its last checkpoint",
            gpu.describe()
        )));
        prepared = prepare(&recipe, true)?.stop_when(stop.clone()).cache_in(cache.clone());
    }
}

/// A new device on the adapter of one that was lost.
fn reopen(
    lost: Rc<Gpu>,
    open: &mut dyn FnMut() -> Result<Rc<Gpu>>,
    stop: &AtomicBool,
) -> Result<Rc<Gpu>> {
    let adapter = lost.info().clone();
    drop(lost);
    let start = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let error = match open() {
            Ok(gpu) => {
                let found = gpu.info();
                let of = |info: &wgpu::AdapterInfo| {
                    (info.name.clone(), info.vendor, info.device, info.backend)
                };
                if of(found) == of(&adapter) {
                    return Ok(gpu);
                }
                let what = format!(
                    "{} was lost and is not there any more; {} would be the next best. Go on with it by --resume.",
                    adapter.name, found.name
                );
                Error::Adapter(what)
            }
            Err(error) => error,
        };
        if start.elapsed() > PATIENCE || stop.load(Ordering::Relaxed) {
            return Err(error);
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(Duration::from_secs(5));
    }
}
