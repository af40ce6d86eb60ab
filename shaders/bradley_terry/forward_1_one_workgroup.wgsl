// bradley_terry, forward: loss and slope of a preference by the difference of two scores.
//     z = BETA (scale_w (x_w - reference_w) - scale_l (x_l - reference_l)) - offset
//     loss = sum over pairs of pair_weight * L(z);  dloss/dx_w = pair_weight BETA scale_w L'(z), of l minus that
//     LINK 0, logistic  L = KEEP s(-z) + FLIP s(z), s(z) = log(1 + exp(z)) = max(z, 0) + log1p(exp(-|z|))
//     LINK 1, hinge     L = max(1 - z, 0)
//     LINK 2, square    L = z^2
//     LINK 3, sigmoid   L = sigmoid(-z)
// Pair p has the score of its chosen answer at x[2 p] and that of its rejected one at x[2 p + 1]. A
// pair of weight 0 adds exactly nothing to loss and slope.
// Grid: 1 group.
// Needs: nothing beyond WebGPU's default limits; 1 KiB of workgroup memory.

const P: u32 = 1u; // pairs
const BETA: f32 = 1.0; // scale of the difference
const LINK: u32 = 0u; // see above
const KEEP: f32 = 1.0; // weight of the preference as it is
const FLIP: f32 = 0.0; // weight of the opposite one

@group(0) @binding(0) var<storage, read> x: array<f32>; // [2 P], scores
@group(0) @binding(1) var<storage, read> reference: array<f32>; // [2 P]
@group(0) @binding(2) var<storage, read> scale: array<f32>; // [2 P]
@group(0) @binding(3) var<storage, read> offset: array<f32>; // [P]
@group(0) @binding(4) var<storage, read> pair_weight: array<f32>; // [P]
@group(0) @binding(5) var<storage, read_write> loss: array<f32>; // [1]
@group(0) @binding(6) var<storage, read_write> slope: array<f32>; // [2 P], dloss/dx

var<workgroup> sums: array<f32, 256>;

// log(1 + v) for 0 <= v <= 1: WGSL's log promises only 2^-21 absolute near 1, so small v take
// 2 atanh(v / (2 + v)), whose first term left out is below 1e-8 of the sum.
fn log1p(v: f32) -> f32 {
    let ratio = v / (2.0 + v);
    let r2 = ratio * ratio;
    let series = 1.0 + r2 * (1.0 / 3.0 + r2 * (1.0 / 5.0 + r2 * (1.0 / 7.0 + r2 * (1.0 / 9.0
        + r2 * (1.0 / 11.0 + r2 / 13.0)))));
    return 2.0 * ratio * series;
}

// L(z) and -L'(z).
fn link(z: f32) -> vec2<f32> {
    if LINK == 1u {
        return select(vec2(0.0), vec2(1.0 - z, 1.0), z < 1.0);
    }
    if LINK == 2u {
        return vec2(z * z, -2.0 * z);
    }
    // exp of a bounded argument; beyond it the term is 0 to every digit.
    let e = exp(-min(abs(z), 80.0));
    let sigmoid = select(1.0, e, z > 0.0) / (1.0 + e); // of -z
    if LINK == 3u {
        return vec2(sigmoid, e / ((1.0 + e) * (1.0 + e)));
    }
    let term = max(-z, 0.0) + log1p(e);
    if FLIP == 0.0 {
        return vec2(KEEP * term, KEEP * sigmoid);
    }
    let opposite = max(z, 0.0) + log1p(e);
    let of_z = select(e, 1.0, z > 0.0) / (1.0 + e);
    return vec2(KEEP * term + FLIP * opposite, KEEP * sigmoid - FLIP * of_z);
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var p = lane; p < P; p += 256u) {
        let w = 2u * p;
        let l = w + 1u;
        let difference = scale[w] * (x[w] - reference[w]) - scale[l] * (x[l] - reference[l]);
        let term = link(BETA * difference - offset[p]);
        // Chosen, not multiplied: 0 times a NaN is not 0.
        let weight = pair_weight[p];
        let unused = weight == 0.0;
        let d = select(weight * BETA * term.y, 0.0, unused);
        slope[w] = select(-d * scale[w], 0.0, unused);
        slope[l] = select(d * scale[l], 0.0, unused);
        sum += select(weight * term.x, 0.0, unused);
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
