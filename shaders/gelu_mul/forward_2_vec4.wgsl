// gelu_mul, forward: y = gelu(gate) * up with gelu(z) = z / (1 + exp(-2 u)), u = sqrt(2 / pi) * (z +
// 0.044715 z^3); as 1_naive, one invocation per four neighbouring elements.
// Grid: ceil(N / 1024) groups, folded into (x, y) beyond 65,535.
// Needs: N a multiple of 4.

const N: u32 = 1u; // elements

@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>; // [N / 4]
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>; // [N / 4]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [N / 4]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 256u + lane;
    if i >= N / 4u {
        return;
    }
    // Beyond 20 the sigmoid is 0 or 1 to all digits of f32, and a cube or exp could overflow.
    let z = clamp(gate[i], vec4(-20.0), vec4(20.0));
    let u = 0.7978845608 * (z + 0.044715 * z * z * z); // sqrt(2 / pi)
    let e = exp(clamp(-2.0 * u, vec4(-80.0), vec4(80.0)));
    y[i] = max(gate[i], vec4(-20.0)) / (1.0 + e) * up[i];
}
