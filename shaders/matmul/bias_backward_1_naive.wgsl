// matmul, bias_backward: db[n] (+)= sum_m dy[m, n]; one invocation per column, rows in order. One
// addition for 4 bytes: bound by memory.
// Grid: ceil(N / 64) groups.
// Needs: nothing beyond WebGPU's default limits.
// Called by linear in src/ops/matmul.rs; test matmul_gradient.

const M: u32 = 1u; // rows of dy
const N: u32 = 1u; // columns of dy
const ACCUMULATE: bool = false; // add to db instead of overwriting it

@group(0) @binding(0) var<storage, read> dy: array<f32>; // [M, N]
@group(0) @binding(1) var<storage, read_write> db: array<f32>; // [N]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = (group.x + group.y * groups.x) * 64u + lane;
    if n >= N {
        return;
    }
    var sum = 0.0;
    for (var m = 0u; m < M; m += 1u) {
        sum += dy[m * N + n];
    }
    if ACCUMULATE {
        sum += db[n];
    }
    db[n] = sum;
}
