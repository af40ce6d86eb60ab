// softmax, backward: dx = y * (dy - sum(dy * y)) per row; one workgroup per row.
// Grid: R groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits (256 bytes of workgroup memory).

const R: u32 = 1u; // rows
const C: u32 = 1u; // columns
const ACCUMULATE: bool = false; // add to dx instead of overwriting it

@group(0) @binding(0) var<storage, read> y: array<f32>; // [R, C]
@group(0) @binding(1) var<storage, read> dy: array<f32>; // [R, C]
@group(0) @binding(2) var<storage, read_write> dx: array<f32>; // [R, C]

var<workgroup> sums: array<f32, 64>;

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
    var sum = 0.0;
    for (var j = lane; j < C; j += 64u) {
        sum += dy[start + j] * y[start + j];
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var stride = 32u; stride > 0u; stride /= 2u) {
        if lane < stride {
            sums[lane] += sums[lane + stride];
        }
        workgroupBarrier();
    }
    sum = sums[0];
    for (var j = lane; j < C; j += 64u) {
        let i = start + j;
        var slope = y[i] * (dy[i] - sum);
        if ACCUMULATE {
            slope += dx[i];
        }
        dx[i] = slope;
    }
}
