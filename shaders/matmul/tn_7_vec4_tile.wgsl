// matmul, tn: out[m, n] (+)= sum_k a[k, m] * b[b_start + k, n].
// Variant 3 with four-element loads of b and stores, and four-element accesses of workgroup memory.
// Rows of a may have any length, so its elements are loaded one by one.
// Grid: x = ceil(N / 64), y = ceil(M / 64).
// Needs: N a multiple of 4 (8,704 bytes of workgroup memory).

const ACCUMULATE: bool = false; // add to out instead of overwriting it

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<f32>; // [K, M]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [>= b_start + K, N / 4]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

const SIDE: u32 = 64u; // outputs per workgroup, each way
const STEP: u32 = 16u; // terms per step
const PITCH: u32 = 17u; // quadruples of a tile's row: one more than it has, against bank conflicts

var<workgroup> tile_a: array<vec4<f32>, 272>; // [16 k, 64 m / 4], rows PITCH apart
var<workgroup> tile_b: array<vec4<f32>, 272>; // [16 k, 64 n / 4], rows PITCH apart

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let d = dims;
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    let row0 = lane / 16u * 8u;
    let column0 = lane % 16u * 4u;
    let quads = d.n / 4u;
    var c: array<vec4<f32>, 8>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        for (var e = lane; e < STEP * 16u; e += 128u) {
            let k = e / 16u;
            let side = e % 16u;
            let ka = min(k0 + k, d.k - 1u);
            let i = m0 + side * 4u;
            let x = vec4(
                a[ka * d.m + min(i, d.m - 1u)],
                a[ka * d.m + min(i + 1u, d.m - 1u)],
                a[ka * d.m + min(i + 2u, d.m - 1u)],
                a[ka * d.m + min(i + 3u, d.m - 1u)],
            );
            tile_a[k * PITCH + side] = select(vec4(0.0), x, k0 + k < d.k);
            let y = b[(d.b_start + ka) * quads + min(n0 / 4u + side, quads - 1u)];
            tile_b[k * PITCH + side] = y;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            let x = tile_a[k * PITCH + row0 / 4u];
            let y = tile_a[k * PITCH + row0 / 4u + 1u];
            let column = tile_b[k * PITCH + column0 / 4u];
            for (var i = 0u; i < 4u; i += 1u) {
                c[i] += x[i] * column;
                c[i + 4u] += y[i] * column;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 8u; i += 1u) {
        let m = m0 + row0 + i;
        let n = n0 + column0;
        if m < d.m && n < d.n {
            var sum = c[i];
            let at = ((d.out_start + m) * d.n + n) / 4u;
            if ACCUMULATE {
                sum += out[at];
            }
            out[at] = sum;
        }
    }
}
