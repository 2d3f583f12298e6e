//! Stored numbers of GGUF files and safetensors as f32.
//!
//! A block of a quantised type holds 32 numbers (`Q*_0`, `Q*_1`) or 256 (`Q*_K`): small whole numbers q, with a scale d for the block or
//! for 16 or 32 of them. Types `_0` are `d · q`, types `_1` are `d · q + m`, K types have their scales quantised again, by a scale of the
//! block.

use half::{bf16, f16};

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

impl Kind {
    /// By the number that GGUF gives it.
    pub(crate) fn of(number: u32) -> Option<Kind> {
        Some(match number {
            0 => Kind::F32,
            1 => Kind::F16,
            2 => Kind::Q4_0,
            3 => Kind::Q4_1,
            6 => Kind::Q5_0,
            7 => Kind::Q5_1,
            8 => Kind::Q8_0,
            9 => Kind::Q8_1,
            10 => Kind::Q2K,
            11 => Kind::Q3K,
            12 => Kind::Q4K,
            13 => Kind::Q5K,
            14 => Kind::Q6K,
            15 => Kind::Q8K,
            30 => Kind::Bf16,
            _ => return None,
        })
    }

    /// Numbers of a block, and its bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Kind::F32 => (1, 4),
            Kind::F16 | Kind::Bf16 => (1, 2),
            Kind::Q4_0 => (32, 18),
            Kind::Q4_1 => (32, 20),
            Kind::Q5_0 => (32, 22),
            Kind::Q5_1 => (32, 24),
            Kind::Q8_0 => (32, 34),
            Kind::Q8_1 => (32, 36),
            Kind::Q2K => (256, 84),
            Kind::Q3K => (256, 110),
            Kind::Q4K => (256, 144),
            Kind::Q5K => (256, 176),
            Kind::Q6K => (256, 210),
            Kind::Q8K => (256, 292),
        }
    }

    /// Bytes of `count` numbers in rows of `row`; nothing where a row is not of whole blocks.
    pub(crate) fn bytes(self, count: u64, row: usize) -> Option<u64> {
        let (numbers, bytes) = self.block();
        row.is_multiple_of(numbers).then(|| count / numbers as u64 * bytes as u64)
    }

    /// The numbers of whole blocks.
    pub(crate) fn to_f32(self, stored: &[u8]) -> Vec<f32> {
        let (numbers, bytes) = self.block();
        let mut out = vec![0.0; stored.len() / bytes * numbers];
        for (block, out) in stored.chunks_exact(bytes).zip(out.chunks_exact_mut(numbers)) {
            match self {
                Kind::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                Kind::F16 => out[0] = half(block, 0),
                Kind::Bf16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Kind::Q4_0 => four(half(block, 0), -8.0 * half(block, 0), &block[2..], out),
                Kind::Q4_1 => four(half(block, 0), half(block, 2), &block[4..], out),
                Kind::Q5_0 => five(half(block, 0), -16.0 * half(block, 0), &block[2..], out),
                Kind::Q5_1 => five(half(block, 0), half(block, 2), &block[4..], out),
                Kind::Q8_0 => eight(half(block, 0), &block[2..], out),
                Kind::Q8_1 => eight(half(block, 0), &block[4..], out),
                Kind::Q2K => two_k(block, out),
                Kind::Q3K => three_k(block, out),
                Kind::Q4K => four_k(block, out),
                Kind::Q5K => five_k(block, out),
                Kind::Q6K => six_k(block, out),
                Kind::Q8K => eight(f32::from_le_bytes([block[0], block[1], block[2], block[3]]), &block[4..], out),
            }
        }
        out
    }
}

/// The f16 number at a byte of a block.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low halves of the bytes are the first 16 numbers, high halves the others.
fn four(d: f32, m: f32, q: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &q) in low.iter_mut().zip(high).zip(q) {
        (*low, *high) = (d * f32::from(q & 15) + m, d * f32::from(q >> 4) + m);
    }
}

/// The same with the fifth bits in a word of 32 bits before.
fn five(d: f32, m: f32, block: &[u8], out: &mut [f32]) {
    let fifth = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let bit = |at: usize| ((fifth >> at & 1) << 4) as u8;
    let (low, high) = out.split_at_mut(16);
    for (at, ((low, high), &q)) in low.iter_mut().zip(high).zip(&block[4..]).enumerate() {
        (*low, *high) = (d * f32::from(q & 15 | bit(at)) + m, d * f32::from(q >> 4 | bit(at + 16)) + m);
    }
}

fn eight(d: f32, q: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(q).for_each(|(out, &q)| *out = d * f32::from(q as i8));
}

/// Scales [16], two bits of each number [64], d, dmin: a scale's low half times d, its high half times dmin.
fn two_k(block: &[u8], out: &mut [f32]) {
    let (scales, q, d, m) = (&block[..16], &block[16..80], half(block, 80), half(block, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = scales[group];
        let (d, m) = (d * f32::from(scale & 15), m * f32::from(scale >> 4));
        let (bytes, shift) = sixteen(group);
        out.iter_mut().zip(&q[bytes..]).for_each(|(out, &q)| *out = d * f32::from(q >> shift & 3) - m);
    }
}

/// Where a group of 16 numbers of two bits lies: bytes are shared by four groups that stand 32 numbers apart.
fn sixteen(group: usize) -> (usize, usize) {
    let (part, group) = (group / 8, group % 8);
    (32 * part + 16 * (group % 2), 2 * (group / 2))
}

/// Third bits [32], two bits of each number [64], scales of six bits [12], d.
fn three_k(block: &[u8], out: &mut [f32]) {
    let (third, q, packed, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = packed[group % 8] >> (4 * (group / 8)) & 15;
        let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        let d = d * (f32::from(low | high << 4) - 32.0);
        let (bytes, shift) = sixteen(group);
        let bit = group / 8 * 4 + group % 8 / 2;
        for (at, out) in out.iter_mut().enumerate() {
            let four = if third[16 * (group % 2) + at] >> bit & 1 == 0 { 4.0 } else { 0.0 };
            *out = d * (f32::from(q[bytes + at] >> shift & 3) - four);
        }
    }
}

/// The scale and the minimum, of six bits each, of the 32 numbers `group`.
fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (packed[group + 4] & 15 | packed[group - 4] >> 6 << 4, packed[group + 4] >> 4 | packed[group] >> 6 << 4),
    };
    (scale.into(), minimum.into())
}

/// d, dmin, scales and minima [12], four bits of each number [128]: 32 bytes hold two groups of 32.
fn four_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, packed, q) = (half(block, 0), half(block, 2), &block[4..16], &block[16..144]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, group);
        let (d, m, shift) = (d * scale, dmin * minimum, 4 * (group % 2));
        out.iter_mut().zip(&q[group / 2 * 32..]).for_each(|(out, &q)| *out = d * f32::from(q >> shift & 15) - m);
    }
}

/// The same with fifth bits [32] before the numbers: bit g of a byte belongs to group g.
fn five_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    let (fifth, q) = (&block[16..48], &block[48..176]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, group);
        let (d, m, shift) = (d * scale, dmin * minimum, 4 * (group % 2));
        for ((out, &q), &fifth) in out.iter_mut().zip(&q[group / 2 * 32..]).zip(fifth) {
            *out = d * f32::from(q >> shift & 15 | (fifth >> group & 1) << 4) - m;
        }
    }
}

/// Low four bits [128], high two bits [64], scales [16] of 8 bits, d.
fn six_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        // Halves of 128 numbers; in each, four quarters of 32.
        let (part, quarter, odd) = (group / 8, group % 8 / 2, group % 2);
        let d = d * f32::from(scales[group] as i8);
        for (at, out) in out.iter_mut().enumerate() {
            let within = 16 * odd + at;
            let four = low[64 * part + 32 * (quarter % 2) + within] >> (4 * (quarter / 2)) & 15;
            let two = high[32 * part + within] >> (2 * quarter) & 3;
            *out = d * (f32::from(four | two << 4) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No tool writes weights in these two: they hold what others are multiplied with. Blocks by hand, of a scale and bytes with signs.
    #[test]
    fn bytes_with_a_scale_are_numbers() {
        let bytes = |count: usize| (0..count).map(|at| (at as i8).wrapping_mul(3).wrapping_sub(100) as u8);
        let scaled = |d: f32, count: usize| bytes(count).map(|q| d * f32::from(q as i8)).collect::<Vec<f32>>();
        // The sum of its numbers stands between.
        let block: Vec<u8> =
            [f16::from_f32(0.25).to_le_bytes(), [7, 7]].concat().into_iter().chain(bytes(32)).collect();
        assert_eq!(Kind::Q8_1.to_f32(&block), scaled(0.25, 32));
        // Sums of each 16 numbers follow.
        let block: Vec<u8> = 0.5f32.to_le_bytes().into_iter().chain(bytes(256)).chain([9; 32]).collect();
        assert_eq!(Kind::Q8K.to_f32(&block), scaled(0.5, 256));
    }
}
