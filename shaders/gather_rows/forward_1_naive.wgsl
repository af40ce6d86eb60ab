// gather_rows, forward: y[n, :] = x[rows[n], :], one invocation per element.
// Grid: ceil(N * D / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const R: u32 = 1u; // rows of x
const N: u32 = 1u; // gathered rows
const D: u32 = 1u; // columns
const FIRST: u32 = 0u; // the table's row that x begins with, where it is bound in parts
const PART: bool = false; // x is a part: rows outside of it are another call's

@group(0) @binding(0) var<storage, read> x: array<f32>; // [R, D]
@group(0) @binding(1) var<storage, read> rows: array<u32>; // [N]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [N, D]

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
    if PART && rows[n] - FIRST >= R {
        return;
    }
    // Rows are checked where they are made; this only keeps a wrong one inside the buffer.
    let row = min(rows[n] - FIRST, R - 1u);
    y[i] = x[row * D + (i - n * D)];
}
