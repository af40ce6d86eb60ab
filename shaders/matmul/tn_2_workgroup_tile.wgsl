// matmul, tn: out[m, n] (+)= sum_k a[k, m] * b[b_start + k, n].
// A workgroup computes 16 x 16 outputs and walks k in steps of 16: each step copies a 16 x 16 tile
// of a and of b into workgroup memory, so an element is loaded once per workgroup and not 16 times.
// Terms beyond K are zeros; rows and columns beyond the edge repeat the last one.
// Grid: x = ceil(N / 16), y = ceil(M / 16).
// Needs: nothing beyond WebGPU's default limits (2,112 bytes of workgroup memory).

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

const SIDE: u32 = 16u;
// One more than the side, so that a column's elements lie in different memory banks.
const PITCH: u32 = 17u;

var<workgroup> tile_a: array<f32, 272>; // [16 m, 16 k], rows PITCH apart
var<workgroup> tile_b: array<f32, 272>; // [16 k, 16 n], rows PITCH apart

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    var sum = 0.0;
    for (var k0 = 0u; k0 < d.k; k0 += SIDE) {
        // Neighbouring invocations read neighbouring m; the tile is stored transposed.
        let ka = min(k0 + local.y, d.k - 1u);
        tile_a[local.x * PITCH + local.y] = select(0.0, a[ka * d.m + min(m0 + local.x, d.m - 1u)], k0 + local.y < d.k);
        tile_b[local.y * PITCH + local.x] = b[(d.b_start + ka) * d.n + min(n0 + local.x, d.n - 1u)];
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
    let at = (d.out_start + m) * d.n + n;
    if ACCUMULATE {
        sum += out[at];
    }
    out[at] = sum;
}
