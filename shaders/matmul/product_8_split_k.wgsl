// matmul; nt, nn and tn: out[m, n] (+)= sum_k A[m, k] * B[k, n] (+ bias[n]). a is A and b is B, but in nt
// b is B transposed, and in tn a is A transposed.
// A workgroup computes 16 x 16 outputs and walks k in steps of 64 through workgroup memory. Each
// eighth of its 256 invocations covers all outputs, 4 rows x 2 columns per invocation, for an eighth
// of the terms of a step; at the end the eight parts of each output are added in a fixed order. With
// few outputs and long sums this keeps 32 times as many invocations busy as variant 3, for 0.5 bytes
// from storage per product (variant 3: 0.125) and 0.75 reads of workgroup memory (0.375).
// Terms beyond K are zeros; rows and columns beyond the edge repeat the last one.
// Grid: x = ceil(N / 16), y = ceil(M / 16).
// Needs: nothing beyond WebGPU's default limits (8,704 bytes of workgroup memory).
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

const SIDE: u32 = 16u; // outputs per workgroup, each way
const STEP: u32 = 64u; // terms per step
const PITCH: u32 = 17u; // one more than the side: transposing stores then meet fewer bank conflicts
const B: u32 = 1088u; // where the tile of B begins
const PARTS: u32 = 8u; // of each sum

// [64 k, 16 m] of A and [64 k, 16 n] of B, rows PITCH apart; at the end the parts, [8, 16 m, 16 n].
var<workgroup> tiles: array<f32, 2176>;

// Where A[m, k] lies in a.
fn at_a(d: Dims, m: u32, k: u32) -> u32 {
    return select(m * d.k + k, k * d.m + m, A_TRANSPOSED);
}

// Where B[k, n] lies in b.
fn at_b(d: Dims, k: u32, n: u32) -> u32 {
    return select((d.b_start + k) * d.n + n, (d.b_start + n) * d.k + k, B_TRANSPOSED);
}

// Line and term of element e of a tile of SIDE lines (rows of A, columns of B) and STEP terms, counted in
// the order of storage: neighbouring invocations read neighbouring elements.
fn place(e: u32, terms_adjoin: bool) -> vec2<u32> {
    return select(vec2(e % SIDE, e / SIDE), vec2(e / STEP, e % STEP), terms_adjoin);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let d = dims;
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    let part = lane / 32u;
    let row0 = lane % 32u / 8u * 4u;
    let column0 = lane % 8u * 2u;
    var c: array<vec2<f32>, 4>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        for (var e = lane; e < SIDE * STEP; e += 256u) {
            let of_a = place(e, !A_TRANSPOSED);
            let x = a[at_a(d, min(m0 + of_a.x, d.m - 1u), min(k0 + of_a.y, d.k - 1u))];
            tiles[of_a.y * PITCH + of_a.x] = select(0.0, x, k0 + of_a.y < d.k);
            let of_b = place(e, B_TRANSPOSED);
            let y = b[at_b(d, min(k0 + of_b.y, d.k - 1u), min(n0 + of_b.x, d.n - 1u))];
            tiles[B + of_b.y * PITCH + of_b.x] = y;
        }
        workgroupBarrier();
        for (var l = 0u; l < STEP / PARTS; l += 1u) {
            let k = part * (STEP / PARTS) + l;
            let pb = B + k * PITCH + column0;
            let column = vec2(tiles[pb], tiles[pb + 1u]);
            for (var i = 0u; i < 4u; i += 1u) {
                c[i] += tiles[k * PITCH + row0 + i] * column;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i += 1u) {
        let at = part * SIDE * SIDE + (row0 + i) * SIDE + column0;
        tiles[at] = c[i].x;
        tiles[at + 1u] = c[i].y;
    }
    workgroupBarrier();
    let m = m0 + lane / SIDE;
    let n = n0 + lane % SIDE;
    if m < d.m && n < d.n {
        var sum = 0.0;
        for (var p = 0u; p < PARTS; p += 1u) {
            sum += tiles[p * SIDE * SIDE + lane];
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
}
