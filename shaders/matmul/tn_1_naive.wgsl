// matmul, tn: out[m, n] (+)= sum_k a[k, m] * b[b_start + k, n].
// One invocation per output, straight from the formula.
// Grid: x = ceil(N / 8), y = ceil(M / 8).
// Needs: nothing beyond WebGPU's default limits.

const ACCUMULATE: bool = false; // add to out instead of overwriting it

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<f32>; // [K, M]
@group(0) @binding(1) var<storage, read> b: array<f32>; // [>= b_start + K, N]
@group(0) @binding(2) var<storage, read> d: Dims;
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    let m = id.y;
    if n >= d.n || m >= d.m {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < d.k; k += 1u) {
        sum += a[k * d.m + m] * b[(d.b_start + k) * d.n + n];
    }
    let at = (d.out_start + m) * d.n + n;
    if ACCUMULATE {
        sum += out[at];
    }
    out[at] = sum;
}
