// matmul, nn: out[m, n] (+)= sum_k a[m, k] * b[b_start + k, n].
// A workgroup computes 32 x 32 outputs and walks k in steps of 32 through workgroup memory, where a
// and b lie as 16-bit floats in the order they have in storage. A subgroup multiplies a quarter of
// 16 x 16 outputs by cooperative matrices of 8 x 8 with sums in single precision. Subgroups have
// different sizes on different adapters: with fewer than four the quarters take turns and the walk
// is repeated, with more some work in vain. Sums pass through workgroup memory, because nothing but
// loads, stores and products can be done with a cooperative matrix. Values beyond 65504 become
// infinite. Terms beyond K are zeros; rows and columns beyond the edge repeat the last one.
// Grid: x = ceil(N / 32), y = ceil(M / 32).
// Needs: f16, subgroups, cooperative matrices of 8 x 8 with f16 factors and f32 sums (11,524 bytes of
// workgroup memory).

enable f16;
enable wgpu_cooperative_matrix;

const ACCUMULATE: bool = false; // add to out instead of overwriting it

struct Dims {
    m: u32, // rows of out
    n: u32, // columns of out
    k: u32, // terms of each sum
    b_start: u32, // first row of b that is used
    out_start: u32, // first row of out that is written
}

@group(0) @binding(0) var<storage, read> a: array<f32>; // [M, K]
@group(0) @binding(1) var<storage, read> b: array<f32>; // [>= b_start + K, N]
@group(0) @binding(2) var<storage, read> dims: Dims;
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

const SIDE: u32 = 32u; // outputs per workgroup each way, and terms per step
const PITCH: u32 = 40u; // rows begin at multiples of 16 bytes, as cooperative loads want them
const QUARTER: u32 = 320u; // elements of sums per quarter: 16 rows ROW apart
const ROW: u32 = 20u;

var<workgroup> tile_a: array<f16, 1280>; // [32 m, 32 k], rows PITCH apart
var<workgroup> tile_b: array<f16, 1280>; // [32 k, 32 n], rows PITCH apart
var<workgroup> sums: array<f32, 1600>; // [4 quarters and one nobody reads, 16 m, 16 n], rows ROW apart
var<workgroup> count: u32; // subgroups of the workgroup

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let d = dims;
    let m0 = group.y * SIDE;
    let n0 = group.x * SIDE;
    if lane == 0u {
        count = subgroups;
    }
    // Matrices begin as these zeros.
    for (var e = lane; e < 5u * QUARTER; e += 128u) {
        sums[e] = 0.0;
    }
    workgroupBarrier();
    // Cooperative operations must be in uniform control flow: the number of turns therefore comes
    // through workgroup memory, and subgroups without a quarter do the last one again and leave it
    // where nobody reads it.
    let together = workgroupUniformLoad(&count);
    for (var turn = 0u; turn < 4u; turn += together) {
        let quarter = min(turn + subgroup, 4u);
        let i0 = min(quarter, 3u) / 2u * 16u;
        let j0 = min(quarter, 3u) % 2u * 16u;
        let at = quarter * QUARTER;
        var c00 = coopLoadT<coop_mat8x8<f32, C>>(&sums[at], ROW);
        var c01 = coopLoadT<coop_mat8x8<f32, C>>(&sums[at + 8u], ROW);
        var c10 = coopLoadT<coop_mat8x8<f32, C>>(&sums[at + 8u * ROW], ROW);
        var c11 = coopLoadT<coop_mat8x8<f32, C>>(&sums[at + 8u * ROW + 8u], ROW);
        for (var k0 = 0u; k0 < d.k; k0 += SIDE) {
            for (var e = lane; e < SIDE * SIDE; e += 128u) {
                let line = e / SIDE;
                let column = e % SIDE;
                let to = line * PITCH + column;
                let x = a[min(m0 + line, d.m - 1u) * d.k + min(k0 + column, d.k - 1u)];
                tile_a[to] = f16(select(0.0, x, k0 + column < d.k));
                tile_b[to] = f16(b[(d.b_start + min(k0 + line, d.k - 1u)) * d.n + min(n0 + column, d.n - 1u)]);
            }
            workgroupBarrier();
            for (var k = 0u; k < SIDE; k += 8u) {
                let x0 = coopLoadT<coop_mat8x8<f16, A>>(&tile_a[i0 * PITCH + k], PITCH);
                let x1 = coopLoadT<coop_mat8x8<f16, A>>(&tile_a[(i0 + 8u) * PITCH + k], PITCH);
                let y0 = coopLoadT<coop_mat8x8<f16, B>>(&tile_b[k * PITCH + j0], PITCH);
                let y1 = coopLoadT<coop_mat8x8<f16, B>>(&tile_b[k * PITCH + j0 + 8u], PITCH);
                c00 = coopMultiplyAdd(x0, y0, c00);
                c01 = coopMultiplyAdd(x0, y1, c01);
                c10 = coopMultiplyAdd(x1, y0, c10);
                c11 = coopMultiplyAdd(x1, y1, c11);
            }
            workgroupBarrier();
        }
        coopStoreT(c00, &sums[at], ROW);
        coopStoreT(c01, &sums[at + 8u], ROW);
        coopStoreT(c10, &sums[at + 8u * ROW], ROW);
        coopStoreT(c11, &sums[at + 8u * ROW + 8u], ROW);
    }
    workgroupBarrier();
    for (var e = lane; e < SIDE * SIDE; e += 128u) {
        let i = e / SIDE;
        let j = e % SIDE;
        let m = m0 + i;
        let n = n0 + j;
        if m < d.m && n < d.n {
            let quarter = i / 16u * 2u + j / 16u;
            var sum = sums[quarter * QUARTER + i % 16u * ROW + j % 16u];
            let at = (d.out_start + m) * d.n + n;
            if ACCUMULATE {
                sum += out[at];
            }
            out[at] = sum;
        }
    }
}
