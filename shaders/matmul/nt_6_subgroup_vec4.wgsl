// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// Variant 5 with vec4 loads along k: a product of two quadruples is four terms of the sum, and one
// address serves four elements. Subgroups of fewer than 8 lanes load every element of a themselves.
// Grid: x = ceil(N / 64), y = ceil(M / 16).
// Needs: subgroups; K and N multiples of 4.

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
@group(0) @binding(2) var<storage, read> d: Dims;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

const ROWS: u32 = 16u; // outputs per invocation
const COLUMNS: u32 = 8u;

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_invocation_id) sub: u32,
) {
    let m0 = group.y * ROWS;
    let n0 = (group.x * 8u + lane) * COLUMNS;
    let quads = d.k / 4u;
    let ia_low = min(m0 + sub, d.m - 1u) * quads;
    let ia_high = min(m0 + 8u + sub, d.m - 1u) * quads;
    var ib: array<u32, COLUMNS>;
    for (var j = 0u; j < COLUMNS; j += 1u) {
        ib[j] = (d.b_start + min(n0 + j, d.n - 1u)) * quads;
    }
    var c: array<array<f32, COLUMNS>, ROWS>;
    for (var q = 0u; q < quads; q += 1u) {
        var x: array<vec4<f32>, ROWS>;
        if width >= 8u {
            let low = a[ia_low + q];
            let high = a[ia_high + q];
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
                x[i] = a[min(m0 + i, d.m - 1u) * quads + q];
            }
        }
        for (var j = 0u; j < COLUMNS; j += 1u) {
            let y = b[ib[j] + q];
            for (var i = 0u; i < ROWS; i += 1u) {
                c[i][j] += dot(x[i], y);
            }
        }
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        for (var j = 0u; j < COLUMNS; j += 4u) {
            if m0 + i < d.m && n0 + j < d.n {
                var sum = vec4(c[i][j], c[i][j + 1u], c[i][j + 2u], c[i][j + 3u]);
                if BIAS {
                    sum += vec4(bias[n0 + j], bias[n0 + j + 1u], bias[n0 + j + 2u], bias[n0 + j + 3u]);
                }
                let at = ((d.out_start + m0 + i) * d.n + n0 + j) / 4u;
                if ACCUMULATE {
                    sum += out[at];
                }
                out[at] = sum;
            }
        }
    }
}
