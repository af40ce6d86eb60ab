// matmul; nn and tn: out[m, n] (+)= sum_k A[m, k] * b[b_start + k, n] (+ bias[n]). a is A, but in tn
// a is A transposed.
// Variant 5 with vec4 loads of b and vec4 stores: one address serves four elements, so the 12 elements
// for 128 products (0.375 bytes per product) come by 6 loads. Elements of a are loaded one by one: four
// rows of A at one k lie together only in tn, and rows of a may have any length.
// Grid: x = ceil(N / 64), y = ceil(M / 16).
// Needs: subgroups; N a multiple of 4.
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

@group(0) @binding(0) var<storage, read> a: array<f32>; // [M, K] or [K, M]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [>= b_start + K, N / 4]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [N / 4]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

const ROWS: u32 = 16u; // outputs per invocation
const COLUMNS: u32 = 8u; // in two quadruples

// Where A[m, k] lies in a.
fn at_a(d: Dims, m: u32, k: u32) -> u32 {
    return select(m * d.k + k, k * d.m + m, A_TRANSPOSED);
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
    let ia0 = at_a(d, min(m0 + sub, d.m - 1u), 0u);
    let ia1 = at_a(d, min(m0 + 4u + sub, d.m - 1u), 0u);
    let ia2 = at_a(d, min(m0 + 8u + sub, d.m - 1u), 0u);
    let ia3 = at_a(d, min(m0 + 12u + sub, d.m - 1u), 0u);
    let step_a = select(1u, d.m, A_TRANSPOSED); // from one term to the next
    let quads = d.n / 4u;
    let ib0 = d.b_start * quads + min(n0 / 4u, quads - 1u);
    let ib1 = d.b_start * quads + min(n0 / 4u + 1u, quads - 1u);
    var c: array<array<vec4<f32>, 2>, ROWS>;
    for (var k = 0u; k < d.k; k += 1u) {
        let ka = k * step_a;
        let b0 = b[ib0 + k * quads];
        let b1 = b[ib1 + k * quads];
        let x0 = a[ia0 + ka];
        let x1 = a[ia1 + ka];
        let x2 = a[ia2 + ka];
        let x3 = a[ia3 + ka];
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
