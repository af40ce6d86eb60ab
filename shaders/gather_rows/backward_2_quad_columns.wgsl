// gather_rows, backward: dx[unique[s], :] += sum of dy[list[j], :] over offsets[s] <= j < offsets[s + 1].
// As 1_naive, one invocation per four consecutive elements: where they lie in one slot, which they
// always do if D is a multiple of four, the slot's range and list are read once for all four.
// Grid: ceil(SLOTS * D / 1024) groups, folded into (x, y) beyond 65,535.
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

// The row of dy that is the j-th of the list, as its first element.
fn term(j: u32) -> u32 {
    return min(list[j], N - 1u) * D;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = ((group.x + group.y * groups.x) * 256u + lane) * 4u;
    if first >= SLOTS * D {
        return;
    }
    let slot = first / D;
    let column = first - slot * D;
    if column + 4u <= D {
        let start = offsets[slot];
        let end = min(offsets[slot + 1u], N);
        if start >= end || (PART && unique[slot] - FIRST >= R) {
            return; // an unused slot, or another call's row
        }
        var sum = vec4<f32>();
        for (var j = start; j < end; j++) {
            let i = term(j) + column;
            sum += vec4<f32>(dy[i], dy[i + 1u], dy[i + 2u], dy[i + 3u]);
        }
        let at = min(unique[slot] - FIRST, R - 1u) * D + column;
        dx[at] += sum.x;
        dx[at + 1u] += sum.y;
        dx[at + 2u] += sum.z;
        dx[at + 3u] += sum.w;
        return;
    }
    for (var e = first; e < min(first + 4u, SLOTS * D); e++) {
        let start = offsets[e / D];
        let end = min(offsets[e / D + 1u], N);
        if start < end && !(PART && unique[e / D] - FIRST >= R) {
            var sum = 0.0;
            for (var j = start; j < end; j++) {
                sum += dy[term(j) + e % D];
            }
            dx[min(unique[e / D] - FIRST, R - 1u) * D + e % D] += sum;
        }
    }
}
