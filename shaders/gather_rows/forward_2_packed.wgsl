// gather_rows, forward: y[n, :] = x[rows[n], :], one invocation per element, with x stored in 16 bits
// an element or fewer.
// Grid: ceil(N * D / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const R: u32 = 1u; // rows of x
const N: u32 = 1u; // gathered rows
const D: u32 = 1u; // columns
const FIRST: u32 = 0u; // the table's row that x begins with, where it is bound in parts
const PART: bool = false; // x is a part: rows outside of it are another call's
const STORED: u32 = 0u; // how x is stored: 0 as f16, 1 as bf16, 2 as q8_0, 3 as q4_0

@group(0) @binding(0) var<storage, read> x: array<u32>; // [R, D] in the storage type
@group(0) @binding(1) var<storage, read> rows: array<u32>; // [N]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [N, D]

// Element i of x. Every f16 and every bf16 is an f32. Of q8_0 and q4_0, integers of 8 and 4 bits, 32
// share a scale in f16; all scales lie behind all integers.
fn element(i: u32) -> f32 {
    if STORED == 0u {
        return unpack2x16float(x[i / 2u])[i % 2u];
    }
    if STORED == 1u {
        return bitcast<f32>(select(x[i / 2u] << 16u, x[i / 2u] & 0xffff0000u, i % 2u == 1u));
    }
    let block = i / 32u;
    let integers = R * D / select(8u, 4u, STORED == 2u); // words
    let scale = unpack2x16float(x[integers + block / 2u])[block % 2u];
    if STORED == 2u {
        return scale * f32((bitcast<i32>(x[i / 4u]) << (24u - 8u * (i % 4u))) >> 24u);
    }
    return scale * (f32((x[i / 8u] >> (4u * (i % 8u))) & 15u) - 8.0);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 256u + lane;
    if i >= N * D {
        return;
    }
    let n = i / D;
    if PART && rows[n] - FIRST >= R {
        return;
    }
    // Rows are checked where they are made; this only keeps a wrong one inside the buffer.
    let row = min(rows[n] - FIRST, R - 1u);
    y[i] = element(row * D + (i - n * D));
}
