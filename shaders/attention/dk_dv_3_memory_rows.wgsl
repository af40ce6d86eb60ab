// attention, gradients of k and v:
// dk[j] = sum_i p[i, j] (dp[i, j] - delta[i]) q[i] / sqrt(HEAD_DIM),  dv[j] = sum_i p[i, j] d_o[i],
// over the queries i that attend key j and the query heads that share its head;
// p[i, j] = exp(s[i, j] - lse[i]) recomputed, dp[i, j] = d_o[i] . v[j].
// For heads too wide for registers, where register_rows takes a software adapter minutes to compile:
// keys and gradients stay in memory, and the loops over a head's elements are not unrolled, so that the code
// is as long for any width. A tile of KEYS keys by ROWS rows shares what is loaded.
// One invocation computes KEYS consecutive keys of one head; a row is a query and a query head.
// Grid: x = ceil(TK / (8 * KEYS)), y = HKV.
// Needs: nothing beyond WebGPU's default limits.

const TQ: u32 = 1u; // queries
const TK: u32 = 1u; // keys
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 128u; // elements of a head
const CAPPED: bool = false; // scores are CAP * tanh(score / CAP)
const CAP: f32 = 1.0; // bound of capped scores
const WANT_DK: bool = true; // dk is wanted
const WANT_DV: bool = true; // dv is wanted
const ACCUMULATE_DK: bool = false; // add to dk instead of overwriting it
const ACCUMULATE_DV: bool = false; // add to dv instead of overwriting it

const KEYS: u32 = 8u; // keys per invocation
const ROWS: u32 = 4u; // rows at a time
const QUADS: u32 = (HEAD_DIM + 3u) / 4u;
const WHOLE: bool = HEAD_DIM % 4u == 0u; // no quad is cut by the end of a head

@group(0) @binding(0) var<storage, read> q: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [TQ]: ctx_start, ctx_end, own_start, own_end; [TK]: query_start, query_end
@group(0) @binding(4) var<storage, read> d_o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>; // [TQ, H]: lse, delta
@group(0) @binding(6) var<storage, read_write> dk: array<f32>; // [TK, HKV * HEAD_DIM], [1] if not wanted
@group(0) @binding(7) var<storage, read_write> dv: array<f32>; // [TK, HKV * HEAD_DIM], [1] if not wanted

// Four elements of a head, zeros behind its end.
fn quad_q(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(q[i], 0.0, 0.0, 0.0);
    if WHOLE || 4u * c + 1u < HEAD_DIM { x.y = q[i + 1u]; }
    if WHOLE || 4u * c + 2u < HEAD_DIM { x.z = q[i + 2u]; }
    if WHOLE || 4u * c + 3u < HEAD_DIM { x.w = q[i + 3u]; }
    return x;
}

fn quad_k(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(k[i], 0.0, 0.0, 0.0);
    if WHOLE || 4u * c + 1u < HEAD_DIM { x.y = k[i + 1u]; }
    if WHOLE || 4u * c + 2u < HEAD_DIM { x.z = k[i + 2u]; }
    if WHOLE || 4u * c + 3u < HEAD_DIM { x.w = k[i + 3u]; }
    return x;
}

fn quad_v(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(v[i], 0.0, 0.0, 0.0);
    if WHOLE || 4u * c + 1u < HEAD_DIM { x.y = v[i + 1u]; }
    if WHOLE || 4u * c + 2u < HEAD_DIM { x.z = v[i + 2u]; }
    if WHOLE || 4u * c + 3u < HEAD_DIM { x.w = v[i + 3u]; }
    return x;
}

fn quad_d_o(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(d_o[i], 0.0, 0.0, 0.0);
    if WHOLE || 4u * c + 1u < HEAD_DIM { x.y = d_o[i + 1u]; }
    if WHOLE || 4u * c + 2u < HEAD_DIM { x.z = d_o[i + 2u]; }
    if WHOLE || 4u * c + 3u < HEAD_DIM { x.w = d_o[i + 3u]; }
    return x;
}

// sum + x . y
fn dot_add(x: vec4<f32>, y: vec4<f32>, sum: f32) -> f32 {
    return fma(x.w, y.w, fma(x.z, y.z, fma(x.y, y.y, fma(x.x, y.x, sum))));
}

// Adds x to four elements of dk, or puts it there.
fn add_dk(head: u32, c: u32, x: vec4<f32>, add: bool) {
    for (var e = 0u; e < 4u; e++) {
        if WHOLE || 4u * c + e < HEAD_DIM {
            let at = head + 4u * c + e;
            var sum = x[e];
            if add {
                sum += dk[at];
            }
            dk[at] = sum;
        }
    }
}

// As add_dk.
fn add_dv(head: u32, c: u32, x: vec4<f32>, add: bool) {
    for (var e = 0u; e < 4u; e++) {
        if WHOLE || 4u * c + e < HEAD_DIM {
            let at = head + 4u * c + e;
            var sum = x[e];
            if add {
                sum += dv[at];
            }
            dv[at] = sum;
        }
    }
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
    let first = (group.x * 8u + lane) * KEYS;
    if first >= TK {
        return;
    }
    let kv = group.y * HEAD_DIM;
    let group_heads = H / HKV;
    // The same as QUADS, but the compiler cannot know, and unrolls nothing.
    let quads = min(QUADS, arrayLength(&q));

    var key: array<u32, KEYS>; // where its k and v begin
    var queries = vec2<u32>(TQ, 0u); // the first that may attend one of these keys, and the end
    for (var b = 0u; b < KEYS; b++) {
        let j = min(first + b, TK - 1u);
        key[b] = j * HKV * HEAD_DIM + kv;
        let span = spans[TQ + j];
        if span.x < span.y {
            queries = vec2<u32>(min(queries.x, span.x), max(queries.y, span.y));
        }
    }

    // Query by query, and for each the heads that share this key head. Keys that no query attends
    // get zeros from one empty tile.
    let steps = (max(queries.y, queries.x) - queries.x) * group_heads;
    for (var t = 0u; t < max(steps, 1u); t += ROWS) {
        var query = array<u32, ROWS>();
        var row = array<u32, ROWS>(); // where its q begins
        var p = array<array<f32, ROWS>, KEYS>(); // first the scores
        var ds = array<array<f32, ROWS>, KEYS>(); // first dp
        for (var r = 0u; r < ROWS; r++) {
            let n = min(t + r, max(steps, 1u) - 1u);
            query[r] = min(queries.x + n / group_heads, TQ - 1u);
            row[r] = (query[r] * H + group.y * group_heads + n % group_heads) * HEAD_DIM;
        }
        for (var c = 0u; c < quads; c++) {
            var x = array<vec4<f32>, ROWS>();
            var y = array<vec4<f32>, ROWS>();
            for (var r = 0u; r < ROWS; r++) {
                x[r] = quad_q(row[r], c);
                if WANT_DK {
                    y[r] = quad_d_o(row[r], c);
                }
            }
            for (var b = 0u; b < KEYS; b++) {
                let of_k = quad_k(key[b], c);
                for (var r = 0u; r < ROWS; r++) {
                    p[b][r] = dot_add(of_k, x[r], p[b][r]);
                }
                if WANT_DK {
                    let of_v = quad_v(key[b], c);
                    for (var r = 0u; r < ROWS; r++) {
                        ds[b][r] = dot_add(of_v, y[r], ds[b][r]);
                    }
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let s = spans[query[r]];
            let stat = stats[row[r] / HEAD_DIM];
            for (var b = 0u; b < KEYS; b++) {
                let j = first + b;
                let seen = t + r < steps && ((j >= s.x && j < s.y) || (j >= s.z && j < s.w));
                // exp may overflow for a key that is not seen, so its term is left out, not multiplied by 0.
                let score = capped(p[b][r] / sqrt(f32(HEAD_DIM)));
                let slope = cap_slope(score) / sqrt(f32(HEAD_DIM));
                p[b][r] = select(0.0, exp(score - stat.x), seen);
                ds[b][r] = p[b][r] * (ds[b][r] - stat.y) * slope;
            }
        }
        for (var c = 0u; c < quads; c++) {
            var x = array<vec4<f32>, ROWS>();
            var y = array<vec4<f32>, ROWS>();
            for (var r = 0u; r < ROWS; r++) {
                x[r] = quad_q(row[r], c);
                y[r] = quad_d_o(row[r], c);
            }
            for (var b = 0u; b < KEYS; b++) {
                if first + b < TK {
                    if WANT_DK {
                        var sum = vec4<f32>();
                        for (var r = 0u; r < ROWS; r++) {
                            sum = fma(vec4<f32>(ds[b][r]), x[r], sum);
                        }
                        add_dk(key[b], c, sum, t > 0u || ACCUMULATE_DK);
                    }
                    if WANT_DV {
                        var sum = vec4<f32>();
                        for (var r = 0u; r < ROWS; r++) {
                            sum = fma(vec4<f32>(p[b][r]), y[r], sum);
                        }
                        add_dv(key[b], c, sum, t > 0u || ACCUMULATE_DV);
                    }
                }
            }
        }
    }
}
