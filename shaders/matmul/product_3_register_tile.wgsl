// matmul; nt, nn and tn: out[m, n] (+)= sum_k A[m, k] * B[k, n] (+ bias[n]). a is A and b is B, but in nt
// b is B transposed, and in tn a is A transposed.
// A workgroup computes 64 x 64 outputs and walks k in steps of 16 through workgroup memory; each of
// its 128 invocations keeps 8 rows x 4 columns in registers, so one element read from workgroup
// memory takes part in 4 or 8 products: 0.375 reads per product, and 0.125 bytes from storage.
// Terms beyond K are zeros; rows and columns beyond the edge repeat the last one.
// Grid: x = ceil(N / 64), y = ceil(M / 64).
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

const SIDE: u32 = 64u; // outputs per workgroup, each way
const STEP: u32 = 16u; // terms per step
// Four more than the side: transposing stores then meet fewer bank conflicts.
const PITCH: u32 = 68u;
const ROWS: u32 = 8u; // outputs per invocation; its columns are the four of a vec4

var<workgroup> tile_a: array<f32, 1088>; // [16 k, 64 m], rows PITCH apart
var<workgroup> tile_b: array<f32, 1088>; // [16 k, 64 n], rows PITCH apart

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

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let d = dims;
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    let row0 = lane / 16u * ROWS;
    let column0 = lane % 16u * 4u;
    var c: array<vec4<f32>, ROWS>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        for (var e = lane; e < SIDE * STEP; e += 128u) {
            let of_a = place(e, !A_TRANSPOSED);
            let x = a[at_a(d, min(m0 + of_a.x, d.m - 1u), min(k0 + of_a.y, d.k - 1u))];
            tile_a[of_a.y * PITCH + of_a.x] = select(0.0, x, k0 + of_a.y < d.k);
            let of_b = place(e, B_TRANSPOSED);
            let y = b[at_b(d, min(k0 + of_b.y, d.k - 1u), min(n0 + of_b.x, d.n - 1u))];
            tile_b[of_b.y * PITCH + of_b.x] = y;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            let pa = k * PITCH + row0;
            let pb = k * PITCH + column0;
            let column = vec4(tile_b[pb], tile_b[pb + 1u], tile_b[pb + 2u], tile_b[pb + 3u]);
            for (var i = 0u; i < ROWS; i += 1u) {
                c[i] += tile_a[pa + i] * column;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        let m = m0 + row0 + i;
        for (var j = 0u; j < 4u; j += 1u) {
            let n = n0 + column0 + j;
            if m < d.m && n < d.n {
                var sum = c[i][j];
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
    }
}
