// softmax, backward: dx = y * (dy - sum(dy * y)) per row; one workgroup per row. The
// lanes of a subgroup are added by a subgroup operation, the subgroups through workgroup memory:
// one barrier instead of seven.
// Grid: R groups, folded into (x, y) beyond 65,535.
// Needs: subgroups, of any size (256 bytes of workgroup memory).

const R: u32 = 1u; // rows
const C: u32 = 1u; // columns
const ACCUMULATE: bool = false; // add to dx instead of overwriting it

@group(0) @binding(0) var<storage, read> y: array<f32>; // [R, C]
@group(0) @binding(1) var<storage, read> dy: array<f32>; // [R, C]
@group(0) @binding(2) var<storage, read_write> dx: array<f32>; // [R, C]

var<workgroup> sums: array<f32, 64>; // of a subgroup at its first lane, else 0

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= R {
        return; // the whole group: the barrier below stays uniform
    }
    // Counted, not asked: a subgroup may have fewer lanes here than it could have, and nothing
    // says which lanes of the workgroup it holds.
    let size = subgroupAdd(1u);
    let index = subgroupExclusiveAdd(1u);

    let start = row * C;
    var sum = 0.0;
    for (var j = lane; j < C; j += 64u) {
        sum += dy[start + j] * y[start + j];
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
    for (var j = lane; j < C; j += 64u) {
        let i = start + j;
        var slope = y[i] * (dy[i] - sum);
        if ACCUMULATE {
            slope += dx[i];
        }
        dx[i] = slope;
    }
}
