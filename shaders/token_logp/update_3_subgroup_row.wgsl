// token_logp, update: as 2_workgroup_row, but the lanes of a subgroup are combined by subgroup
// operations and the subgroups through workgroup memory: two barriers instead of nineteen.
// state[n] = (m, s, t): m the largest logit so far, s the sum of exp(logit - m) over all logits but
// the target's, t the target's logit.
// Grid: N groups, folded into (x, y) beyond 65,535.
// Needs: subgroups, of any size; 2 KiB of workgroup memory.

const N: u32 = 1u; // rows
const C: u32 = 1u; // vocabulary rows in this chunk

@group(0) @binding(0) var<storage, read> logits: array<f32>; // [N, C]
@group(0) @binding(1) var<storage, read> targets: array<u32>; // [N]
@group(0) @binding(2) var<storage, read> start: array<u32>; // [1], first vocabulary row of the chunk
@group(0) @binding(3) var<storage, read_write> state: array<f32>; // [N, 3]

// Of a subgroup at each of its lanes, and at its first lane (else 0). Two arrays, so that the sums
// need not wait until everyone has read the maxima.
var<workgroup> maxima: array<f32, 256>;
var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = group.x + group.y * groups.x;
    if n >= N {
        return;
    }
    // Counted, not asked: a subgroup may have fewer lanes here than it could have, and nothing
    // says which lanes of the workgroup it holds.
    let size = subgroupAdd(1u);
    let index = subgroupExclusiveAdd(1u);

    let first = start[0];
    let row = n * C;
    // Wraps to a huge number where the target lies before the chunk.
    let target_at = targets[n] - first;

    // Every lane starts from a logit of the row, so lanes beyond C change nothing.
    var largest = logits[row];
    for (var c = lane; c < C; c += 256u) {
        largest = max(largest, logits[row + c]);
    }
    largest = subgroupMax(largest);
    maxima[lane] = largest;
    workgroupBarrier();
    // Every subgroup looks at all of them, so no second barrier is needed.
    for (var i = index; i < 256u; i += size) {
        largest = max(largest, maxima[i]);
    }
    largest = subgroupMax(largest);

    var before = largest;
    if first > 0u {
        before = state[3u * n];
        largest = max(largest, before);
    }
    var sum = 0.0;
    for (var c = lane; c < C; c += 256u) {
        let e = exp(logits[row + c] - largest);
        sum += select(e, 0.0, c == target_at);
    }
    sum = subgroupAdd(sum);
    sums[lane] = select(0.0, sum, index == 0u);
    workgroupBarrier();
    sum = 0.0;
    for (var i = index; i < 256u; i += size) {
        sum += sums[i];
    }
    sum = subgroupAdd(sum);
    // Lane 0 alone writes the state; the others read only `before`, behind a barrier from here.
    if lane == 0u {
        var others = sum;
        var target_logit = 0.0;
        if first > 0u {
            others += state[3u * n + 1u] * exp(before - largest);
            target_logit = state[3u * n + 2u];
        }
        if target_at < C {
            target_logit = logits[row + target_at];
        }
        state[3u * n] = largest;
        state[3u * n + 1u] = others;
        state[3u * n + 2u] = target_logit;
    }
}
