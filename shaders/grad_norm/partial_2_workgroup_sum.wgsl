// grad_norm, partial: as 1_naive, one workgroup per partial sum: 256 neighbouring elements at a
// time, lanes' sums by a tree of fixed order in workgroup memory.
// Grid: PARTIALS groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits; 1 KiB of workgroup memory.

const N: u32 = 1u; // elements of the gradient
const PARTIALS: u32 = 1u; // sums it is split into
const ADD: bool = false; // the gradient goes on in a further part: add to the sums of those before

@group(0) @binding(0) var<storage, read> grad: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> first: array<u32>; // [1], where this gradient's sums begin
@group(0) @binding(2) var<storage, read_write> partials: array<f32>; // those of all gradients

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let p = group.x + group.y * groups.x;
    if p >= PARTIALS {
        return;
    }
    var sum = 0.0;
    for (var i = p * 256u + lane; i < N; i += PARTIALS * 256u) {
        sum += grad[i] * grad[i];
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var width = 128u; width > 0u; width >>= 1u) {
        if lane < width {
            sums[lane] += sums[lane + width];
        }
        workgroupBarrier();
    }
    if lane == 0u {
        if ADD {
            partials[first[0] + p] += sums[0];
        } else {
            partials[first[0] + p] = sums[0];
        }
    }
}
