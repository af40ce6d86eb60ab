// rope, rotate: each pair (a, b) = (x[i], x[i + HALF]) of a head turns by the angle of its position,
// y[i] = a * cos - b * sin, y[i + HALF] = b * cos + a * sin; what lies behind the pairs is copied.
// One invocation per pair or copied element.
// The derivative turns dy back: the same kernel with SIGN = -1.
// Grid: ceil(T * HEADS * (HEAD_DIM - HALF) / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const T: u32 = 1u; // tokens
const HEADS: u32 = 1u; // heads
const HEAD_DIM: u32 = 2u; // elements of a head, at least 2 * HALF
const HALF: u32 = 1u; // pairs of a head
const POSITIONS: u32 = 1u; // positions in the table
const SIGN: f32 = 1.0; // 1 turns forward, -1 back
const ACCUMULATE: bool = false; // add to y instead of overwriting it

@group(0) @binding(0) var<storage, read> x: array<f32>; // [T, HEADS, HEAD_DIM]
@group(0) @binding(1) var<storage, read> position: array<u32>; // [T]
@group(0) @binding(2) var<storage, read> table: array<vec2<f32>>; // [POSITIONS, HALF] of (cos, sin)
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T, HEADS, HEAD_DIM]

const UNITS: u32 = HEAD_DIM - HALF; // pairs and copied elements of a head

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let unit = (group.x + group.y * groups.x) * 64u + lane;
    if unit >= T * HEADS * UNITS {
        return;
    }
    let i = unit % UNITS;
    let head = unit / UNITS; // token * HEADS + head of the token
    if i >= HALF {
        let at = head * HEAD_DIM + HALF + i;
        if ACCUMULATE {
            y[at] = y[at] + x[at];
        } else {
            y[at] = x[at];
        }
        return;
    }
    // Positions come from the host; one beyond the table must not read beyond it.
    let turn = table[min(position[head / HEADS], POSITIONS - 1u) * HALF + i];
    let cosine = turn.x;
    let sine = SIGN * turn.y;
    let low = head * HEAD_DIM + i;
    let high = low + HALF;
    let a = x[low];
    let b = x[high];
    var turned_a = a * cosine - b * sine;
    var turned_b = b * cosine + a * sine;
    if ACCUMULATE {
        turned_a += y[low];
        turned_b += y[high];
    }
    y[low] = turned_a;
    y[high] = turned_b;
}
