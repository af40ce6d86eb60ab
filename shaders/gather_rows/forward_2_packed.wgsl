// gather_rows, forward: y[n, :] = x[rows[n], :], one invocation per element, with x stored in 16 bits
// an element, two to a word. Every f16 and every bf16 is an f32, so nothing is lost here.
// Grid: ceil(N * D / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const R: u32 = 1u; // rows of x
const N: u32 = 1u; // gathered rows
const D: u32 = 1u; // columns
const BF16: bool = false; // x is stored as bf16, else as f16

@group(0) @binding(0) var<storage, read> x: array<u32>; // [R, D / 2]
@group(0) @binding(1) var<storage, read> rows: array<u32>; // [N]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [N, D]

fn element(i: u32) -> f32 {
    let word = x[i / 2u];
    var both = unpack2x16float(word);
    if BF16 {
        both = vec2(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
    }
    return select(both.x, both.y, (i & 1u) == 1u);
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
    // Rows are checked where they are made; this only keeps a wrong one inside the buffer.
    let row = min(rows[n], R - 1u);
    y[i] = element(row * D + (i - n * D));
}
