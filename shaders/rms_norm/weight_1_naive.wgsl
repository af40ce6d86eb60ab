// rms_norm, gradient of the weight over blocks of ROWS rows:
// dw[block, j] = sum over the block's rows of dy * x * inverse_rms; one invocation per block and
// column, rows in order. With a single block this is the whole gradient; with more, the pass
// `blocks` adds them up.
// Grid: ceil(BLOCKS * D / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const ROWS: u32 = 64u; // rows per block
const ACCUMULATE: bool = false; // add to dw instead of overwriting it

@group(0) @binding(0) var<storage, read> x: array<f32>; // [T, D]
@group(0) @binding(1) var<storage, read> inverse_rms: array<f32>; // [T]
@group(0) @binding(2) var<storage, read> dy: array<f32>; // [T, D]
@group(0) @binding(3) var<storage, read_write> dw: array<f32>; // [ceil(T / ROWS), D]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 256u + lane;
    let block = i / D;
    let first = block * ROWS;
    if first >= T {
        return;
    }
    let column = i - block * D;
    let end = min(first + ROWS, T);
    var sum = 0.0;
    for (var row = first; row < end; row++) {
        let at = row * D + column;
        sum += dy[at] * x[at] * inverse_rms[row];
    }
    if ACCUMULATE {
        sum += dw[i];
    }
    dw[i] = sum;
}
