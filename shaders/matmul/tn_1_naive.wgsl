// matmul, tn: out[m, n] (+)= sum_k a[k, m] * b[B_START + k, n]; one invocation per output.
// Grid: x = ceil(N / 8), y = ceil(M / 8).
// Needs: nothing beyond WebGPU's default limits.

const M: u32 = 1u; // rows of out
const N: u32 = 1u; // columns of out
const K: u32 = 1u; // terms of each sum
const B_START: u32 = 0u; // first row of b that is used
const OUT_START: u32 = 0u; // first row of out that is written
const ACCUMULATE: bool = false; // add to out instead of overwriting it

@group(0) @binding(0) var<storage, read> a: array<f32>; // [K, M]
@group(0) @binding(1) var<storage, read> b: array<f32>; // [>= B_START + K, N]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [>= OUT_START + M, N]

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    let m = id.y;
    if n >= N || m >= M {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < K; k += 1u) {
        sum += a[k * M + m] * b[(B_START + k) * N + n];
    }
    let at = (OUT_START + m) * N + n;
    if ACCUMULATE {
        sum += out[at];
    }
    out[at] = sum;
}
