//! The adapter as far as kernels are chosen by it, and what a kernel needs of one.

use super::{Tuned, VariantId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The kind of adapter a graph is built for. It decides which of several correct kernels is the
/// default choice; every class can run every baseline kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A CPU that implements Vulkan (lavapipe, SwiftShader): barriers and shared memory are slow.
    Software,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A GPU with memory of its own.
    Discrete,
}

/// Every class of adapter.
pub const ANY: &[Class] = &[Class::Software, Class::Integrated, Class::Discrete];
/// Adapters that are hardware.
pub const HARDWARE: &[Class] = &[Class::Integrated, Class::Discrete];
/// Software adapters.
pub const SOFTWARE: &[Class] = &[Class::Software];

/// Facts about the adapter that choose between kernel variants.
#[derive(Debug, Clone)]
pub struct Target {
    /// Software, integrated or discrete.
    pub class: Class,
    /// The adapter can run subgroup operations.
    pub subgroups: bool,
    /// Invocations of the smallest subgroup that a workgroup may be cut into; 0 without subgroups.
    pub lanes: u32,
    /// The adapter can compute with 16-bit floats.
    pub f16: bool,
    /// Cooperative matrices the adapter lists.
    pub cooperative: Vec<Cooperative>,
    /// Bytes of workgroup memory a kernel may use.
    pub workgroup_bytes: u32,
    /// Invocations a workgroup may have.
    pub invocations: u32,
    /// Largest storage binding in bytes.
    pub binding_bytes: u64,
    /// Largest buffer in bytes; what is bound may be a part of it.
    pub buffer_bytes: u64,
    /// Bytes of memory that there are, if somebody says so.
    pub memory: Option<u64>,
    /// Variants asked for: `softmax` or `matmul.nt` to 1, 2, … or one of its tiles.
    pub pinned: BTreeMap<String, VariantId>,
    /// What `oddgrad tune` found on this adapter.
    pub tuned: Arc<Tuned>,
    /// Paths of kernels that gave wrong results here; such a file is left out with all its tiles and in
    /// all its passes.
    pub demoted: BTreeSet<&'static str>,
}

impl Target {
    /// WebGPU's default limits and nothing else: what every adapter can do.
    pub fn baseline(class: Class) -> Self {
        Self {
            class,
            subgroups: false,
            lanes: 0,
            f16: false,
            cooperative: Vec::new(),
            workgroup_bytes: 16384,
            invocations: 256,
            binding_bytes: 128 << 20,
            buffer_bytes: 256 << 20,
            memory: None,
            pinned: BTreeMap::new(),
            tuned: Arc::default(),
            demoted: BTreeSet::new(),
        }
    }
}

/// A kind of cooperative matrix: square, with sums in single precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooperative {
    /// Rows and columns of every matrix: 8 or 16.
    pub size: u32,
    /// The factors are 16-bit floats, else single precision.
    pub half: bool,
}

/// What a variant needs beyond WebGPU's default limits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// Subgroup operations.
    pub subgroups: bool,
    /// Invocations that every subgroup must have, where more than WebGPU's four.
    pub lanes: u32,
    /// 16-bit floats.
    pub f16: bool,
    /// Cooperative matrices of this kind.
    pub cooperative: Option<Cooperative>,
    /// Invocations per workgroup, where more than 256.
    pub invocations: u32,
    /// Workgroup memory in bytes, where more than 16 KiB.
    pub workgroup_bytes: u32,
}

impl Needs {
    /// Nothing beyond WebGPU's defaults.
    pub const NONE: Needs = Needs {
        subgroups: false,
        lanes: 0,
        f16: false,
        cooperative: None,
        invocations: 0,
        workgroup_bytes: 0,
    };

    /// True if it uses an optional capability, which drivers get wrong more often than the rest.
    pub fn special(&self) -> bool {
        self.subgroups || self.f16 || self.cooperative.is_some()
    }

    pub(super) fn met(&self, target: &Target) -> bool {
        (!self.subgroups || target.subgroups)
            && self.lanes <= target.lanes
            && (!self.f16 || target.f16)
            && self.cooperative.is_none_or(|c| target.cooperative.contains(&c))
            && self.invocations <= target.invocations
            && self.workgroup_bytes <= target.workgroup_bytes
    }
}
