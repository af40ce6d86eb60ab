// rms_norm, forward: inverse_rms = 1 / sqrt(mean(x^2) + EPS), y = x * inverse_rms * (weight + OFFSET);
// as 1_naive, one invocation per row, in quadruples: one address serves four elements.
// Grid: ceil(T / 64) groups, folded into (x, y) beyond 65,535.
// Needs: D a multiple of 4.

const T: u32 = 1u; // rows
const D: u32 = 1u; // columns
const EPS: f32 = 1e-5; // keeps rows of zeros finite
const OFFSET: f32 = 0.0; // added to the weight

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>; // [D / 4]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [T, D / 4]
@group(0) @binding(3) var<storage, read_write> inverse_rms: array<f32>; // [T]

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
    var squares = 0.0;
    for (var j = 0u; j < D / 4u; j++) {
        let value = x[start + j];
        squares += dot(value, value);
    }
    // Not inverseSqrt: drivers may approximate it more coarsely than the quotient.
    let inverse = 1.0 / sqrt(squares / f32(D) + EPS);
    for (var j = 0u; j < D / 4u; j++) {
        y[start + j] = x[start + j] * inverse * (weight[j] + OFFSET);
    }
    inverse_rms[row] = inverse;
}
