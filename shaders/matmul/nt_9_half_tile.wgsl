// matmul, nt: out[m, n] (+)= sum_k a[m, k] * b[b_start + n, k] (+ bias[n]).
// Variant 7 with the tiles in workgroup memory as 16-bit floats and steps of k twice as long: half
// the workgroup memory traffic (24 bytes for 32 products) and half the barriers. Products and sums are
// single precision; what is lost is the rounding of a and b to 11 bits, and values beyond 65504 become
// infinite.
// Grid: x = ceil(N / 64), y = ceil(M / 64).
// Needs: f16; K and N multiples of 4 (8,704 bytes of workgroup memory).
// Called by product in src/ops/matmul.rs; tests matmul_forward, matmul_gradient, matmul_windows.

enable f16;

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
const STEP: u32 = 32u; // terms per step
const PITCH: u32 = 17u; // quadruples of a tile's row: one more than it has, against bank conflicts

var<workgroup> tile_a: array<vec4<f16>, 544>; // [32 k, 64 m / 4], rows PITCH apart
var<workgroup> tile_b: array<vec4<f16>, 544>; // [32 k, 64 n / 4], rows PITCH apart

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
        let quad = k0 / 4u + lane % 8u;
        let at_quad = min(quad, quads - 1u);
        let side = lane / 8u;
        let to = lane % 8u * 4u * PITCH + side;
        let i = m0 + side * 4u;
        let x0 = vec4<f16>(select(vec4(0.0), a[min(i, d.m - 1u) * quads + at_quad], quad < quads));
        let x1 = vec4<f16>(select(vec4(0.0), a[min(i + 1u, d.m - 1u) * quads + at_quad], quad < quads));
        let x2 = vec4<f16>(select(vec4(0.0), a[min(i + 2u, d.m - 1u) * quads + at_quad], quad < quads));
        let x3 = vec4<f16>(select(vec4(0.0), a[min(i + 3u, d.m - 1u) * quads + at_quad], quad < quads));
        tile_a[to] = vec4<f16>(x0.x, x1.x, x2.x, x3.x);
        tile_a[to + PITCH] = vec4<f16>(x0.y, x1.y, x2.y, x3.y);
        tile_a[to + 2u * PITCH] = vec4<f16>(x0.z, x1.z, x2.z, x3.z);
        tile_a[to + 3u * PITCH] = vec4<f16>(x0.w, x1.w, x2.w, x3.w);
        let j = n0 + side * 4u;
        let y0 = vec4<f16>(b[(d.b_start + min(j, d.n - 1u)) * quads + at_quad]);
        let y1 = vec4<f16>(b[(d.b_start + min(j + 1u, d.n - 1u)) * quads + at_quad]);
        let y2 = vec4<f16>(b[(d.b_start + min(j + 2u, d.n - 1u)) * quads + at_quad]);
        let y3 = vec4<f16>(b[(d.b_start + min(j + 3u, d.n - 1u)) * quads + at_quad]);
        tile_b[to] = vec4<f16>(y0.x, y1.x, y2.x, y3.x);
        tile_b[to + PITCH] = vec4<f16>(y0.y, y1.y, y2.y, y3.y);
        tile_b[to + 2u * PITCH] = vec4<f16>(y0.z, y1.z, y2.z, y3.z);
        tile_b[to + 3u * PITCH] = vec4<f16>(y0.w, y1.w, y2.w, y3.w);
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            let x = vec4<f32>(tile_a[k * PITCH + row0 / 4u]);
            let y = vec4<f32>(tile_a[k * PITCH + row0 / 4u + 1u]);
            let column = vec4<f32>(tile_b[k * PITCH + column0 / 4u]);
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
