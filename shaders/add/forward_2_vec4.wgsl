// add, forward: y = a + b, as 1_naive, one invocation per four neighbouring elements.
// Grid: ceil(N / 1024) groups, folded into (x, y) beyond 65,535.
// Needs: N a multiple of 4.

const N: u32 = 1u; // elements

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [N / 4]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [N / 4]
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
    y[i] = a[i] + b[i];
}
