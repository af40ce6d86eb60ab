// rms_norm, gradient of the input: with n = x * inverse_rms and h = dy * (weight + OFFSET),
// dx = inverse_rms * (h - n * mean(h * n)); as 1_naive, one invocation per row, in quadruples.
// Grid: ceil(T / 64) groups, folded into (x, y) beyond 65,535.
// Needs: D a multiple of 4.

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const OFFSET: f32 = 0.0; // added to the weight
const ACCUMULATE: bool = false; // add to dx instead of overwriting it

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>; // [D / 4]
@group(0) @binding(2) var<storage, read> inverse_rms: array<f32>; // [T]
@group(0) @binding(3) var<storage, read> dy: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>; // [T, D / 4]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.x + group.y * groups.x) * 64u + lane;
    if row >= T {
        return;
    }
    let start = row * (D / 4u);
    let inverse = inverse_rms[row];
    var sum = 0.0;
    for (var j = 0u; j < D / 4u; j++) {
        sum += dot(dy[start + j] * (weight[j] + OFFSET), x[start + j]);
    }
    let mean = sum * inverse / f32(D);
    for (var j = 0u; j < D / 4u; j++) {
        let i = start + j;
        var slope = inverse * (dy[i] * (weight[j] + OFFSET) - x[i] * inverse * mean);
        if ACCUMULATE {
            slope += dx[i];
        }
        dx[i] = slope;
    }
}
