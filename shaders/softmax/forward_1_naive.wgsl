// softmax, forward: y = exp(x - max(x)) / sum(exp(x - max(x))) per row; one invocation per row.
// Grid: ceil(R / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const R: u32 = 1u; // rows
const C: u32 = 1u; // columns

@group(0) @binding(0) var<storage, read> x: array<f32>; // [R, C]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [R, C]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.x + group.y * groups.x) * 64u + lane;
    if row >= R {
        return;
    }
    let start = row * C;
    var largest = x[start];
    for (var j = 1u; j < C; j++) {
        largest = max(largest, x[start + j]);
    }
    // The largest term is exp(0) = 1, so nothing overflows and the sum is at least 1.
    var sum = 0.0;
    for (var j = 0u; j < C; j++) {
        let e = exp(x[start + j] - largest);
        y[start + j] = e;
        sum += e;
    }
    let inverse = 1.0 / sum;
    for (var j = 0u; j < C; j++) {
        y[start + j] *= inverse;
    }
}
