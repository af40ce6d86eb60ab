// token_logp, backward_logits: turns recomputed logits into their gradient, in place,
//     d logits[n, c] = dlogp[n] * ([c is the target] - softmax(n)[c]);
// one invocation per element. 1 - p of the target is s / (exp(u) + s), which keeps its digits where
// p is almost 1.
// Grid: ceil(C / 256) x N groups.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // rows
const C: u32 = 1u; // vocabulary rows in this chunk
const CAPPED: bool = false; // logits are CAP * tanh(z / CAP), and the gradient is that of z
const CAP: f32 = 1.0; // bound of capped logits

@group(0) @binding(0) var<storage, read> targets: array<u32>; // [N]
@group(0) @binding(1) var<storage, read> state: array<f32>; // [N, 3]: m, s, t
@group(0) @binding(2) var<storage, read> start: array<u32>; // [1], first vocabulary row of the chunk
@group(0) @binding(3) var<storage, read> dlogp: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> logits: array<f32>; // [N, C], in and out

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = group.y;
    let c = group.x * 256u + lane;
    if c >= C {
        return;
    }
    let largest = state[3u * n];
    let others = state[3u * n + 1u];
    let scale = dlogp[n] / (others + exp(state[3u * n + 2u] - largest));
    let is_target = targets[n] - start[0] == c;
    let i = n * C + c;
    var slope = scale * select(-exp(logits[i] - largest), others, is_target);
    if CAPPED {
        slope *= 1.0 - (logits[i] / CAP) * (logits[i] / CAP);
    }
    logits[i] = slope;
}
