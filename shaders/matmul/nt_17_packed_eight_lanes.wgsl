// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// Variant 16 with b stored in 16 bits an element or fewer, decoded as variant 14 does: 4 quadruples of a
// and 8 of b for 1,024 products, 0.125 bytes per product in 16 bits where 14 has 0.313.
// Grid: x = ceil(N / 64), y = ceil(M / 32).
// Needs: subgroups of at least eight; K and N multiples of 4.
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

const ROWS: u32 = 32u; // outputs per invocation
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

// Writes four sums at columns n to n + 3 of row m, if out has them.
fn put(d: Dims, m: u32, n: u32, sums: vec4<f32>) {
    if m < d.m && n < d.n {
        var sum = sums;
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

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) index: u32,
) {
    let d = dims;
    let sub = index % 8u;
    let m0 = group.y * ROWS;
    let n0 = (group.x * 8u + lane) * COLUMNS;
    let quads = d.k / 4u;
    let elements = d.b_rows * d.k;
    let ia0 = min(m0 + sub, d.m - 1u) * quads;
    let ia1 = min(m0 + 8u + sub, d.m - 1u) * quads;
    let ia2 = min(m0 + 16u + sub, d.m - 1u) * quads;
    let ia3 = min(m0 + 24u + sub, d.m - 1u) * quads;
    let ib0 = (d.b_start + min(n0, d.n - 1u)) * quads;
    let ib1 = (d.b_start + min(n0 + 1u, d.n - 1u)) * quads;
    let ib2 = (d.b_start + min(n0 + 2u, d.n - 1u)) * quads;
    let ib3 = (d.b_start + min(n0 + 3u, d.n - 1u)) * quads;
    let ib4 = (d.b_start + min(n0 + 4u, d.n - 1u)) * quads;
    let ib5 = (d.b_start + min(n0 + 5u, d.n - 1u)) * quads;
    let ib6 = (d.b_start + min(n0 + 6u, d.n - 1u)) * quads;
    let ib7 = (d.b_start + min(n0 + 7u, d.n - 1u)) * quads;
    var c: array<vec4<f32>, 64>; // two quadruples a row
    for (var q = 0u; q < quads; q += 1u) {
        let x0 = a[ia0 + q];
        let x1 = a[ia1 + q];
        let x2 = a[ia2 + q];
        let x3 = a[ia3 + q];
        let y0 = mat4x4(
            four(ib0 + q, elements),
            four(ib1 + q, elements),
            four(ib2 + q, elements),
            four(ib3 + q, elements),
        );
        let y1 = mat4x4(
            four(ib4 + q, elements),
            four(ib5 + q, elements),
            four(ib6 + q, elements),
            four(ib7 + q, elements),
        );
        let z0 = subgroupBroadcast(x0, 0u);
        c[0] += z0 * y0;
        c[1] += z0 * y1;
        let z1 = subgroupBroadcast(x0, 1u);
        c[2] += z1 * y0;
        c[3] += z1 * y1;
        let z2 = subgroupBroadcast(x0, 2u);
        c[4] += z2 * y0;
        c[5] += z2 * y1;
        let z3 = subgroupBroadcast(x0, 3u);
        c[6] += z3 * y0;
        c[7] += z3 * y1;
        let z4 = subgroupBroadcast(x0, 4u);
        c[8] += z4 * y0;
        c[9] += z4 * y1;
        let z5 = subgroupBroadcast(x0, 5u);
        c[10] += z5 * y0;
        c[11] += z5 * y1;
        let z6 = subgroupBroadcast(x0, 6u);
        c[12] += z6 * y0;
        c[13] += z6 * y1;
        let z7 = subgroupBroadcast(x0, 7u);
        c[14] += z7 * y0;
        c[15] += z7 * y1;
        let z8 = subgroupBroadcast(x1, 0u);
        c[16] += z8 * y0;
        c[17] += z8 * y1;
        let z9 = subgroupBroadcast(x1, 1u);
        c[18] += z9 * y0;
        c[19] += z9 * y1;
        let z10 = subgroupBroadcast(x1, 2u);
        c[20] += z10 * y0;
        c[21] += z10 * y1;
        let z11 = subgroupBroadcast(x1, 3u);
        c[22] += z11 * y0;
        c[23] += z11 * y1;
        let z12 = subgroupBroadcast(x1, 4u);
        c[24] += z12 * y0;
        c[25] += z12 * y1;
        let z13 = subgroupBroadcast(x1, 5u);
        c[26] += z13 * y0;
        c[27] += z13 * y1;
        let z14 = subgroupBroadcast(x1, 6u);
        c[28] += z14 * y0;
        c[29] += z14 * y1;
        let z15 = subgroupBroadcast(x1, 7u);
        c[30] += z15 * y0;
        c[31] += z15 * y1;
        let z16 = subgroupBroadcast(x2, 0u);
        c[32] += z16 * y0;
        c[33] += z16 * y1;
        let z17 = subgroupBroadcast(x2, 1u);
        c[34] += z17 * y0;
        c[35] += z17 * y1;
        let z18 = subgroupBroadcast(x2, 2u);
        c[36] += z18 * y0;
        c[37] += z18 * y1;
        let z19 = subgroupBroadcast(x2, 3u);
        c[38] += z19 * y0;
        c[39] += z19 * y1;
        let z20 = subgroupBroadcast(x2, 4u);
        c[40] += z20 * y0;
        c[41] += z20 * y1;
        let z21 = subgroupBroadcast(x2, 5u);
        c[42] += z21 * y0;
        c[43] += z21 * y1;
        let z22 = subgroupBroadcast(x2, 6u);
        c[44] += z22 * y0;
        c[45] += z22 * y1;
        let z23 = subgroupBroadcast(x2, 7u);
        c[46] += z23 * y0;
        c[47] += z23 * y1;
        let z24 = subgroupBroadcast(x3, 0u);
        c[48] += z24 * y0;
        c[49] += z24 * y1;
        let z25 = subgroupBroadcast(x3, 1u);
        c[50] += z25 * y0;
        c[51] += z25 * y1;
        let z26 = subgroupBroadcast(x3, 2u);
        c[52] += z26 * y0;
        c[53] += z26 * y1;
        let z27 = subgroupBroadcast(x3, 3u);
        c[54] += z27 * y0;
        c[55] += z27 * y1;
        let z28 = subgroupBroadcast(x3, 4u);
        c[56] += z28 * y0;
        c[57] += z28 * y1;
        let z29 = subgroupBroadcast(x3, 5u);
        c[58] += z29 * y0;
        c[59] += z29 * y1;
        let z30 = subgroupBroadcast(x3, 6u);
        c[60] += z30 * y0;
        c[61] += z30 * y1;
        let z31 = subgroupBroadcast(x3, 7u);
        c[62] += z31 * y0;
        c[63] += z31 * y1;
    }
    put(d, m0, n0, c[0]);
    put(d, m0, n0 + 4u, c[1]);
    put(d, m0 + 1u, n0, c[2]);
    put(d, m0 + 1u, n0 + 4u, c[3]);
    put(d, m0 + 2u, n0, c[4]);
    put(d, m0 + 2u, n0 + 4u, c[5]);
    put(d, m0 + 3u, n0, c[6]);
    put(d, m0 + 3u, n0 + 4u, c[7]);
    put(d, m0 + 4u, n0, c[8]);
    put(d, m0 + 4u, n0 + 4u, c[9]);
    put(d, m0 + 5u, n0, c[10]);
    put(d, m0 + 5u, n0 + 4u, c[11]);
    put(d, m0 + 6u, n0, c[12]);
    put(d, m0 + 6u, n0 + 4u, c[13]);
    put(d, m0 + 7u, n0, c[14]);
    put(d, m0 + 7u, n0 + 4u, c[15]);
    put(d, m0 + 8u, n0, c[16]);
    put(d, m0 + 8u, n0 + 4u, c[17]);
    put(d, m0 + 9u, n0, c[18]);
    put(d, m0 + 9u, n0 + 4u, c[19]);
    put(d, m0 + 10u, n0, c[20]);
    put(d, m0 + 10u, n0 + 4u, c[21]);
    put(d, m0 + 11u, n0, c[22]);
    put(d, m0 + 11u, n0 + 4u, c[23]);
    put(d, m0 + 12u, n0, c[24]);
    put(d, m0 + 12u, n0 + 4u, c[25]);
    put(d, m0 + 13u, n0, c[26]);
    put(d, m0 + 13u, n0 + 4u, c[27]);
    put(d, m0 + 14u, n0, c[28]);
    put(d, m0 + 14u, n0 + 4u, c[29]);
    put(d, m0 + 15u, n0, c[30]);
    put(d, m0 + 15u, n0 + 4u, c[31]);
    put(d, m0 + 16u, n0, c[32]);
    put(d, m0 + 16u, n0 + 4u, c[33]);
    put(d, m0 + 17u, n0, c[34]);
    put(d, m0 + 17u, n0 + 4u, c[35]);
    put(d, m0 + 18u, n0, c[36]);
    put(d, m0 + 18u, n0 + 4u, c[37]);
    put(d, m0 + 19u, n0, c[38]);
    put(d, m0 + 19u, n0 + 4u, c[39]);
    put(d, m0 + 20u, n0, c[40]);
    put(d, m0 + 20u, n0 + 4u, c[41]);
    put(d, m0 + 21u, n0, c[42]);
    put(d, m0 + 21u, n0 + 4u, c[43]);
    put(d, m0 + 22u, n0, c[44]);
    put(d, m0 + 22u, n0 + 4u, c[45]);
    put(d, m0 + 23u, n0, c[46]);
    put(d, m0 + 23u, n0 + 4u, c[47]);
    put(d, m0 + 24u, n0, c[48]);
    put(d, m0 + 24u, n0 + 4u, c[49]);
    put(d, m0 + 25u, n0, c[50]);
    put(d, m0 + 25u, n0 + 4u, c[51]);
    put(d, m0 + 26u, n0, c[52]);
    put(d, m0 + 26u, n0 + 4u, c[53]);
    put(d, m0 + 27u, n0, c[54]);
    put(d, m0 + 27u, n0 + 4u, c[55]);
    put(d, m0 + 28u, n0, c[56]);
    put(d, m0 + 28u, n0 + 4u, c[57]);
    put(d, m0 + 29u, n0, c[58]);
    put(d, m0 + 29u, n0 + 4u, c[59]);
    put(d, m0 + 30u, n0, c[60]);
    put(d, m0 + 30u, n0 + 4u, c[61]);
    put(d, m0 + 31u, n0, c[62]);
    put(d, m0 + 31u, n0 + 4u, c[63]);
}
