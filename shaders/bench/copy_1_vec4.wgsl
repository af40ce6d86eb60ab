// bench, copy: how many bytes a second the adapter moves: y = x, four elements an invocation.
// Grid: ceil(N / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // quadruples

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [N]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [N]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 256u + lane;
    if i < N {
        y[i] = x[i];
    }
}
