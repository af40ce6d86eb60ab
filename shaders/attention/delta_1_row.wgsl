// attention, delta: what both gradient passes need of each query head besides the inputs,
// stats[i, h] = (lse[i, h], delta[i, h]),  delta[i, h] = sum_d d_o[i, h, d] * o[i, h, d]
// (which equals sum_j p[i, j] dp[i, j]). One buffer for the two keeps dk_dv within eight bindings.
// One invocation per query head.
// Grid: ceil(TQ * H / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const TQ: u32 = 1u; // queries
const H: u32 = 1u; // query heads
const HEAD_DIM: u32 = 32u; // elements of a head

@group(0) @binding(0) var<storage, read> o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> d_o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(2) var<storage, read> lse: array<f32>; // [TQ, H]
@group(0) @binding(3) var<storage, read_write> stats: array<vec2<f32>>; // [TQ, H]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.x + group.y * groups.x) * 64u + lane;
    if row >= TQ * H {
        return;
    }
    var delta = 0.0;
    for (var c = 0u; c < HEAD_DIM; c++) {
        let at = row * HEAD_DIM + c;
        delta = fma(d_o[at], o[at], delta);
    }
    stats[row] = vec2<f32>(lse[row], delta);
}
