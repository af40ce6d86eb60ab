// square: out[i] (+)= FACTOR * a[i] * b[i], one invocation per element.
// Forward: a = b = x, factor 1. Derivative: a = x, b = dy, factor 2.
// Grid: ceil(N / 64) groups, folded into (x, y) beyond 65,535.

const N: u32 = 1u; // elements
const FACTOR: f32 = 1.0;
const ACCUMULATE: bool = false; // add to out instead of overwriting it

@group(0) @binding(0) var<storage, read> a: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> b: array<f32>; // [N]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [N]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    if i >= N {
        return;
    }
    let product = FACTOR * a[i] * b[i];
    if ACCUMULATE {
        out[i] = out[i] + product;
    } else {
        out[i] = product;
    }
}
