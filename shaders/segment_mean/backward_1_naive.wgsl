// segment_mean, backward: dx[n] (+)= sum of dy[s] / length(s) over the at most two segments s that
// own element n; one invocation per element.
// Grid: ceil(N / 256) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const S: u32 = 1u; // segments
const N: u32 = 1u; // elements of x
const ACCUMULATE: bool = false; // add to dx instead of overwriting it

@group(0) @binding(0) var<storage, read> dy: array<f32>; // [S]
@group(0) @binding(1) var<storage, read> seq_offset: array<u32>; // [S + 1], ascending
@group(0) @binding(2) var<storage, read> owner: array<u32>; // [N, 2], 0xffffffff where there is none
@group(0) @binding(3) var<storage, read_write> dx: array<f32>; // [N]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = (group.x + group.y * groups.x) * 256u + lane;
    if n >= N {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < 2u; k++) {
        let s = owner[2u * n + k];
        if s < S {
            sum += dy[s] / f32(seq_offset[s + 1u] - seq_offset[s]);
        }
    }
    if ACCUMULATE {
        dx[n] = dx[n] + sum;
    } else {
        dx[n] = sum;
    }
}
