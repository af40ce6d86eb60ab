// mse, forward: y = mean over i of (prediction[i] - target[i])^2, by a single workgroup: lane i takes
// every 256th square, and the lanes' sums meet by a tree, so the order never changes.
// Grid: 1 group.
// Needs: nothing beyond WebGPU's default limits; 1 KiB of workgroup memory.

const N: u32 = 1u; // elements

@group(0) @binding(0) var<storage, read> prediction: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> wanted: array<f32>; // [N]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [1]

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < N; i += 256u) {
        let off = prediction[i] - wanted[i];
        sum += off * off;
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
        y[0] = sums[0] / f32(N);
    }
}
