//! Adapter choice, the device, buffers, readback and pipelines.

mod adapter;
mod flight;
mod memory;
mod pipeline;
#[cfg(feature = "cli")]
mod stopwatch;

pub use adapter::{AdapterChoice, Backend, cooperative_matrices, list_adapters};
pub use pipeline::Checks;
pub(crate) use pipeline::Compiled;
#[cfg(feature = "cli")]
pub(crate) use stopwatch::Stopwatch;

use crate::error::{Error, Problem, Result};
use crate::kernel::{Class, Target, Tuned};
use flight::Flight;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A started mapping of a buffer.
pub(crate) type Mapping =
    std::sync::mpsc::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>;

/// Hears of a kernel before it is compiled, and None after the last of a program.
type Listener = Box<dyn FnMut(Option<&str>) + Send>;

/// An open device with its queue, its pipelines and counts of what was created.
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    target: Target,
    pipelines: Mutex<HashMap<pipeline::Key, Compiled>>,
    bytes: AtomicU64,
    created: AtomicU64,
    runs: AtomicU64,
    /// What was said once already.
    notes: Mutex<BTreeSet<String>>,
    listener: Mutex<Option<Listener>>,
    /// The first thing the device complained about outside an error scope.
    complaint: Arc<Mutex<Option<String>>>,
    flight: Flight,
}

impl Gpu {
    /// Opens the adapter that `choice` names, or the best one: a discrete GPU before an integrated
    /// one, a software adapter only where there is nothing else.
    ///
    /// Kernels that use subgroups, 16-bit floats or cooperative matrices are taken on trust; a
    /// program that doubts the driver has them tried by
    /// [`self_test`](crate::ops::self_test::self_test), as the `oddgrad` commands do.
    ///
    /// # Errors
    /// No adapter at all (says how to install software Vulkan), an unknown name, or a device that
    /// cannot be opened.
    pub fn open(choice: &AdapterChoice) -> Result<Self> {
        let adapter = adapter::choose(choice)?;
        let info = adapter.get_info();
        let mut features = adapter.features()
            & (wgpu::Features::SUBGROUP
                | wgpu::Features::SHADER_F16
                | wgpu::Features::TIMESTAMP_QUERY);
        let experimental_features = if cooperative_matrices(&adapter).is_empty() {
            wgpu::ExperimentalFeatures::disabled()
        } else {
            features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: cooperative matrices are the only experimental feature asked for. Only
            // kernels of this crate use them, in the kinds the adapter lists; their tests compare
            // every element with a reference.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        };
        let request = wgpu::DeviceDescriptor {
            label: Some("oddgrad"),
            required_features: features,
            required_limits: adapter.limits(),
            experimental_features,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&request))
            .map_err(|e| Error::Device(format!("cannot open {}: {e}.", info.name)))?;
        let mut gpu = Self::from_wgpu(&adapter, device, queue)?;
        gpu.target.pinned = choice.kernels.clone();
        Ok(gpu)
    }

    /// Computes on a device and queue of the caller's, which go on working beside it.
    ///
    /// The device must have at least WebGPU's default limits for compute shaders
    /// ([`wgpu::Limits::default`]). No feature is needed. Kernels use subgroups, 16-bit floats,
    /// cooperative matrices and timestamps if the device was requested with
    /// [`wgpu::Features::SUBGROUP`], `SHADER_F16`, `EXPERIMENTAL_COOPERATIVE_MATRIX` and
    /// `TIMESTAMP_QUERY`. `adapter` is the one that the device was requested from.
    ///
    /// The device's handlers for uncaptured errors and for its loss are replaced: what goes wrong
    /// is returned by the next call that waits for the device.
    ///
    /// # Errors
    /// [`Error::Input`] with every limit that is too low.
    pub fn from_wgpu(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
    ) -> Result<Self> {
        let (features, limits, info) = (device.features(), device.limits(), adapter.get_info());
        check_limits(&info.name, &limits)?;
        // By default an error outside a scope ends the program. Here it is kept, and the next wait
        // for the device returns it.
        let complaint = Arc::new(Mutex::new(None));
        let keep = |text: String, into: &Mutex<Option<String>>| {
            into.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        };
        let into = complaint.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| keep(e.to_string(), &into)));
        let flight = Flight::default();
        let into = flight.lost.clone();
        device.set_device_lost_callback(move |reason, text| {
            // Closing the device at the end is reported as a loss too, when nobody asks any more.
            let destroyed = reason == wgpu::DeviceLostReason::Destroyed;
            keep(if destroyed { "it was destroyed".into() } else { text }, &into);
        });
        let class = adapter::class(&info);
        let target = Target {
            class,
            memory: memory::of(adapter, class),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            lanes: match features.contains(wgpu::Features::SUBGROUP) {
                true => info.subgroup_min_size,
                false => 0,
            },
            f16: features.contains(wgpu::Features::SHADER_F16),
            cooperative: match features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
                true => cooperative_matrices(adapter),
                false => Vec::new(),
            },
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            invocations: limits.max_compute_invocations_per_workgroup,
            binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            buffer_bytes: limits.max_buffer_size,
            pinned: BTreeMap::new(),
            tuned: Arc::default(),
            demoted: BTreeSet::new(),
        };
        Ok(Self {
            device,
            queue,
            info,
            target,
            pipelines: Mutex::default(),
            bytes: AtomicU64::new(0),
            created: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            notes: Mutex::default(),
            listener: Mutex::default(),
            complaint,
            flight,
        })
    }

    /// What graphs are built for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Graphs built from now on take these kernels where a size is among them.
    pub fn set_tuned(&mut self, tuned: Tuned) {
        self.target.tuned = Arc::new(tuned);
    }

    /// Graphs built from now on do without this kernel.
    pub fn demote(&mut self, path: &'static str) {
        self.target.demoted.insert(path);
    }

    /// Name, driver and backend of the adapter.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// One line for reports: adapter, driver, backend.
    pub fn describe(&self) -> String {
        let i = &self.info;
        let driver = format!("{} {}", i.driver, i.driver_info);
        format!("{} ({}, {:?})", i.name, driver.trim(), i.backend)
    }

    /// True if the adapter is a CPU.
    pub fn is_software(&self) -> bool {
        self.target.class == Class::Software
    }

    /// Bytes of buffers alive now, as this program counts them.
    pub fn buffer_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes the device's own allocator reports, where the backend has such a report.
    pub fn allocator_bytes(&self) -> Option<u64> {
        self.device.generate_allocator_report().map(|r| r.allocations.iter().map(|a| a.size).sum())
    }

    /// Buffers, bind groups and pipelines created so far: it must not grow while a step runs.
    pub fn created(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    /// Programs run so far.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Says something on stderr that a user who chose kernels by hand should hear, once a device.
    pub(crate) fn note(&self, text: &str) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.insert(text.to_owned()) {
            // A closed stderr is no reason to stop.
            let _ = writeln!(std::io::stderr(), "note: {text}");
        }
    }

    /// Has `listener` told of each kernel before it is compiled, because some drivers take seconds
    /// for one, and None when a program has all of its own.
    pub fn on_compile(&self, listener: impl FnMut(Option<&str>) + Send + 'static) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(listener));
    }

    pub(crate) fn compiles(&self, kernel: Option<&str>) {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tell) = listener.as_mut() {
            tell(kernel);
        }
    }

    pub(crate) fn count_created(&self) {
        self.created.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_run(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
    }

    /// A buffer of `bytes` (padded to four).
    ///
    /// # Errors
    /// When `bytes` is beyond what a buffer of the adapter holds, or memory ran out.
    pub(crate) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let size = crate::plan::padded(bytes);
        if size > self.target.buffer_bytes {
            return Err(Error::Limit(format!(
                "`{label}` needs {:.1} MiB in one buffer; one of {} holds at most {:.1} MiB.",
                size as f64 / 1048576.0,
                self.info.name,
                self.target.buffer_bytes as f64 / 1048576.0
            )));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        });
        if let Some(e) = pollster::block_on(scope.pop()) {
            return Err(Error::Device(format!(
                "{} has no {:.1} MiB left for `{label}` ({} MiB are in use): {e}.",
                self.info.name,
                size as f64 / 1048576.0,
                self.buffer_bytes() >> 20
            )));
        }
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.count_created();
        Ok(buffer)
    }

    /// Writes to a buffer from byte `at` on, before what is submitted next.
    pub(crate) fn write(&self, buffer: &wgpu::Buffer, at: u64, bytes: &[u8]) {
        // Of whole words; an odd number of 16-bit elements leaves half a word.
        let (whole, rest) = bytes.split_at(bytes.len() / 4 * 4);
        self.queue.write_buffer(buffer, at, whole);
        if !rest.is_empty() {
            let mut word = [0; 4];
            word[..rest.len()].copy_from_slice(rest);
            self.queue.write_buffer(buffer, at + whole.len() as u64, &word);
        }
    }

    /// What the device complained about since it was opened.
    ///
    /// # Errors
    /// The first complaint; every later call repeats it, since nothing computed after it counts.
    pub(crate) fn check_complaints(&self) -> Result<()> {
        match self.complaint.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            None => Ok(()),
            Some(text) => Err(Error::Device(format!(
                "{} refused a command: {text}\nUpdate its driver.",
                self.info.name
            ))),
        }
    }

    /// Starts mapping a buffer that a submitted copy fills.
    pub(crate) fn start_map(&self, buffer: &wgpu::Buffer) -> Mapping {
        let (sender, receiver) = std::sync::mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if the values are not wanted any more.
            let _ = sender.send(result);
        });
        receiver
    }

    /// The first `bytes` of a buffer whose mapping was started and whose submission is done.
    pub(crate) fn finish_map(
        &self,
        buffer: &wgpu::Buffer,
        bytes: u64,
        mapping: Mapping,
    ) -> Result<Vec<u8>> {
        let lost = |e: String| {
            Error::Device(format!("cannot read results back from {}: {e}", self.info.name))
        };
        mapping.try_recv().map_err(|e| lost(e.to_string()))?.map_err(|e| lost(e.to_string()))?;
        let data = buffer.get_mapped_range(..bytes).map_err(|e| lost(e.to_string()))?.to_vec();
        buffer.unmap();
        Ok(data)
    }

    /// Copies any buffer to the host through a staging buffer of its own (weights, checkpoints;
    /// a step reads its outputs through buffers made beforehand).
    pub(crate) fn read_buffer(
        &self,
        buffer: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
    ) -> Result<Vec<u8>> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read back"),
            size: crate::plan::padded(bytes),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, crate::plan::padded(bytes));
        let submission = self.submit([encoder.finish()], &"reading back".into());
        let mapping = self.start_map(&staging);
        self.wait_for(submission)?;
        self.finish_map(&staging, bytes, mapping)
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Compares a device with the limits that every kernel's baseline relies on.
fn check_limits(name: &str, limits: &wgpu::Limits) -> Result<()> {
    let of = |l: &wgpu::Limits| {
        [
            ("max_storage_buffers_per_shader_stage", l.max_storage_buffers_per_shader_stage),
            ("max_compute_workgroup_storage_size", l.max_compute_workgroup_storage_size),
            ("max_compute_invocations_per_workgroup", l.max_compute_invocations_per_workgroup),
            ("max_compute_workgroup_size_x", l.max_compute_workgroup_size_x),
            ("max_compute_workgroup_size_y", l.max_compute_workgroup_size_y),
            ("max_compute_workgroup_size_z", l.max_compute_workgroup_size_z),
            ("max_compute_workgroups_per_dimension", l.max_compute_workgroups_per_dimension),
        ]
    };
    let problems: Vec<Problem> = of(limits)
        .into_iter()
        .zip(of(&wgpu::Limits::default()))
        .filter(|((_, has), (_, least))| has < least)
        .map(|((limit, has), (_, least))| {
            Problem::new(limit, format!("is {has}; request at least {least}"))
        })
        .collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::input(format!("the device on {name} has limits too low"), problems)),
    }
}
