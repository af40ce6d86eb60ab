//! Liveness to buffer slots and bytes: a pure function of the graph.
//!
//! Every temporary lives from the first call that names it, or a view of it, to the last. Two temporaries share a
//! slot if their lives do not touch. Larger ones choose first (greedy by size), so a slot is as
//! large as its first tenant. One slot becomes one buffer: WebGPU tracks usage per buffer, so
//! sub-allocating a single arena would force every binding to read-write.

use crate::graph::{Graph, Role, Var};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// How temporaries are given memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Share slots by liveness.
    Slots,
    /// And share them with the other programs of the same store. Programs never run at once, but
    /// another one's run leaves nothing of this one's temporaries: outputs are fetched before it.
    Pool,
    /// A slot for each temporary: for debugging and to test that sharing changes nothing.
    None,
}

/// Reads of one program that may be started before the first is collected: each has a buffer of its
/// own for every output.
pub const READS_IN_FLIGHT: usize = 4;

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
    /// Bytes of the buffers that outputs are read back through.
    pub staging: u64,
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

/// Slots that several programs take turns with.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    sizes: Vec<u64>,
}

impl Pool {
    /// A place in the pool for each slot of a program, larger slots first: the smallest one that is
    /// large enough and not taken by this program, else a new one.
    pub fn assign(&mut self, slots: &[u64]) -> Vec<usize> {
        let mut taken = vec![false; self.sizes.len()];
        let place = |&bytes: &u64| {
            let able = (0..self.sizes.len()).filter(|&i| !taken[i] && self.sizes[i] >= bytes);
            let at = able.min_by_key(|&i| self.sizes[i]).unwrap_or_else(|| {
                self.sizes.push(bytes);
                taken.push(false);
                self.sizes.len() - 1
            });
            taken[at] = true;
            at
        };
        slots.iter().map(place).collect()
    }

    /// Bytes of each place.
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
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
            span.1 = END;
        }
    }
    let mut temps: Vec<Var> = Vec::new();
    let (mut inputs, mut state, mut unshared, mut staging) = (0, 0, 0, 0);
    for (i, info) in vars.iter().enumerate() {
        let bytes = padded(info.bytes());
        if info.output {
            staging += READS_IN_FLIGHT as u64 * bytes;
        }
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
    let begins = |v: Var| life[v.index()].map(|(first, _)| first);
    temps.sort_by_key(|&v| (Reverse(padded(vars[v.index()].bytes())), begins(v), v));

    let bytes_of = |v: Var| padded(vars[v.index()].bytes());
    let life_of = |v: Var| life[v.index()].expect("only live temporaries are listed");
    let mut slot_of = vec![None; vars.len()];
    let mut slots = Slots::default();
    for equals in temps.chunk_by(|&a, &b| bytes_of(a) == bytes_of(b)) {
        slots.begin_size();
        for &v in equals {
            slot_of[v.index()] = Some(match reuse {
                Reuse::None => slots.add(bytes_of(v)),
                _ => slots.place(bytes_of(v), life_of(v)),
            });
        }
    }
    Plan { slot_of, slots: slots.bytes, inputs, state, unshared, staging }
}

/// Slots with the stretches of time in which they are free. Temporaries of one size are placed
/// together, in the order they begin, so that each looks only at stretches that have begun too: the
/// work grows with their number and not with its square.
#[derive(Default)]
struct Slots {
    bytes: Vec<u64>,
    /// Free stretches of all slots, complete whenever a new size begins.
    free: Vec<Free>,
    /// Of those, the ones that have not begun yet, by when they do.
    later: BinaryHeap<Reverse<Free>>,
    /// The ones that have begun, as (last, first, slot).
    now: BTreeSet<Free>,
}

/// First and last call in which a slot is free, and the slot.
type Free = (usize, usize, usize);

/// A call after the last.
const END: usize = usize::MAX;

impl Slots {
    fn begin_size(&mut self) {
        self.free.extend(self.later.drain().map(|Reverse(stretch)| stretch));
        let begun = std::mem::take(&mut self.now);
        self.free.extend(begun.into_iter().map(|(last, first, slot)| (first, last, slot)));
        self.later = std::mem::take(&mut self.free).into_iter().map(Reverse).collect();
    }

    fn add(&mut self, bytes: u64) -> usize {
        self.bytes.push(bytes);
        self.bytes.len() - 1
    }

    /// The slot that is free from `first` to `last` and for the shortest time after that, else a
    /// new one.
    fn place(&mut self, bytes: u64, (first, last): (usize, usize)) -> usize {
        while let Some(&Reverse((from, to, slot))) = self.later.peek().filter(|f| f.0.0 <= first) {
            self.later.pop();
            self.now.insert((to, from, slot));
        }
        let fitting = self.now.range((last, 0, 0)..).next().copied();
        let (to, from, slot) = fitting.unwrap_or_else(|| (END, 0, self.add(bytes)));
        self.now.remove(&(to, from, slot));
        if from < first {
            // Nothing of this size begins as early any more.
            self.free.push((from, first - 1, slot));
        }
        if last < to {
            self.later.push(Reverse((last + 1, to, slot)));
        }
        slot
    }
}
