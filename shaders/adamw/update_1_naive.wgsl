// adamw, update: one step of AdamW (Loshchilov and Hutter) for one parameter; one invocation per
// element. With g = grad * clip factor:
//     p -= DECAY ? lr * weight_decay * p : 0
//     m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//     p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//     grad = 0: the next step's micro-batches add to it
// If the norm is not finite, p, m and v stay as they are and grad is zeroed all the same.
// Grid: ceil(N / 256) groups, folded into (x, y) beyond 65,535.
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
    let i = (group.x + group.y * groups.x) * 256u + lane;
    if i >= N {
        return;
    }
    if finite(clip[0]) && finite(clip[1]) {
        let g = grad[i] * clip[1];
        var weight = p[i];
        if DECAY {
            // Not weight * (1 - lr * weight_decay): that factor has no digits to spare for 1e-6.
            weight -= hyper[7] * weight;
        }
        let mean = hyper[1] * m[i] + hyper[2] * g;
        let square = hyper[3] * v[i] + hyper[4] * (g * g);
        m[i] = mean;
        v[i] = square;
        p[i] = weight - hyper[0] * (mean / (sqrt(square) * hyper[5] + hyper[6]));
    }
    grad[i] = 0.0;
}
