// matmul, nn: out[m, n] (+)= sum_k a[m, k] * b[b_start + k, n].
// For software adapters, where barriers and workgroup memory are slow and every load costs one
// scalar load per lane: an invocation keeps 8 rows x 8 columns in registers and reads a and b
// straight from storage, 16 loads for 64 products. A workgroup is one vector of lanes side by side.
// Rows and columns beyond the edge repeat the last one and are not stored.
// Grid: x = ceil(N / 64), y = ceil(M / 8).
// Needs: nothing beyond WebGPU's default limits.

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
@group(0) @binding(2) var<storage, read> d: Dims;
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [>= out_start + M, N]

const ROWS: u32 = 8u; // outputs per invocation
const COLUMNS: u32 = 8u;

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let m0 = group.y * ROWS;
    let n0 = (group.x * 8u + lane) * COLUMNS;
    var ia: array<u32, ROWS>;
    for (var i = 0u; i < ROWS; i += 1u) {
        ia[i] = min(m0 + i, d.m - 1u) * d.k;
    }
    var ib: array<u32, COLUMNS>;
    for (var j = 0u; j < COLUMNS; j += 1u) {
        ib[j] = d.b_start * d.n + min(n0 + j, d.n - 1u);
    }
    var c: array<array<vec4<f32>, 2>, ROWS>;
    for (var k = 0u; k < d.k; k += 1u) {
        let kb = k * d.n;
        let b0 = vec4(b[ib[0] + kb], b[ib[1] + kb], b[ib[2] + kb], b[ib[3] + kb]);
        let b1 = vec4(b[ib[4] + kb], b[ib[5] + kb], b[ib[6] + kb], b[ib[7] + kb]);
        for (var i = 0u; i < ROWS; i += 1u) {
            let x = a[ia[i] + k];
            c[i][0] += x * b0;
            c[i][1] += x * b1;
        }
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        for (var j = 0u; j < COLUMNS; j += 1u) {
            if m0 + i < d.m && n0 + j < d.n {
                var sum = c[i][j / 4u][j % 4u];
                let at = (d.out_start + m0 + i) * d.n + n0 + j;
                if ACCUMULATE {
                    sum += out[at];
                }
                out[at] = sum;
            }
        }
    }
}
