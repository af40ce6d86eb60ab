// matmul, nn: out[m, n] (+)= sum_k a[m, k] * b[b_start + k, n].
// Variant 5 with vec4 loads of b and vec4 stores: one address serves four elements. Subgroups of
// fewer than 8 lanes load every element of a themselves.
// Grid: x = ceil(N / 64), y = ceil(M / 16).
// Needs: subgroups; N a multiple of 4.

const ACCUMULATE: bool = false; // add to out instead of overwriting it

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<f32>; // [M, K]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [>= b_start + K, N / 4]
@group(0) @binding(2) var<storage, read> d: Dims;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

const ROWS: u32 = 16u; // outputs per invocation
const COLUMNS: u32 = 8u; // in two quadruples

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_invocation_id) sub: u32,
) {
    let m0 = group.y * ROWS;
    let n0 = (group.x * 8u + lane) * COLUMNS;
    let ia_low = min(m0 + sub, d.m - 1u) * d.k;
    let ia_high = min(m0 + 8u + sub, d.m - 1u) * d.k;
    let quads = d.n / 4u;
    let ib0 = d.b_start * quads + min(n0 / 4u, quads - 1u);
    let ib1 = d.b_start * quads + min(n0 / 4u + 1u, quads - 1u);
    var c: array<array<vec4<f32>, 2>, ROWS>;
    for (var k = 0u; k < d.k; k += 1u) {
        let b0 = b[ib0 + k * quads];
        let b1 = b[ib1 + k * quads];
        var x: array<f32, ROWS>;
        if width >= 8u {
            let low = a[ia_low + k];
            let high = a[ia_high + k];
            x = array(
                subgroupBroadcast(low, 0u), subgroupBroadcast(low, 1u),
                subgroupBroadcast(low, 2u), subgroupBroadcast(low, 3u),
                subgroupBroadcast(low, 4u), subgroupBroadcast(low, 5u),
                subgroupBroadcast(low, 6u), subgroupBroadcast(low, 7u),
                subgroupBroadcast(high, 0u), subgroupBroadcast(high, 1u),
                subgroupBroadcast(high, 2u), subgroupBroadcast(high, 3u),
                subgroupBroadcast(high, 4u), subgroupBroadcast(high, 5u),
                subgroupBroadcast(high, 6u), subgroupBroadcast(high, 7u),
            );
        } else {
            for (var i = 0u; i < ROWS; i += 1u) {
                x[i] = a[min(m0 + i, d.m - 1u) * d.k + k];
            }
        }
        for (var i = 0u; i < ROWS; i += 1u) {
            c[i][0] += x[i] * b0;
            c[i][1] += x[i] * b1;
        }
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        for (var j = 0u; j < 2u; j += 1u) {
            if m0 + i < d.m && n0 + 4u * j < d.n {
                var sum = c[i][j];
                let at = (d.out_start + m0 + i) * quads + n0 / 4u + j;
                if ACCUMULATE {
                    sum += out[at];
                }
                out[at] = sum;
            }
        }
    }
}
