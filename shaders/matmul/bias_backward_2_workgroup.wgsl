// matmul, bias_backward: db[n] (+)= sum_m dy[m, n]. A workgroup sums 16 columns: each of its 16 rows
// of invocations takes every 16th row of dy, then a tree adds the 16 partial sums in fixed order. As
// many bytes as variant 1, from 16 times as many invocations.
// Grid: ceil(N / 16) groups.
// Needs: nothing beyond WebGPU's default limits (1,024 bytes of workgroup memory).
// Called by linear in src/ops/matmul.rs; test matmul_gradient.

const M: u32 = 1u; // rows of dy
const N: u32 = 1u; // columns of dy
const ACCUMULATE: bool = false; // add to db instead of overwriting it

@group(0) @binding(0) var<storage, read> dy: array<f32>; // [M, N]
@group(0) @binding(1) var<storage, read_write> db: array<f32>; // [N]

var<workgroup> partial: array<f32, 256>; // [16 rows, 16 columns]

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = (group.x + group.y * groups.x) * 16u + local.x;
    let column = min(n, N - 1u);
    var sum = 0.0;
    for (var m = local.y; m < M; m += 16u) {
        sum += dy[m * N + column];
    }
    let at = local.y * 16u + local.x;
    partial[at] = sum;
    workgroupBarrier();
    for (var half = 8u; half > 0u; half /= 2u) {
        if local.y < half {
            partial[at] += partial[at + half * 16u];
        }
        workgroupBarrier();
    }
    if local.y == 0u && n < N {
        sum = partial[local.x];
        if ACCUMULATE {
            sum += db[n];
        }
        db[n] = sum;
    }
}
