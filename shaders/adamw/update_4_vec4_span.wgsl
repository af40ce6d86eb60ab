// adamw, update: as 2_span, with the 32 elements of an invocation in quadruples: one address serves
// four elements.
// Grid: ceil(N / 256) groups, folded into (x, y) beyond 65,535.
// Needs: N a multiple of 4.

const N: u32 = 1u; // elements
const DECAY: bool = false; // this parameter's weights decay

@group(0) @binding(0) var<storage, read> clip: array<f32>; // [2]: norm over all gradients, factor
// [8]: lr / (1 - beta1^t), beta1, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2^t), eps, lr * weight_decay
@group(0) @binding(1) var<storage, read> hyper: array<f32>;
@group(0) @binding(2) var<storage, read_write> p: array<vec4<f32>>; // [N / 4]
@group(0) @binding(3) var<storage, read_write> m: array<vec4<f32>>; // [N / 4]
@group(0) @binding(4) var<storage, read_write> v: array<vec4<f32>>; // [N / 4]
@group(0) @binding(5) var<storage, read_write> grad: array<vec4<f32>>; // [N / 4]

// By bits: compilers may assume that NaN and infinity do not exist.
fn finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = ((group.x + group.y * groups.x) * 8u + lane) * 8u; // a quadruple
    if first >= N / 4u {
        return;
    }
    let end = min(first + 8u, N / 4u);
    let norm = clip[0];
    let factor = clip[1];
    if !(finite(norm) && finite(factor)) {
        for (var i = first; i < end; i++) {
            grad[i] = vec4(0.0);
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
    for (var i = first; i < end; i++) {
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
        grad[i] = vec4(0.0);
    }
}
