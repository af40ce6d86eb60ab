// rms_norm, gradient of the input: with n = x * inverse_rms and h = dy * (weight + OFFSET),
// dx = inverse_rms * (h - n * mean(h * n)); one workgroup per row. The lanes of a
// subgroup are added by a subgroup operation, the subgroups through workgroup memory: one barrier
// instead of seven.
// Grid: T groups, folded into (x, y) beyond 65,535.
// Needs: subgroups, of any size (256 bytes of workgroup memory).

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const OFFSET: f32 = 0.0; // added to the weight
const ACCUMULATE: bool = false; // add to dx instead of overwriting it

@group(0) @binding(0) var<storage, read> x: array<f32>; // [T, D]
@group(0) @binding(1) var<storage, read> weight: array<f32>; // [D]
@group(0) @binding(2) var<storage, read> inverse_rms: array<f32>; // [T]
@group(0) @binding(3) var<storage, read> dy: array<f32>; // [T, D]
@group(0) @binding(4) var<storage, read_write> dx: array<f32>; // [T, D]

var<workgroup> sums: array<f32, 64>; // of a subgroup at its first lane, else 0

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= T {
        return; // the whole group: the barrier below stays uniform
    }
    // Counted, not asked: a subgroup may have fewer lanes here than it could have, and nothing
    // says which lanes of the workgroup it holds.
    let size = subgroupAdd(1u);
    let index = subgroupExclusiveAdd(1u);

    let start = row * D;
    let inverse = inverse_rms[row];
    var sum = 0.0;
    for (var j = lane; j < D; j += 64u) {
        sum += dy[start + j] * (weight[j] + OFFSET) * x[start + j];
    }
    let subgroup_sum = subgroupAdd(sum);
    sums[lane] = select(0.0, subgroup_sum, index == 0u);
    workgroupBarrier();
    // Every subgroup adds up all of them, so no second barrier is needed.
    sum = 0.0;
    for (var i = index; i < 64u; i += size) {
        sum += sums[i];
    }
    sum = subgroupAdd(sum);
    let mean = sum * inverse / f32(D);
    for (var j = lane; j < D; j += 64u) {
        let i = start + j;
        var slope = inverse * (dy[i] * (weight[j] + OFFSET) - x[i] * inverse * mean);
        if ACCUMULATE {
            slope += dx[i];
        }
        dx[i] = slope;
    }
}
