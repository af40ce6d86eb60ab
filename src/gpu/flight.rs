//! What was submitted to the device and is not known to be done, and how a lost device is noticed: by
//! its own word, by a submission that does not end, or by an error while waiting.

use super::Gpu;
use crate::error::{Error, Result};
use crate::guard::caught;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long one submission may take before the device counts as lost.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Submissions that may be on their way; the next one waits for the oldest.
const MOST_WAITING: usize = 1024;

struct Submission {
    number: u64,
    index: wgpu::SubmissionIndex,
    /// The operations in it, in words.
    what: Arc<str>,
}

/// The submissions of a device, oldest first, and what ended it.
#[derive(Default)]
pub(super) struct Flight {
    waiting: Mutex<VecDeque<Submission>>,
    submitted: AtomicU64,
    /// The number of the submission before which the device is lost on purpose; 0 is none.
    lose_at: AtomicU64,
    /// Why the device is lost.
    pub lost: Arc<Mutex<Option<String>>>,
    /// The error that told of it, which every later wait repeats.
    told: Mutex<Option<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Loses the device at the `n`-th submission from now, as the reset of a driver would: for tests
    /// of what a program does then.
    pub fn lose_at(&self, n: u64) {
        let at = self.flight.submitted.load(Ordering::Relaxed) + n.max(1);
        self.flight.lose_at.store(at, Ordering::Relaxed);
    }

    /// Submits commands, which do `what`; returns the number to wait for.
    pub(crate) fn submit(
        &self,
        commands: impl IntoIterator<Item = wgpu::CommandBuffer>,
        what: &Arc<str>,
    ) -> u64 {
        let flight = &self.flight;
        let oldest = {
            let waiting = locked(&flight.waiting);
            waiting.front().filter(|_| waiting.len() >= MOST_WAITING).map(|s| s.number)
        };
        if let Some(oldest) = oldest {
            // What goes wrong is kept and told by the next wait.
            let _ = self.wait_for(oldest);
        }
        let number = flight.submitted.fetch_add(1, Ordering::Relaxed) + 1;
        if flight.lose_at.load(Ordering::Relaxed) == number {
            self.device.destroy();
        }
        let index = self.queue.submit(commands);
        let submission = Submission { number, index, what: what.clone() };
        locked(&flight.waiting).push_back(submission);
        number
    }

    /// Waits until the device has done everything submitted.
    ///
    /// # Errors
    /// [`Error::Lost`] when the device is lost or does not answer in time, [`Error::Device`] when it
    /// refused a command.
    pub fn wait(&self) -> Result<()> {
        self.wait_for(u64::MAX)?;
        // What was submitted past this engine, on the same queue.
        self.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(TIMEOUT) })?;
        self.check_complaints()
    }

    /// Waits for the submission of this number and those before it, one after the other: many may
    /// take long together on a device that is well.
    pub(crate) fn wait_for(&self, number: u64) -> Result<()> {
        loop {
            let next = locked(&self.flight.waiting)
                .front()
                .filter(|submission| submission.number <= number)
                .map(|submission| submission.index.clone());
            let Some(index) = next else { return self.check_complaints() };
            let index = Some(index);
            self.poll(wgpu::PollType::Wait { submission_index: index, timeout: Some(TIMEOUT) })?;
            locked(&self.flight.waiting).pop_front();
        }
    }

    fn poll(&self, poll: wgpu::PollType) -> Result<()> {
        self.check_lost()?;
        // A device that is lost while it is waited for is a panic of wgpu 30.
        let why = match caught(|| self.device.poll(poll)) {
            Ok(Ok(_)) => return self.check_lost(),
            Ok(Err(wgpu::PollError::Timeout)) => {
                // To close a device that hangs would wait for it without an end: it stays open.
                std::mem::forget((self.device.clone(), self.queue.clone()));
                format!("it did not answer for {} s", TIMEOUT.as_secs())
            }
            Ok(Err(error)) => {
                // A device that is lost takes no submission, so there is none to wait for; what is
                // left on it ends, and then it says why it is lost.
                let rest = wgpu::PollType::Wait { submission_index: None, timeout: Some(TIMEOUT) };
                let _ = caught(|| self.device.poll(rest));
                error.to_string()
            }
            Err(panic) => panic,
        };
        locked(&self.flight.lost).get_or_insert(why);
        self.check_lost()
    }

    /// Whether the device is there.
    ///
    /// # Errors
    /// [`Error::Lost`] with the reason and what the device was doing.
    fn check_lost(&self) -> Result<()> {
        let mut told = locked(&self.flight.told);
        if told.is_none() {
            let Some(why) = locked(&self.flight.lost).clone() else { return Ok(()) };
            let waiting = locked(&self.flight.waiting);
            let what = waiting.front().map_or("nothing that is known", |s| &s.what);
            *told = Some(format!(
                "{} was lost ({why}). It was doing: {what}. A driver that was reset or updated, a watchdog that stopped a long computation, or an adapter that was unplugged does this.",
                self.info.name
            ));
        }
        told.clone().map_or(Ok(()), |text| Err(Error::Lost(text)))
    }
}
