//! Fewer values kept for the derivative: the forward pass of each block is run again when its derivative
//! is computed (Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174).
//!
//! This is a change to a finished list of calls. The forward calls are cut where little is alive; what
//! is alive at a cut is kept, and anything else that a block wrote and the derivative reads is written a
//! second time, by the same kernels from the same values into variables of its own, in front of the
//! first gradient call that reads it. So every gradient has the bits it would have had, and the plan of
//! memory, which goes by the calls alone, finds that the first ones are free after the forward pass.

use super::{Call, Graph, Role, Var};
use std::collections::{HashMap, HashSet};

/// A stretch of forward calls that is run again.
struct Block {
    calls: std::ops::Range<usize>,
    /// What it writes and the derivative reads, and no later block does.
    wanted: HashSet<Var>,
}

impl Graph {
    /// Has the forward pass between calls of `op`, which every block has once, run again when the
    /// derivative is computed, as far as that spares memory. To be said before [`Graph::backward`]; a
    /// graph with fewer than two calls of `op` stays as it would be.
    pub fn recompute_between(&mut self, op: &'static str) {
        self.recompute = Some(op);
    }

    /// Changes the calls, of which the first `forward` are not of the derivative.
    pub(super) fn run_again(&mut self, op: &str, forward: usize) {
        let blocks = self.blocks(op, forward);
        let mut before: HashMap<usize, Vec<Call>> = HashMap::new();
        let mut renamed: HashMap<Var, Var> = HashMap::new();
        for block in blocks {
            let calls = self.needed(&block);
            let fresh = self.renaming(&calls);
            let reads = |call: &Call| {
                call.reads.iter().chain(&call.writes).any(|&v| block.wanted.contains(&self.base(v)))
            };
            let Some(first) = (forward..self.calls.len()).find(|&i| reads(&self.calls[i])) else {
                continue;
            };
            let copies = calls.into_iter().map(|i| self.calls[i].clone()).collect::<Vec<_>>();
            let again = |call| Call { again: true, ..self.with_vars(call, &fresh) };
            let copies = copies.into_iter().map(again).collect();
            before.insert(first, copies);
            renamed.extend(block.wanted.iter().map(|v| (*v, fresh[v])));
        }
        let all = std::mem::take(&mut self.calls);
        for (i, call) in all.into_iter().enumerate() {
            if let Some(copies) = before.remove(&i) {
                self.calls.extend(copies);
            }
            let call = if i < forward { call } else { self.with_vars(call, &renamed) };
            self.calls.push(call);
        }
    }

    /// A variable's memory, if it is a temporary.
    fn temporary(&self, var: Var) -> Option<Var> {
        let base = self.base(var);
        matches!(self.info(base).role, Role::Temp).then_some(base)
    }

    /// The blocks that can be run again: from a place between two calls of `op` where the fewest bytes
    /// are alive to the next such place.
    fn blocks(&self, op: &str, forward: usize) -> Vec<Block> {
        let calls = &self.calls[..forward];
        let marks: Vec<usize> = (0..forward).filter(|&i| calls[i].op == op).collect();
        // First write and last read or write of each temporary in the forward pass.
        let mut life: HashMap<Var, (usize, usize)> = HashMap::new();
        for (i, call) in calls.iter().enumerate() {
            for &v in call.reads.iter().chain(&call.writes) {
                let Some(base) = self.temporary(v) else { continue };
                life.entry(base).or_insert((i, i)).1 = i;
            }
        }
        // Bytes alive in front of each call.
        let mut change = vec![0i64; forward + 2];
        for (&v, &(first, last)) in &life {
            let bytes = self.info(v).bytes() as i64;
            change[first + 1] += bytes;
            change[last + 1] -= bytes;
        }
        let alive: Vec<i64> = change
            .iter()
            .scan(0, |sum, &bytes| {
                *sum += bytes;
                Some(*sum)
            })
            .collect();
        let mut cuts: Vec<usize> = marks
            .windows(2)
            .filter_map(|pair| (pair[0] + 1..=pair[1]).min_by_key(|&i| (alive[i], i)))
            .collect();
        // What is in front of the first cut is a block too, and so is what follows the last as far as
        // the next block would have gone.
        let Some((&first, &last)) = cuts.first().zip(cuts.last()) else { return Vec::new() };
        let length = marks.last().map_or(0, |&mark| mark + (first - marks[0]));
        cuts.insert(0, 0);
        let end = (last + 1..=length.min(forward)).min_by_key(|&i| (alive[i], i));
        cuts.extend(end);
        cuts.windows(2).filter_map(|pair| self.block(pair[0]..pair[1], forward, &life)).collect()
    }

    fn block(
        &self,
        calls: std::ops::Range<usize>,
        forward: usize,
        life: &HashMap<Var, (usize, usize)>,
    ) -> Option<Block> {
        let inside = |v: Var| life.get(&v).is_some_and(|&(first, _)| calls.contains(&first));
        let mut written = HashSet::new();
        for call in &self.calls[calls.clone()] {
            for &v in &call.writes {
                // State, or what an earlier block began: that cannot be done twice.
                let base = self.temporary(v).filter(|&base| inside(base))?;
                written.insert(base);
            }
        }
        // What a later block reads stays, as does what the host reads.
        let own = |v: &Var| life[v].1 < calls.end && !self.info(*v).output;
        let read_later: HashSet<Var> = self.calls[forward..]
            .iter()
            .flat_map(|call| call.reads.iter().chain(&call.writes))
            .filter_map(|&v| self.temporary(v))
            .collect();
        let wanted: HashSet<Var> =
            written.into_iter().filter(own).filter(|v| read_later.contains(v)).collect();
        (!wanted.is_empty()).then_some(Block { calls, wanted })
    }

    /// The calls of a block that lead to what is wanted of it.
    fn needed(&self, block: &Block) -> Vec<usize> {
        let mut needed = block.wanted.clone();
        let mut calls = Vec::new();
        for i in block.calls.clone().rev() {
            let call = &self.calls[i];
            if call.writes.iter().any(|&v| needed.contains(&self.base(v))) {
                needed.extend(call.reads.iter().chain(&call.writes).map(|&v| self.base(v)));
                calls.push(i);
            }
        }
        calls.reverse();
        calls
    }

    /// A new variable for everything that these calls write.
    fn renaming(&mut self, calls: &[usize]) -> HashMap<Var, Var> {
        let mut fresh = HashMap::new();
        for &i in calls {
            for v in self.calls[i].writes.clone() {
                let base = self.base(v);
                let (name, shape) =
                    (format!("{} again", self.info(base).name), self.shape(base).to_vec());
                fresh.entry(base).or_insert_with(|| self.temp(&name, &shape));
            }
        }
        fresh
    }

    /// A call on other variables; views become the same views of them.
    fn with_vars(&mut self, mut call: Call, renamed: &HashMap<Var, Var>) -> Call {
        for v in call.reads.iter_mut().chain(&mut call.writes) {
            let (base, start) = self.place(*v);
            let Some(&other) = renamed.get(&base) else { continue };
            *v = match self.info(*v).role {
                Role::View { .. } => {
                    let info = self.info(*v);
                    let (name, shape, dtype) = (info.name.clone(), info.shape.clone(), info.dtype);
                    self.push(&name, &shape, dtype, Role::View { base: other, start })
                }
                _ => other,
            };
        }
        call
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;
    use crate::ops::add::add;
    use crate::ops::case::tests::gpu;
    use crate::ops::gelu::gelu;
    use crate::ops::mse::mse;
    use crate::ops::scale::scale;
    use crate::plan::{Reuse, plan};
    use crate::program::{Program, Store};

    const N: usize = 300;

    /// Residual blocks of which `scale` is the mark: x += gelu(gelu(scale(x + w))).
    fn blocks(count: usize, recompute: bool) -> Graph {
        let gpu = gpu();
        let mut g = Graph::new(gpu.target());
        if recompute {
            g.recompute_between("scale");
        }
        let mut x = g.input("x", &[N], DType::F32);
        for i in 0..count {
            let w = g.parameter(&format!("w{i}"), &[N], crate::graph::Init::Zeros);
            let h = add(&mut g, x, w);
            let h = scale(&mut g, h, 0.5);
            let h = gelu(&mut g, h);
            let h = gelu(&mut g, h);
            x = add(&mut g, x, h);
        }
        let target = g.constant("target", &[N], &[0.25; N]);
        let loss = mse(&mut g, x, target);
        g.output(loss);
        g.backward(loss);
        g
    }

    #[test]
    fn gradients_keep_their_bits_and_values_go() {
        let gpu = gpu();
        let run = |recompute: bool| -> Vec<Vec<u32>> {
            let g = blocks(5, recompute);
            let store = Store::new(&gpu);
            for i in 0..5 {
                let w: Vec<f32> =
                    (0..N).map(|j| ((i * 31 + j * 7) % 17) as f32 * 0.1 - 0.8).collect();
                store.write(&format!("w{i}"), &[N], &w).unwrap();
            }
            let x = Var(0);
            let program = Program::new(&gpu, g, &store).unwrap();
            program.write(x, &(0..N).map(|j| (j as f32 * 0.37).sin()).collect::<Vec<_>>());
            program.run();
            let bits = |name: String| {
                let values = store.read(&name).unwrap().unwrap();
                values.into_iter().map(f32::to_bits).collect()
            };
            (0..5).map(|i| bits(format!("w{i}.grad"))).collect()
        };
        let (kept, again) = (run(false), run(true));
        assert!(kept[0].iter().any(|&bits| f32::from_bits(bits) != 0.0));
        assert_eq!(kept, again);
    }

    #[test]
    fn memory_grows_with_one_value_a_block() {
        let bytes = |count, recompute| plan(&blocks(count, recompute), Reuse::Slots).temporaries();
        let a_value = 4 * N as u64;
        let kept = bytes(20, false) - bytes(10, false);
        let again = bytes(20, true) - bytes(10, true);
        // Without: what both gelu read, of each block; with: what the block begins with.
        assert_eq!((kept / a_value, again / a_value), (20, 10));
        let calls = |recompute| blocks(10, recompute).calls().len();
        assert!(calls(true) > calls(false));
        assert_eq!(blocks(1, true).calls().len(), blocks(1, false).calls().len());
    }
}
