// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// For one or two rows of a, as when a model writes a token at a time: every element of b is used once
// a row, so there is nothing to share but a, and what counts is that b is read in order: 4 bytes of it per
// product, 0.5 operations a byte, so memory is the bound. The lanes of a workgroup walk along k together,
// each with every LANES-th quadruple of COLUMNS rows of b; their sums meet in workgroup memory and are
// added in the order of the lanes.
// Grid: x = ceil(N / COLUMNS), y = M.
// Needs: K a multiple of 4; LANES * COLUMNS * 4 bytes of workgroup memory.
// Called by product in src/ops/matmul.rs; tests matmul_forward, matmul_gradient, matmul_windows.

const BIAS: bool = false; // add bias; without one any variable may be bound in its place
const ACCUMULATE: bool = false; // add to out instead of overwriting it
const LANES: u32 = 8u; // invocations
const COLUMNS: u32 = 8u; // outputs per workgroup

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [M, K / 4]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [>= b_start + N, K / 4]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

var<workgroup> parts: array<f32, LANES * COLUMNS>; // [COLUMNS, LANES]

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let d = dims;
    let quads = d.k / 4u;
    let n0 = group.x * COLUMNS;
    let m = min(group.y, d.m - 1u);
    var sum = array<f32, COLUMNS>();
    for (var q = lane; q < quads; q += LANES) {
        let x = a[m * quads + q];
        for (var c = 0u; c < COLUMNS; c++) {
            let row = d.b_start + min(n0 + c, d.n - 1u);
            sum[c] += dot(x, b[row * quads + q]);
        }
    }
    for (var c = 0u; c < COLUMNS; c++) {
        parts[c * LANES + lane] = sum[c];
    }
    workgroupBarrier();
    for (var c = lane; c < COLUMNS; c += LANES) {
        let n = n0 + c;
        if n < d.n && group.y < d.m {
            var total = 0.0;
            for (var l = 0u; l < LANES; l++) {
                total += parts[c * LANES + l];
            }
            if BIAS {
                total += bias[n];
            }
            let at = (d.out_start + m) * d.n + n;
            if ACCUMULATE {
                total += out[at];
            }
            out[at] = total;
        }
    }
}
