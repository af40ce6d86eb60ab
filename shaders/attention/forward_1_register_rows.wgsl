// attention, forward: o[i] = sum_j p[i, j] v[j],  p[i, j] = exp(s[i, j] - lse[i]),
// s[i, j] = q[i] . k[j] / sqrt(HEAD_DIM), over the keys j that query i attends to.
// One invocation computes QUERIES consecutive queries of HEADS heads that share a key head, so
// that each element of k and v it loads serves all of them: on a software adapter loads are the
// wall. Running softmax over four keys at a time, everything in registers, no barriers.
// Grid: x = ceil(T / (8 * QUERIES)), y = H / HEADS.
// Needs: nothing beyond WebGPU's default limits.

const T: u32 = 1u; // tokens
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 32u; // elements of a head
const HEADS: u32 = 1u; // heads per invocation; divides H / HKV

const QUERIES: u32 = 4u; // queries per invocation
const ROWS: u32 = QUERIES * HEADS; // row = query * HEADS + head
const QUADS: u32 = (HEAD_DIM + 3u) / 4u;
const LOWEST: f32 = -3e38; // below every score, and finite

@group(0) @binding(0) var<storage, read> q: array<f32>; // [T, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [T, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [T, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [T]: ctx_start, ctx_end, own_start, query_end
@group(0) @binding(4) var<storage, read_write> o: array<f32>; // [T, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // [T, H]

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

    var rows: array<array<vec4<f32>, QUADS>, ROWS>;
    var sums: array<array<vec4<f32>, QUADS>, ROWS>;
    var highest: array<f32, ROWS>;
    var total: array<f32, ROWS>;
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
        highest[r] = LOWEST;
        total[r] = 0.0;
        let i = min(first + r / HEADS, T - 1u);
        for (var c = 0u; c < QUADS; c++) {
            rows[r][c] = quad_q((i * H + head + r % HEADS) * HEAD_DIM, c) / sqrt(f32(HEAD_DIM));
            sums[r][c] = vec4<f32>();
        }
    }

    // The keys in one sequence, first the context, then the own range: lanes that differ in the
    // two lengths still walk together.
    let in_ctx = max(ctx.y, ctx.x) - ctx.x;
    let keys = in_ctx + min(first + QUERIES, T) - own_start;
    for (var t = 0u; t < keys; t += 4u) {
        let at = min(vec4<u32>(t, t + 1u, t + 2u, t + 3u), vec4<u32>(keys - 1u));
        let j = select(at - in_ctx + own_start, at + ctx.x, at < vec4<u32>(in_ctx));
        let base = j * (HKV * HEAD_DIM) + kv;
        var scores: array<vec4<f32>, ROWS>;
        for (var c = 0u; c < QUADS; c++) {
            let k0 = quad_k(base.x, c);
            let k1 = quad_k(base.y, c);
            let k2 = quad_k(base.z, c);
            let k3 = quad_k(base.w, c);
            for (var r = 0u; r < ROWS; r++) {
                let x = rows[r][c];
                var s = scores[r];
                s = fma(vec4<f32>(x.x), vec4<f32>(k0.x, k1.x, k2.x, k3.x), s);
                s = fma(vec4<f32>(x.y), vec4<f32>(k0.y, k1.y, k2.y, k3.y), s);
                s = fma(vec4<f32>(x.z), vec4<f32>(k0.z, k1.z, k2.z, k3.z), s);
                s = fma(vec4<f32>(x.w), vec4<f32>(k0.w, k1.w, k2.w, k3.w), s);
                scores[r] = s;
            }
        }
        var scale: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let s = span[r / HEADS];
            let context = (j >= vec4<u32>(s.x)) & (j < vec4<u32>(s.y));
            // A key in both ranges counts once.
            let own = (j >= vec4<u32>(s.z)) & (j < vec4<u32>(s.w)) & !context;
            let place = vec4<u32>(t, t + 1u, t + 2u, t + 3u);
            let seen = select(own, context, place < vec4<u32>(in_ctx)) & (place < vec4<u32>(keys));
            let score = select(vec4<f32>(LOWEST), scores[r], seen);
            let top = max(highest[r], max(max(score.x, score.y), max(score.z, score.w)));
            scale[r] = exp(highest[r] - top);
            let p = select(vec4<f32>(), exp(score - top), seen);
            total[r] = total[r] * scale[r] + (p.x + p.y + p.z + p.w);
            highest[r] = top;
            scores[r] = p;
        }
        for (var c = 0u; c < QUADS; c++) {
            let v0 = quad_v(base.x, c);
            let v1 = quad_v(base.y, c);
            let v2 = quad_v(base.z, c);
            let v3 = quad_v(base.w, c);
            for (var r = 0u; r < ROWS; r++) {
                let p = scores[r];
                var sum = sums[r][c] * scale[r];
                sum = fma(vec4<f32>(p.x), v0, sum);
                sum = fma(vec4<f32>(p.y), v1, sum);
                sum = fma(vec4<f32>(p.z), v2, sum);
                sum = fma(vec4<f32>(p.w), v3, sum);
                sums[r][c] = sum;
            }
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        let i = first + r / HEADS;
        if i < T {
            let row = i * H + head + r % HEADS;
            lse[row] = highest[r] + log(total[r]);
            let factor = 1.0 / total[r];
            for (var c = 0u; c < QUADS; c++) {
                let x = sums[r][c] * factor;
                let at = row * HEAD_DIM + 4u * c;
                o[at] = x.x;
                if 4u * c + 1u < HEAD_DIM { o[at + 1u] = x.y; }
                if 4u * c + 2u < HEAD_DIM { o[at + 2u] = x.z; }
                if 4u * c + 3u < HEAD_DIM { o[at + 3u] = x.w; }
            }
        }
    }
}
