// softmax, forward: y = exp(x - m) / s per row with m = max(x), s = sum(exp(x - m)); one workgroup
// per row. Each lane keeps a running maximum and the sum that belongs to it, and scales the sum
// whenever the maximum grows (Milakov and Gimelshein, arXiv:1805.02867), so one walk over the row
// and one tree over pairs (m, s) do what variant 2 does in two; y is written once, finished.
// Grid: R groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits (512 bytes of workgroup memory).

const R: u32 = 1u; // rows
const C: u32 = 1u; // columns

@group(0) @binding(0) var<storage, read> x: array<f32>; // [R, C]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [R, C]

var<workgroup> lanes: array<vec2<f32>, 64>; // m, s

// (m, s) of the columns of both.
fn merge(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let largest = max(a.x, b.x);
    return vec2<f32>(largest, a.y * exp(a.x - largest) + b.y * exp(b.x - largest));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= R {
        return; // the whole group: the barriers below stay uniform
    }
    let start = row * C;
    // Lanes beyond the last column keep the first one's value and a sum of nothing.
    var largest = x[start];
    var sum = 0.0;
    for (var j = lane; j < C; j += 64u) {
        let value = x[start + j];
        let e = exp(-abs(value - largest)); // scales the sum or is the term: one exp either way
        if value > largest {
            sum = sum * e + 1.0;
            largest = value;
        } else {
            sum += e;
        }
    }
    lanes[lane] = vec2<f32>(largest, sum);
    workgroupBarrier();
    for (var stride = 32u; stride > 0u; stride /= 2u) {
        if lane < stride {
            lanes[lane] = merge(lanes[lane], lanes[lane + stride]);
        }
        workgroupBarrier();
    }
    largest = lanes[0].x;
    let inverse = 1.0 / lanes[0].y; // the largest term is 1, so the sum is at least 1
    for (var j = lane; j < C; j += 64u) {
        y[start + j] = exp(x[start + j] - largest) * inverse;
    }
}
