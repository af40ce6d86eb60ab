// scale, forward: y = FACTOR * x, or y += FACTOR * x; one invocation per element. The derivative
// is the same kernel with dy for x and dx for y.
// Grid: ceil(N / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // elements
const FACTOR: f32 = 1.0; // what x is multiplied by
const ACCUMULATE: bool = false; // add to y instead of overwriting it

@group(0) @binding(0) var<storage, read> x: array<f32>; // [N]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [N]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 256u + lane;
    if i >= N {
        return;
    }
    var value = FACTOR * x[i];
    if ACCUMULATE {
        value += y[i];
    }
    y[i] = value;
}
