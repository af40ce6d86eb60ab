// adamw, update: as 2_span for adapters whose lanes load together: one invocation per 4 elements
// that lie 256 apart, so that the step's numbers are read once for four elements and neighbouring
// lanes still visit neighbouring elements.
// Grid: ceil(N / 1024) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // elements
const DECAY: bool = false; // this parameter's weights decay

@group(0) @binding(0) var<storage, read> clip: array<f32>; // [2]: norm over all gradients, factor
// [8]: lr / (1 - beta1^t), beta1, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2^t), eps, lr * weight_decay
@group(0) @binding(1) var<storage, read> hyper: array<f32>;
@group(0) @binding(2) var<storage, read_write> p: array<f32>; // [N]
@group(0) @binding(3) var<storage, read_write> m: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> v: array<f32>; // [N]
@group(0) @binding(5) var<storage, read_write> grad: array<f32>; // [N]

// By bits: compilers may assume that NaN and infinity do not exist.
fn finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * 1024u;
    if start >= N {
        return;
    }
    let first = start + lane;
    let end = min(start + 1024u, N);
    let norm = clip[0];
    let factor = clip[1];
    if !(finite(norm) && finite(factor)) {
        for (var i = first; i < end; i += 256u) {
            grad[i] = 0.0;
        }
        return;
    }
    let step_size = hyper[0];
    let beta1 = hyper[1];
    let rest1 = hyper[2];
    let beta2 = hyper[3];
    let rest2 = hyper[4];
    let root_correction = hyper[5];
    let eps = hyper[6];
    let decay = hyper[7];
    for (var i = first; i < end; i += 256u) {
        let g = grad[i] * factor;
        var weight = p[i];
        if DECAY {
            weight -= decay * weight;
        }
        let mean = beta1 * m[i] + rest1 * g;
        let square = beta2 * v[i] + rest2 * (g * g);
        m[i] = mean;
        v[i] = square;
        p[i] = weight - step_size * (mean / (sqrt(square) * root_correction + eps));
        grad[i] = 0.0;
    }
}
