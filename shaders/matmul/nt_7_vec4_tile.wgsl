// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// Variant 3 with four-element loads along k, and four-element accesses of workgroup memory: 3 reads of
// it for 32 products instead of 12, for 0.125 bytes from storage per product as before. A block of
// 4 x 4 is turned in registers on its way, because the tiles hold rows of one k; nn and tn, where rows
// of b lie along n already, have a file of their own.
// Grid: x = ceil(N / 64), y = ceil(M / 64).
// Needs: K and N multiples of 4 (8,704 bytes of workgroup memory).
// Called by product in src/ops/matmul.rs; tests matmul_forward, matmul_gradient, matmul_windows.

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
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [N / 4]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [>= out_start + M, N / 4]

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
    let quads = d.k / 4u;
    var c: array<vec4<f32>, 8>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        let quad = k0 / 4u + lane % 4u;
        let at_quad = min(quad, quads - 1u);
        let side = lane % 64u / 4u;
        let to = lane % 4u * 4u * PITCH + side;
        // Half the workgroup loads a, the other half b.
        if lane < 64u {
            let i = m0 + side * 4u;
            let x0 = select(vec4(0.0), a[min(i, d.m - 1u) * quads + at_quad], quad < quads);
            let x1 = select(vec4(0.0), a[min(i + 1u, d.m - 1u) * quads + at_quad], quad < quads);
            let x2 = select(vec4(0.0), a[min(i + 2u, d.m - 1u) * quads + at_quad], quad < quads);
            let x3 = select(vec4(0.0), a[min(i + 3u, d.m - 1u) * quads + at_quad], quad < quads);
            tile_a[to] = vec4(x0.x, x1.x, x2.x, x3.x);
            tile_a[to + PITCH] = vec4(x0.y, x1.y, x2.y, x3.y);
            tile_a[to + 2u * PITCH] = vec4(x0.z, x1.z, x2.z, x3.z);
            tile_a[to + 3u * PITCH] = vec4(x0.w, x1.w, x2.w, x3.w);
        } else {
            let j = n0 + side * 4u;
            let x0 = b[(d.b_start + min(j, d.n - 1u)) * quads + at_quad];
            let x1 = b[(d.b_start + min(j + 1u, d.n - 1u)) * quads + at_quad];
            let x2 = b[(d.b_start + min(j + 2u, d.n - 1u)) * quads + at_quad];
            let x3 = b[(d.b_start + min(j + 3u, d.n - 1u)) * quads + at_quad];
            tile_b[to] = vec4(x0.x, x1.x, x2.x, x3.x);
            tile_b[to + PITCH] = vec4(x0.y, x1.y, x2.y, x3.y);
            tile_b[to + 2u * PITCH] = vec4(x0.z, x1.z, x2.z, x3.z);
            tile_b[to + 3u * PITCH] = vec4(x0.w, x1.w, x2.w, x3.w);
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
}
