// silu_mul, backward: with s = sigmoid(gate), d_gate = dy * up * s * (1 + gate * (1 - s)) and
// d_up = dy * gate * s; both in one dispatch, as 1_naive, one invocation per four neighbouring elements.
// Grid: ceil(N / 1024) groups, folded into (x, y) beyond 65,535.
// Needs: N a multiple of 4.

const N: u32 = 1u; // elements
const ACCUMULATE_GATE: bool = false; // add to d_gate instead of overwriting it
const ACCUMULATE_UP: bool = false; // add to d_up instead of overwriting it

@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>; // [N / 4]
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>; // [N / 4]
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>; // [N / 4]
@group(0) @binding(3) var<storage, read_write> d_gate: array<vec4<f32>>; // [N / 4]
@group(0) @binding(4) var<storage, read_write> d_up: array<vec4<f32>>; // [N / 4]

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
    // Bounded, because exp may give anything once it overflows; both slopes are 0 below -80.
    let z = clamp(gate[i], vec4(-80.0), vec4(80.0));
    let e = exp(-z);
    let s = 1.0 / (1.0 + e); // sigmoid(z)
    let t = e / (1.0 + e); // 1 - sigmoid(z), without losing the digits of a small difference
    var slope_gate = dy[i] * up[i] * s * (1.0 + z * t);
    var slope_up = dy[i] * max(gate[i], vec4(-80.0)) * s;
    if ACCUMULATE_GATE {
        slope_gate += d_gate[i];
    }
    if ACCUMULATE_UP {
        slope_up += d_up[i];
    }
    d_gate[i] = slope_gate;
    d_up[i] = slope_up;
}
