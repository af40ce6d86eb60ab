// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// Variant 7 with its tile as constants: a workgroup computes TILE_M x TILE_N outputs and an invocation
// PER_M x PER_N of them. An invocation's columns are quadruples that lie ACROSS apart, so that
// neighbours read and write neighbouring ones. Per product 1 / PER_M + 1 / PER_N elements are read from
// workgroup memory and 4 / TILE_M + 4 / TILE_N bytes from storage.
// A block of 4 x 4 is turned in registers on its way, because the tiles hold rows of one k.
// Grid: x = ceil(N / TILE_N), y = ceil(M / TILE_M).
// Needs: K and N multiples of 4 (at most 16,384 bytes of workgroup memory).
// Called by product in src/ops/matmul.rs; tests matmul_forward, matmul_gradient, matmul_windows.

const BIAS: bool = false; // add bias; without one any variable may be bound in its place
const ACCUMULATE: bool = false; // add to out instead of overwriting it

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [M, K / 4]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [>= b_start + N, K / 4]
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
const STEP_QUADS: u32 = STEP / 4u;
const PITCH_M: u32 = QUADS_M + 1u; // one more than a row has, against bank conflicts
const PITCH_N: u32 = QUADS_N + 1u;
const MINE_M: u32 = PER_M / 4u; // quadruples of an invocation
const MINE_N: u32 = PER_N / 4u;

var<workgroup> tile_a: array<vec4<f32>, STEP * PITCH_M>; // [STEP k, TILE_M / 4], rows PITCH_M apart
var<workgroup> tile_b: array<vec4<f32>, STEP * PITCH_N>; // [STEP k, TILE_N / 4], rows PITCH_N apart

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
    let quads = d.k / 4u;
    var columns: array<vec4<f32>, MINE_N>;
    var c: array<vec4<f32>, PER_M * MINE_N>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        // Blocks of 4 x 4: those of a come first, then those of b.
        for (var e = lane; e < STEP_QUADS * (QUADS_M + QUADS_N); e += THREADS) {
            let part = e % STEP_QUADS;
            let quad = k0 / 4u + part;
            let at_quad = min(quad, quads - 1u);
            let side = e / STEP_QUADS;
            if side < QUADS_M {
                let i = m0 + side * 4u;
                let there = quad < quads;
                let x0 = select(vec4(0.0), a[min(i, d.m - 1u) * quads + at_quad], there);
                let x1 = select(vec4(0.0), a[min(i + 1u, d.m - 1u) * quads + at_quad], there);
                let x2 = select(vec4(0.0), a[min(i + 2u, d.m - 1u) * quads + at_quad], there);
                let x3 = select(vec4(0.0), a[min(i + 3u, d.m - 1u) * quads + at_quad], there);
                let to = part * 4u * PITCH_M + side;
                tile_a[to] = vec4(x0.x, x1.x, x2.x, x3.x);
                tile_a[to + PITCH_M] = vec4(x0.y, x1.y, x2.y, x3.y);
                tile_a[to + 2u * PITCH_M] = vec4(x0.z, x1.z, x2.z, x3.z);
                tile_a[to + 3u * PITCH_M] = vec4(x0.w, x1.w, x2.w, x3.w);
            } else {
                let j = n0 + (side - QUADS_M) * 4u;
                let x0 = b[(d.b_start + min(j, d.n - 1u)) * quads + at_quad];
                let x1 = b[(d.b_start + min(j + 1u, d.n - 1u)) * quads + at_quad];
                let x2 = b[(d.b_start + min(j + 2u, d.n - 1u)) * quads + at_quad];
                let x3 = b[(d.b_start + min(j + 3u, d.n - 1u)) * quads + at_quad];
                let to = part * 4u * PITCH_N + side - QUADS_M;
                tile_b[to] = vec4(x0.x, x1.x, x2.x, x3.x);
                tile_b[to + PITCH_N] = vec4(x0.y, x1.y, x2.y, x3.y);
                tile_b[to + 2u * PITCH_N] = vec4(x0.z, x1.z, x2.z, x3.z);
                tile_b[to + 3u * PITCH_N] = vec4(x0.w, x1.w, x2.w, x3.w);
            }
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
