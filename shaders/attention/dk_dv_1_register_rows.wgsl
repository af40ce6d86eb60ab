// attention, gradients of k and v:
// dk[j] = sum_i p[i, j] (dp[i, j] - delta[i]) q[i] / sqrt(HEAD_DIM),  dv[j] = sum_i p[i, j] d_o[i],
// over the queries i that attend key j and the query heads that share its head;
// p[i, j] = exp(s[i, j] - lse[i]) recomputed, dp[i, j] = d_o[i] . v[j].
// One invocation computes KEYS consecutive keys of one head, so that each element of q and d_o it
// loads serves all of them; one query head at a time, everything in registers, no barriers.
// Grid: x = ceil(TK / (8 * KEYS)), y = HKV.
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

const KEYS: u32 = 4u; // keys per invocation
const QUADS: u32 = (HEAD_DIM + 3u) / 4u;

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
    let first = (group.x * 8u + lane) * KEYS;
    if first >= TK {
        return;
    }
    let kv = group.y * HEAD_DIM;
    let group_heads = H / HKV;

    var k_rows: array<array<vec4<f32>, QUADS>, KEYS>; // k / sqrt(HEAD_DIM)
    var v_rows: array<array<vec4<f32>, QUADS>, KEYS>;
    var dk_sums: array<array<vec4<f32>, QUADS>, KEYS>; // dk * sqrt(HEAD_DIM)
    var dv_sums: array<array<vec4<f32>, QUADS>, KEYS>;
    var queries = vec2<u32>(TQ, 0u); // the first that may attend one of these keys, and the end
    // Rows are loaded and stored in loops whose length the compiler cannot know, picking the row
    // by comparison: unrolled accesses made software adapters compile for many seconds.
    let here = min(KEYS, TK - first);
    for (var n = 0u; n < here; n++) {
        let j = first + n;
        let span = spans[TQ + j];
        if span.x < span.y {
            queries = vec2<u32>(min(queries.x, span.x), max(queries.y, span.y));
        }
        for (var c = 0u; c < QUADS; c++) {
            let x = quad_k(j * HKV * HEAD_DIM + kv, c) / sqrt(f32(HEAD_DIM));
            let y = quad_v(j * HKV * HEAD_DIM + kv, c);
            for (var r = 0u; r < KEYS; r++) {
                k_rows[r][c] = select(k_rows[r][c], x, r == n);
                v_rows[r][c] = select(v_rows[r][c], y, r == n);
            }
        }
    }

    // Query by query, and for each the heads that share this key head.
    let steps = (max(queries.y, queries.x) - queries.x) * group_heads;
    for (var t = 0u; t < steps; t++) {
        let i = queries.x + t / group_heads;
        let s = spans[i];
        let row = i * H + group.y * group_heads + t % group_heads;
        let stat = stats[row];
        var x = array<vec4<f32>, QUADS>(); // q[i]
        var y = array<vec4<f32>, QUADS>(); // d_o[i]
        var p = array<f32, KEYS>(); // first the scores
        var ds = array<f32, KEYS>(); // first dp
        for (var c = 0u; c < QUADS; c++) {
            x[c] = quad_q(row * HEAD_DIM, c);
            y[c] = quad_d_o(row * HEAD_DIM, c);
            for (var r = 0u; r < KEYS; r++) {
                p[r] = dot_add(k_rows[r][c], x[c], p[r]);
                if WANT_DK {
                    ds[r] = dot_add(v_rows[r][c], y[c], ds[r]);
                }
            }
        }
        for (var r = 0u; r < KEYS; r++) {
            let j = first + r;
            let seen = (j >= s.x && j < s.y) || (j >= s.z && j < s.w);
            // exp may overflow for a key that is not seen, so its term is left out, not multiplied by 0.
            let score = capped(p[r]);
            p[r] = select(0.0, exp(score - stat.x), seen);
            ds[r] = p[r] * (ds[r] - stat.y) * cap_slope(score);
        }
        for (var c = 0u; c < QUADS; c++) {
            for (var r = 0u; r < KEYS; r++) {
                if WANT_DK {
                    dk_sums[r][c] = fma(vec4<f32>(ds[r]), x[c], dk_sums[r][c]);
                }
                if WANT_DV {
                    dv_sums[r][c] = fma(vec4<f32>(p[r]), y[c], dv_sums[r][c]);
                }
            }
        }
    }

    for (var n = 0u; n < here; n++) {
        for (var c = 0u; c < QUADS; c++) {
            var x = vec4<f32>();
            var y = vec4<f32>();
            for (var r = 0u; r < KEYS; r++) {
                x = select(x, dk_sums[r][c], r == n);
                y = select(y, dv_sums[r][c], r == n);
            }
            x = x / sqrt(f32(HEAD_DIM));
            for (var e = 0u; e < 4u; e++) {
                if 4u * c + e < HEAD_DIM {
                    let at = (first + n) * HKV * HEAD_DIM + kv + 4u * c + e;
                    if WANT_DK {
                        if ACCUMULATE_DK {
                            dk[at] = dk[at] + x[e];
                        } else {
                            dk[at] = x[e];
                        }
                    }
                    if WANT_DV {
                        if ACCUMULATE_DV {
                            dv[at] = dv[at] + y[e];
                        } else {
                            dv[at] = y[e];
                        }
                    }
                }
            }
        }
    }
}
