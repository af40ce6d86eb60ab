// token_logp, finish: log p of the target from the state that `update` leaves; one invocation per
// row. With u = t - m (never positive) and s the sum of exp(logit - m) over all other logits
//     log p = u - log(exp(u) + s),
// which is -log1p(s) where the target is the largest (u = 0): exact for p almost 1. Where it is
// not, s >= 1 and nothing cancels.
// Grid: ceil(N / 64) groups, folded into (x, y) beyond 65,535.
// Needs: nothing beyond WebGPU's default limits.

const N: u32 = 1u; // rows

@group(0) @binding(0) var<storage, read> state: array<f32>; // [N, 3]: m, s, t
@group(0) @binding(1) var<storage, read_write> logp: array<f32>; // [N]

// log(1 + x) for x >= 0, relative error below 3e-7. WGSL's log promises only 2^-21 absolute
// near 1, which is no digit at all of log p where p is almost 1.
fn log1p(x: f32) -> f32 {
    let y = 1.0 + x;
    var exponent = 0.0;
    var ratio = x / (2.0 + x); // (y - 1) / (y + 1) without rounding y
    if x > 0.4 {
        // y = mantissa * 2^exponent with the mantissa in [0.7, 1.4).
        let bits = bitcast<u32>(y) - 0x3f333333u;
        exponent = f32(bitcast<i32>(bits) >> 23u);
        let mantissa = bitcast<f32>((bits & 0x007fffffu) + 0x3f333333u);
        ratio = (mantissa - 1.0) / (mantissa + 1.0);
    }
    // log(y) = 2 atanh(ratio), |ratio| < 0.177: the first term left out is below 2e-9 of the sum.
    let r2 = ratio * ratio;
    let series = 1.0 + r2 * (1.0 / 3.0 + r2 * (1.0 / 5.0 + r2 * (1.0 / 7.0 + r2 * (1.0 / 9.0))));
    return exponent * 0.6931471805599453 + 2.0 * ratio * series;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = (group.x + group.y * groups.x) * 64u + lane;
    if n >= N {
        return;
    }
    let others = state[3u * n + 1u];
    let u = state[3u * n + 2u] - state[3u * n];
    // exp(u) + s = 1 + x with x >= 0 in both cases.
    let x = select(others - 1.0 + exp(u), others, u == 0.0);
    logp[n] = u - log1p(x);
}
