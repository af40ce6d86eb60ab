// nll, forward: y = - sum over n of weight[n] * logp[n], by a single workgroup: lane i takes every
// 256th product, and the lanes' sums meet by a tree, so the order never changes.
// Grid: 1 group.
// Needs: nothing beyond WebGPU's default limits; 1 KiB of workgroup memory.

const N: u32 = 1u; // elements

@group(0) @binding(0) var<storage, read> logp: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> weight: array<f32>; // [N]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [1]

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var n = lane; n < N; n += 256u) {
        sum += weight[n] * logp[n];
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var width = 128u; width > 0u; width >>= 1u) {
        if lane < width {
            sums[lane] += sums[lane + width];
        }
        workgroupBarrier();
    }
    if lane == 0u {
        y[0] = -sums[0];
    }
}
