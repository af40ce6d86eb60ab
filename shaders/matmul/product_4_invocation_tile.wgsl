// matmul; nt, nn and tn: out[m, n] (+)= sum_k A[m, k] * B[k, n] (+ bias[n]). a is A and b is B, but in nt
// b is B transposed, and in tn a is A transposed.
// For software adapters, where barriers and workgroup memory are slow and every load costs one
// scalar load per lane: an invocation keeps 8 rows x 8 columns in registers and reads a and b
// straight from storage, 16 loads for 64 products (1 byte per product). A workgroup is one vector of
// lanes side by side. Rows and columns beyond the edge repeat the last one and are not stored.
// Grid: x = ceil(N / 64), y = ceil(M / 8).
// Needs: nothing beyond WebGPU's default limits.
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

const ROWS: u32 = 8u; // outputs per invocation
const COLUMNS: u32 = 8u;

// Where A[m, k] lies in a.
fn at_a(d: Dims, m: u32, k: u32) -> u32 {
    return select(m * d.k + k, k * d.m + m, A_TRANSPOSED);
}

// Where B[k, n] lies in b.
fn at_b(d: Dims, k: u32, n: u32) -> u32 {
    return select((d.b_start + k) * d.n + n, (d.b_start + n) * d.k + k, B_TRANSPOSED);
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let d = dims;
    let m0 = group.y * ROWS;
    let n0 = (group.x * 8u + lane) * COLUMNS;
    var ia: array<u32, ROWS>;
    for (var i = 0u; i < ROWS; i += 1u) {
        ia[i] = at_a(d, min(m0 + i, d.m - 1u), 0u);
    }
    var ib: array<u32, COLUMNS>;
    for (var j = 0u; j < COLUMNS; j += 1u) {
        ib[j] = at_b(d, 0u, min(n0 + j, d.n - 1u));
    }
    // From one term to the next.
    let step_a = select(1u, d.m, A_TRANSPOSED);
    let step_b = select(d.n, 1u, B_TRANSPOSED);
    var c: array<array<vec4<f32>, 2>, ROWS>;
    for (var k = 0u; k < d.k; k += 1u) {
        let ka = k * step_a;
        let kb = k * step_b;
        let b0 = vec4(b[ib[0] + kb], b[ib[1] + kb], b[ib[2] + kb], b[ib[3] + kb]);
        let b1 = vec4(b[ib[4] + kb], b[ib[5] + kb], b[ib[6] + kb], b[ib[7] + kb]);
        for (var i = 0u; i < ROWS; i += 1u) {
            let x = a[ia[i] + ka];
            c[i][0] += x * b0;
            c[i][1] += x * b1;
        }
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        store(d, m0 + i, n0, c[i][0].x);
        store(d, m0 + i, n0 + 1u, c[i][0].y);
        store(d, m0 + i, n0 + 2u, c[i][0].z);
        store(d, m0 + i, n0 + 3u, c[i][0].w);
        store(d, m0 + i, n0 + 4u, c[i][1].x);
        store(d, m0 + i, n0 + 5u, c[i][1].y);
        store(d, m0 + i, n0 + 6u, c[i][1].z);
        store(d, m0 + i, n0 + 7u, c[i][1].w);
    }
}

fn store(d: Dims, m: u32, n: u32, value: f32) {
    if m >= d.m || n >= d.n {
        return;
    }
    var sum = value;
    if BIAS {
        sum += bias[n];
    }
    let at = (d.out_start + m) * d.n + n;
    if ACCUMULATE {
        sum += out[at];
    }
    out[at] = sum;
}
