// matmul, nn: out[m, n] (+)= sum_k a[m, k] * b[b_start + k, n] (+ bias[n]).
// Variant 7 with b stored in 16 bits an element or fewer, which become f32 on their way into workgroup
// memory: 0.094 bytes per product in 16 bits, 0.079 in q8_0 and 0.071 in q4_0 instead of 0.125.
// Rows of a may have any length, so its elements are loaded one by one: neighbouring invocations read
// neighbouring ones, and each keeps four rows of one k.
// Grid: x = ceil(N / 64), y = ceil(M / 64).
// Needs: N a multiple of 4 (8,704 bytes of workgroup memory).
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
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [N / 4]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

const SIDE: u32 = 64u; // outputs per workgroup, each way
const STEP: u32 = 16u; // terms per step
const PITCH: u32 = 17u; // quadruples of a tile's row: one more than it has, against bank conflicts

var<workgroup> tile_a: array<vec4<f32>, 272>; // [16 k, 64 m / 4], rows PITCH apart
var<workgroup> tile_b: array<vec4<f32>, 272>; // [16 k, 64 n / 4], rows PITCH apart

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

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let d = dims;
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    let row0 = lane / 16u * 8u;
    let column0 = lane % 16u * 4u;
    let quads = d.n / 4u;
    let elements = d.b_rows * d.n;
    var c: array<vec4<f32>, 8>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        for (var e = lane; e < STEP * 16u; e += 128u) {
            let k = e % STEP;
            let side = e / STEP;
            let ka = min(k0 + k, d.k - 1u);
            let i = m0 + side * 4u;
            let x = vec4(
                a[min(i, d.m - 1u) * d.k + ka],
                a[min(i + 1u, d.m - 1u) * d.k + ka],
                a[min(i + 2u, d.m - 1u) * d.k + ka],
                a[min(i + 3u, d.m - 1u) * d.k + ka],
            );
            tile_a[k * PITCH + side] = select(vec4(0.0), x, k0 + k < d.k);
        }
        for (var e = lane; e < STEP * 16u; e += 128u) {
            let k = e / 16u;
            let side = e % 16u;
            let row = d.b_start + min(k0 + k, d.k - 1u);
            tile_b[k * PITCH + side] = four(row * quads + min(n0 / 4u + side, quads - 1u), elements);
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            let x = tile_a[k * PITCH + row0 / 4u];
            let y = tile_a[k * PITCH + row0 / 4u + 1u];
            let column = tile_b[k * PITCH + column0 / 4u];
            for (var i = 0u; i < 4u; i += 1u) {
                c[i] += x[i] * column;
                c[i + 4u] += y[i] * column;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 8u; i += 1u) {
        let m = m0 + row0 + i;
        let n = n0 + column0;
        if m < d.m && n < d.n {
            var sum = c[i];
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
