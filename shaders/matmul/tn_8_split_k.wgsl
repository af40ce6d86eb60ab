// matmul, tn: out[m, n] (+)= sum_k a[k, m] * b[b_start + k, n].
// A workgroup computes 16 x 16 outputs and walks k in steps of 64 through workgroup memory. Each
// eighth of its 256 invocations covers all outputs, 4 rows x 2 columns per invocation, for an eighth
// of the terms of a step; at the end the eight parts of each output are added in a fixed order. With
// few outputs and long sums this keeps 32 times as many invocations busy as variant 3.
// Terms beyond K are zeros; rows and columns beyond the edge repeat the last one.
// Grid: x = ceil(N / 16), y = ceil(M / 16).
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
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

const SIDE: u32 = 16u; // outputs per workgroup, each way
const STEP: u32 = 64u; // terms per step
const PITCH: u32 = 17u; // one more than the side: transposing stores then meet fewer bank conflicts
const B: u32 = 1088u; // where the tile of b begins
const PARTS: u32 = 8u; // of each sum

// [64 k, 16 m] of a and [64 k, 16 n] of b, rows PITCH apart; at the end the parts, [8, 16 m, 16 n].
var<workgroup> tiles: array<f32, 2176>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let d = dims;
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    let part = lane / 32u;
    let row0 = lane % 32u / 8u * 4u;
    let column0 = lane % 8u * 2u;
    var c: array<vec2<f32>, 4>;
    for (var k0 = 0u; k0 < d.k; k0 += STEP) {
        // Neighbouring invocations read neighbouring elements.
        for (var e = lane; e < SIDE * STEP; e += 256u) {
            let k = e / SIDE;
            let i = e % SIDE;
            let ka = min(k0 + k, d.k - 1u);
            tiles[k * PITCH + i] = select(0.0, a[ka * d.m + min(m0 + i, d.m - 1u)], k0 + k < d.k);
            tiles[B + k * PITCH + i] = b[(d.b_start + ka) * d.n + min(n0 + i, d.n - 1u)];
        }
        workgroupBarrier();
        for (var l = 0u; l < STEP / PARTS; l += 1u) {
            let k = part * (STEP / PARTS) + l;
            let pb = B + k * PITCH + column0;
            let column = vec2(tiles[pb], tiles[pb + 1u]);
            for (var i = 0u; i < 4u; i += 1u) {
                c[i] += tiles[k * PITCH + row0 + i] * column;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i += 1u) {
        let at = part * SIDE * SIDE + (row0 + i) * SIDE + column0;
        tiles[at] = c[i].x;
        tiles[at + 1u] = c[i].y;
    }
    workgroupBarrier();
    let m = m0 + lane / SIDE;
    let n = n0 + lane % SIDE;
    if m < d.m && n < d.n {
        var sum = 0.0;
        for (var p = 0u; p < PARTS; p += 1u) {
            sum += tiles[p * SIDE * SIDE + lane];
        }
        let at = (d.out_start + m) * d.n + n;
        if ACCUMULATE {
            sum += out[at];
        }
        out[at] = sum;
    }
}
