// attention, gradient of q: dq[i] = sum_j p[i, j] (dp[i, j] - delta[i]) k[j] / sqrt(HEAD_DIM),
// p[i, j] = exp(s[i, j] - lse[i]) recomputed, dp[i, j] = d_o[i] . v[j].
// One invocation computes QUERIES consecutive queries of HEADS heads that share a key head, as
// forward_1 does; four keys at a time, everything in registers, no barriers.
// Grid: x = ceil(T / (8 * QUERIES)), y = H / HEADS.
// Needs: nothing beyond WebGPU's default limits.

const T: u32 = 1u; // tokens
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 32u; // elements of a head
const HEADS: u32 = 1u; // heads per invocation; divides H / HKV
const ACCUMULATE: bool = false; // add to dq instead of overwriting it

const QUERIES: u32 = 4u; // queries per invocation
const ROWS: u32 = QUERIES * HEADS; // row = query * HEADS + head
const QUADS: u32 = (HEAD_DIM + 3u) / 4u;

@group(0) @binding(0) var<storage, read> q: array<f32>; // [T, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [T, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [T, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [T]: ctx_start, ctx_end, own_start, query_end
@group(0) @binding(4) var<storage, read> d_o: array<f32>; // [T, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>; // [T, H]: lse, delta
@group(0) @binding(6) var<storage, read_write> dq: array<f32>; // [T, H * HEAD_DIM]

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
    let first = (group.x * 8u + lane) * QUERIES;
    if first >= T {
        return;
    }
    let head = group.y * HEADS;
    let kv = head / (H / HKV) * HEAD_DIM;

    var rows: array<array<vec4<f32>, QUADS>, ROWS>; // q / sqrt(HEAD_DIM)
    var d_rows: array<array<vec4<f32>, QUADS>, ROWS>; // d_o
    var sums: array<array<vec4<f32>, QUADS>, ROWS>; // dq
    var stat: array<vec2<f32>, ROWS>;
    // What each query attends to, and the two ranges of keys that hold all of it.
    var span: array<vec4<u32>, QUERIES>;
    var ctx = vec2<u32>(T, 0u);
    var own_start = T;
    for (var a = 0u; a < QUERIES; a++) {
        let i = min(first + a, T - 1u);
        let s = spans[i];
        span[a] = vec4<u32>(s.xyz, i + 1u);
        own_start = min(own_start, s.z);
        if s.x < s.y {
            ctx = vec2<u32>(min(ctx.x, s.x), max(ctx.y, s.y));
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let row = min(first + r / HEADS, T - 1u) * H + head + r % HEADS;
        stat[r] = stats[row];
        for (var c = 0u; c < QUADS; c++) {
            rows[r][c] = quad_q(row * HEAD_DIM, c) / sqrt(f32(HEAD_DIM));
            d_rows[r][c] = quad_d_o(row * HEAD_DIM, c);
            sums[r][c] = vec4<f32>();
        }
    }

    // The keys in one sequence, first the context, then the own range.
    let in_ctx = max(ctx.y, ctx.x) - ctx.x;
    let keys = in_ctx + min(first + QUERIES, T) - own_start;
    for (var t = 0u; t < keys; t += 4u) {
        let place = vec4<u32>(t, t + 1u, t + 2u, t + 3u);
        let at = min(place, vec4<u32>(keys - 1u));
        let j = select(at - in_ctx + own_start, at + ctx.x, at < vec4<u32>(in_ctx));
        let base = j * (HKV * HEAD_DIM) + kv;
        var k0: array<vec4<f32>, QUADS>;
        var k1: array<vec4<f32>, QUADS>;
        var k2: array<vec4<f32>, QUADS>;
        var k3: array<vec4<f32>, QUADS>;
        var scores: array<vec4<f32>, ROWS>; // then ds
        var d_p: array<vec4<f32>, ROWS>;
        for (var c = 0u; c < QUADS; c++) {
            k0[c] = quad_k(base.x, c);
            k1[c] = quad_k(base.y, c);
            k2[c] = quad_k(base.z, c);
            k3[c] = quad_k(base.w, c);
            let v0 = quad_v(base.x, c);
            let v1 = quad_v(base.y, c);
            let v2 = quad_v(base.z, c);
            let v3 = quad_v(base.w, c);
            for (var r = 0u; r < ROWS; r++) {
                scores[r] = dots(rows[r][c], k0[c], k1[c], k2[c], k3[c], scores[r]);
                d_p[r] = dots(d_rows[r][c], v0, v1, v2, v3, d_p[r]);
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let s = span[r / HEADS];
            let context = (j >= vec4<u32>(s.x)) & (j < vec4<u32>(s.y));
            // A key in both ranges counts once.
            let own = (j >= vec4<u32>(s.z)) & (j < vec4<u32>(s.w)) & !context;
            let seen = select(own, context, place < vec4<u32>(in_ctx)) & (place < vec4<u32>(keys));
            // exp of an unseen key may overflow, so it is not multiplied with but left out.
            let p = select(vec4<f32>(), exp(scores[r] - stat[r].x), seen);
            scores[r] = p * (d_p[r] - stat[r].y);
        }
        for (var c = 0u; c < QUADS; c++) {
            for (var r = 0u; r < ROWS; r++) {
                let ds = scores[r];
                var sum = fma(vec4<f32>(ds.x), k0[c], sums[r][c]);
                sum = fma(vec4<f32>(ds.y), k1[c], sum);
                sum = fma(vec4<f32>(ds.z), k2[c], sum);
                sums[r][c] = fma(vec4<f32>(ds.w), k3[c], sum);
            }
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        let i = first + r / HEADS;
        if i < T {
            let row = i * H + head + r % HEADS;
            for (var c = 0u; c < QUADS; c++) {
                let x = sums[r][c] / sqrt(f32(HEAD_DIM));
                for (var e = 0u; e < 4u; e++) {
                    let at = row * HEAD_DIM + 4u * c + e;
                    if 4u * c + e < HEAD_DIM {
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
}
