// softmax, backward: dx = y * (dy - sum(dy * y)) per row; one invocation per row.
// Grid: ceil(R / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const R: u32 = 1u; // rows
const C: u32 = 1u; // columns
const ACCUMULATE: bool = false; // add to dx instead of overwriting it

@group(0) @binding(0) var<storage, read> y: array<f32>; // [R, C]
@group(0) @binding(1) var<storage, read> dy: array<f32>; // [R, C]
@group(0) @binding(2) var<storage, read_write> dx: array<f32>; // [R, C]

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
    var sum = 0.0;
    for (var j = 0u; j < C; j++) {
        sum += dy[start + j] * y[start + j];
    }
    for (var j = 0u; j < C; j++) {
        let i = start + j;
        var slope = y[i] * (dy[i] - sum);
        if ACCUMULATE {
            slope += dx[i];
        }
        dx[i] = slope;
    }
}
