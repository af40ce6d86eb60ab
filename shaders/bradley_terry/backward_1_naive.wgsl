// bradley_terry, backward: dx[s] (+)= slope[s] * dloss, one invocation per answer.
// Grid: ceil(S / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const S: u32 = 2u; // answers, two per pair
const ACCUMULATE: bool = false; // add to dx instead of overwriting it

@group(0) @binding(0) var<storage, read> slope: array<f32>; // [S]
@group(0) @binding(1) var<storage, read> dloss: array<f32>; // [1]
@group(0) @binding(2) var<storage, read_write> dx: array<f32>; // [S]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let s = (group.x + group.y * groups.x) * 64u + lane;
    if s >= S {
        return;
    }
    let value = slope[s] * dloss[0];
    if ACCUMULATE {
        dx[s] = dx[s] + value;
    } else {
        dx[s] = value;
    }
}
