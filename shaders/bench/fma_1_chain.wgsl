// bench, fma: how many multiply-adds a second the adapter does when nothing else is in the way.
// An invocation carries three independent vec4 values through 8 ROUNDS fused multiply-adds each:
// 2 * 4 * 3 * 8 * ROUNDS floating-point operations. Factor and summand come from a buffer, so that
// nothing can be computed beforehand, and the sum is written, so that nothing can be left out.
// Grid: ceil(N / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // invocations
const ROUNDS: u32 = 1u;

@group(0) @binding(0) var<storage, read> x: array<f32>; // [2]: factor and summand
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [N]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    if i >= N {
        return;
    }
    let a = vec4(x[0]);
    let b = vec4(x[1]);
    var c0 = vec4(f32(lane));
    var c1 = c0 + 1.0;
    var c2 = c0 + 2.0;
    for (var r = 0u; r < ROUNDS; r += 1u) {
        // Twelve chains hide the latency of an addition and fit the registers of a CPU.
        c0 = fma(c0, a, b);
        c1 = fma(c1, a, b);
        c2 = fma(c2, a, b);
        c0 = fma(c0, a, b);
        c1 = fma(c1, a, b);
        c2 = fma(c2, a, b);
        c0 = fma(c0, a, b);
        c1 = fma(c1, a, b);
        c2 = fma(c2, a, b);
        c0 = fma(c0, a, b);
        c1 = fma(c1, a, b);
        c2 = fma(c2, a, b);
        c0 = fma(c0, a, b);
        c1 = fma(c1, a, b);
        c2 = fma(c2, a, b);
        c0 = fma(c0, a, b);
        c1 = fma(c1, a, b);
        c2 = fma(c2, a, b);
        c0 = fma(c0, a, b);
        c1 = fma(c1, a, b);
        c2 = fma(c2, a, b);
        c0 = fma(c0, a, b);
        c1 = fma(c1, a, b);
        c2 = fma(c2, a, b);
    }
    y[i] = dot(c0 + c1 + c2, vec4(1.0));
}
