// grad_norm, finish: clip = (norm, factor) with norm = sqrt(sum of partials) and
// factor = min(1, max_norm / (norm + 1e-6)); one workgroup, order fixed.
// max_norm <= 0 or infinite: factor 1. A norm that is not finite: factor 0, and `adamw` skips.
// Grid: 1 group.
// Needs: nothing beyond WebGPU's default limits; 1 KiB of workgroup memory.

const N: u32 = 1u; // partial sums

@group(0) @binding(0) var<storage, read> partials: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> max_norm: array<f32>; // [1]
@group(0) @binding(2) var<storage, read_write> clip: array<f32>; // [2]: norm, factor

var<workgroup> sums: array<f32, 256>;

// By bits: compilers may assume that NaN and infinity do not exist.
fn finite(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < N; i += 256u) {
        sum += partials[i];
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
        let norm = sqrt(sums[0]);
        let most = max_norm[0];
        var factor = 1.0;
        if most > 0.0 && finite(most) {
            factor = min(1.0, most / (norm + 1e-6));
        }
        clip[0] = norm;
        clip[1] = select(0.0, factor, finite(sums[0]));
    }
}
