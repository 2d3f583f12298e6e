//! Narrow screens on AVX-512: `vpdpbusd` (int8) and `vdpbf16ps` (bf16) in one register tile.
//!
//! Both instructions add the products of 4-byte words (four int8 or two bf16 values) to sixteen lanes, so one loop serves
//! both: 64 tokens in 4 registers × 6 features broadcast from their rows = 24 accumulators. A step over one word takes 4
//! loads, 6 broadcasts and 24 products; the products bound it (one a cycle on Zen 4).
//!
//! Traffic: a panel of x (64 tokens, 24 KB in int8 with D = 384) stays in L1 while the 96 rows of a tile come from L2.
//! The epilogue adds the bounds (3 fma for 16 pairs), compares, and stores one word of marks a feature: no branch.

use super::bounds::{FeatureBound, PANEL, RANGE, Screener, raised};
use super::dtype::ScreenDtype;
use crate::cpu::ops::normalize::Rows;
use crate::cpu::simd::CHAINS;
use std::arch::x86_64::*;
use std::ops::Range;

/// Features of a register tile.
const GROUP: usize = 6;
/// Registers of tokens of a register tile.
const REGISTERS: usize = PANEL / 16;

/// Marks the pairs of `features`.
pub fn mark(of: &Screener, screen: ScreenDtype, features: Range<usize>, n: usize, marks: &mut [u64]) {
    let panels = n.div_ceil(PANEL);
    let words = screen.words(of.stride);
    assert!(of.w_words.len() >= features.end.next_multiple_of(GROUP) * words && features.start.is_multiple_of(GROUP));
    assert!(
        of.x_words.len() >= panels * words * PANEL && marks.len() >= features.len().next_multiple_of(GROUP) * panels
    );
    for panel in 0..panels {
        let tokens = PanelOfTokens {
            words: &of.x_words[panel * words * PANEL..][..words * PANEL],
            alpha: &of.alpha_b[panel * PANEL..][..PANEL],
            beta: &of.beta_b[panel * PANEL..][..PANEL],
            gamma: &of.gamma_b[panel * PANEL..][..PANEL],
        };
        for f in features.clone().step_by(GROUP) {
            let rows = &of.w_words[f * words..][..GROUP * words];
            let bounds = &of.bounds_f[f..][..GROUP];
            let group_marks = match screen {
                // SAFETY: `Cpu::with` has checked that the screen's instructions exist.
                ScreenDtype::Int8 => unsafe { mark_int8(&tokens, rows, bounds) },
                // SAFETY: as above.
                _ => unsafe { mark_bf16(&tokens, rows, bounds) },
            };
            for (j, mark) in group_marks.into_iter().enumerate() {
                marks[(f - features.start + j) * panels + panel] = mark;
            }
        }
    }
}

struct PanelOfTokens<'a> {
    words: &'a [u32],
    alpha: &'a [f32],
    beta: &'a [f32],
    gamma: &'a [f32],
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn mark_int8(tokens: &PanelOfTokens<'_>, rows: &[u32], bounds: &[FeatureBound]) -> [u64; GROUP] {
    // SAFETY: the target features are those that the arithmetic needs.
    unsafe { mark_group::<Int8>(tokens, rows, bounds) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn mark_bf16(tokens: &PanelOfTokens<'_>, rows: &[u32], bounds: &[FeatureBound]) -> [u64; GROUP] {
    // SAFETY: the target features are those that the arithmetic needs.
    unsafe { mark_group::<Bf16>(tokens, rows, bounds) }
}

/// How words multiply.
trait Words {
    /// # Safety
    /// The processor has the instruction.
    unsafe fn product(acc: __m512i, x: __m512i, w: __m512i) -> __m512i;
    /// # Safety
    /// The processor has AVX-512F.
    unsafe fn to_f32(acc: __m512i) -> __m512;
}

struct Int8;

impl Words for Int8 {
    #[inline(always)]
    unsafe fn product(acc: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_dpbusd_epi32(acc, x, w) }
    }
    #[inline(always)]
    unsafe fn to_f32(acc: __m512i) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtepi32_ps(acc) }
    }
}

struct Bf16;

impl Words for Bf16 {
    #[inline(always)]
    unsafe fn product(acc: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: the caller's promise; the casts change types, not bits.
        unsafe {
            let (x, w) = (std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(w));
            _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(acc), x, w))
        }
    }
    #[inline(always)]
    unsafe fn to_f32(acc: __m512i) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(acc) }
    }
}

/// # Safety
/// The processor has AVX-512F and the instruction of `W`.
#[inline(always)]
unsafe fn mark_group<W: Words>(tokens: &PanelOfTokens<'_>, rows: &[u32], bounds: &[FeatureBound]) -> [u64; GROUP] {
    let words = rows.len() / GROUP;
    assert!(tokens.words.len() == words * PANEL && rows.len() == words * GROUP && bounds.len() == GROUP);
    // SAFETY: `x` runs over the `words · 64` words of the panel, `w` over the `words` words of each of the group's rows,
    // as asserted; the instructions exist by the caller's promise.
    let acc = unsafe {
        let mut acc = [[_mm512_setzero_si512(); REGISTERS]; GROUP];
        for (acc, bound) in acc.iter_mut().zip(bounds) {
            *acc = [_mm512_set1_epi32(bound.start); REGISTERS];
        }
        let (mut x, mut w) = (tokens.words.as_ptr(), rows.as_ptr());
        for _ in 0..words {
            let mut tokens = [_mm512_setzero_si512(); REGISTERS];
            for (i, tokens) in tokens.iter_mut().enumerate() {
                *tokens = _mm512_loadu_si512(x.add(i * 16).cast());
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let feature = _mm512_set1_epi32(w.add(j * words).read().cast_signed());
                for (acc, &tokens) in acc.iter_mut().zip(&tokens) {
                    *acc = W::product(*acc, tokens, feature);
                }
            }
            x = x.add(PANEL);
            w = w.add(1);
        }
        acc
    };
    let mut marks = [0; GROUP];
    for (i, lanes) in (0..REGISTERS).map(|i| (i, i * 16..(i + 1) * 16)) {
        // SAFETY: the three arrays hold 64 values; the instructions exist by the caller's promise.
        unsafe {
            let alpha = _mm512_loadu_ps(tokens.alpha[lanes.clone()].as_ptr());
            let beta = _mm512_loadu_ps(tokens.beta[lanes.clone()].as_ptr());
            let gamma = _mm512_loadu_ps(tokens.gamma[lanes].as_ptr());
            for ((acc, mark), &FeatureBound { p, q, r, .. }) in acc.iter().zip(&mut marks).zip(bounds) {
                let sum = _mm512_fmadd_ps(alpha, _mm512_set1_ps(p), W::to_f32(acc[i]));
                let sum = _mm512_fmadd_ps(beta, _mm512_set1_ps(q), sum);
                let sum = _mm512_fmadd_ps(gamma, _mm512_set1_ps(r), sum);
                // `activation::may_be_active`.
                let lanes = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(sum, _mm512_setzero_ps());
                *mark |= u64::from(lanes) << (i * 16);
            }
        }
    }
    marks
}

/// Packs the tokens of `panel` and their side of the bound: `[alpha, beta, gamma]`.
pub fn pack_panel(screen: ScreenDtype, x: &Rows, panel: usize, kappa: f32, words: &mut [u32], bound: [&mut [f32]; 3]) {
    let [alpha, beta, gamma] = bound;
    let mut row_words = vec![0; words.len() / PANEL];
    for lane in 0..PANEL.min(x.n - panel * PANEL) {
        let row = x.row(panel * PANEL + lane);
        let narrow = narrow_row(screen, row, &mut row_words);
        let to_unsigned = if screen == ScreenDtype::Int8 { 0x8080_8080 } else { 0 };
        for (k, word) in row_words.iter().enumerate() {
            words[k * PANEL + lane] = word ^ to_unsigned;
        }
        let error = narrow.error * (1.0 + kappa) + kappa * narrow.norm;
        let inverse = if narrow.in_range { 1.0 / narrow.scale } else { f32::NAN };
        (alpha[lane], beta[lane], gamma[lane]) =
            (inverse, error * inverse, narrow.norm_narrow * (1.0 + kappa) * inverse);
    }
}

/// Packs a row of W_enc; its side of the bound.
pub fn pack_row(screen: ScreenDtype, w: &[f32], bias: f32, kappa: f32, words: &mut [u32]) -> FeatureBound {
    let narrow = narrow_row(screen, w, words);
    let inverse = if narrow.in_range { 1.0 / narrow.scale } else { f32::NAN };
    FeatureBound {
        start: -128 * narrow.sum,
        p: raised(bias) * inverse,
        q: narrow.norm * (1.0 + kappa) * inverse,
        r: narrow.error * (1.0 + kappa) * inverse,
    }
}

/// What is known of a row `v` and its narrow copy `v̂ = scale · q`.
struct Narrow {
    scale: f32,
    /// `‖v‖`.
    norm: f32,
    /// `‖v̂‖`.
    norm_narrow: f32,
    /// `‖v − v̂‖`.
    error: f32,
    /// `Σ q` (int8 only).
    sum: i32,
    /// Whether f32 arithmetic holds the bounds.
    in_range: bool,
}

fn narrow_row(screen: ScreenDtype, row: &[f32], words: &mut [u32]) -> Narrow {
    assert_eq!(words.len(), screen.words(row.len()));
    // SAFETY: a narrow screen exists only where `ScreenDtype::available` has seen AVX-512F.
    unsafe { if screen == ScreenDtype::Int8 { narrow_int8(row, words) } else { narrow_bf16(row, words) } }
}

#[target_feature(enable = "avx512f")]
fn narrow_int8(row: &[f32], words: &mut [u32]) -> Narrow {
    let mut max = _mm512_setzero_ps();
    for block in row.as_chunks::<16>().0 {
        // SAFETY: the block has sixteen values.
        max = _mm512_max_ps(max, _mm512_abs_ps(unsafe { _mm512_loadu_ps(block.as_ptr()) }));
    }
    let max = _mm512_reduce_max_ps(max);
    let in_range = max == 0.0 || RANGE.contains(&max);
    let scale = if in_range && max > 0.0 { max / 127.0 } else { 1.0 };
    let (scales, inverse) = (_mm512_set1_ps(scale), _mm512_set1_ps(1.0 / scale));
    let (mut norm2, mut narrow2, mut error2) = (_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps());
    let mut sum = _mm512_setzero_si512();
    for (block, words) in row.as_chunks::<16>().0.iter().zip(words.as_chunks_mut::<4>().0) {
        // SAFETY: the block has sixteen values.
        let v = unsafe { _mm512_loadu_ps(block.as_ptr()) };
        let q = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
        let narrow = _mm512_mul_ps(_mm512_cvtepi32_ps(q), scales);
        let error = _mm512_sub_ps(v, narrow);
        norm2 = _mm512_fmadd_ps(v, v, norm2);
        narrow2 = _mm512_fmadd_ps(narrow, narrow, narrow2);
        error2 = _mm512_fmadd_ps(error, error, error2);
        sum = _mm512_add_epi32(sum, q);
        // SAFETY: four words take sixteen bytes.
        unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(q)) };
    }
    let [norm, norm_narrow, error] = [norm2, narrow2, error2].map(|v| _mm512_reduce_add_ps(v).sqrt());
    Narrow { scale, norm, norm_narrow, error, sum: _mm512_reduce_add_epi32(sum), in_range }
}

#[target_feature(enable = "avx512f")]
fn narrow_bf16(row: &[f32], words: &mut [u32]) -> Narrow {
    let mut max = _mm512_setzero_ps();
    let (mut norm2, mut narrow2, mut error2) = (_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps());
    let (one, half) = (_mm512_set1_epi32(1), _mm512_set1_epi32(0x7fff));
    for (block, words) in row.as_chunks::<16>().0.iter().zip(words.as_chunks_mut::<8>().0) {
        // SAFETY: the block has sixteen values.
        let v = unsafe { _mm512_loadu_ps(block.as_ptr()) };
        // To nearest, ties to even.
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), one);
        let upper = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, _mm512_add_epi32(half, odd)));
        let narrow = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper));
        let error = _mm512_sub_ps(v, narrow);
        max = _mm512_max_ps(max, _mm512_abs_ps(v));
        norm2 = _mm512_fmadd_ps(v, v, norm2);
        narrow2 = _mm512_fmadd_ps(narrow, narrow, narrow2);
        error2 = _mm512_fmadd_ps(error, error, error2);
        // SAFETY: eight words take 32 bytes.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(upper)) };
    }
    let max = _mm512_reduce_max_ps(max);
    let [norm, norm_narrow, error] = [norm2, narrow2, error2].map(|v| _mm512_reduce_add_ps(v).sqrt());
    Narrow { scale: 1.0, norm, norm_narrow, error, sum: 0, in_range: max == 0.0 || RANGE.contains(&max) }
}

/// Nothing but products, `steps` times in independent chains.
pub fn busy_products(screen: ScreenDtype, steps: usize) {
    // SAFETY: the callers have asked `ScreenDtype::available`.
    unsafe { if screen == ScreenDtype::Int8 { busy_int8(steps) } else { busy_bf16(steps) } }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn busy_int8(steps: usize) {
    // SAFETY: the target features are those that the arithmetic needs.
    unsafe { busy::<Int8>(steps) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn busy_bf16(steps: usize) {
    // SAFETY: the target features are those that the arithmetic needs.
    unsafe { busy::<Bf16>(steps) }
}

/// # Safety
/// The processor has AVX-512F and the instruction of `W`.
#[inline(always)]
unsafe fn busy<W: Words>(steps: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm512_set1_epi32(std::hint::black_box(0x3f80_3f80));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = W::product(*sum, x, x);
            }
        }
        std::hint::black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word's values as the products take them: four of 8 bits, or two of bf16.
    fn values(screen: ScreenDtype, word: u32) -> Vec<f64> {
        match screen {
            ScreenDtype::Int8 => word.to_le_bytes().map(|byte| f64::from(byte.cast_signed())).to_vec(),
            _ => [word << 16, word & 0xffff_0000].map(|bits| f64::from(f32::from_bits(bits))).to_vec(),
        }
    }

    /// `x̂·ŵ` and the bound on its distance from `x·w`, in double precision, from what is packed.
    fn bounded(screen: ScreenDtype, [x, w]: [&[f32]; 2]) -> (f64, f64) {
        let mut packed = [x, w].map(|row| (vec![0; screen.words(row.len())], row));
        let [x, w] = packed.each_mut().map(|(words, row)| (narrow_row(screen, row, words), &*words));
        let values_of = |words: &[u32]| words.iter().flat_map(|&word| values(screen, word)).collect::<Vec<f64>>();
        let product: f64 = values_of(x.1).iter().zip(values_of(w.1)).map(|(x, w)| x * w).sum();
        let bound = f64::from(x.0.error) * f64::from(w.0.norm) + f64::from(x.0.norm_narrow) * f64::from(w.0.error);
        (product * f64::from(x.0.scale) * f64::from(w.0.scale), bound)
    }

    /// Both narrow rows, on machines without their products too: errors parallel to the other row are as large as the bound, and no other
    /// is larger.
    #[test]
    fn a_bound_is_reached_and_never_passed() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        let sign = |d: usize| if d.is_multiple_of(2) { 1.0 } else { -1.0 };
        let row = |value: &dyn Fn(usize) -> f32| (0..80).map(value).collect::<Vec<f32>>();
        let int8 = row(&|d| {
            if d == 64 {
                127.0
            } else if d < 64 {
                1.0 + 0.25 * sign(d)
            } else {
                0.0
            }
        });
        let bf16 = row(&|d| if d < 64 { 1.0 + sign(d) / 1024.0 } else { 0.0 });
        let signs = row(&|d| if d < 64 { 127.0 * sign(d) } else { 0.0 });
        for (screen, rounded) in [(ScreenDtype::Int8, &int8), (ScreenDtype::Bf16, &bf16)] {
            for rows in [[&rounded[..], &signs], [&signs, &rounded[..]]] {
                let exact: f64 = rows[0].iter().zip(rows[1]).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                let (narrow, bound) = bounded(screen, rows);
                let share = (exact - narrow) / bound;
                assert!((share - 1.0).abs() < 1e-5, "{screen:?}: {share} of the bound");
            }
            for seed in 0..200_u32 {
                let random = |salt: u32| {
                    row(&|d| {
                        ((d as u32 + 1).wrapping_mul(2_654_435_761 ^ seed.wrapping_mul(salt)) >> 8) as f32 / 8e6 - 1.0
                    })
                };
                let rows = [random(40_503), random(65_599)];
                let exact: f64 = rows[0].iter().zip(&rows[1]).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                let (narrow, bound) = bounded(screen, [&rows[0], &rows[1]]);
                assert!((exact - narrow).abs() <= bound * (1.0 + 1e-5), "{screen:?}: {exact} {narrow} {bound}");
            }
        }
    }

    /// What a feature and a token bring to the comparison together is that bound, and a little more for roundings of the arithmetic.
    #[test]
    fn the_sides_of_a_bound_make_it_up() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        let kappa = 1e-5;
        let w: Vec<f32> = (0..32).map(|d| (d as f32 - 11.3) / 7.0).collect();
        for screen in [ScreenDtype::Int8, ScreenDtype::Bf16] {
            let mut words = vec![0; screen.words(32)];
            let narrow = narrow_row(screen, &w, &mut words);
            let bound = pack_row(screen, &w, 0.5, kappa, &mut words);
            let near = |got: f32, want: f32| (1.0..1.0 + 3.0 * kappa).contains(&(got / want));
            assert!(near(bound.p * narrow.scale, 0.5) && near(bound.q * narrow.scale, narrow.norm), "{screen:?}");
            assert!(near(bound.r * narrow.scale, narrow.error), "{screen:?}");
            assert_eq!(bound.start, -128 * narrow.sum);
        }
    }
}
