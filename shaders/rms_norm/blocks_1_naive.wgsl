// rms_norm, second pass of a sum over rows: total[j] = sum over blocks of block_sum[block, j], in
// order; one invocation per column. layer_norm uses it too.
// Grid: ceil(D / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const BLOCKS: u32 = 1u; // blocks
const D: u32 = 1u; // columns
const ACCUMULATE: bool = false; // add to total instead of overwriting it

// `block_sum`, because `partial` is a reserved word of WGSL.
@group(0) @binding(0) var<storage, read> block_sum: array<f32>; // [BLOCKS, D]
@group(0) @binding(1) var<storage, read_write> total: array<f32>; // [D]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = (group.x + group.y * groups.x) * 64u + lane;
    if column >= D {
        return;
    }
    var sum = 0.0;
    for (var block = 0u; block < BLOCKS; block++) {
        sum += block_sum[block * D + column];
    }
    if ACCUMULATE {
        sum += total[column];
    }
    total[column] = sum;
}
