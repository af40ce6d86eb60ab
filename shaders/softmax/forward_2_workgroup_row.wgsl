// softmax, forward: y = exp(x - max(x)) / sum(exp(x - max(x))) per row; one workgroup per row:
// neighbouring lanes read neighbouring columns, maximum and sum are trees.
// Grid: R groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits (256 bytes of workgroup memory).

const R: u32 = 1u; // rows
const C: u32 = 1u; // columns

@group(0) @binding(0) var<storage, read> x: array<f32>; // [R, C]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [R, C]

var<workgroup> lanes: array<f32, 64>;

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
    // Lanes beyond the last column start from the first one, which changes no maximum.
    var largest = x[start];
    for (var j = lane; j < C; j += 64u) {
        largest = max(largest, x[start + j]);
    }
    lanes[lane] = largest;
    workgroupBarrier();
    for (var stride = 32u; stride > 0u; stride /= 2u) {
        if lane < stride {
            lanes[lane] = max(lanes[lane], lanes[lane + stride]);
        }
        workgroupBarrier();
    }
    largest = lanes[0];
    workgroupBarrier(); // everybody has read it before the sums overwrite it

    // The largest term is exp(0) = 1, so nothing overflows and the sum is at least 1.
    var sum = 0.0;
    for (var j = lane; j < C; j += 64u) {
        let e = exp(x[start + j] - largest);
        y[start + j] = e;
        sum += e;
    }
    lanes[lane] = sum;
    workgroupBarrier();
    for (var stride = 32u; stride > 0u; stride /= 2u) {
        if lane < stride {
            lanes[lane] += lanes[lane + stride];
        }
        workgroupBarrier();
    }
    let inverse = 1.0 / lanes[0];
    for (var j = lane; j < C; j += 64u) {
        y[start + j] *= inverse; // each lane scales what it wrote itself
    }
}
