//! Sixteen lanes on every machine.
//!
//! A kernel is written once over [`Lanes`]; a row is a sequence of `[f32; 16]` (rows are padded with zeros to a multiple
//! of 16). Each instruction set computes the same sixteen lanes with fused multiply-add and the same order of sums, so
//! results agree bit for bit between machines. [`Isa::run`] enters the instruction set once per task, never per row.

/// One group of lanes in memory.
pub type Block = [f32; 16];
/// Lanes in a block.
pub const LANES: usize = 16;

/// Sums that do not wait for each other.
pub const CHAINS: usize = 12;

/// The arithmetic that kernels use. Implementations exist only where the processor has the instructions.
pub trait Lanes: Copy {
    /// Sixteen values in registers.
    type V: Copy;
    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &Block) -> Self::V;
    fn store(self, to: &mut Block, v: Self::V);
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `v` where `a > 0`, otherwise 0.
    fn where_positive(self, a: Self::V, v: Self::V) -> Self::V;

    /// The sum of the lanes: halves added to halves.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
}

/// A computation that [`Isa::run`] compiles once per instruction set. `run` must be `#[inline(always)]`.
pub trait Kernel {
    type Out;
    fn run<L: Lanes>(self, lanes: L) -> Self::Out;
}

/// An instruction set with wide lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// One register of sixteen lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Two registers of eight.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the compiler makes of an array: four registers on aarch64.
    Portable,
}

impl Isa {
    /// The widest that this machine has.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        for isa in [Isa::Avx512, Isa::Avx2] {
            if isa.available() {
                return isa;
            }
        }
        Isa::Portable
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Isa::Portable => true,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512f",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2 + fma",
            Isa::Portable => "portable",
        }
    }

    /// Runs `kernel` compiled for this instruction set. `Engine::new` has checked that it is available.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            // SAFETY: an engine holds only an instruction set for which `available` is true.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::with_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::with_avx2(kernel) },
            Isa::Portable => kernel.run(Portable),
        }
    }
}

#[derive(Clone, Copy)]
struct Portable;

impl Lanes for Portable {
    type V = Block;
    #[inline(always)]
    fn splat(self, value: f32) -> Block {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &Block) -> Block {
        *from
    }
    #[inline(always)]
    fn store(self, to: &mut Block, v: Block) {
        *to = v;
    }
    #[inline(always)]
    fn fma(self, a: Block, b: Block, c: Block) -> Block {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn add(self, a: Block, b: Block) -> Block {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Block, b: Block) -> Block {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Block, b: Block) -> Block {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Block, b: Block) -> Block {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn sqrt(self, a: Block) -> Block {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn where_positive(self, a: Block, v: Block) -> Block {
        std::array::from_fn(|i| if a[i] > 0.0 { v[i] } else { 0.0 })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Block, Kernel, Lanes};
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor has AVX-512F and FMA.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn with_avx512<K: Kernel>(kernel: K) -> K::Out {
        kernel.run(Avx512(()))
    }

    /// # Safety
    /// The processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Out {
        kernel.run(Avx2(()))
    }

    /// Made only by [`with_avx512`]: that one exists means that the processor has the instructions.
    #[derive(Clone, Copy)]
    pub struct Avx512(());

    /// Made only by [`with_avx2`]: that one exists means that the processor has the instructions.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    macro_rules! lanewise512 {
        ($($name:ident($($arg:ident),+) = $intrinsic:ident;)+) => {$(
            #[inline(always)]
            fn $name(self, $($arg: __m512),+) -> __m512 {
                // SAFETY: `self` exists, so the processor has AVX-512F.
                unsafe { $intrinsic($($arg),+) }
            }
        )+};
    }

    impl Lanes for Avx512 {
        type V = __m512;
        lanewise512! {
            fma(a, b, c) = _mm512_fmadd_ps;
            add(a, b) = _mm512_add_ps;
            sub(a, b) = _mm512_sub_ps;
            mul(a, b) = _mm512_mul_ps;
            div(a, b) = _mm512_div_ps;
            sqrt(a) = _mm512_sqrt_ps;
        }
        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: `self` exists, so the processor has AVX-512F.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        fn load(self, from: &Block) -> __m512 {
            // SAFETY: as above; the reference covers sixteen values and the load may be unaligned.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, to: &mut Block, v: __m512) {
            // SAFETY: as above; the reference covers sixteen values and the store may be unaligned.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn where_positive(self, a: __m512, v: __m512) -> __m512 {
            // SAFETY: `self` exists, so the processor has AVX-512F.
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, _mm512_setzero_ps()), v) }
        }
        #[inline(always)]
        fn sum(self, v: __m512) -> f32 {
            // SAFETY: `self` exists, so the processor has AVX-512F and all below it.
            unsafe {
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
                sum8(_mm256_add_ps(_mm512_castps512_ps256(v), high))
            }
        }
    }

    macro_rules! lanewise256 {
        ($($name:ident($($arg:ident),+) = $intrinsic:ident;)+) => {$(
            #[inline(always)]
            fn $name(self, $($arg: [__m256; 2]),+) -> [__m256; 2] {
                // SAFETY: `self` exists, so the processor has AVX2 and FMA.
                unsafe { [$intrinsic($($arg[0]),+), $intrinsic($($arg[1]),+)] }
            }
        )+};
    }

    impl Lanes for Avx2 {
        type V = [__m256; 2];
        lanewise256! {
            fma(a, b, c) = _mm256_fmadd_ps;
            add(a, b) = _mm256_add_ps;
            sub(a, b) = _mm256_sub_ps;
            mul(a, b) = _mm256_mul_ps;
            div(a, b) = _mm256_div_ps;
            sqrt(a) = _mm256_sqrt_ps;
        }
        #[inline(always)]
        fn splat(self, value: f32) -> [__m256; 2] {
            // SAFETY: `self` exists, so the processor has AVX2.
            unsafe { [_mm256_set1_ps(value); 2] }
        }
        #[inline(always)]
        fn load(self, from: &Block) -> [__m256; 2] {
            // SAFETY: as above; the reference covers sixteen values and the loads may be unaligned.
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }
        #[inline(always)]
        fn store(self, to: &mut Block, v: [__m256; 2]) {
            // SAFETY: as above; the reference covers sixteen values and the stores may be unaligned.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
            }
        }
        #[inline(always)]
        fn where_positive(self, a: [__m256; 2], v: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: `self` exists, so the processor has AVX2.
            let keep =
                |i: usize| unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[i], _mm256_setzero_ps()), v[i]) };
            [keep(0), keep(1)]
        }
        #[inline(always)]
        fn sum(self, v: [__m256; 2]) -> f32 {
            // SAFETY: `self` exists, so the processor has AVX2.
            unsafe { sum8(_mm256_add_ps(v[0], v[1])) }
        }
    }

    /// # Safety
    /// The processor has AVX.
    #[inline(always)]
    unsafe fn sum8(v: __m256) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let v4 = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps::<1>(v2, v2)))
        }
    }
}

/// The blocks of a row or of consecutive rows.
#[inline(always)]
pub fn blocks(values: &[f32]) -> &[Block] {
    values.as_chunks().0
}

/// The blocks of a row or of consecutive rows.
#[inline(always)]
pub fn blocks_mut(values: &mut [f32]) -> &mut [Block] {
    values.as_chunks_mut().0
}

/// `x · w` in one fixed order: even blocks and odd blocks separately, then their sum, then halves onto halves. This is
/// the definition of an activation; its error is below [`dot_error`]`· ‖x‖ · ‖w‖`.
#[inline(always)]
pub fn dot<L: Lanes>(l: L, x: &[Block], w: &[Block]) -> f32 {
    let (mut even, mut odd) = (l.splat(0.0), l.splat(0.0));
    let ((x_pairs, x_last), (w_pairs, w_last)) = (x.as_chunks::<2>(), w.as_chunks::<2>());
    for (x, w) in x_pairs.iter().zip(w_pairs) {
        even = l.fma(l.load(&x[0]), l.load(&w[0]), even);
        odd = l.fma(l.load(&x[1]), l.load(&w[1]), odd);
    }
    for (x, w) in x_last.iter().zip(w_last) {
        even = l.fma(l.load(x), l.load(w), even);
    }
    l.sum(l.add(even, odd))
}

/// Relative error bound of [`dot`] over `width` values: each passes through at most `width/32 + 1` roundings of its
/// lane and 5 of the sum; doubled.
pub fn dot_error(width: usize) -> f32 {
    (width as f32 / 32.0 + 6.0) * f32::EPSILON
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl Kernel for Dot<'_> {
        type Out = f32;
        #[inline(always)]
        fn run<L: Lanes>(self, l: L) -> f32 {
            dot(l, blocks(self.0), blocks(self.1))
        }
    }

    #[test]
    fn a_dot_is_the_same_bits_everywhere_and_within_its_bound() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for width in [16, 32, 48, 384, 4096] {
            let mut row = || (0..width).map(|_| rng.random::<f32>() - 0.5).collect::<Vec<_>>();
            let (x, w) = (row(), row());
            let exact: f64 = x.iter().zip(&w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let [x_norm, w_norm] = [&x, &w].map(|v| v.iter().map(|v| v * v).sum::<f32>().sqrt());
            let portable = Isa::Portable.run(Dot(&x, &w));
            assert!((f64::from(portable) - exact).abs() <= f64::from(dot_error(width) * x_norm * w_norm));
            assert_eq!(portable.to_bits(), Isa::detect().run(Dot(&x, &w)).to_bits(), "{width}");
            #[cfg(target_arch = "x86_64")]
            if Isa::Avx2.available() {
                assert_eq!(portable.to_bits(), Isa::Avx2.run(Dot(&x, &w)).to_bits(), "{width}");
            }
        }
    }
}
