// attention, gradients of k and v:
// dk[j] = sum_i p[i, j] (dp[i, j] - delta[i]) q[i] / sqrt(HEAD_DIM),  dv[j] = sum_i p[i, j] d_o[i],
// over the queries i that attend key j and the query heads that share its head;
// p[i, j] = exp(s[i, j] - lse[i]) recomputed, dp[i, j] = d_o[i] . v[j].
// One invocation computes KEYS consecutive keys of one head, so that each element of q and d_o it
// loads serves all of them; four queries at a time, everything in registers, no barriers.
// Grid: x = ceil(T / (8 * KEYS)), y = HKV.
// Needs: nothing beyond WebGPU's default limits.

const T: u32 = 1u; // tokens
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 32u; // elements of a head
const WANT_DK: bool = true; // dk is wanted
const WANT_DV: bool = true; // dv is wanted
const ACCUMULATE_DK: bool = false; // add to dk instead of overwriting it
const ACCUMULATE_DV: bool = false; // add to dv instead of overwriting it

const KEYS: u32 = 4u; // keys per invocation
const QUADS: u32 = (HEAD_DIM + 3u) / 4u;

@group(0) @binding(0) var<storage, read> q: array<f32>; // [T, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [T, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [T, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [T]: ctx_start, ctx_end, own_start, query_end
@group(0) @binding(4) var<storage, read> d_o: array<f32>; // [T, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>; // [T, H]: lse, delta
@group(0) @binding(6) var<storage, read_write> dk: array<f32>; // [T, HKV * HEAD_DIM], [1] if not wanted
@group(0) @binding(7) var<storage, read_write> dv: array<f32>; // [T, HKV * HEAD_DIM], [1] if not wanted

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

// sum + x . each of four vectors.
fn dots(x: vec4<f32>, y0: vec4<f32>, y1: vec4<f32>, y2: vec4<f32>, y3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    var s = fma(vec4<f32>(x.x), vec4<f32>(y0.x, y1.x, y2.x, y3.x), sum);
    s = fma(vec4<f32>(x.y), vec4<f32>(y0.y, y1.y, y2.y, y3.y), s);
    s = fma(vec4<f32>(x.z), vec4<f32>(y0.z, y1.z, y2.z, y3.z), s);
    return fma(vec4<f32>(x.w), vec4<f32>(y0.w, y1.w, y2.w, y3.w), s);
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (group.x * 8u + lane) * KEYS;
    if first >= T {
        return;
    }
    let kv = group.y * HEAD_DIM;

    var k_rows: array<array<vec4<f32>, QUADS>, KEYS>; // k / sqrt(HEAD_DIM)
    var v_rows: array<array<vec4<f32>, QUADS>, KEYS>;
    var dk_sums: array<array<vec4<f32>, QUADS>, KEYS>;
    var dv_sums: array<array<vec4<f32>, QUADS>, KEYS>;
    var end = first;
    for (var r = 0u; r < KEYS; r++) {
        let j = min(first + r, T - 1u);
        end = max(end, spans[j].w);
        for (var c = 0u; c < QUADS; c++) {
            k_rows[r][c] = quad_k(j * HKV * HEAD_DIM + kv, c) / sqrt(f32(HEAD_DIM));
            v_rows[r][c] = quad_v(j * HKV * HEAD_DIM + kv, c);
            dk_sums[r][c] = vec4<f32>();
            dv_sums[r][c] = vec4<f32>();
        }
    }
    end = min(end, T);

    for (var t = first; t < end; t += 4u) {
        let place = vec4<u32>(t, t + 1u, t + 2u, t + 3u);
        let i = min(place, vec4<u32>(end - 1u));
        let s0 = spans[i.x];
        let s1 = spans[i.y];
        let s2 = spans[i.z];
        let s3 = spans[i.w];
        let ctx_start = vec4<u32>(s0.x, s1.x, s2.x, s3.x);
        let ctx_end = vec4<u32>(s0.y, s1.y, s2.y, s3.y);
        let own_start = vec4<u32>(s0.z, s1.z, s2.z, s3.z);
        for (var h = group.y * (H / HKV); h < (group.y + 1u) * (H / HKV); h++) {
            let row = i * H + h;
            let base = row * HEAD_DIM;
            var q0: array<vec4<f32>, QUADS>;
            var q1: array<vec4<f32>, QUADS>;
            var q2: array<vec4<f32>, QUADS>;
            var q3: array<vec4<f32>, QUADS>;
            var g0: array<vec4<f32>, QUADS>;
            var g1: array<vec4<f32>, QUADS>;
            var g2: array<vec4<f32>, QUADS>;
            var g3: array<vec4<f32>, QUADS>;
            var p: array<vec4<f32>, KEYS>; // first the scores
            var ds: array<vec4<f32>, KEYS>; // first dp
            for (var c = 0u; c < QUADS; c++) {
                q0[c] = quad_q(base.x, c);
                q1[c] = quad_q(base.y, c);
                q2[c] = quad_q(base.z, c);
                q3[c] = quad_q(base.w, c);
                g0[c] = quad_d_o(base.x, c);
                g1[c] = quad_d_o(base.y, c);
                g2[c] = quad_d_o(base.z, c);
                g3[c] = quad_d_o(base.w, c);
                for (var r = 0u; r < KEYS; r++) {
                    p[r] = dots(k_rows[r][c], q0[c], q1[c], q2[c], q3[c], p[r]);
                    if WANT_DK {
                        ds[r] = dots(v_rows[r][c], g0[c], g1[c], g2[c], g3[c], ds[r]);
                    }
                }
            }
            let stat0 = stats[row.x];
            let stat1 = stats[row.y];
            let stat2 = stats[row.z];
            let stat3 = stats[row.w];
            let lse = vec4<f32>(stat0.x, stat1.x, stat2.x, stat3.x);
            let delta = vec4<f32>(stat0.y, stat1.y, stat2.y, stat3.y);
            for (var r = 0u; r < KEYS; r++) {
                let j = vec4<u32>(first + r);
                let context = (j >= ctx_start) & (j < ctx_end);
                let own = (j >= own_start) & (j <= i);
                let seen = (context | own) & (place < vec4<u32>(end));
                // exp of an unseen key may overflow, so it is not multiplied with but left out.
                p[r] = select(vec4<f32>(), exp(p[r] - lse), seen);
                ds[r] = p[r] * (ds[r] - delta);
            }
            for (var c = 0u; c < QUADS; c++) {
                for (var r = 0u; r < KEYS; r++) {
                    if WANT_DK {
                        let x = ds[r];
                        var sum = fma(vec4<f32>(x.x), q0[c], dk_sums[r][c]);
                        sum = fma(vec4<f32>(x.y), q1[c], sum);
                        sum = fma(vec4<f32>(x.z), q2[c], sum);
                        dk_sums[r][c] = fma(vec4<f32>(x.w), q3[c], sum);
                    }
                    if WANT_DV {
                        let x = p[r];
                        var sum = fma(vec4<f32>(x.x), g0[c], dv_sums[r][c]);
                        sum = fma(vec4<f32>(x.y), g1[c], sum);
                        sum = fma(vec4<f32>(x.z), g2[c], sum);
                        dv_sums[r][c] = fma(vec4<f32>(x.w), g3[c], sum);
                    }
                }
            }
        }
    }

    for (var r = 0u; r < KEYS; r++) {
        let j = first + r;
        if j < T {
            for (var c = 0u; c < QUADS; c++) {
                let x = dk_sums[r][c] / sqrt(f32(HEAD_DIM));
                let y = dv_sums[r][c];
                for (var e = 0u; e < 4u; e++) {
                    let at = j * HKV * HEAD_DIM + kv + 4u * c + e;
                    if 4u * c + e < HEAD_DIM {
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
}
