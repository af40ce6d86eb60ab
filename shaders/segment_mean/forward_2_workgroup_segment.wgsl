// segment_mean, forward: as 1_naive, one workgroup per segment: lanes take every 64th element and
// their sums meet in workgroup memory by a tree of fixed order.
// Grid: S groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits; 256 bytes of workgroup memory.

const S: u32 = 1u; // segments
const N: u32 = 1u; // elements of x
const CAP: u32 = 1u; // elements of seq_target

@group(0) @binding(0) var<storage, read> x: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> seq_offset: array<u32>; // [S + 1], ascending
@group(0) @binding(2) var<storage, read> seq_target: array<u32>; // [CAP]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [S]

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let s = group.x + group.y * groups.x;
    if s >= S {
        return;
    }
    let start = seq_offset[s];
    let end = min(seq_offset[s + 1u], CAP);
    var sum = 0.0;
    for (var j = start + lane; j < end; j += 64u) {
        sum += x[min(seq_target[j], N - 1u)];
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var width = 32u; width > 0u; width >>= 1u) {
        if lane < width {
            sums[lane] += sums[lane + width];
        }
        workgroupBarrier();
    }
    if lane == 0u {
        y[s] = select(0.0, sums[0] / f32(end - start), end > start);
    }
}
