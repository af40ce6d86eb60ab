// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// Variant 6 with b stored in 16 bits an element or fewer: four elements of b come in two words, one or
// half of one. 8 quadruples of a and 4 of b for 512 products: 0.313 bytes per product in 16 bits instead
// of 0.375.
// Grid: x = ceil(N / 32), y = ceil(M / 32).
// Needs: subgroups; K and N multiples of 4.
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
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

const ROWS: u32 = 32u; // outputs per invocation
const COLUMNS: u32 = 4u;

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
    let quads = d.k / 4u;
    let elements = d.b_rows * d.k;
    let ia0 = min(m0 + sub, d.m - 1u) * quads;
    let ia1 = min(m0 + 4u + sub, d.m - 1u) * quads;
    let ia2 = min(m0 + 8u + sub, d.m - 1u) * quads;
    let ia3 = min(m0 + 12u + sub, d.m - 1u) * quads;
    let ia4 = min(m0 + 16u + sub, d.m - 1u) * quads;
    let ia5 = min(m0 + 20u + sub, d.m - 1u) * quads;
    let ia6 = min(m0 + 24u + sub, d.m - 1u) * quads;
    let ia7 = min(m0 + 28u + sub, d.m - 1u) * quads;
    let ib0 = (d.b_start + min(n0, d.n - 1u)) * quads;
    let ib1 = (d.b_start + min(n0 + 1u, d.n - 1u)) * quads;
    let ib2 = (d.b_start + min(n0 + 2u, d.n - 1u)) * quads;
    let ib3 = (d.b_start + min(n0 + 3u, d.n - 1u)) * quads;
    var c: array<vec4<f32>, ROWS>;
    for (var q = 0u; q < quads; q += 1u) {
        let x0 = a[ia0 + q];
        let x1 = a[ia1 + q];
        let x2 = a[ia2 + q];
        let x3 = a[ia3 + q];
        let x4 = a[ia4 + q];
        let x5 = a[ia5 + q];
        let x6 = a[ia6 + q];
        let x7 = a[ia7 + q];
        let y = mat4x4(
            four(ib0 + q, elements),
            four(ib1 + q, elements),
            four(ib2 + q, elements),
            four(ib3 + q, elements),
        );
        c[0] += subgroupBroadcast(x0, 0u) * y;
        c[1] += subgroupBroadcast(x0, 1u) * y;
        c[2] += subgroupBroadcast(x0, 2u) * y;
        c[3] += subgroupBroadcast(x0, 3u) * y;
        c[4] += subgroupBroadcast(x1, 0u) * y;
        c[5] += subgroupBroadcast(x1, 1u) * y;
        c[6] += subgroupBroadcast(x1, 2u) * y;
        c[7] += subgroupBroadcast(x1, 3u) * y;
        c[8] += subgroupBroadcast(x2, 0u) * y;
        c[9] += subgroupBroadcast(x2, 1u) * y;
        c[10] += subgroupBroadcast(x2, 2u) * y;
        c[11] += subgroupBroadcast(x2, 3u) * y;
        c[12] += subgroupBroadcast(x3, 0u) * y;
        c[13] += subgroupBroadcast(x3, 1u) * y;
        c[14] += subgroupBroadcast(x3, 2u) * y;
        c[15] += subgroupBroadcast(x3, 3u) * y;
        c[16] += subgroupBroadcast(x4, 0u) * y;
        c[17] += subgroupBroadcast(x4, 1u) * y;
        c[18] += subgroupBroadcast(x4, 2u) * y;
        c[19] += subgroupBroadcast(x4, 3u) * y;
        c[20] += subgroupBroadcast(x5, 0u) * y;
        c[21] += subgroupBroadcast(x5, 1u) * y;
        c[22] += subgroupBroadcast(x5, 2u) * y;
        c[23] += subgroupBroadcast(x5, 3u) * y;
        c[24] += subgroupBroadcast(x6, 0u) * y;
        c[25] += subgroupBroadcast(x6, 1u) * y;
        c[26] += subgroupBroadcast(x6, 2u) * y;
        c[27] += subgroupBroadcast(x6, 3u) * y;
        c[28] += subgroupBroadcast(x7, 0u) * y;
        c[29] += subgroupBroadcast(x7, 1u) * y;
        c[30] += subgroupBroadcast(x7, 2u) * y;
        c[31] += subgroupBroadcast(x7, 3u) * y;
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        if m0 + i < d.m && n0 < d.n {
            var sum = c[i];
            if BIAS {
                sum += vec4(bias[n0], bias[n0 + 1u], bias[n0 + 2u], bias[n0 + 3u]);
            }
            let at = ((d.out_start + m0 + i) * d.n + n0) / 4u;
            if ACCUMULATE {
                sum += out[at];
            }
            out[at] = sum;
        }
    }
}
