// odds_ratio, forward: loss and both gradients of ORPO's odds-ratio term in closed form.
//     q = 1 - exp(l), floored at 1e-7;  x = q_w / (r q_l) with r = exp(l_w - l_l), so x = exp(-z)
//     L_OR = log1p(x);  g_w = -dL_OR/dl_w = x / ((1 + x) q_w);  g_l = +dL_OR/dl_l = x / ((1 + x) q_l)
//     loss = sum over pairs of pair_weight * L_OR
// x is kept as mantissa * 2^exponent, so that it may lie far beyond what an f32 holds.
// Pair p has its chosen answer at l[2 p] and its rejected one at l[2 p + 1]. A pair of weight 0
// adds exactly nothing to loss and slope; its row of the table is computed all the same.
// Grid: 1 group.
// Needs: nothing beyond WebGPU's default limits; 1 KiB of workgroup memory.

const P: u32 = 1u; // pairs

@group(0) @binding(0) var<storage, read> l: array<f32>; // [2 P], average log-probabilities
@group(0) @binding(1) var<storage, read> pair_weight: array<f32>; // [P]
@group(0) @binding(2) var<storage, read_write> loss: array<f32>; // [1]
@group(0) @binding(3) var<storage, read_write> table: array<f32>; // [P, 4]: L_OR, z, g_w, g_l
@group(0) @binding(4) var<storage, read_write> slope: array<f32>; // [2 P], dloss/dl

const Q_FLOOR: f32 = 1e-7;
const LN2: f32 = 0.6931471805599453;

var<workgroup> sums: array<f32, 256>;

// A positive number, mantissa * 2^exponent.
struct Scaled {
    mantissa: f32,
    exponent: i32,
}

fn power_of_two(k: i32) -> f32 {
    return bitcast<f32>(u32(k + 127) << 23u);
}

// v * 2^k, by two exact factors as 2^k alone may be no f32; zero where that underflows.
fn scale(v: f32, k: i32) -> f32 {
    let all = clamp(k, -250, 250);
    let half_k = all / 2;
    return v * power_of_two(half_k) * power_of_two(all - half_k);
}

// exp(v) for -1e4 <= v <= 0, relative error below 3e-7 (WGSL's exp promises 2 |v| ulp).
// v = k ln 2 + rest, with ln 2 in two parts of which the first times k is exact.
fn exp_scaled(v: f32) -> Scaled {
    let k = floor(v * 1.4426950408889634 + 0.5);
    let rest = (v - k * 0.693359375) + k * 2.12194440054690583e-4;
    // |rest| <= 0.347: the first term left out is below 6e-9.
    let series = 1.0 + rest * (1.0 + rest / 2.0 * (1.0 + rest / 3.0 * (1.0 + rest / 4.0 * (1.0
        + rest / 5.0 * (1.0 + rest / 6.0 * (1.0 + rest / 7.0))))));
    return Scaled(series, i32(k));
}

// 1 - exp(v) for v <= 0, given e = exp(v); relative error below 3e-7.
fn one_minus_exp(v: f32, e: Scaled) -> f32 {
    // |v| < 0.35: the first term left out is below 3e-11.
    let series = v * (1.0 + v / 2.0 * (1.0 + v / 3.0 * (1.0 + v / 4.0 * (1.0 + v / 5.0 * (1.0
        + v / 6.0 * (1.0 + v / 7.0 * (1.0 + v / 8.0 * (1.0 + v / 9.0))))))));
    return select(1.0 - scale(e.mantissa, e.exponent), -series, v > -0.35);
}

// 2 atanh(ratio) for |ratio| < 0.177: the first term left out is below 2e-9 of the sum.
fn twice_atanh(ratio: f32) -> f32 {
    let r2 = ratio * ratio;
    let series = 1.0 + r2 * (1.0 / 3.0 + r2 * (1.0 / 5.0 + r2 * (1.0 / 7.0 + r2 * (1.0 / 9.0))));
    return 2.0 * ratio * series;
}

// Logarithm of a positive normal f32; relative error below 3e-7, near 1 too (WGSL's log promises
// only 2^-21 absolute there).
fn log_accurate(v: f32) -> f32 {
    // v = mantissa * 2^exponent with the mantissa in [0.7, 1.4).
    let bits = bitcast<u32>(v) - 0x3f333333u;
    let mantissa = bitcast<f32>((bits & 0x007fffffu) + 0x3f333333u);
    return f32(bitcast<i32>(bits) >> 23u) * LN2 + twice_atanh((mantissa - 1.0) / (mantissa + 1.0));
}

// log(1 + v) for v >= 0, relative error below 4e-7.
fn log1p(v: f32) -> f32 {
    if v > 0.4 {
        return log_accurate(1.0 + v);
    }
    return twice_atanh(v / (2.0 + v));
}

// L_OR, z, g_w, g_l of a pair.
fn odds(chosen: f32, rejected: f32) -> vec4<f32> {
    // Rounding may leave a mean log-probability just above 0. Written so that NaN stays NaN.
    var l_w = chosen;
    if l_w > 0.0 { l_w = 0.0; }
    if l_w < -1e4 { l_w = -1e4; }
    var l_l = rejected;
    if l_l > 0.0 { l_l = 0.0; }
    if l_l < -1e4 { l_l = -1e4; }

    let p_w = exp_scaled(l_w);
    let p_l = exp_scaled(l_l);
    var q_w = one_minus_exp(l_w, p_w);
    if q_w < Q_FLOOR { q_w = Q_FLOOR; }
    var q_l = one_minus_exp(l_l, p_l);
    if q_l < Q_FLOOR { q_l = Q_FLOOR; }

    // x / q_w and x / q_l have forms of their own that do not underflow before they have to.
    let ratio = p_l.mantissa / p_w.mantissa;
    let k = p_l.exponent - p_w.exponent;
    let x_mantissa = ratio * (q_w / q_l);
    if k >= 64 {
        // x > 1e11: L_OR is log x and the sigmoid is 1, to every digit.
        let log_x = log_accurate(x_mantissa) + f32(k) * LN2;
        return vec4<f32>(log_x, -log_x, 1.0 / q_w, 1.0 / q_l);
    }
    let x = scale(x_mantissa, k);
    var log_x = log_accurate(x_mantissa) + f32(k) * LN2;
    if k > -64 {
        log_x = log_accurate(x); // the two terms above would cancel where x is about 1
    }
    let g_w = scale(ratio / q_l, k) / (1.0 + x);
    let g_l = scale(x_mantissa / q_l, k) / (1.0 + x);
    return vec4<f32>(log1p(x), -log_x, g_w, g_l);
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var p = lane; p < P; p += 256u) {
        let row = odds(l[2u * p], l[2u * p + 1u]);
        table[4u * p] = row.x;
        table[4u * p + 1u] = row.y;
        table[4u * p + 2u] = row.z;
        table[4u * p + 3u] = row.w;
        // Chosen, not multiplied: 0 times a NaN is not 0.
        let w = pair_weight[p];
        let unused = w == 0.0;
        slope[2u * p] = select(-w * row.z, 0.0, unused);
        slope[2u * p + 1u] = select(w * row.w, 0.0, unused);
        sum += select(w * row.x, 0.0, unused);
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var width = 128u; width > 0u; width >>= 1u) {
        if lane < width {
            sums[lane] += sums[lane + width];
        }
        workgroupBarrier();
    }
    if lane == 0u {
        loss[0] = sums[0];
    }
}
