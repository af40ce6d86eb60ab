//! The index behind the derivative of `gather_rows` and `embedding`, built on the CPU.
//!
//! Gathering row r at positions n1 < n2 < … makes the gradient of row r the sum of the gradients
//! at those positions. The index turns that scatter into a gather without atomics: `unique` lists
//! every row that occurs once, and slot s of it owns the positions
//! `list[offsets[s] .. offsets[s + 1]]`.

use crate::graph::{DType, Graph, Var};

/// Graph inputs that hold an index; their lengths are static, so one program serves every batch.
#[derive(Debug, Clone, Copy)]
pub struct GatherIndex {
    /// `[slots]` u32: the distinct rows in ascending order, then zeros in the unused slots.
    pub unique: Var,
    /// `[slots + 1]` u32: slot s owns `list[offsets[s]..offsets[s + 1]]`; empty for unused slots.
    pub offsets: Var,
    /// `[n]` u32: the positions 0..n sorted by row, ascending within a row.
    pub list: Var,
}

impl GatherIndex {
    /// Inputs for an index over `n` gathered rows of which at most `slots` are distinct
    /// (`min(n, rows of the table)` always suffices).
    pub fn inputs(g: &mut Graph, name: &str, n: usize, slots: usize) -> Self {
        Self {
            unique: g.input(&format!("{name} unique"), &[slots], DType::U32),
            offsets: g.input(&format!("{name} offsets"), &[slots + 1], DType::U32),
            list: g.input(&format!("{name} list"), &[n], DType::U32),
        }
    }

    /// What the host writes to each input of the index, for the gathered rows `ids`. `g` is the
    /// graph that [`GatherIndex::inputs`] declared them in.
    ///
    /// # Panics
    /// When more of `ids` are distinct than the index has slots.
    #[track_caller]
    pub fn values(&self, g: &Graph, ids: &[u32]) -> [(Var, Vec<u32>); 3] {
        let index = build_index(ids, g.info(self.unique).len());
        [(self.unique, index.unique), (self.offsets, index.offsets), (self.list, index.list)]
    }
}

/// The values of a [`GatherIndex`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexArrays {
    /// `[slots]`, for [`GatherIndex::unique`].
    pub unique: Vec<u32>,
    /// `[slots + 1]`, for [`GatherIndex::offsets`].
    pub offsets: Vec<u32>,
    /// `[n]`, for [`GatherIndex::list`].
    pub list: Vec<u32>,
}

/// The index of the gathered rows `ids`, padded to `slots` distinct ones.
///
/// # Panics
/// When more than `slots` of `ids` are distinct.
#[track_caller]
pub fn build_index(ids: &[u32], slots: usize) -> IndexArrays {
    let n = u32::try_from(ids.len()).expect("fewer than 2^32 gathered rows");
    let mut list: Vec<u32> = (0..n).collect();
    // Stable: positions of the same row stay in ascending order, which fixes the order of the sum.
    list.sort_by_key(|&i| ids[i as usize]);
    let mut unique = Vec::with_capacity(slots);
    let mut offsets = Vec::with_capacity(slots + 1);
    for (j, &i) in list.iter().enumerate() {
        let id = ids[i as usize];
        if unique.last() != Some(&id) {
            unique.push(id);
            offsets.push(j as u32);
        }
    }
    assert!(unique.len() <= slots, "build_index: {} distinct rows, room for {slots}", unique.len());
    unique.resize(slots, 0);
    offsets.resize(slots + 1, n);
    IndexArrays { unique, offsets, list }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_index_lists_every_position_once_under_its_row() {
        let index = build_index(&[7, 2, 7, 0, 2, 7], 5);
        assert_eq!(index.unique, [0, 2, 7, 0, 0]);
        assert_eq!(index.offsets, [0, 1, 3, 6, 6, 6]);
        assert_eq!(index.list, [3, 1, 4, 0, 2, 5]);
    }

    #[test]
    fn gather_index_of_nothing_is_all_unused() {
        let index = build_index(&[], 2);
        assert_eq!(index, IndexArrays { unique: vec![0, 0], offsets: vec![0, 0, 0], list: vec![] });
    }

    #[test]
    #[should_panic(expected = "3 distinct rows, room for 2")]
    fn gather_index_refuses_too_many_distinct_rows() {
        build_index(&[1, 2, 3], 2);
    }
}
