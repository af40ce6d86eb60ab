// attention, forward: o[i] = sum_j p[i, j] v[j],  p[i, j] = exp(s[i, j] - lse[i]),
// s[i, j] = q[i] . k[j] / sqrt(HEAD_DIM), over the keys j that query i attends to.
// The formula as loops: one invocation per query and HEADS heads, one after the other; a first walk
// over the keys finds the largest score, a second adds up. Scores are computed twice, because
// keeping them would take [T, T] memory.
// Grid: x = ceil(TQ / 64), y = H / HEADS.
// Needs: nothing beyond WebGPU's default limits.

const TQ: u32 = 1u; // queries
const TK: u32 = 1u; // keys
const H: u32 = 1u; // query heads
const HKV: u32 = 1u; // key heads; H is a multiple
const HEAD_DIM: u32 = 32u; // elements of a head
const CAPPED: bool = false; // scores are CAP * tanh(score / CAP)
const CAP: f32 = 1.0; // bound of capped scores
const HEADS: u32 = 1u; // heads per invocation; divides H / HKV

const LOWEST: f32 = -3e38; // below every score, and finite

@group(0) @binding(0) var<storage, read> q: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(1) var<storage, read> k: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(2) var<storage, read> v: array<f32>; // [TK, HKV * HEAD_DIM]
@group(0) @binding(3) var<storage, read> spans: array<vec4<u32>>; // [TQ]: ctx_start, ctx_end, own_start, own_end; [TK]: query_start, query_end
@group(0) @binding(4) var<storage, read_write> o: array<f32>; // [TQ, H * HEAD_DIM]
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // [TQ, H]

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

// q . k / sqrt(HEAD_DIM), capped, of the heads that start there.
fn score(q_start: u32, k_start: u32) -> f32 {
    var sum = 0.0;
    for (var c = 0u; c < HEAD_DIM; c++) {
        sum += q[q_start + c] * k[k_start + c];
    }
    return capped(sum / sqrt(f32(HEAD_DIM)));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.x * 64u + lane;
    if i >= TQ {
        return;
    }
    // All keys that the two ranges hold, and what lies between them.
    let first = min(spans[i].x, spans[i].z);
    let end = max(spans[i].y, spans[i].w);
    for (var n = 0u; n < HEADS; n++) {
        let head = group.y * HEADS + n;
        let row = i * H + head;
        let kv = head / (H / HKV);
        var largest = LOWEST;
        for (var j = first; j < end; j++) {
            if attends(i, j) {
                largest = max(largest, score(row * HEAD_DIM, (j * HKV + kv) * HEAD_DIM));
            }
        }
        // The largest term is exp(0) = 1, so nothing overflows and the total is at least 1.
        var total = 0.0;
        var sum = array<f32, HEAD_DIM>(); // o[i] * total
        for (var j = first; j < end; j++) {
            if attends(i, j) {
                let key = (j * HKV + kv) * HEAD_DIM;
                let p = exp(score(row * HEAD_DIM, key) - largest);
                total += p;
                for (var c = 0u; c < HEAD_DIM; c++) {
                    sum[c] += p * v[key + c];
                }
            }
        }
        lse[row] = largest + log(total);
        for (var c = 0u; c < HEAD_DIM; c++) {
            o[row * HEAD_DIM + c] = sum[c] / total;
        }
    }
}
