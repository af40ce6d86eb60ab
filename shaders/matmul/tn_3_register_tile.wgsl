// matmul, tn: out[m, n] (+)= sum_k a[k, m] * b[b_start + k, n].
// A workgroup computes 64 x 64 outputs and walks k in steps of 16 through workgroup memory; each of
// its 128 invocations keeps 8 rows x 4 columns in registers, so one element read from workgroup
// memory takes part in 4 or 8 products. Terms beyond K are zeros; rows and columns beyond the edge
// repeat the last one.
// Grid: x = ceil(N / 64), y = ceil(M / 64).
// Needs: nothing beyond WebGPU's default limits (8,704 bytes of workgroup memory).

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

const SIDE: u32 = 64u; // outputs per workgroup, each way
const STEP: u32 = 16u; // terms per step
// Four more than the side: transposing stores then meet fewer bank conflicts.
const PITCH: u32 = 68u;
const ROWS: u32 = 8u; // outputs per invocation; its columns are the four of a vec4

var<workgroup> tile_a: array<f32, 1088>; // [16 k, 64 m], rows PITCH apart
var<workgroup> tile_b: array<f32, 1088>; // [16 k, 64 n], rows PITCH apart

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    let row0 = lane / 16u * ROWS;
    let column0 = lane % 16u * 4u;
    var c: array<vec4<f32>, ROWS>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        // Neighbouring invocations read neighbouring elements.
        for (var e = lane; e < SIDE * STEP; e += 128u) {
            let k = e / SIDE;
            let i = e % SIDE;
            let ka = min(k0 + k, d.k - 1u);
            tile_a[k * PITCH + i] = select(0.0, a[ka * d.m + min(m0 + i, d.m - 1u)], k0 + k < d.k);
            tile_b[k * PITCH + i] = b[(d.b_start + ka) * d.n + min(n0 + i, d.n - 1u)];
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            let pa = k * PITCH + row0;
            let pb = k * PITCH + column0;
            let column = vec4(tile_b[pb], tile_b[pb + 1u], tile_b[pb + 2u], tile_b[pb + 3u]);
            for (var i = 0u; i < ROWS; i += 1u) {
                c[i] += tile_a[pa + i] * column;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        let m = m0 + row0 + i;
        for (var j = 0u; j < 4u; j += 1u) {
            let n = n0 + column0 + j;
            if m < d.m && n < d.n {
                var sum = c[i][j];
                let at = (d.out_start + m) * d.n + n;
                if ACCUMULATE {
                    sum += out[at];
                }
                out[at] = sum;
            }
        }
    }
}
