// attention, gradient of q: dq[i] = sum_j p[i, j] (dp[i, j] - delta[i]) k[j] / sqrt(HEAD_DIM),
// p[i, j] = exp(s[i, j] - lse[i]) recomputed, dp[i, j] = d_o[i] . v[j].
// One invocation per query head; a workgroup of 64 queries and HEADS heads of one key head walks
// over the keys its queries attend to in blocks held in workgroup memory.
// Grid: x = ceil(TQ / 64), y = H / HEADS.
// Needs: 64 * HEADS <= 256 invocations, at most 16 KiB of workgroup memory.

const TQ: u32 = 1u; // queries
const TK: u32 = 1u; // keys
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 32u; // elements of a head
const CAPPED: bool = false; // scores are CAP * tanh(score / CAP)
const CAP: f32 = 1.0; // bound of capped scores
const HEADS: u32 = 1u; // heads per workgroup; divides H / HKV
const ACCUMULATE: bool = false; // add to dq instead of overwriting it

const QUADS: u32 = (HEAD_DIM + 3u) / 4u;
const BLOCK: u32 = min(32u, 512u / QUADS); // keys at a time: two blocks fill 16 KiB at most

@group(0) @binding(0) var<storage, read> q: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [TQ]: ctx_start, ctx_end, own_start, own_end; [TK]: query_start, query_end
@group(0) @binding(4) var<storage, read> d_o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>; // [TQ, H]: lse, delta
@group(0) @binding(6) var<storage, read_write> dq: array<f32>; // [TQ, H * HEAD_DIM]

var<workgroup> k_block: array<vec4<f32>, BLOCK * QUADS>;
var<workgroup> v_block: array<vec4<f32>, BLOCK * QUADS>;

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

@compute @workgroup_size(64, HEADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // The same for all invocations: two ranges of keys that hold all that these queries attend to.
    let first = group.x * 64u;
    let end = min(first + 64u, TQ);
    var ctx = vec2<u32>(TK, 0u);
    var own = vec2<u32>(TK, 0u);
    for (var i = first; i < end; i++) {
        let s = spans[i];
        if s.z < s.w {
            own = vec2<u32>(min(own.x, s.z), max(own.y, s.w));
        }
        if s.x < s.y {
            ctx = vec2<u32>(min(ctx.x, s.x), max(ctx.y, s.y));
        }
    }
    let in_ctx = max(ctx.y, ctx.x) - ctx.x;
    let keys = in_ctx + max(own.y, own.x) - own.x;

    let i = min(first + local.x, TQ - 1u);
    let head = group.y * HEADS + local.y;
    let kv = group.y * HEADS / (H / HKV) * HEAD_DIM;
    let row = i * H + head;
    let s = spans[i];
    var x: array<vec4<f32>, QUADS>; // q[i] / sqrt(HEAD_DIM)
    var y: array<vec4<f32>, QUADS>; // d_o[i]
    var sum: array<vec4<f32>, QUADS>; // dq[i] * sqrt(HEAD_DIM)
    let stat = stats[row];
    for (var c = 0u; c < QUADS; c++) {
        x[c] = quad_q(row * HEAD_DIM, c) / sqrt(f32(HEAD_DIM));
        y[c] = quad_d_o(row * HEAD_DIM, c);
    }

    for (var start = 0u; start < keys; start += BLOCK) {
        let count = min(BLOCK, keys - start);
        workgroupBarrier();
        for (var n = lane; n < count * QUADS; n += 64u * HEADS) {
            let t = start + n / QUADS;
            let j = select(t - in_ctx + own.x, t + ctx.x, t < in_ctx);
            k_block[n] = quad_k(j * HKV * HEAD_DIM + kv, n % QUADS);
            v_block[n] = quad_v(j * HKV * HEAD_DIM + kv, n % QUADS);
        }
        workgroupBarrier();
        for (var n = 0u; n < count; n++) {
            let t = start + n;
            let j = select(t - in_ctx + own.x, t + ctx.x, t < in_ctx);
            let context = j >= s.x && j < s.y;
            // A key in both ranges counts once.
            let alone = j >= s.z && j < s.w && !context;
            if !select(alone, context, t < in_ctx) {
                continue;
            }
            var score = 0.0;
            var dp = 0.0;
            for (var c = 0u; c < QUADS; c++) {
                score = dot_add(x[c], k_block[n * QUADS + c], score);
                dp = dot_add(y[c], v_block[n * QUADS + c], dp);
            }
            score = capped(score);
            let ds = exp(score - stat.x) * (dp - stat.y) * cap_slope(score);
            for (var c = 0u; c < QUADS; c++) {
                sum[c] = fma(vec4<f32>(ds), k_block[n * QUADS + c], sum[c]);
            }
        }
    }

    if first + local.x < TQ {
        for (var c = 0u; c < QUADS; c++) {
            let z = sum[c] / sqrt(f32(HEAD_DIM));
            for (var e = 0u; e < 4u; e++) {
                if 4u * c + e < HEAD_DIM {
                    let at = row * HEAD_DIM + 4u * c + e;
                    if ACCUMULATE {
                        dq[at] = dq[at] + z[e];
                    } else {
                        dq[at] = z[e];
                    }
                }
            }
        }
    }
}
