// attention, gradient of q: dq[i] = sum_j p[i, j] (dp[i, j] - delta[i]) k[j] / sqrt(HEAD_DIM),
// p[i, j] = exp(s[i, j] - lse[i]) recomputed, dp[i, j] = d_o[i] . v[j].
// One invocation computes QUERIES consecutive queries of HEADS heads that share a key head, as
// forward_1 does; one key at a time, everything in registers, no barriers.
// Grid: x = ceil(TQ / (8 * QUERIES)), y = H / HEADS.
// Needs: nothing beyond WebGPU's default limits.

const TQ: u32 = 1u; // queries
const TK: u32 = 1u; // keys
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 32u; // elements of a head
const CAPPED: bool = false; // scores are CAP * tanh(score / CAP)
const CAP: f32 = 1.0; // bound of capped scores
const HEADS: u32 = 1u; // heads per invocation; divides H / HKV
const ACCUMULATE: bool = false; // add to dq instead of overwriting it

const QUERIES: u32 = 4u; // queries per invocation
const ROWS: u32 = QUERIES * HEADS; // row = query * HEADS + head
const QUADS: u32 = (HEAD_DIM + 3u) / 4u;

@group(0) @binding(0) var<storage, read> q: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [TQ]: ctx_start, ctx_end, own_start, own_end; [TK]: query_start, query_end
@group(0) @binding(4) var<storage, read> d_o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>; // [TQ, H]: lse, delta
@group(0) @binding(6) var<storage, read_write> dq: array<f32>; // [TQ, H * HEAD_DIM]

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

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (group.x * 8u + lane) * QUERIES;
    if first >= TQ {
        return;
    }
    let head = group.y * HEADS;
    let kv = head / (H / HKV) * HEAD_DIM;

    // What each query attends to, and the two ranges of keys that hold all of it.
    var span: array<vec4<u32>, QUERIES>;
    var ctx = vec2<u32>(TK, 0u);
    var own = vec2<u32>(TK, 0u);
    for (var a = 0u; a < QUERIES; a++) {
        let s = spans[min(first + a, TQ - 1u)];
        span[a] = s;
        if s.z < s.w {
            own = vec2<u32>(min(own.x, s.z), max(own.y, s.w));
        }
        if s.x < s.y {
            ctx = vec2<u32>(min(ctx.x, s.x), max(ctx.y, s.y));
        }
    }
    var rows: array<array<vec4<f32>, QUADS>, ROWS>; // q / sqrt(HEAD_DIM)
    var d_rows: array<array<vec4<f32>, QUADS>, ROWS>; // d_o
    var sums: array<array<vec4<f32>, QUADS>, ROWS>; // dq * sqrt(HEAD_DIM)
    var stat: array<vec2<f32>, ROWS>;
    // Rows are loaded and stored in loops whose length the compiler cannot know, picking the row
    // by comparison: unrolled accesses made software adapters compile for many seconds.
    let here = min(QUERIES, TQ - first) * HEADS;
    for (var n = 0u; n < here; n++) {
        let row = (first + n / HEADS) * H + head + n % HEADS;
        let z = stats[row];
        for (var r = 0u; r < ROWS; r++) {
            stat[r] = select(stat[r], z, r == n);
        }
        for (var c = 0u; c < QUADS; c++) {
            let x = quad_q(row * HEAD_DIM, c) / sqrt(f32(HEAD_DIM));
            let y = quad_d_o(row * HEAD_DIM, c);
            for (var r = 0u; r < ROWS; r++) {
                rows[r][c] = select(rows[r][c], x, r == n);
                d_rows[r][c] = select(d_rows[r][c], y, r == n);
            }
        }
    }

    // The keys in one sequence, first the context, then the own range: lanes that differ in the
    // two lengths still walk together.
    let in_ctx = max(ctx.y, ctx.x) - ctx.x;
    let keys = in_ctx + max(own.y, own.x) - own.x;
    for (var t = 0u; t < keys; t++) {
        let j = select(t - in_ctx + own.x, t + ctx.x, t < in_ctx);
        let key = j * HKV * HEAD_DIM + kv;
        var keep = array<vec4<f32>, QUADS>(); // k[j], needed twice
        var ds = array<f32, ROWS>(); // first the scores
        var dp = array<f32, ROWS>();
        for (var c = 0u; c < QUADS; c++) {
            let x = quad_k(key, c);
            let y = quad_v(key, c);
            keep[c] = x;
            for (var r = 0u; r < ROWS; r++) {
                ds[r] = dot_add(rows[r][c], x, ds[r]);
                dp[r] = dot_add(d_rows[r][c], y, dp[r]);
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let s = span[r / HEADS];
            let context = j >= s.x && j < s.y;
            // A key in both ranges counts once.
            let alone = j >= s.z && j < s.w && !context;
            let seen = select(alone, context, t < in_ctx);
            // exp may overflow for a key that is not seen, so its term is left out, not multiplied by 0.
            let score = capped(ds[r]);
            let p = exp(score - stat[r].x);
            ds[r] = select(0.0, p * (dp[r] - stat[r].y) * cap_slope(score), seen);
        }
        for (var c = 0u; c < QUADS; c++) {
            for (var r = 0u; r < ROWS; r++) {
                sums[r][c] = fma(vec4<f32>(ds[r]), keep[c], sums[r][c]);
            }
        }
    }

    for (var n = 0u; n < here; n++) {
        let row = (first + n / HEADS) * H + head + n % HEADS;
        for (var c = 0u; c < QUADS; c++) {
            var x = vec4<f32>();
            for (var r = 0u; r < ROWS; r++) {
                x = select(x, sums[r][c], r == n);
            }
            x = x / sqrt(f32(HEAD_DIM));
            for (var e = 0u; e < 4u; e++) {
                if 4u * c + e < HEAD_DIM {
                    let at = row * HEAD_DIM + 4u * c + e;
                    if ACCUMULATE {
                        dq[at] = dq[at] + x[e];
                    } else {
                        dq[at] = x[e];
                    }
                }
            }
        }
    }
}
