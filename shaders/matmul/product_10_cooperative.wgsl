// matmul; nt, nn and tn: out[m, n] (+)= sum_k A[m, k] * B[k, n] (+ bias[n]). a is A and b is B, but in nt
// b is B transposed, and in tn a is A transposed.
// A workgroup computes 32 x 32 outputs and walks k in steps of 32 through workgroup memory, where a
// and b lie as 16-bit floats in the order they have in storage. A subgroup multiplies a quarter of
// 16 x 16 outputs by cooperative matrices of 8 x 8 with sums in single precision. Subgroups have
// different sizes on different adapters: with fewer than four the quarters take turns and the walk
// is repeated, with more some work in vain. Sums pass through workgroup memory, because nothing but
// loads, stores and products can be done with a cooperative matrix. Values beyond 65504 become
// infinite. Terms beyond K are zeros; rows and columns beyond the edge repeat the last one.
// One instruction makes 512 products; a subgroup loads 4 matrices for 4 of them. From storage come
// 0.25 bytes per product, each time the walk is made.
// Grid: x = ceil(N / 32), y = ceil(M / 32).
// Needs: f16, subgroups, cooperative matrices of 8 x 8 with f16 factors and f32 sums (11,524 bytes of
// workgroup memory).
// Called by product in src/ops/matmul.rs; tests matmul_forward, matmul_gradient, matmul_windows.

enable f16;
enable wgpu_cooperative_matrix;

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

const SIDE: u32 = 32u; // outputs per workgroup each way, and terms per step
const PITCH: u32 = 40u; // rows begin at multiples of 16 bytes, as cooperative loads want them
const QUARTER: u32 = 320u; // elements of sums per quarter: 16 rows ROW apart
const ROW: u32 = 20u;

var<workgroup> tile_a: array<f16, 1280>; // [32 m, 32 k] or [32 k, 32 m], rows PITCH apart
var<workgroup> tile_b: array<f16, 1280>; // [32 k, 32 n] or [32 n, 32 k], rows PITCH apart
var<workgroup> sums: array<f32, 1600>; // [4 quarters and one nobody reads, 16 m, 16 n], rows ROW apart
var<workgroup> count: u32; // subgroups of the workgroup

// Where A[m, k] lies in a.
fn at_a(d: Dims, m: u32, k: u32) -> u32 {
    return select(m * d.k + k, k * d.m + m, A_TRANSPOSED);
}

// Where B[k, n] lies in b.
fn at_b(d: Dims, k: u32, n: u32) -> u32 {
    return select((d.b_start + k) * d.n + n, (d.b_start + n) * d.k + k, B_TRANSPOSED);
}

// 8 x 8 of A from row i of the tile and its term k on.
fn load_a(i: u32, k: u32) -> coop_mat8x8<f16, A> {
    if A_TRANSPOSED {
        return coopLoad<coop_mat8x8<f16, A>>(&tile_a[k * PITCH + i], PITCH);
    }
    return coopLoadT<coop_mat8x8<f16, A>>(&tile_a[i * PITCH + k], PITCH);
}

// 8 x 8 of B from its term k and column j of the tile on.
fn load_b(k: u32, j: u32) -> coop_mat8x8<f16, B> {
    if B_TRANSPOSED {
        return coopLoad<coop_mat8x8<f16, B>>(&tile_b[j * PITCH + k], PITCH);
    }
    return coopLoadT<coop_mat8x8<f16, B>>(&tile_b[k * PITCH + j], PITCH);
}

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
                let line = vec2(e / SIDE, e % SIDE);
                let to = line.x * PITCH + line.y;
                let of_a = select(line.xy, line.yx, A_TRANSPOSED);
                let x = a[at_a(d, min(m0 + of_a.x, d.m - 1u), min(k0 + of_a.y, d.k - 1u))];
                tile_a[to] = f16(select(0.0, x, k0 + of_a.y < d.k));
                let of_b = select(line.xy, line.yx, B_TRANSPOSED);
                let y = b[at_b(d, min(k0 + of_b.x, d.k - 1u), min(n0 + of_b.y, d.n - 1u))];
                tile_b[to] = f16(y);
            }
            workgroupBarrier();
            for (var k = 0u; k < SIDE; k += 8u) {
                let x0 = load_a(i0, k);
                let x1 = load_a(i0 + 8u, k);
                let y0 = load_b(k, j0);
                let y1 = load_b(k, j0 + 8u);
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
            if BIAS {
                sum += bias[n];
            }
            let at = (d.out_start + m) * d.n + n;
            if ACCUMULATE {
                sum += out[at];
            }
            out[at] = sum;
        }
    }
}
