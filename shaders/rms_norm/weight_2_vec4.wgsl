// rms_norm, gradient of the weight over blocks of ROWS rows:
// dw[block, j] = sum over the block's rows of dy * x * inverse_rms; as 1_naive, one invocation per block
// and four neighbouring columns.
// Grid: ceil(BLOCKS * D / 256) groups, folded into (x, y) beyond 65,535.
// Needs: D a multiple of 4.

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const ROWS: u32 = 64u; // rows per block
const ACCUMULATE: bool = false; // add to dw instead of overwriting it

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(1) var<storage, read> inverse_rms: array<f32>; // [T]
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(3) var<storage, read_write> dw: array<vec4<f32>>; // [ceil(T / ROWS), D / 4]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    let block = i / (D / 4u);
    let first = block * ROWS;
    if first >= T {
        return;
    }
    let column = i - block * (D / 4u);
    let end = min(first + ROWS, T);
    var sum = vec4(0.0);
    for (var row = first; row < end; row++) {
        let at = row * (D / 4u) + column;
        sum += dy[at] * x[at] * inverse_rms[row];
    }
    if ACCUMULATE {
        sum += dw[i];
    }
    dw[i] = sum;
}
