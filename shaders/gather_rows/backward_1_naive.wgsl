// gather_rows, backward: dx[unique[s], :] += sum of dy[list[j], :] over offsets[s] <= j < offsets[s + 1].
// One invocation per (slot, column): it alone owns its element of dx, so the sum has a fixed order
// and needs no atomics. Slots with an empty range are unused and touch nothing.
// Grid: ceil(SLOTS * D / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const R: u32 = 1u; // rows of dx
const N: u32 = 1u; // gathered rows
const D: u32 = 1u; // columns
const SLOTS: u32 = 1u; // capacity for distinct rows
const FIRST: u32 = 0u; // the table's row that dx begins with, where it is bound in parts
const PART: bool = false; // dx is a part: rows outside of it are another call's

@group(0) @binding(0) var<storage, read> unique: array<u32>; // [SLOTS], each used row once
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [SLOTS + 1]
@group(0) @binding(2) var<storage, read> list: array<u32>; // [N], positions sorted by row
@group(0) @binding(3) var<storage, read> dy: array<f32>; // [N, D]
@group(0) @binding(4) var<storage, read_write> dx: array<f32>; // [R, D]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 256u + lane;
    if i >= SLOTS * D {
        return;
    }
    let slot = i / D;
    let column = i - slot * D;
    let start = offsets[slot];
    let end = min(offsets[slot + 1u], N);
    if start >= end || (PART && unique[slot] - FIRST >= R) {
        return;
    }
    var sum = 0.0;
    for (var j = start; j < end; j++) {
        sum += dy[min(list[j], N - 1u) * D + column];
    }
    let at = min(unique[slot] - FIRST, R - 1u) * D + column;
    dx[at] = dx[at] + sum;
}
