// attention, gradients of k and v:
// dk[j] = sum_i p[i, j] (dp[i, j] - delta[i]) q[i] / sqrt(HEAD_DIM),  dv[j] = sum_i p[i, j] d_o[i],
// over the queries i that attend key j and the query heads that share its head;
// p[i, j] = exp(s[i, j] - lse[i]) recomputed, dp[i, j] = d_o[i] . v[j].
// The formula as loops: one invocation per key, which alone owns its row of dk and dv.
// Grid: x = ceil(TK / 64), y = HKV.
// Needs: nothing beyond WebGPU's default limits.

const TQ: u32 = 1u; // queries
const TK: u32 = 1u; // keys
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 32u; // elements of a head
const CAPPED: bool = false; // scores are CAP * tanh(score / CAP)
const CAP: f32 = 1.0; // bound of capped scores
const WANT_DK: bool = true; // dk is wanted
const WANT_DV: bool = true; // dv is wanted
const ACCUMULATE_DK: bool = false; // add to dk instead of overwriting it
const ACCUMULATE_DV: bool = false; // add to dv instead of overwriting it

@group(0) @binding(0) var<storage, read> q: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [TQ]: ctx_start, ctx_end, own_start, own_end; [TK]: query_start, query_end
@group(0) @binding(4) var<storage, read> d_o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>; // [TQ, H]: lse, delta
@group(0) @binding(6) var<storage, read_write> dk: array<f32>; // [TK, HKV * HEAD_DIM], [1] if not wanted
@group(0) @binding(7) var<storage, read_write> dv: array<f32>; // [TK, HKV * HEAD_DIM], [1] if not wanted

// Query i attends key j.
fn attends(i: u32, j: u32) -> bool {
    let s = spans[i];
    return (j >= s.x && j < s.y) || (j >= s.z && j < s.w);
}

// CAP * tanh(score / CAP), in digits that a driver's tanh need not have.
fn capped(score: f32) -> f32 {
    if !CAPPED {
        return score;
    }
    let x = score / CAP;
    let z = x * x;
    let series = 1.0 + z * (-0.33333334 + z * (0.13333334 + z * (-0.053968254 + z * 0.021869488)));
    let far = sign(x) * (1.0 - 2.0 / (exp(min(2.0 * abs(x), 80.0)) + 1.0));
    return CAP * select(far, x * series, z < 0.0625);
}

// Derivative of a capped score.
fn cap_slope(score: f32) -> f32 {
    if !CAPPED {
        return 1.0;
    }
    return 1.0 - (score / CAP) * (score / CAP);
}

// q . k / sqrt(HEAD_DIM), capped, of the heads that start there.
fn score(q_start: u32, k_start: u32) -> f32 {
    var sum = 0.0;
    for (var c = 0u; c < HEAD_DIM; c++) {
        sum += q[q_start + c] * k[k_start + c];
    }
    return capped(sum / sqrt(f32(HEAD_DIM)));
}

// d_o . v of the heads that start there: the derivative with respect to p.
fn slope_of_p(d_o_start: u32, v_start: u32) -> f32 {
    var sum = 0.0;
    for (var c = 0u; c < HEAD_DIM; c++) {
        sum += d_o[d_o_start + c] * v[v_start + c];
    }
    return sum;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let j = group.x * 64u + lane;
    if j >= TK {
        return;
    }
    let key = (j * HKV + group.y) * HEAD_DIM;
    var dk_sum = array<f32, HEAD_DIM>(); // dk[j] * sqrt(HEAD_DIM)
    var dv_sum = array<f32, HEAD_DIM>();
    // No query before query_start attends to it, and none from query_end on.
    for (var i = spans[TQ + j].x; i < spans[TQ + j].y; i++) {
        if attends(i, j) {
            for (var n = 0u; n < H / HKV; n++) {
                let row = i * H + group.y * (H / HKV) + n;
                let s = score(row * HEAD_DIM, key);
                let p = exp(s - stats[row].x);
                let ds = p * (slope_of_p(row * HEAD_DIM, key) - stats[row].y) * cap_slope(s);
                for (var c = 0u; c < HEAD_DIM; c++) {
                    dk_sum[c] += ds * q[row * HEAD_DIM + c];
                    dv_sum[c] += p * d_o[row * HEAD_DIM + c];
                }
            }
        }
    }
    for (var c = 0u; c < HEAD_DIM; c++) {
        if WANT_DK {
            var slope = dk_sum[c] / sqrt(f32(HEAD_DIM));
            if ACCUMULATE_DK {
                slope += dk[key + c];
            }
            dk[key + c] = slope;
        }
        if WANT_DV {
            var slope = dv_sum[c];
            if ACCUMULATE_DV {
                slope += dv[key + c];
            }
            dv[key + c] = slope;
        }
    }
}
