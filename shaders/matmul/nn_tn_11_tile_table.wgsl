// matmul; nn and tn: out[m, n] (+)= sum_k A[m, k] * b[b_start + k, n] (+ bias[n]). a is A, but in tn
// a is A transposed.
// Variant 7 with its tile as constants: a workgroup computes TILE_M x TILE_N outputs and an invocation
// PER_M x PER_N of them. An invocation's columns are quadruples that lie ACROSS apart, so that
// neighbours read and write neighbouring ones. Per product 1 / PER_M + 1 / PER_N elements are read from
// workgroup memory and 4 / TILE_M + 4 / TILE_N bytes from storage.
// Rows of a may have any length, so its elements are loaded one by one.
// Grid: x = ceil(N / TILE_N), y = ceil(M / TILE_M).
// Needs: N a multiple of 4 (at most 16,384 bytes of workgroup memory).
// Called by product in src/ops/matmul.rs; tests matmul_forward, matmul_gradient, matmul_windows.

const A_TRANSPOSED: bool = false; // a is [K, M]: tn
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
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [>= b_start + K, N / 4]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [N / 4]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

// The tile: other values of these lines make the others of the table.
const TILE_M: u32 = 64u; // rows of out per workgroup
const TILE_N: u32 = 64u; // columns of out per workgroup
const PER_M: u32 = 8u; // rows of out per invocation, a multiple of 4 that divides TILE_M
const PER_N: u32 = 4u; // columns of out per invocation, a multiple of 4 that divides TILE_N
const STEP: u32 = 16u; // terms per step, a multiple of 4

const ACROSS: u32 = TILE_N / PER_N; // invocations side by side
const THREADS: u32 = ACROSS * (TILE_M / PER_M);
const QUADS_M: u32 = TILE_M / 4u; // quadruples of a tile's row
const QUADS_N: u32 = TILE_N / 4u;
const PITCH_M: u32 = QUADS_M + 1u; // one more than a row has, against bank conflicts
const PITCH_N: u32 = QUADS_N + 1u;
const MINE_M: u32 = PER_M / 4u; // quadruples of an invocation
const MINE_N: u32 = PER_N / 4u;

var<workgroup> tile_a: array<vec4<f32>, STEP * PITCH_M>; // [STEP k, TILE_M / 4], rows PITCH_M apart
var<workgroup> tile_b: array<vec4<f32>, STEP * PITCH_N>; // [STEP k, TILE_N / 4], rows PITCH_N apart

// Where A[m, k] lies in a.
fn at_a(d: Dims, m: u32, k: u32) -> u32 {
    return select(m * d.k + k, k * d.m + m, A_TRANSPOSED);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let d = dims;
    let m0 = group.y * TILE_M;
    let n0 = group.x * TILE_N;
    let row0 = lane / ACROSS * MINE_M;
    let column0 = lane % ACROSS;
    let quads = d.n / 4u;
    var columns: array<vec4<f32>, MINE_N>;
    var c: array<vec4<f32>, PER_M * MINE_N>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        for (var e = lane; e < STEP * QUADS_M; e += THREADS) {
            // Term and quadruple of rows, in the order of storage.
            let k = select(e % STEP, e / QUADS_M, A_TRANSPOSED);
            let side = select(e / STEP, e % QUADS_M, A_TRANSPOSED);
            let ka = min(k0 + k, d.k - 1u);
            let i = m0 + side * 4u;
            let x = vec4(
                a[at_a(d, min(i, d.m - 1u), ka)],
                a[at_a(d, min(i + 1u, d.m - 1u), ka)],
                a[at_a(d, min(i + 2u, d.m - 1u), ka)],
                a[at_a(d, min(i + 3u, d.m - 1u), ka)],
            );
            tile_a[k * PITCH_M + side] = select(vec4(0.0), x, k0 + k < d.k);
        }
        for (var e = lane; e < STEP * QUADS_N; e += THREADS) {
            let k = e / QUADS_N;
            let side = e % QUADS_N;
            let row = d.b_start + min(k0 + k, d.k - 1u);
            tile_b[k * PITCH_N + side] = b[row * quads + min(n0 / 4u + side, quads - 1u)];
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            for (var j = 0u; j < MINE_N; j += 1u) {
                columns[j] = tile_b[k * PITCH_N + column0 + j * ACROSS];
            }
            for (var q = 0u; q < MINE_M; q += 1u) {
                let rows = tile_a[k * PITCH_M + row0 + q];
                for (var i = 0u; i < 4u; i += 1u) {
                    for (var j = 0u; j < MINE_N; j += 1u) {
                        c[(q * 4u + i) * MINE_N + j] += rows[i] * columns[j];
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < PER_M; i += 1u) {
        for (var j = 0u; j < MINE_N; j += 1u) {
            let m = m0 + row0 * 4u + i;
            let n = n0 + (column0 + j * ACROSS) * 4u;
            if m < d.m && n < d.n {
                var sum = c[i * MINE_N + j];
                if BIAS {
                    sum += bias[n / 4u];
                }
                let at = ((d.out_start + m) * d.n + n) / 4u;
                if ACCUMULATE {
                    sum += out[at];
                }
                out[at] = sum;
            }
        }
    }
}
