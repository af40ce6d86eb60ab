// mse, backward: dprediction[i] (+)= 2 / N * (prediction[i] - target[i]) * dy, one invocation per
// element.
// Grid: ceil(N / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // elements
const ACCUMULATE: bool = false; // add to dprediction instead of overwriting it

@group(0) @binding(0) var<storage, read> prediction: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> wanted: array<f32>; // [N]
@group(0) @binding(2) var<storage, read> dy: array<f32>; // [1]
@group(0) @binding(3) var<storage, read_write> dprediction: array<f32>; // [N]

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
    let slope = 2.0 / f32(N) * (prediction[i] - wanted[i]) * dy[0];
    if ACCUMULATE {
        dprediction[i] = dprediction[i] + slope;
    } else {
        dprediction[i] = slope;
    }
}
