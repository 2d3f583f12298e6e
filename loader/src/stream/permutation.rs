//! A keyed permutation of 0..n that is evaluated at single points: no table, so any position of an epoch costs O(1).
//!
//! A Feistel network of 8 rounds on the smallest power of two that holds n, walked along its cycle until the image is below n
//! (two steps on average at worst). The two halves differ by at most one bit.

const ROUNDS: u64 = 8;

/// Mixes 64 bits (the finaliser of splitmix64).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A key from several words, in order.
pub(crate) fn key(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(0x9e37_79b9_7f4a_7c15, |h, &w| mix(h.rotate_left(23) ^ mix(w.wrapping_add(0x9e37_79b9_7f4a_7c15))))
}

/// A permutation of 0..n chosen by a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
    n: u64,
    low_bits: u32,
    high_bits: u32,
    keys: [u64; ROUNDS as usize],
}

impl Permutation {
    pub(crate) fn new(key: u64, n: u64) -> Self {
        let bits = if n <= 2 { 1 } else { 64 - (n - 1).leading_zeros() };
        let low_bits = bits / 2;
        let keys = std::array::from_fn(|round| mix(key ^ mix(round as u64 + 1)));
        Permutation { n, low_bits, high_bits: bits - low_bits, keys }
    }

    /// The image of `x`, which is below n.
    pub(crate) fn apply(&self, x: u64) -> u64 {
        debug_assert!(x < self.n);
        if self.n <= 1 {
            return x;
        }
        let mut y = x;
        loop {
            y = self.network(y);
            if y < self.n {
                return y;
            }
        }
    }

    /// One pass: alternately the high part is changed by the low one and the low part by the high one.
    fn network(&self, x: u64) -> u64 {
        let (low_mask, high_mask) = ((1u64 << self.low_bits) - 1, (1u64 << self.high_bits) - 1);
        let (mut low, mut high) = (x & low_mask, x >> self.low_bits);
        for pair in self.keys.chunks_exact(2) {
            high ^= mix(low ^ pair[0]) & high_mask;
            low ^= mix(high ^ pair[1]) & low_mask;
        }
        (high << self.low_bits) | low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of splitmix64, whose states are multiples of one number from the seed on: what others give as its first outputs.
    #[test]
    fn mixes_as_splitmix64_does() {
        let outputs = |seed: u64| [1, 2, 3].map(|i: u64| mix(seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        assert_eq!(
            outputs(1_234_567),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
        assert_eq!(outputs(0)[0], 0xe220_a839_7b1d_cdaf);
    }

    /// As another program has them: the order of the rows of every run rests on these.
    #[test]
    fn keys_are_of_the_words_in_their_order() {
        assert_eq!(key(&[]), 0x9e37_79b9_7f4a_7c15);
        assert_eq!(key(&[7, u64::MAX]), 0x795a_529b_dd90_d152);
        assert_eq!(key(&[u64::MAX, 7]), 0x19d1_0b6c_5cc4_1b2e);
    }

    #[test]
    fn is_a_bijection_for_every_small_size() {
        for n in 1..300u64 {
            let permutation = Permutation::new(key(&[n, 7]), n);
            let mut seen = vec![false; n as usize];
            for x in 0..n {
                let y = permutation.apply(x) as usize;
                assert!(!seen[y], "n = {n}: {y} twice");
                seen[y] = true;
            }
        }
    }

    /// Over many keys every image of 0 and every neighbour distance is about equally likely.
    #[test]
    fn images_are_uniform() {
        let n = 100u64;
        let keys = 40_000u64;
        let (mut image, mut step) = (vec![0f64; n as usize], vec![0f64; n as usize]);
        for k in 0..keys {
            let permutation = Permutation::new(key(&[k]), n);
            let (a, b) = (permutation.apply(0), permutation.apply(1));
            image[a as usize] += 1.0;
            step[((b + n - a) % n) as usize] += 1.0;
        }
        let chi2 = |counts: &[f64], expected: f64| -> f64 {
            counts.iter().map(|c| (c - expected) * (c - expected) / expected).sum()
        };
        // 99 and 98 degrees of freedom: mean 99, standard deviation 14.
        assert!(chi2(&image, keys as f64 / n as f64) < 170.0);
        assert!(chi2(&step[1..], keys as f64 / (n - 1) as f64) < 170.0);
        assert_eq!(step[0], 0.0);
    }
}
