// segment_mean, forward: y[s] = mean of x[seq_target[j]] over seq_offset[s] <= j < seq_offset[s + 1],
// 0 for an empty segment; one invocation per segment.
// Grid: ceil(S / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const S: u32 = 1u; // segments
const N: u32 = 1u; // elements of x
const CAP: u32 = 1u; // elements of seq_target

@group(0) @binding(0) var<storage, read> x: array<f32>; // [N]
@group(0) @binding(1) var<storage, read> seq_offset: array<u32>; // [S + 1], ascending
@group(0) @binding(2) var<storage, read> seq_target: array<u32>; // [CAP]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [S]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let s = (group.x + group.y * groups.x) * 64u + lane;
    if s >= S {
        return;
    }
    // The host makes the lists; the limits only keep a wrong one inside the buffers.
    let start = seq_offset[s];
    let end = min(seq_offset[s + 1u], CAP);
    var total = 0.0;
    // Sums of 32 keep the rounding error of a long segment small.
    for (var block = start; block < end; block += 32u) {
        var sum = 0.0;
        let block_end = min(block + 32u, end);
        for (var j = block; j < block_end; j++) {
            sum += x[min(seq_target[j], N - 1u)];
        }
        total += sum;
    }
    y[s] = select(0.0, total / f32(end - start), end > start);
}
