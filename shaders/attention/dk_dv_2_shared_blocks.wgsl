// attention, gradients of k and v:
// dk[j] = sum_i p[i, j] (dp[i, j] - delta[i]) q[i] / sqrt(HEAD_DIM),  dv[j] = sum_i p[i, j] d_o[i],
// over the queries i that attend key j and the query heads that share its head;
// p[i, j] = exp(s[i, j] - lse[i]) recomputed, dp[i, j] = d_o[i] . v[j].
// One invocation per key head; a workgroup of 64 keys walks over the query heads that may attend
// them in blocks held in workgroup memory.
// Grid: x = ceil(TK / 64), y = HKV.
// Needs: at most 16 KiB of workgroup memory.

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

const QUADS: u32 = (HEAD_DIM + 3u) / 4u;
const BLOCK: u32 = min(32u, 512u / QUADS); // query heads at a time: two blocks fill 16 KiB at most

@group(0) @binding(0) var<storage, read> q: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [TQ]: ctx_start, ctx_end, own_start, own_end; [TK]: query_start, query_end
@group(0) @binding(4) var<storage, read> d_o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>; // [TQ, H]: lse, delta
@group(0) @binding(6) var<storage, read_write> dk: array<f32>; // [TK, HKV * HEAD_DIM], [1] if not wanted
@group(0) @binding(7) var<storage, read_write> dv: array<f32>; // [TK, HKV * HEAD_DIM], [1] if not wanted

var<workgroup> q_block: array<vec4<f32>, BLOCK * QUADS>;
var<workgroup> g_block: array<vec4<f32>, BLOCK * QUADS>;

// Four elements of a head, zeros behind its end.
fn quad_q(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(q[i], 0.0, 0.0, 0.0);
    if 4u * c + 1u < HEAD_DIM { x.y = q[i + 1u]; }
    if 4u * c + 2u < HEAD_DIM { x.z = q[i + 2u]; }
    if 4u * c + 3u < HEAD_DIM { x.w = q[i + 3u]; }
    return x;
}

fn quad_k(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(k[i], 0.0, 0.0, 0.0);
    if 4u * c + 1u < HEAD_DIM { x.y = k[i + 1u]; }
    if 4u * c + 2u < HEAD_DIM { x.z = k[i + 2u]; }
    if 4u * c + 3u < HEAD_DIM { x.w = k[i + 3u]; }
    return x;
}

fn quad_v(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(v[i], 0.0, 0.0, 0.0);
    if 4u * c + 1u < HEAD_DIM { x.y = v[i + 1u]; }
    if 4u * c + 2u < HEAD_DIM { x.z = v[i + 2u]; }
    if 4u * c + 3u < HEAD_DIM { x.w = v[i + 3u]; }
    return x;
}

fn quad_d_o(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(d_o[i], 0.0, 0.0, 0.0);
    if 4u * c + 1u < HEAD_DIM { x.y = d_o[i + 1u]; }
    if 4u * c + 2u < HEAD_DIM { x.z = d_o[i + 2u]; }
    if 4u * c + 3u < HEAD_DIM { x.w = d_o[i + 3u]; }
    return x;
}

// sum + x . y
fn dot_add(x: vec4<f32>, y: vec4<f32>, sum: f32) -> f32 {
    return fma(x.w, y.w, fma(x.z, y.z, fma(x.y, y.y, fma(x.x, y.x, sum))));
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

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = group.x * 64u;
    // The same for all invocations: the first query that may attend one of these keys, and the end.
    var queries = vec2<u32>(TQ, 0u);
    for (var j = first; j < min(first + 64u, TK); j++) {
        let span = spans[TQ + j];
        if span.x < span.y {
            queries = vec2<u32>(min(queries.x, span.x), max(queries.y, span.y));
        }
    }
    let group_heads = H / HKV;
    let steps = (max(queries.y, queries.x) - queries.x) * group_heads;

    let j = first + lane;
    let key = min(j, TK - 1u) * HKV * HEAD_DIM + group.y * HEAD_DIM;
    var x: array<vec4<f32>, QUADS>; // k[j] / sqrt(HEAD_DIM)
    var y: array<vec4<f32>, QUADS>; // v[j]
    var dk_sum: array<vec4<f32>, QUADS>; // dk[j] * sqrt(HEAD_DIM)
    var dv_sum: array<vec4<f32>, QUADS>;
    for (var c = 0u; c < QUADS; c++) {
        x[c] = quad_k(key, c) / sqrt(f32(HEAD_DIM));
        y[c] = quad_v(key, c);
    }

    // Query by query, and for each the heads that share this key head.
    for (var start = 0u; start < steps; start += BLOCK) {
        let count = min(BLOCK, steps - start);
        workgroupBarrier();
        for (var n = lane; n < count * QUADS; n += 64u) {
            let t = start + n / QUADS;
            let row = (queries.x + t / group_heads) * H + group.y * group_heads + t % group_heads;
            q_block[n] = quad_q(row * HEAD_DIM, n % QUADS);
            g_block[n] = quad_d_o(row * HEAD_DIM, n % QUADS);
        }
        workgroupBarrier();
        for (var n = 0u; n < count; n++) {
            let t = start + n;
            let i = queries.x + t / group_heads;
            let s = spans[i];
            // Keys behind the last are in no range.
            if !((j >= s.x && j < s.y) || (j >= s.z && j < s.w)) {
                continue;
            }
            let stat = stats[i * H + group.y * group_heads + t % group_heads];
            var score = 0.0;
            var dp = 0.0;
            for (var c = 0u; c < QUADS; c++) {
                score = dot_add(x[c], q_block[n * QUADS + c], score);
                if WANT_DK {
                    dp = dot_add(y[c], g_block[n * QUADS + c], dp);
                }
            }
            score = capped(score);
            let p = exp(score - stat.x);
            let ds = p * (dp - stat.y) * cap_slope(score);
            for (var c = 0u; c < QUADS; c++) {
                if WANT_DK {
                    dk_sum[c] = fma(vec4<f32>(ds), q_block[n * QUADS + c], dk_sum[c]);
                }
                if WANT_DV {
                    dv_sum[c] = fma(vec4<f32>(p), g_block[n * QUADS + c], dv_sum[c]);
                }
            }
        }
    }

    if j < TK {
        for (var c = 0u; c < QUADS; c++) {
            let u = dk_sum[c] / sqrt(f32(HEAD_DIM));
            let w = dv_sum[c];
            for (var e = 0u; e < 4u; e++) {
                if 4u * c + e < HEAD_DIM {
                    let at = key + 4u * c + e;
                    if WANT_DK {
                        if ACCUMULATE_DK {
                            dk[at] = dk[at] + u[e];
                        } else {
                            dk[at] = u[e];
                        }
                    }
                    if WANT_DV {
                        if ACCUMULATE_DV {
                            dv[at] = dv[at] + w[e];
                        } else {
                            dv[at] = w[e];
                        }
                    }
                }
            }
        }
    }
}
