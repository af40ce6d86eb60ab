// attention, forward: o[i] = sum_j p[i, j] v[j],  p[i, j] = exp(s[i, j] - lse[i]),
// s[i, j] = q[i] . k[j] / sqrt(HEAD_DIM), over the keys j that query i attends to.
// For heads too wide for registers, where register_rows takes a software adapter minutes to compile:
// queries and results stay in memory, and the loops over a head's elements are not unrolled, so that the code
// is as long for any width. A tile of ROWS rows by KEYS keys shares what is loaded.
// Loads per tile and four elements: ROWS + KEYS for the scores, 2 ROWS + KEYS for the sums.
// One invocation computes QUERIES consecutive queries of HEADS heads that share a key head.
// Grid: x = ceil(TQ / (8 * QUERIES)), y = H / HEADS.
// Needs: nothing beyond WebGPU's default limits.

const TQ: u32 = 1u; // queries
const TK: u32 = 1u; // keys
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 128u; // elements of a head
const CAPPED: bool = false; // scores are CAP * tanh(score / CAP)
const CAP: f32 = 1.0; // bound of capped scores
const HEADS: u32 = 1u; // heads per invocation; divides H / HKV

const QUERIES: u32 = 8u; // queries per invocation
const KEYS: u32 = 8u; // keys at a time
const ROWS: u32 = QUERIES * HEADS; // row = query * HEADS + head
const QUADS: u32 = (HEAD_DIM + 3u) / 4u;
const WHOLE: bool = HEAD_DIM % 4u == 0u; // no quad is cut by the end of a head
const LOWEST: f32 = -3e38; // below every score, and finite

@group(0) @binding(0) var<storage, read> q: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [TQ]: ctx_start, ctx_end, own_start, own_end; [TK]: query_start, query_end
@group(0) @binding(4) var<storage, read_write> o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // [TQ, H]

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

// sum + x . y
fn dot_add(x: vec4<f32>, y: vec4<f32>, sum: f32) -> f32 {
    return fma(x.w, y.w, fma(x.z, y.z, fma(x.y, y.y, fma(x.x, y.x, sum))));
}

fn quad_o(head: u32, c: u32) -> vec4<f32> {
    let i = head + 4u * c;
    var x = vec4<f32>(o[i], 0.0, 0.0, 0.0);
    if WHOLE || 4u * c + 1u < HEAD_DIM { x.y = o[i + 1u]; }
    if WHOLE || 4u * c + 2u < HEAD_DIM { x.z = o[i + 2u]; }
    if WHOLE || 4u * c + 3u < HEAD_DIM { x.w = o[i + 3u]; }
    return x;
}

fn put_o(head: u32, c: u32, x: vec4<f32>) {
    let i = head + 4u * c;
    o[i] = x.x;
    if WHOLE || 4u * c + 1u < HEAD_DIM { o[i + 1u] = x.y; }
    if WHOLE || 4u * c + 2u < HEAD_DIM { o[i + 2u] = x.z; }
    if WHOLE || 4u * c + 3u < HEAD_DIM { o[i + 3u] = x.w; }
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
    // The same as QUADS, but the compiler cannot know, and unrolls nothing.
    let quads = min(QUADS, arrayLength(&q));

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
    var row: array<u32, ROWS>; // where its q and o begin
    var highest: array<f32, ROWS>; // score so far
    var total: array<f32, ROWS>; // of exp(score - highest)
    for (var r = 0u; r < ROWS; r++) {
        row[r] = (min(first + r / HEADS, TQ - 1u) * H + head + r % HEADS) * HEAD_DIM;
        highest[r] = LOWEST;
    }

    // The keys in one sequence, first the context, then the own range: lanes that differ in the
    // two lengths still walk together.
    let in_ctx = max(ctx.y, ctx.x) - ctx.x;
    let keys = in_ctx + max(own.y, own.x) - own.x;
    for (var t = 0u; t < keys; t += KEYS) {
        var key = array<u32, KEYS>();
        var p = array<array<f32, ROWS>, KEYS>(); // first the scores
        for (var b = 0u; b < KEYS; b++) {
            let n = min(t + b, keys - 1u);
            key[b] = select(n - in_ctx + own.x, n + ctx.x, n < in_ctx) * HKV * HEAD_DIM + kv;
        }
        for (var c = 0u; c < quads; c++) {
            var y = array<vec4<f32>, KEYS>();
            for (var b = 0u; b < KEYS; b++) {
                y[b] = quad_k(key[b], c);
            }
            for (var r = 0u; r < ROWS; r++) {
                let x = quad_q(row[r], c);
                for (var b = 0u; b < KEYS; b++) {
                    p[b][r] = dot_add(x, y[b], p[b][r]);
                }
            }
        }
        var scale = array<f32, ROWS>();
        for (var r = 0u; r < ROWS; r++) {
            let s = span[r / HEADS];
            var top = highest[r];
            for (var b = 0u; b < KEYS; b++) {
                let n = t + b;
                let j = select(n - in_ctx + own.x, n + ctx.x, n < in_ctx);
                let context = j >= s.x && j < s.y;
                // A key in both ranges counts once.
                let alone = j >= s.z && j < s.w && !context;
                let seen = n < keys && select(alone, context, n < in_ctx);
                p[b][r] = select(LOWEST, capped(p[b][r] / sqrt(f32(HEAD_DIM))), seen);
                top = max(top, p[b][r]);
            }
            scale[r] = exp(highest[r] - top);
            var sum = total[r] * scale[r];
            for (var b = 0u; b < KEYS; b++) {
                // Before the first key that a row sees its top is LOWEST itself.
                p[b][r] = select(0.0, exp(p[b][r] - top), top > LOWEST);
                sum += p[b][r];
            }
            total[r] = sum;
            highest[r] = top;
        }
        for (var c = 0u; c < quads; c++) {
            var y = array<vec4<f32>, KEYS>();
            for (var b = 0u; b < KEYS; b++) {
                y[b] = quad_v(key[b], c);
            }
            for (var r = 0u; r < ROWS; r++) {
                if first + r / HEADS < TQ {
                    var sum = vec4<f32>();
                    if t > 0u {
                        sum = quad_o(row[r], c) * scale[r];
                    }
                    for (var b = 0u; b < KEYS; b++) {
                        sum = fma(vec4<f32>(p[b][r]), y[b], sum);
                    }
                    put_o(row[r], c, sum);
                }
            }
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        if first + r / HEADS < TQ {
            lse[row[r] / HEAD_DIM] = highest[r] + log(total[r]);
            for (var c = 0u; c < quads; c++) {
                put_o(row[r], c, quad_o(row[r], c) / total[r]);
            }
        }
    }
}
