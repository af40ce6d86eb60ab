// softmax, forward: y = exp(x - m) / s per row with m = max(x), s = sum(exp(x - m)); one workgroup
// per row, running maximum and sum as in variant 3. The lanes of a subgroup are combined by
// subgroup operations, the subgroups through workgroup memory: one barrier instead of seven.
// Grid: R groups, folded into (x, y) beyond 65,535.
// Needs: subgroups, of any size (512 bytes of workgroup memory).

const R: u32 = 1u; // rows
const C: u32 = 1u; // columns

@group(0) @binding(0) var<storage, read> x: array<f32>; // [R, C]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [R, C]

var<workgroup> lanes: array<vec2<f32>, 64>; // m, s: of a subgroup at its first lane, else s = 0

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
    // Lanes beyond the last column keep the first one's value and a sum of nothing.
    var largest = x[start];
    var sum = 0.0;
    for (var j = lane; j < C; j += 64u) {
        let value = x[start + j];
        let e = exp(-abs(value - largest)); // scales the sum or is the term: one exp either way
        if value > largest {
            sum = sum * e + 1.0;
            largest = value;
        } else {
            sum += e;
        }
    }
    let subgroup_largest = subgroupMax(largest);
    let subgroup_sum = subgroupAdd(sum * exp(largest - subgroup_largest));
    lanes[lane] = vec2<f32>(subgroup_largest, select(0.0, subgroup_sum, index == 0u));
    workgroupBarrier();

    // Every subgroup adds up all of them, so no second barrier is needed.
    largest = subgroup_largest;
    for (var i = index; i < 64u; i += size) {
        largest = max(largest, lanes[i].x);
    }
    largest = subgroupMax(largest);
    sum = 0.0;
    for (var i = index; i < 64u; i += size) {
        sum += lanes[i].y * exp(lanes[i].x - largest);
    }
    let inverse = 1.0 / subgroupAdd(sum); // the largest term is 1, so the sum is at least 1
    for (var j = lane; j < C; j += 64u) {
        y[start + j] = exp(x[start + j] - largest) * inverse;
    }
}
