// matmul; nn and tn: out[m, n] (+)= sum_k A[m, k] * b[b_start + k, n] (+ bias[n]). a is A, but in tn
// a is A transposed.
// Variant 6 with broadcasts from eight lanes instead of four, and with elements of a in quadruples too:
// along k in nn; along m in tn, where four of them, of four terms, are turned to lie along k. A step is
// four terms: 4 + 8 quadruples for 1,024 products, 0.188 bytes per product where 6 has 0.375.
// Grid: x = ceil(N / 64), y = ceil(M / 32).
// Needs: subgroups of at least eight; rows of a and N multiples of 4.
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

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [M, K / 4] or [K, M / 4]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [>= b_start + K, N / 4]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [N / 4]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

const ROWS: u32 = 32u; // outputs per invocation
const COLUMNS: u32 = 8u; // in two quadruples

// Quadruple i of the four of step q: of row m0 + 8 i + sub, or of term 4 q + i, zero past the last.
fn quad(d: Dims, q: u32, i: u32, m0: u32, sub: u32) -> vec4<f32> {
    let k = 4u * q + i;
    let of_row = min(m0 + 8u * i + sub, d.m - 1u) * (d.k / 4u) + q;
    let of_term = min(k, d.k - 1u) * (d.m / 4u) + min(m0 / 4u + sub, d.m / 4u - 1u);
    let value = a[select(of_row, of_term, A_TRANSPOSED)];
    return select(vec4(0.0), value, !A_TRANSPOSED || k < d.k);
}

// Quadruple j of b's term k, zero past the last.
fn term(d: Dims, k: u32, j: u32) -> vec4<f32> {
    let value = b[(d.b_start + min(k, d.k - 1u)) * (d.n / 4u) + j];
    return select(vec4(0.0), value, !A_TRANSPOSED || k < d.k);
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
    let j0 = min(n0 / 4u, d.n / 4u - 1u);
    let j1 = min(n0 / 4u + 1u, d.n / 4u - 1u);
    var c: array<vec4<f32>, 64>; // two quadruples a row
    for (var q = 0u; 4u * q < d.k; q += 1u) {
        let x0 = quad(d, q, 0u, m0, sub);
        let x1 = quad(d, q, 1u, m0, sub);
        let x2 = quad(d, q, 2u, m0, sub);
        let x3 = quad(d, q, 3u, m0, sub);
        let y0 = mat4x4(
            term(d, 4u * q, j0),
            term(d, 4u * q + 1u, j0),
            term(d, 4u * q + 2u, j0),
            term(d, 4u * q + 3u, j0),
        );
        let y1 = mat4x4(
            term(d, 4u * q, j1),
            term(d, 4u * q + 1u, j1),
            term(d, 4u * q + 2u, j1),
            term(d, 4u * q + 3u, j1),
        );
        let t0 = transpose(mat4x4(
            subgroupBroadcast(x0, 0u),
            subgroupBroadcast(x1, 0u),
            subgroupBroadcast(x2, 0u),
            subgroupBroadcast(x3, 0u),
        ));
        let z0 = select(subgroupBroadcast(x0, 0u), t0[0], A_TRANSPOSED);
        c[0] += y0 * z0;
        c[1] += y1 * z0;
        let z1 = select(subgroupBroadcast(x0, 1u), t0[1], A_TRANSPOSED);
        c[2] += y0 * z1;
        c[3] += y1 * z1;
        let z2 = select(subgroupBroadcast(x0, 2u), t0[2], A_TRANSPOSED);
        c[4] += y0 * z2;
        c[5] += y1 * z2;
        let z3 = select(subgroupBroadcast(x0, 3u), t0[3], A_TRANSPOSED);
        c[6] += y0 * z3;
        c[7] += y1 * z3;
        let t1 = transpose(mat4x4(
            subgroupBroadcast(x0, 1u),
            subgroupBroadcast(x1, 1u),
            subgroupBroadcast(x2, 1u),
            subgroupBroadcast(x3, 1u),
        ));
        let z4 = select(subgroupBroadcast(x0, 4u), t1[0], A_TRANSPOSED);
        c[8] += y0 * z4;
        c[9] += y1 * z4;
        let z5 = select(subgroupBroadcast(x0, 5u), t1[1], A_TRANSPOSED);
        c[10] += y0 * z5;
        c[11] += y1 * z5;
        let z6 = select(subgroupBroadcast(x0, 6u), t1[2], A_TRANSPOSED);
        c[12] += y0 * z6;
        c[13] += y1 * z6;
        let z7 = select(subgroupBroadcast(x0, 7u), t1[3], A_TRANSPOSED);
        c[14] += y0 * z7;
        c[15] += y1 * z7;
        let t2 = transpose(mat4x4(
            subgroupBroadcast(x0, 2u),
            subgroupBroadcast(x1, 2u),
            subgroupBroadcast(x2, 2u),
            subgroupBroadcast(x3, 2u),
        ));
        let z8 = select(subgroupBroadcast(x1, 0u), t2[0], A_TRANSPOSED);
        c[16] += y0 * z8;
        c[17] += y1 * z8;
        let z9 = select(subgroupBroadcast(x1, 1u), t2[1], A_TRANSPOSED);
        c[18] += y0 * z9;
        c[19] += y1 * z9;
        let z10 = select(subgroupBroadcast(x1, 2u), t2[2], A_TRANSPOSED);
        c[20] += y0 * z10;
        c[21] += y1 * z10;
        let z11 = select(subgroupBroadcast(x1, 3u), t2[3], A_TRANSPOSED);
        c[22] += y0 * z11;
        c[23] += y1 * z11;
        let t3 = transpose(mat4x4(
            subgroupBroadcast(x0, 3u),
            subgroupBroadcast(x1, 3u),
            subgroupBroadcast(x2, 3u),
            subgroupBroadcast(x3, 3u),
        ));
        let z12 = select(subgroupBroadcast(x1, 4u), t3[0], A_TRANSPOSED);
        c[24] += y0 * z12;
        c[25] += y1 * z12;
        let z13 = select(subgroupBroadcast(x1, 5u), t3[1], A_TRANSPOSED);
        c[26] += y0 * z13;
        c[27] += y1 * z13;
        let z14 = select(subgroupBroadcast(x1, 6u), t3[2], A_TRANSPOSED);
        c[28] += y0 * z14;
        c[29] += y1 * z14;
        let z15 = select(subgroupBroadcast(x1, 7u), t3[3], A_TRANSPOSED);
        c[30] += y0 * z15;
        c[31] += y1 * z15;
        let t4 = transpose(mat4x4(
            subgroupBroadcast(x0, 4u),
            subgroupBroadcast(x1, 4u),
            subgroupBroadcast(x2, 4u),
            subgroupBroadcast(x3, 4u),
        ));
        let z16 = select(subgroupBroadcast(x2, 0u), t4[0], A_TRANSPOSED);
        c[32] += y0 * z16;
        c[33] += y1 * z16;
        let z17 = select(subgroupBroadcast(x2, 1u), t4[1], A_TRANSPOSED);
        c[34] += y0 * z17;
        c[35] += y1 * z17;
        let z18 = select(subgroupBroadcast(x2, 2u), t4[2], A_TRANSPOSED);
        c[36] += y0 * z18;
        c[37] += y1 * z18;
        let z19 = select(subgroupBroadcast(x2, 3u), t4[3], A_TRANSPOSED);
        c[38] += y0 * z19;
        c[39] += y1 * z19;
        let t5 = transpose(mat4x4(
            subgroupBroadcast(x0, 5u),
            subgroupBroadcast(x1, 5u),
            subgroupBroadcast(x2, 5u),
            subgroupBroadcast(x3, 5u),
        ));
        let z20 = select(subgroupBroadcast(x2, 4u), t5[0], A_TRANSPOSED);
        c[40] += y0 * z20;
        c[41] += y1 * z20;
        let z21 = select(subgroupBroadcast(x2, 5u), t5[1], A_TRANSPOSED);
        c[42] += y0 * z21;
        c[43] += y1 * z21;
        let z22 = select(subgroupBroadcast(x2, 6u), t5[2], A_TRANSPOSED);
        c[44] += y0 * z22;
        c[45] += y1 * z22;
        let z23 = select(subgroupBroadcast(x2, 7u), t5[3], A_TRANSPOSED);
        c[46] += y0 * z23;
        c[47] += y1 * z23;
        let t6 = transpose(mat4x4(
            subgroupBroadcast(x0, 6u),
            subgroupBroadcast(x1, 6u),
            subgroupBroadcast(x2, 6u),
            subgroupBroadcast(x3, 6u),
        ));
        let z24 = select(subgroupBroadcast(x3, 0u), t6[0], A_TRANSPOSED);
        c[48] += y0 * z24;
        c[49] += y1 * z24;
        let z25 = select(subgroupBroadcast(x3, 1u), t6[1], A_TRANSPOSED);
        c[50] += y0 * z25;
        c[51] += y1 * z25;
        let z26 = select(subgroupBroadcast(x3, 2u), t6[2], A_TRANSPOSED);
        c[52] += y0 * z26;
        c[53] += y1 * z26;
        let z27 = select(subgroupBroadcast(x3, 3u), t6[3], A_TRANSPOSED);
        c[54] += y0 * z27;
        c[55] += y1 * z27;
        let t7 = transpose(mat4x4(
            subgroupBroadcast(x0, 7u),
            subgroupBroadcast(x1, 7u),
            subgroupBroadcast(x2, 7u),
            subgroupBroadcast(x3, 7u),
        ));
        let z28 = select(subgroupBroadcast(x3, 4u), t7[0], A_TRANSPOSED);
        c[56] += y0 * z28;
        c[57] += y1 * z28;
        let z29 = select(subgroupBroadcast(x3, 5u), t7[1], A_TRANSPOSED);
        c[58] += y0 * z29;
        c[59] += y1 * z29;
        let z30 = select(subgroupBroadcast(x3, 6u), t7[2], A_TRANSPOSED);
        c[60] += y0 * z30;
        c[61] += y1 * z30;
        let z31 = select(subgroupBroadcast(x3, 7u), t7[3], A_TRANSPOSED);
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
