// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// Variant 11 with b stored in 16 bits an element or fewer: half the bytes of b are read, or a quarter
// or an eighth, and they become f32 on their way into workgroup memory. With 64 x 64 outputs 0.094
// bytes per product in 16 bits, 0.079 in q8_0 and 0.071 in q4_0 instead of 0.125.
// Grid: x = ceil(N / TILE_N), y = ceil(M / TILE_M).
// Needs: K and N multiples of 4 (at most 16,384 bytes of workgroup memory).
// Called by product in src/ops/matmul.rs; test matmul_forward.

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

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [M, K / 4]
@group(0) @binding(1) var<storage, read> b: array<u32>; // [b_rows, K] in the storage type
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

// Elements 4 i to 4 i + 3 of b, which has so many in all. Every f16 and every bf16 is an f32. Of q8_0
// and q4_0, integers of 8 and 4 bits, 32 share a scale in f16; all scales lie behind all integers.
fn four(i: u32, elements: u32) -> vec4<f32> {
    if STORED == 0u {
        return vec4(unpack2x16float(b[2u * i]), unpack2x16float(b[2u * i + 1u]));
    }
    if STORED == 1u {
        let words = vec4(b[2u * i] << 16u, b[2u * i], b[2u * i + 1u] << 16u, b[2u * i + 1u]);
        return bitcast<vec4<f32>>(words & vec4(0xffff0000u));
    }
    let block = i / 8u;
    let integers = elements / select(8u, 4u, STORED == 2u); // words
    let scale = unpack2x16float(b[integers + block / 2u])[block % 2u];
    if STORED == 2u {
        return scale * vec4<f32>((vec4(bitcast<i32>(b[i])) << vec4(24u, 16u, 8u, 0u)) >> vec4(24u));
    }
    let nibbles = (vec4(b[i / 2u] >> (16u * (i % 2u))) >> vec4(0u, 4u, 8u, 12u)) & vec4(15u);
    return scale * (vec4<f32>(nibbles) - 8.0);
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
    let quads = d.k / 4u;
    let elements = d.b_rows * d.k;
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
                let x0 = four((d.b_start + min(j, d.n - 1u)) * quads + at_quad, elements);
                let x1 = four((d.b_start + min(j + 1u, d.n - 1u)) * quads + at_quad, elements);
                let x2 = four((d.b_start + min(j + 2u, d.n - 1u)) * quads + at_quad, elements);
                let x3 = four((d.b_start + min(j + 3u, d.n - 1u)) * quads + at_quad, elements);
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
