// bradley_terry, forward: loss and slope of a preference by the difference of two scores.
//     z = BETA (x_w - x_l) - offset;  L = -log sigmoid(z) = max(-z, 0) + log1p(exp(-|z|))
//     loss = sum over pairs of pair_weight * L;  dloss/dx_w = -dloss/dx_l = -pair_weight BETA sigmoid(-z)
// Pair p has the score of its chosen answer at x[2 p] and that of its rejected one at x[2 p + 1]. A
// pair of weight 0 adds exactly nothing to loss and slope.
// Grid: 1 group.
// Needs: nothing beyond WebGPU's default limits; 1 KiB of workgroup memory.

const P: u32 = 1u; // pairs
const BETA: f32 = 1.0; // scale of the difference

@group(0) @binding(0) var<storage, read> x: array<f32>; // [2 P], scores
@group(0) @binding(1) var<storage, read> offset: array<f32>; // [P]
@group(0) @binding(2) var<storage, read> pair_weight: array<f32>; // [P]
@group(0) @binding(3) var<storage, read_write> loss: array<f32>; // [1]
@group(0) @binding(4) var<storage, read_write> slope: array<f32>; // [2 P], dloss/dx

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

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var p = lane; p < P; p += 256u) {
        let z = BETA * (x[2u * p] - x[2u * p + 1u]) - offset[p];
        // exp of a bounded argument; beyond it the term is 0 to every digit.
        let e = exp(-min(abs(z), 80.0));
        let term = max(-z, 0.0) + log1p(e);
        let sigmoid = select(1.0, e, z > 0.0) / (1.0 + e); // of -z
        // Chosen, not multiplied: 0 times a NaN is not 0.
        let w = pair_weight[p];
        let unused = w == 0.0;
        let d = select(w * BETA * sigmoid, 0.0, unused);
        slope[2u * p] = -d;
        slope[2u * p + 1u] = d;
        sum += select(w * term, 0.0, unused);
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
