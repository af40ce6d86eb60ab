// store_rows, forward: y[rows[n], :] = x[n, :], one invocation per element of x; the other rows of
// y stay as they are, and a row beyond the end of y is left out.
// Grid: ceil(N * D / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const R: u32 = 1u; // rows of y
const N: u32 = 1u; // stored rows
const D: u32 = 1u; // columns

@group(0) @binding(0) var<storage, read> x: array<f32>; // [N, D]
@group(0) @binding(1) var<storage, read> rows: array<u32>; // [N], distinct where below R
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [R, D]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 256u + lane;
    if i >= N * D {
        return;
    }
    let n = i / D;
    if rows[n] < R {
        y[rows[n] * D + (i - n * D)] = x[i];
    }
}
