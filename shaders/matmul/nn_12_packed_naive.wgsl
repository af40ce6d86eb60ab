// matmul, nn: out[m, n] (+)= sum_k a[m, k] * b[b_start + k, n] (+ bias[n]).
// Variant 1 with b stored in 16 bits an element or fewer; computes in f32 as all do. A row may begin in
// the middle of a word, and every product loads a word and uses a part of it: 8 bytes per product, as
// variant 1.
// Grid: x = ceil(N / 8), y = ceil(M / 8).
// Needs: nothing beyond WebGPU's default limits.
// Called by product in src/ops/matmul.rs; test matmul_gradient.

const BIAS: bool = false; // add bias; without one any variable may be bound in its place
const ACCUMULATE: bool = false; // add to out instead of overwriting it
const STORED: u32 = 0u; // how b is stored: 0 as f16, 1 as bf16, 2 as q8_0, 3 as q4_0

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
    b_rows: u32, // rows of b, used or not
}

@group(0) @binding(0) var<storage, read> a: array<f32>; // [M, K]
@group(0) @binding(1) var<storage, read> b: array<u32>; // [b_rows, N] in the storage type
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

// Element i of b, which has so many in all. Every f16 and every bf16 is an f32. Of q8_0 and q4_0,
// integers of 8 and 4 bits, 32 share a scale in f16; all scales lie behind all integers.
fn element(i: u32, elements: u32) -> f32 {
    if STORED == 0u {
        return unpack2x16float(b[i / 2u])[i % 2u];
    }
    if STORED == 1u {
        return bitcast<f32>(select(b[i / 2u] << 16u, b[i / 2u] & 0xffff0000u, i % 2u == 1u));
    }
    let block = i / 32u;
    let integers = elements / select(8u, 4u, STORED == 2u); // words
    let scale = unpack2x16float(b[integers + block / 2u])[block % 2u];
    if STORED == 2u {
        return scale * f32((bitcast<i32>(b[i / 4u]) << (24u - 8u * (i % 4u))) >> 24u);
    }
    return scale * (f32((b[i / 8u] >> (4u * (i % 8u))) & 15u) - 8.0);
}

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let d = dims;
    let n = id.x;
    let m = id.y;
    if n >= d.n || m >= d.m {
        return;
    }
    let elements = d.b_rows * d.n;
    var sum = 0.0;
    for (var k = 0u; k < d.k; k += 1u) {
        sum += a[m * d.k + k] * element((d.b_start + k) * d.n + n, elements);
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
