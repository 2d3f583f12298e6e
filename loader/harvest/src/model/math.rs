//! What happens to rows between GEMMs: norms, rotations, softmax, activations. All in f32 on slices, written so that the compiler makes
//! vectors of it; sums have a fixed order, so that bits depend on the rows alone.

/// Lanes of a sum: independent chains that the compiler keeps in vectors.
const LANES: usize = 16;

/// Sum of `f` over a slice, in [`LANES`] chains.
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f(value);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for at in 0..width {
            lanes[at] += lanes[at + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `out = x / rms(x) · weight` for each row of `width`; ε is added to the mean square.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let scale = 1.0 / (sum(x, |value| value * value) / x.len() as f32 + epsilon).sqrt();
        for ((out, &value), &weight) in out.iter_mut().zip(x).zip(weight) {
            *out = value * scale * weight;
        }
    }
}

/// The same in place.
pub(super) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let scale = 1.0 / (sum(x, |value| value * value) / x.len() as f32 + epsilon).sqrt();
    for (value, &weight) in x.iter_mut().zip(weight) {
        *value *= scale * weight;
    }
}

/// `x = (x − mean(x)) / deviation(x) · weight + bias` for each row, in place; ε is added to the variance.
pub(super) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let mean = sum(x, |value| value) / x.len() as f32;
        let variance = sum(x, |value| (value - mean) * (value - mean)) / x.len() as f32;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for ((value, &weight), &bias) in x.iter_mut().zip(weight).zip(bias) {
            *value = (*value - mean) * scale * weight + bias;
        }
    }
}

/// Adds a bias to each row.
pub(super) fn add_bias(x: &mut [f32], bias: &[f32]) {
    for x in x.chunks_exact_mut(bias.len()) {
        x.iter_mut().zip(bias).for_each(|(value, &bias)| *value += bias);
    }
}

/// eˣ within two units in the last place for x ≤ 88; 0 below −87. A polynomial, since the library's function is called value by value,
/// and took a tenth of a block.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first of few bits, so that n · HIGH is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * HIGH) - n * LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    // 2ⁿ by its exponent.
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

/// Softmax of a row, in place. Scores far below the largest come to 0.
pub(super) fn softmax(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|value| *value = exp(*value - most));
    let scale = 1.0 / sum(row, |value| value);
    row.iter_mut().for_each(|value| *value *= scale);
}

/// `out = silu(gate) · up`, where a row of `both` is gate and up beside each other.
pub(super) fn silu_product(both: &[f32], hidden: usize, out: &mut [f32]) {
    for (both, out) in both.chunks_exact(2 * hidden).zip(out.chunks_exact_mut(hidden)) {
        let (gate, up) = both.split_at(hidden);
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// GELU by the error function, in place: `x · Φ(x)`.
pub(super) fn gelu(x: &mut [f32]) {
    x.iter_mut().for_each(|value| *value *= 0.5 * (1.0 + erf(*value * std::f32::consts::FRAC_1_SQRT_2)));
}

/// The error function within 2 · 10⁻⁷ (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let mut p = 1.061_405_4f32;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p * t + c;
    }
    let value = 1.0 - p * t * exp(-size * size);
    value.copysign(x)
}

/// Rotates the pairs of a head by the angles of a position. Halves: pair `i` is `(i, i + n/2)`; else it is `(2i, 2i + 1)`, as the rows of
/// GGUF's llama models are ordered.
pub(super) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], halves: bool) {
    if halves {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    } else {
        for ((pair, &cos), &sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (a, b) = (pair[0], pair[1]);
            (pair[0], pair[1]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_those_of_the_library() {
        for at in -8800..=880 {
            let x = at as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            let bound = if x < -86.9 { 2e-38 } else { want * 3e-7 };
            assert!((got - want).abs() <= bound, "exp({x}) = {got}, not {want}");
        }
        // erf(0.5), erf(1), erf(2) to ten digits.
        for (x, want) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265)] {
            assert!((f64::from(erf(x)) - want).abs() < 3e-7, "erf({x}) = {}", erf(x));
            assert!((f64::from(erf(-x)) + want).abs() < 3e-7, "erf(-{x}) = {}", erf(-x));
        }
        let mut row = [1000.0, 1001.0, -1e30, f32::NEG_INFINITY];
        softmax(&mut row);
        assert!((row[0] - 0.268_941_4).abs() < 1e-6 && (row[1] - 0.731_058_6).abs() < 1e-6, "{row:?}");
        assert_eq!(&row[2..], [0.0, 0.0]);
    }

    #[test]
    fn sums_reach_every_value() {
        let values: Vec<f32> = (1..=100).map(|value| value as f32).collect();
        assert_eq!(sum(&values, |value| value), 5050.0);
        assert_eq!(sum(&values[..7], |value| value), 28.0);
    }
}
