// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// Variant 1 with b stored in 16 bits an element, two to a word; computes in f32 as all do. A row of odd
// length begins in the middle of a word, and every product loads a word and uses half of it: 8 bytes
// per product, as variant 1.
// Grid: x = ceil(N / 8), y = ceil(M / 8).
// Needs: nothing beyond WebGPU's default limits.
// Called by product in src/ops/matmul.rs; test matmul_forward.

const BIAS: bool = false; // add bias; without one any variable may be bound in its place
const ACCUMULATE: bool = false; // add to out instead of overwriting it
const BF16: bool = false; // b is stored as bf16, else as f16

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<f32>; // [M, K]
@group(0) @binding(1) var<storage, read> b: array<u32>; // [>= b_start + N, K / 2]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

// Two elements of b. Every f16 and every bf16 is an f32, so nothing is lost here.
fn pair(word: u32) -> vec2<f32> {
    if BF16 {
        return vec2(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
    }
    return unpack2x16float(word);
}

fn element(i: u32) -> f32 {
    let both = pair(b[i / 2u]);
    return select(both.x, both.y, (i & 1u) == 1u);
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
        sum += a[m * d.k + k] * element((d.b_start + n) * d.k + k);
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
