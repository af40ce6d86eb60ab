// grad_norm, partial: partials[first + p] = sum of squares of elements p, p + PARTIALS, ... of one
// gradient; one invocation per partial sum.
// Grid: ceil(PARTIALS / 8) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // elements of the gradient
const PARTIALS: u32 = 1u; // sums it is split into
const ADD: bool = false; // the gradient goes on in a further part: add to the sums of those before

@group(0) @binding(0) var<storage, read> grad: array<f32>; // [N]
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
    for (var i = p; i < N; i += PARTIALS) {
        sum += grad[i] * grad[i];
    }
    partials[first[0] + p] = sum;
}
