// matmul; nt, nn and tn: out[m, n] (+)= sum_k A[m, k] * B[k, n] (+ bias[n]). a is A and b is B, but in nt
// b is B transposed, and in tn a is A transposed.
// A workgroup computes 16 x 16 outputs and walks k in steps of 16: each step copies a 16 x 16 tile
// of A and of B into workgroup memory, so an element is loaded once per workgroup and not 16 times:
// 0.5 bytes per product instead of 8. Workgroup memory still gives two elements for each.
// Terms beyond K are zeros; rows and columns beyond the edge repeat the last one.
// Grid: x = ceil(N / 16), y = ceil(M / 16).
// Needs: nothing beyond WebGPU's default limits (2,176 bytes of workgroup memory).
// Called by product in src/ops/matmul.rs; tests matmul_forward, matmul_gradient, matmul_windows.

const A_TRANSPOSED: bool = false; // a is [K, M]: tn
const B_TRANSPOSED: bool = false; // b is [N, K]: nt
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
@group(0) @binding(1) var<storage, read> b: array<f32>; // [>= b_start + K, N] or [>= b_start + N, K]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

const SIDE: u32 = 16u;
// One more than the side, so that a column's elements lie in different memory banks.
const PITCH: u32 = 17u;

var<workgroup> tile_a: array<f32, 272>; // [16 m, 16 k], rows PITCH apart
var<workgroup> tile_b: array<f32, 272>; // [16 k, 16 n], rows PITCH apart

// Where A[m, k] lies in a.
fn at_a(d: Dims, m: u32, k: u32) -> u32 {
    return select(m * d.k + k, k * d.m + m, A_TRANSPOSED);
}

// Where B[k, n] lies in b.
fn at_b(d: Dims, k: u32, n: u32) -> u32 {
    return select((d.b_start + k) * d.n + n, (d.b_start + n) * d.k + k, B_TRANSPOSED);
}

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let d = dims;
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    // Row and column of the tiles to load: neighbouring invocations read neighbouring elements, so a
    // transposed matrix is turned on its way into the tile.
    let of_a = select(local.yx, local.xy, A_TRANSPOSED);
    let of_b = select(local.yx, local.xy, B_TRANSPOSED);
    var sum = 0.0;
    for (var k0 = 0u; k0 < d.k; k0 += SIDE) {
        let x = a[at_a(d, min(m0 + of_a.x, d.m - 1u), min(k0 + of_a.y, d.k - 1u))];
        tile_a[of_a.x * PITCH + of_a.y] = select(0.0, x, k0 + of_a.y < d.k);
        let y = b[at_b(d, min(k0 + of_b.x, d.k - 1u), min(n0 + of_b.y, d.n - 1u))];
        tile_b[of_b.x * PITCH + of_b.y] = y;
        workgroupBarrier();
        for (var k = 0u; k < SIDE; k += 1u) {
            sum += tile_a[local.y * PITCH + k] * tile_b[k * PITCH + local.x];
        }
        workgroupBarrier();
    }
    let m = m0 + local.y;
    let n = n0 + local.x;
    if m >= d.m || n >= d.n {
        return;
    }
    if BIAS {
        sum += bias[n];
    }
    let at = (d.out_start + m) * d.n + n;
    if ACCUMULATE {
        sum += out[at];
    }
    out[at] = sum;
}
