// matmul, nn: out[m, n] (+)= sum_k a[m, k] * b[b_start + k, n] (+ bias[n]).
// Variant 16 with b stored in 16 bits an element or fewer, decoded as variant 14 does: 4 quadruples of a
// and 8 of b for 1,024 products, 0.125 bytes per product in 16 bits.
// Grid: x = ceil(N / 64), y = ceil(M / 32).
// Needs: subgroups of at least eight; K and N multiples of 4.
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

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [M, K / 4]
@group(0) @binding(1) var<storage, read> b: array<u32>; // [b_rows, N] in the storage type
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
    let quads = d.n / 4u;
    let elements = d.b_rows * d.n;
    let j0 = d.b_start * quads + min(n0 / 4u, quads - 1u);
    let j1 = d.b_start * quads + min(n0 / 4u + 1u, quads - 1u);
    let ia0 = min(m0 + sub, d.m - 1u) * (d.k / 4u);
    let ia1 = min(m0 + 8u + sub, d.m - 1u) * (d.k / 4u);
    let ia2 = min(m0 + 16u + sub, d.m - 1u) * (d.k / 4u);
    let ia3 = min(m0 + 24u + sub, d.m - 1u) * (d.k / 4u);
    var c: array<vec4<f32>, 64>; // two quadruples a row
    for (var q = 0u; q < d.k / 4u; q += 1u) {
        let x0 = a[ia0 + q];
        let x1 = a[ia1 + q];
        let x2 = a[ia2 + q];
        let x3 = a[ia3 + q];
        let y0 = mat4x4(
            four(j0 + (4u * q) * quads, elements),
            four(j0 + (4u * q + 1u) * quads, elements),
            four(j0 + (4u * q + 2u) * quads, elements),
            four(j0 + (4u * q + 3u) * quads, elements),
        );
        let y1 = mat4x4(
            four(j1 + (4u * q) * quads, elements),
            four(j1 + (4u * q + 1u) * quads, elements),
            four(j1 + (4u * q + 2u) * quads, elements),
            four(j1 + (4u * q + 3u) * quads, elements),
        );
        let z0 = subgroupBroadcast(x0, 0u);
        c[0] += y0 * z0;
        c[1] += y1 * z0;
        let z1 = subgroupBroadcast(x0, 1u);
        c[2] += y0 * z1;
        c[3] += y1 * z1;
        let z2 = subgroupBroadcast(x0, 2u);
        c[4] += y0 * z2;
        c[5] += y1 * z2;
        let z3 = subgroupBroadcast(x0, 3u);
        c[6] += y0 * z3;
        c[7] += y1 * z3;
        let z4 = subgroupBroadcast(x0, 4u);
        c[8] += y0 * z4;
        c[9] += y1 * z4;
        let z5 = subgroupBroadcast(x0, 5u);
        c[10] += y0 * z5;
        c[11] += y1 * z5;
        let z6 = subgroupBroadcast(x0, 6u);
        c[12] += y0 * z6;
        c[13] += y1 * z6;
        let z7 = subgroupBroadcast(x0, 7u);
        c[14] += y0 * z7;
        c[15] += y1 * z7;
        let z8 = subgroupBroadcast(x1, 0u);
        c[16] += y0 * z8;
        c[17] += y1 * z8;
        let z9 = subgroupBroadcast(x1, 1u);
        c[18] += y0 * z9;
        c[19] += y1 * z9;
        let z10 = subgroupBroadcast(x1, 2u);
        c[20] += y0 * z10;
        c[21] += y1 * z10;
        let z11 = subgroupBroadcast(x1, 3u);
        c[22] += y0 * z11;
        c[23] += y1 * z11;
        let z12 = subgroupBroadcast(x1, 4u);
        c[24] += y0 * z12;
        c[25] += y1 * z12;
        let z13 = subgroupBroadcast(x1, 5u);
        c[26] += y0 * z13;
        c[27] += y1 * z13;
        let z14 = subgroupBroadcast(x1, 6u);
        c[28] += y0 * z14;
        c[29] += y1 * z14;
        let z15 = subgroupBroadcast(x1, 7u);
        c[30] += y0 * z15;
        c[31] += y1 * z15;
        let z16 = subgroupBroadcast(x2, 0u);
        c[32] += y0 * z16;
        c[33] += y1 * z16;
        let z17 = subgroupBroadcast(x2, 1u);
        c[34] += y0 * z17;
        c[35] += y1 * z17;
        let z18 = subgroupBroadcast(x2, 2u);
        c[36] += y0 * z18;
        c[37] += y1 * z18;
        let z19 = subgroupBroadcast(x2, 3u);
        c[38] += y0 * z19;
        c[39] += y1 * z19;
        let z20 = subgroupBroadcast(x2, 4u);
        c[40] += y0 * z20;
        c[41] += y1 * z20;
        let z21 = subgroupBroadcast(x2, 5u);
        c[42] += y0 * z21;
        c[43] += y1 * z21;
        let z22 = subgroupBroadcast(x2, 6u);
        c[44] += y0 * z22;
        c[45] += y1 * z22;
        let z23 = subgroupBroadcast(x2, 7u);
        c[46] += y0 * z23;
        c[47] += y1 * z23;
        let z24 = subgroupBroadcast(x3, 0u);
        c[48] += y0 * z24;
        c[49] += y1 * z24;
        let z25 = subgroupBroadcast(x3, 1u);
        c[50] += y0 * z25;
        c[51] += y1 * z25;
        let z26 = subgroupBroadcast(x3, 2u);
        c[52] += y0 * z26;
        c[53] += y1 * z26;
        let z27 = subgroupBroadcast(x3, 3u);
        c[54] += y0 * z27;
        c[55] += y1 * z27;
        let z28 = subgroupBroadcast(x3, 4u);
        c[56] += y0 * z28;
        c[57] += y1 * z28;
        let z29 = subgroupBroadcast(x3, 5u);
        c[58] += y0 * z29;
        c[59] += y1 * z29;
        let z30 = subgroupBroadcast(x3, 6u);
        c[60] += y0 * z30;
        c[61] += y1 * z30;
        let z31 = subgroupBroadcast(x3, 7u);
        c[62] += y0 * z31;
        c[63] += y1 * z31;
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
