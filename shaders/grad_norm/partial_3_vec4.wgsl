// grad_norm, partial: as 1_naive with quadruples p, p + PARTIALS, ... of the gradient: one address serves
// four elements.
// Grid: ceil(PARTIALS / 8) groups, folded into (x, y) beyond 65,535.
// Needs: N a multiple of 4.

const N: u32 = 1u; // elements of the gradient
const PARTIALS: u32 = 1u; // sums it is split into
const ADD: bool = false; // the gradient goes on in a further part: add to the sums of those before

@group(0) @binding(0) var<storage, read> grad: array<vec4<f32>>; // [N / 4]
@group(0) @binding(1) var<storage, read> first: array<u32>; // [1], where this gradient's sums begin
@group(0) @binding(2) var<storage, read_write> partials: array<f32>; // those of all gradients

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let p = (group.x + group.y * groups.x) * 8u + lane;
    if p >= PARTIALS {
        return;
    }
    var sum = 0.0;
    if ADD {
        sum = partials[first[0] + p];
    }
    for (var i = p; i < N / 4u; i += PARTIALS) {
        sum += dot(grad[i], grad[i]);
    }
    partials[first[0] + p] = sum;
}
