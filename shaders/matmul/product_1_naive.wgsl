// matmul; nt, nn and tn: out[m, n] (+)= sum_k A[m, k] * B[k, n] (+ bias[n]). a is A and b is B, but in nt
// b is B transposed, and in tn a is A transposed.
// One invocation per output, straight from the formula.
// Each product of two elements loads both, 8 bytes for two operations: at 512 x 512 x 512 1.1 GB for
// 268 MFLOP, where the matrices are 3 MiB.
// Grid: x = ceil(N / 8), y = ceil(M / 8).
// Needs: nothing beyond WebGPU's default limits.
// Called by product in src/ops/matmul.rs; tests matmul_forward, matmul_gradient, matmul_windows.

const A_TRANSPOSED: bool = false; // a is [K, M]: tn
const B_TRANSPOSED: bool = false; // b is [N, K]: nt
const BIAS: bool = false; // add bias; without one any variable may be bound in its place
const ACCUMULATE: bool = false; // add to out instead of overwriting it

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<f32>; // [M, K] or [K, M]
@group(0) @binding(1) var<storage, read> b: array<f32>; // [>= b_start + K, N] or [>= b_start + N, K]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

// Where A[m, k] lies in a.
fn at_a(d: Dims, m: u32, k: u32) -> u32 {
    return select(m * d.k + k, k * d.m + m, A_TRANSPOSED);
}

// Where B[k, n] lies in b.
fn at_b(d: Dims, k: u32, n: u32) -> u32 {
    return select((d.b_start + k) * d.n + n, (d.b_start + n) * d.k + k, B_TRANSPOSED);
}

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let d = dims;
    let n = id.x;
    let m = id.y;
    if n >= d.n || m >= d.m {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < d.k; k += 1u) {
        sum += a[at_a(d, m, k)] * b[at_b(d, k, n)];
    }
    if BIAS {
        sum += bias[n];
    }
    let at = (d.out_start + m) * d.n + n;
    if ACCUMULATE {
        sum += out[at];
    }
    out[at] = sum;
}
