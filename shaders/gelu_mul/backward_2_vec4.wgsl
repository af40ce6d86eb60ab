// gelu_mul, backward: with u = sqrt(2 / pi) * (gate + 0.044715 gate^3) and s = 1 / (1 + exp(-2 u)),
// d_gate = dy * up * (s + gate * s * (1 - s) * 2 * sqrt(2 / pi) * (1 + 3 * 0.044715 gate^2)) and
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
    // Beyond 20 the sigmoid is 0 or 1 to all digits of f32, and a cube or exp could overflow.
    let z = clamp(gate[i], vec4(-20.0), vec4(20.0));
    let u = 0.7978845608 * (z + 0.044715 * z * z * z); // sqrt(2 / pi)
    let e = exp(clamp(-2.0 * u, vec4(-80.0), vec4(80.0)));
    let s = 1.0 / (1.0 + e);
    let t = e / (1.0 + e); // 1 - s, without losing the digits of a small difference
    var slope_gate = dy[i] * up[i] * (s + z * s * t * 1.5957691216 * (1.0 + 0.134145 * z * z));
    var slope_up = dy[i] * max(gate[i], vec4(-20.0)) * s;
    if ACCUMULATE_GATE {
        slope_gate += d_gate[i];
    }
    if ACCUMULATE_UP {
        slope_up += d_up[i];
    }
    d_gate[i] = slope_gate;
    d_up[i] = slope_up;
}
