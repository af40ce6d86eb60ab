// token_logp, backward_logits: as 2_span, with the 64 columns of an invocation in quadruples: one address
// serves four elements.
//     d logits[n, c] = dlogp[n] * ([c is the target] - softmax(n)[c]), in place
// Grid: ceil(C / 64) x ceil(N / 8) groups.
// Needs: C a multiple of 4.

const N: u32 = 1u; // rows
const C: u32 = 1u; // vocabulary rows in this chunk
const CAPPED: bool = false; // logits are CAP * tanh(z / CAP), and the gradient is that of z
const CAP: f32 = 1.0; // bound of capped logits

@group(0) @binding(0) var<storage, read> targets: array<u32>; // [N]
@group(0) @binding(1) var<storage, read> state: array<f32>; // [N, 3]: m, s, t
@group(0) @binding(2) var<storage, read> start: array<u32>; // [1], first vocabulary row of the chunk
@group(0) @binding(3) var<storage, read> dlogp: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> logits: array<vec4<f32>>; // [N, C / 4], in and out

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = group.y * 8u + lane;
    if n >= N {
        return;
    }
    let largest = state[3u * n];
    let others = state[3u * n + 1u];
    let scale = dlogp[n] / (others + exp(state[3u * n + 2u] - largest));
    // Wraps to a huge number where the target lies before the chunk.
    let target_at = targets[n] - start[0];
    let row = n * (C / 4u);
    let end = min(group.x * 16u + 16u, C / 4u);
    for (var q = group.x * 16u; q < end; q++) {
        let z = logits[row + q];
        let at_target = 4u * q + vec4(0u, 1u, 2u, 3u) == vec4(target_at);
        var slope = scale * select(-exp(z - largest), vec4(others), at_target);
        if CAPPED {
            slope *= 1.0 - (z / CAP) * (z / CAP);
        }
        logits[row + q] = slope;
    }
}
