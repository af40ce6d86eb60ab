//! Liveness to buffer slots and bytes: a pure function of the graph.
//!
//! Every temporary lives from the first call that names it, or a view of it, to the last. Two temporaries share a
//! slot if their lives do not touch. Larger ones choose first (greedy by size), so a slot is as
//! large as its first tenant. One slot becomes one buffer: WebGPU tracks usage per buffer, so
//! sub-allocating a single arena would force every binding to read-write.

use crate::graph::{Graph, Role, Var};

/// How temporaries are given memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Share slots by liveness.
    Slots,
    /// A slot for each temporary: for debugging and to test that sharing changes nothing.
    None,
}

/// A slot for each temporary, and the bytes of everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Per variable: its slot, if it is a temporary that some call names.
    pub slot_of: Vec<Option<usize>>,
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// Bytes of inputs and constants.
    pub inputs: u64,
    /// Bytes of state (parameters, gradients, moments) this graph names.
    pub state: u64,
    /// Bytes all temporaries would take without sharing.
    pub unshared: u64,
}

impl Plan {
    /// Bytes of all slots.
    pub fn temporaries(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Bytes of everything the graph touches.
    pub fn total(&self) -> u64 {
        self.temporaries() + self.inputs + self.state
    }
}

/// Bytes a buffer of `bytes` takes: storage bindings are multiples of four and never empty.
pub fn padded(bytes: u64) -> u64 {
    bytes.max(4).next_multiple_of(4)
}

/// Plans the memory of `graph`.
pub fn plan(graph: &Graph, reuse: Reuse) -> Plan {
    let vars = graph.vars();
    let mut life: Vec<Option<(usize, usize)>> = vec![None; vars.len()];
    for (i, call) in graph.calls().iter().enumerate() {
        for &v in call.reads.iter().chain(&call.writes) {
            let span = life[graph.base(v).index()].get_or_insert((i, i));
            span.1 = i;
        }
    }
    for (i, _) in vars.iter().enumerate().filter(|(_, info)| info.output) {
        if let Some(span) = &mut life[graph.base(Var(i as u32)).index()] {
            span.1 = usize::MAX;
        }
    }
    let mut temps: Vec<Var> = Vec::new();
    let (mut inputs, mut state, mut unshared) = (0, 0, 0);
    for (i, info) in vars.iter().enumerate() {
        let bytes = padded(info.bytes());
        match info.role {
            Role::Input | Role::Constant(_) => inputs += bytes,
            Role::State => state += bytes,
            Role::Temp => {
                if life[i].is_some() {
                    unshared += bytes;
                    temps.push(Var(i as u32));
                }
            }
            Role::View { .. } => {}
        }
    }
    // The sort is stable, so equal sizes keep program order and the plan is deterministic.
    temps.sort_by_key(|v| std::cmp::Reverse(vars[v.index()].bytes()));

    let mut slot_of = vec![None; vars.len()];
    let mut slots: Vec<u64> = Vec::new();
    let mut tenants: Vec<Vec<(usize, usize)>> = Vec::new();
    for v in temps {
        let (first, last) = life[v.index()].expect("only live temporaries are listed");
        let free = |spans: &Vec<(usize, usize)>| spans.iter().all(|&(f, l)| last < f || l < first);
        let found = match reuse {
            Reuse::Slots => tenants.iter().position(free),
            Reuse::None => None,
        };
        let slot = found.unwrap_or_else(|| {
            slots.push(padded(vars[v.index()].bytes()));
            tenants.push(Vec::new());
            slots.len() - 1
        });
        tenants[slot].push((first, last));
        slot_of[v.index()] = Some(slot);
    }
    Plan { slot_of, slots, inputs, state, unshared }
}
