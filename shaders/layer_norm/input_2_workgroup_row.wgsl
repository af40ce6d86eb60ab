// layer_norm, gradient of the input: with n = (x - mean) * inverse_deviation and h = dy * weight,
// dx = inverse_deviation * (h - mean(h) - n * mean(h * n)); one workgroup per row.
// Grid: T groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits (512 bytes of workgroup memory).

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const ACCUMULATE: bool = false; // add to dx instead of overwriting it

@group(0) @binding(0) var<storage, read> x: array<f32>; // [T, D]
@group(0) @binding(1) var<storage, read> weight: array<f32>; // [D]
@group(0) @binding(2) var<storage, read> mean: array<f32>; // [T]
@group(0) @binding(3) var<storage, read> inverse_deviation: array<f32>; // [T]
@group(0) @binding(4) var<storage, read> dy: array<f32>; // [T, D]
@group(0) @binding(5) var<storage, read_write> dx: array<f32>; // [T, D]

var<workgroup> sums: array<vec2<f32>, 64>; // of h and of h * (x - mean)

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
    let center = mean[row];
    let inverse = inverse_deviation[row];
    var sum_h = 0.0;
    var sum_hn = 0.0;
    for (var j = lane; j < D; j += 64u) {
        let h = dy[start + j] * weight[j];
        sum_h += h;
        sum_hn += h * (x[start + j] - center);
    }
    sums[lane] = vec2(sum_h, sum_hn);
    workgroupBarrier();
    for (var stride = 32u; stride > 0u; stride /= 2u) {
        if lane < stride {
            sums[lane] += sums[lane + stride];
        }
        workgroupBarrier();
    }
    let mean_h = sums[0].x / f32(D);
    let mean_hn = sums[0].y * inverse / f32(D);
    for (var j = lane; j < D; j += 64u) {
        let i = start + j;
        let n = (x[i] - center) * inverse;
        var slope = inverse * (dy[i] * weight[j] - mean_h - n * mean_hn);
        if ACCUMULATE {
            slope += dx[i];
        }
        dx[i] = slope;
    }
}
