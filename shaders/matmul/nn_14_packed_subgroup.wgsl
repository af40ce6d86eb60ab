// matmul, nn: out[m, n] (+)= sum_k a[m, k] * b[b_start + k, n] (+ bias[n]).
// Variant 6 with b stored in 16 bits an element or fewer: 8 elements of b and 4 of a for 128 products,
// 0.25 bytes per product in 16 bits instead of 0.375.
// Grid: x = ceil(N / 64), y = ceil(M / 16).
// Needs: subgroups; N a multiple of 4.
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

const ROWS: u32 = 16u; // outputs per invocation
const COLUMNS: u32 = 8u; // in two quadruples

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

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) index: u32,
) {
    let d = dims;
    let sub = index % 4u;
    let m0 = group.y * ROWS;
    let n0 = (group.x * 8u + lane) * COLUMNS;
    let ia0 = min(m0 + sub, d.m - 1u) * d.k;
    let ia1 = min(m0 + 4u + sub, d.m - 1u) * d.k;
    let ia2 = min(m0 + 8u + sub, d.m - 1u) * d.k;
    let ia3 = min(m0 + 12u + sub, d.m - 1u) * d.k;
    let quads = d.n / 4u;
    let elements = d.b_rows * d.n;
    let ib0 = d.b_start * quads + min(n0 / 4u, quads - 1u);
    let ib1 = d.b_start * quads + min(n0 / 4u + 1u, quads - 1u);
    var c: array<array<vec4<f32>, 2>, ROWS>;
    for (var k = 0u; k < d.k; k += 1u) {
        let b0 = four(ib0 + k * quads, elements);
        let b1 = four(ib1 + k * quads, elements);
        let x0 = a[ia0 + k];
        let x1 = a[ia1 + k];
        let x2 = a[ia2 + k];
        let x3 = a[ia3 + k];
        var x = array(
            subgroupBroadcast(x0, 0u), subgroupBroadcast(x0, 1u),
            subgroupBroadcast(x0, 2u), subgroupBroadcast(x0, 3u),
            subgroupBroadcast(x1, 0u), subgroupBroadcast(x1, 1u),
            subgroupBroadcast(x1, 2u), subgroupBroadcast(x1, 3u),
            subgroupBroadcast(x2, 0u), subgroupBroadcast(x2, 1u),
            subgroupBroadcast(x2, 2u), subgroupBroadcast(x2, 3u),
            subgroupBroadcast(x3, 0u), subgroupBroadcast(x3, 1u),
            subgroupBroadcast(x3, 2u), subgroupBroadcast(x3, 3u),
        );
        for (var i = 0u; i < ROWS; i += 1u) {
            c[i][0] += x[i] * b0;
            c[i][1] += x[i] * b1;
        }
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        for (var j = 0u; j < 2u; j += 1u) {
            if m0 + i < d.m && n0 + 4u * j < d.n {
                var sum = c[i][j];
                if BIAS {
                    sum += bias[n0 / 4u + j];
                }
                let at = (d.out_start + m0 + i) * quads + n0 / 4u + j;
                if ACCUMULATE {
                    sum += out[at];
                }
                out[at] = sum;
            }
        }
    }
}
