// matmul, tn: out[m, n] (+)= sum_k a[k, m] * b[b_start + k, n].
// The tile of variant 4 with twice the rows, for software adapters with subgroups: all lanes need
// the same 16 elements of a, so each lane loads two of them and broadcasts hand them around: 10
// loads for 128 products, where variant 4 makes 16 for 64. Subgroups of fewer than 8 lanes load
// every element themselves.
// Grid: x = ceil(N / 64), y = ceil(M / 16).
// Needs: subgroups.

const ACCUMULATE: bool = false; // add to out instead of overwriting it

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<f32>; // [K, M]
@group(0) @binding(1) var<storage, read> b: array<f32>; // [>= b_start + K, N]
@group(0) @binding(2) var<storage, read> d: Dims;
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

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
    let ia_low = min(m0 + sub, d.m - 1u);
    let ia_high = min(m0 + 8u + sub, d.m - 1u);
    var ib: array<u32, COLUMNS>;
    for (var j = 0u; j < COLUMNS; j += 1u) {
        ib[j] = d.b_start * d.n + min(n0 + j, d.n - 1u);
    }
    var c: array<array<vec4<f32>, 2>, ROWS>;
    for (var k = 0u; k < d.k; k += 1u) {
        let ka = k * d.m;
        let kb = k * d.n;
        let b0 = vec4(b[ib[0] + kb], b[ib[1] + kb], b[ib[2] + kb], b[ib[3] + kb]);
        let b1 = vec4(b[ib[4] + kb], b[ib[5] + kb], b[ib[6] + kb], b[ib[7] + kb]);
        var x: array<f32, ROWS>;
        if width >= 8u {
            let low = a[ia_low + ka];
            let high = a[ia_high + ka];
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
                x[i] = a[min(m0 + i, d.m - 1u) + ka];
            }
        }
        for (var i = 0u; i < ROWS; i += 1u) {
            c[i][0] += x[i] * b0;
            c[i][1] += x[i] * b1;
        }
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        for (var j = 0u; j < COLUMNS; j += 1u) {
            if m0 + i < d.m && n0 + j < d.n {
                var sum = c[i][j / 4u][j % 4u];
                let at = (d.out_start + m0 + i) * d.n + n0 + j;
                if ACCUMULATE {
                    sum += out[at];
                }
                out[at] = sum;
            }
        }
    }
}
