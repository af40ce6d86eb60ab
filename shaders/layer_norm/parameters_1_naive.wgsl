// layer_norm, gradients of weight and bias over blocks of ROWS rows:
// dw[block, j] = sum over the block's rows of dy * (x - mean) * inverse_deviation and
// db[block, j] = sum of dy; one invocation per block and column, rows in order. With a single block
// this is the whole gradient; with more, rms_norm's pass `blocks` adds them up.
// Grid: ceil(BLOCKS * D / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const ROWS: u32 = 64u; // rows per block
const ACCUMULATE_WEIGHT: bool = false; // add to dw instead of overwriting it
const ACCUMULATE_BIAS: bool = false; // add to db instead of overwriting it

@group(0) @binding(0) var<storage, read> x: array<f32>; // [T, D]
@group(0) @binding(1) var<storage, read> mean: array<f32>; // [T]
@group(0) @binding(2) var<storage, read> inverse_deviation: array<f32>; // [T]
@group(0) @binding(3) var<storage, read> dy: array<f32>; // [T, D]
@group(0) @binding(4) var<storage, read_write> dw: array<f32>; // [ceil(T / ROWS), D]
@group(0) @binding(5) var<storage, read_write> db: array<f32>; // [ceil(T / ROWS), D]

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
    var sum_weight = 0.0;
    var sum_bias = 0.0;
    for (var row = first; row < end; row++) {
        let at = row * D + column;
        sum_weight += dy[at] * (x[at] - mean[row]) * inverse_deviation[row];
        sum_bias += dy[at];
    }
    if ACCUMULATE_WEIGHT {
        sum_weight += dw[i];
    }
    if ACCUMULATE_BIAS {
        sum_bias += db[i];
    }
    dw[i] = sum_weight;
    db[i] = sum_bias;
}
