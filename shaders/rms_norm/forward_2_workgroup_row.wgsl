// rms_norm, forward: inverse_rms = 1 / sqrt(mean(x^2) + EPS), y = x * inverse_rms * (weight + OFFSET);
// one workgroup per row: neighbouring lanes read neighbouring columns, and the sum is a tree.
// Grid: T groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits (256 bytes of workgroup memory).

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const EPS: f32 = 1e-5; // keeps rows of zeros finite
const OFFSET: f32 = 0.0; // added to the weight

@group(0) @binding(0) var<storage, read> x: array<f32>; // [T, D]
@group(0) @binding(1) var<storage, read> weight: array<f32>; // [D]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, D]
@group(0) @binding(3) var<storage, read_write> inverse_rms: array<f32>; // [T]

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= T {
        return; // the whole group: the barriers below stay uniform
    }
    let start = row * D;
    var squares = 0.0;
    for (var j = lane; j < D; j += 64u) {
        let value = x[start + j];
        squares += value * value;
    }
    sums[lane] = squares;
    workgroupBarrier();
    for (var stride = 32u; stride > 0u; stride /= 2u) {
        if lane < stride {
            sums[lane] += sums[lane + stride];
        }
        workgroupBarrier();
    }
    // Not inverseSqrt: drivers may approximate it more coarsely than the quotient.
    let inverse = 1.0 / sqrt(sums[0] / f32(D) + EPS);
    for (var j = lane; j < D; j += 64u) {
        y[start + j] = x[start + j] * inverse * (weight[j] + OFFSET);
    }
    if lane == 0u {
        inverse_rms[row] = inverse;
    }
}
