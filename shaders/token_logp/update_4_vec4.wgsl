// token_logp, update: folds one chunk of logits into the running state of each row; as 1_naive, one
// invocation per row, with logits in quadruples. state[n] = (m, s, t): m the largest logit so far, s the sum of exp(logit - m) over all
// logits but the target's, t the target's logit.
// Leaving the target out of s is what makes log p and 1 - p exact where p is almost 1.
// Grid: ceil(N / 8) groups, folded into (x, y) beyond 65,535.
// Needs: C a multiple of 4.

const N: u32 = 1u; // rows
const C: u32 = 1u; // vocabulary rows in this chunk

@group(0) @binding(0) var<storage, read> logits: array<vec4<f32>>; // [N, C / 4]
@group(0) @binding(1) var<storage, read> targets: array<u32>; // [N]
@group(0) @binding(2) var<storage, read> start: array<u32>; // [1], first vocabulary row of the chunk
@group(0) @binding(3) var<storage, read_write> state: array<f32>; // [N, 3]

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = (group.x + group.y * groups.x) * 8u + lane;
    if n >= N {
        return;
    }
    let first = start[0];
    let row = n * (C / 4u);
    // Wraps to a huge number where the target lies before the chunk.
    let target_at = targets[n] - first;

    var maxima = logits[row];
    for (var q = 1u; q < C / 4u; q++) {
        maxima = max(maxima, logits[row + q]);
    }
    var largest = max(max(maxima.x, maxima.y), max(maxima.z, maxima.w));
    var previous = 0.0;
    var target_logit = 0.0;
    if first > 0u {
        let before = state[3u * n];
        largest = max(largest, before);
        previous = state[3u * n + 1u] * exp(before - largest);
        target_logit = state[3u * n + 2u];
    }
    // Sums of 32 keep the rounding error of a long row small.
    var others = previous;
    for (var block = 0u; block < C / 4u; block += 8u) {
        var sums = vec4(0.0);
        let end = min(block + 8u, C / 4u);
        for (var q = block; q < end; q++) {
            let e = exp(logits[row + q] - largest);
            sums += select(e, vec4(0.0), 4u * q + vec4(0u, 1u, 2u, 3u) == vec4(target_at));
        }
        others += (sums.x + sums.y) + (sums.z + sums.w);
    }
    if target_at < C {
        target_logit = logits[row + target_at / 4u][target_at % 4u];
    }
    state[3u * n] = largest;
    state[3u * n + 1u] = others;
    state[3u * n + 2u] = target_logit;
}
