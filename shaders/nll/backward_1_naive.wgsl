// nll, backward: dlogp[n] (+)= - weight[n] * dy, one invocation per element.
// Grid: ceil(N / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // elements
const ACCUMULATE: bool = false; // add to dlogp instead of overwriting it

@group(0) @binding(0) var<storage, read> weight: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> dy: array<f32>; // [1]
@group(0) @binding(2) var<storage, read_write> dlogp: array<f32>; // [N]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = (group.x + group.y * groups.x) * 256u + lane;
    if n >= N {
        return;
    }
    let slope = -weight[n] * dy[0];
    if ACCUMULATE {
        dlogp[n] = dlogp[n] + slope;
    } else {
        dlogp[n] = slope;
    }
}
