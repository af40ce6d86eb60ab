// rms_norm, forward: inverse_rms = 1 / sqrt(mean(x^2) + EPS), y = x * inverse_rms * (weight + OFFSET);
// one workgroup per row: the lanes of a subgroup are added by a subgroup operation, the subgroups
// through workgroup memory: one barrier instead of seven.
// Grid: T groups, folded into (x, y) beyond 65,535.
// Needs: subgroups, of any size (256 bytes of workgroup memory).

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const EPS: f32 = 1e-5; // keeps rows of zeros finite
const OFFSET: f32 = 0.0; // added to the weight

@group(0) @binding(0) var<storage, read> x: array<f32>; // [T, D]
@group(0) @binding(1) var<storage, read> weight: array<f32>; // [D]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, D]
@group(0) @binding(3) var<storage, read_write> inverse_rms: array<f32>; // [T]

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
    var squares = 0.0;
    for (var j = lane; j < D; j += 64u) {
        let value = x[start + j];
        squares += value * value;
    }
    let subgroup_sum = subgroupAdd(squares);
    sums[lane] = select(0.0, subgroup_sum, index == 0u);
    workgroupBarrier();
    // Every subgroup adds up all of them, so no second barrier is needed.
    squares = 0.0;
    for (var i = index; i < 64u; i += size) {
        squares += sums[i];
    }
    squares = subgroupAdd(squares);
    // Not inverseSqrt: drivers may approximate it more coarsely than the quotient.
    let inverse = 1.0 / sqrt(squares / f32(D) + EPS);
    for (var j = lane; j < D; j += 64u) {
        y[start + j] = x[start + j] * inverse * (weight[j] + OFFSET);
    }
    if lane == 0u {
        inverse_rms[row] = inverse;
    }
}
