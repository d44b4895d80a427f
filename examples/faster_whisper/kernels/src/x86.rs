//! The vectors of AVX-512 and AVX2, and the kernels compiled for them.

use std::arch::x86_64::*;

use super::Matrix;
use super::blocks::products_of_bfloat16;
use super::vector::{Factors, Vector};

impl Factors for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_bfloat16(from: *const u16) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn times_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm512_fmadd_ps(self, other, sum) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as the caller promises.
        unsafe { add_halves(self).sum() }
    }

    #[inline(always)]
    unsafe fn sums(all: [Self; 8]) -> [f32; 8] {
        // SAFETY: as the caller promises.
        unsafe {
            let mut halves = [_mm256_setzero_ps(); 8];
            for (half, whole) in halves.iter_mut().zip(all) {
                *half = add_halves(whole);
            }
            __m256::sums(halves)
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: it is only a hint, for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

impl Vector for __m512 {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load_int8(from: *const i8) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(to, self) }
    }
}

#[inline(always)]
unsafe fn add_halves(whole: __m512) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe {
        let doubles = _mm512_castps_pd(whole);
        let upper = _mm512_castpd_ps(_mm512_shuffle_f64x2::<0b01_00_11_10>(doubles, doubles));
        _mm512_castps512_ps256(_mm512_add_ps(whole, upper))
    }
}

impl Factors for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_bfloat16(from: *const u16) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn times_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm256_fmadd_ps(self, other, sum) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as the caller promises.
        unsafe {
            // In the order of `sums`.
            let pairs = _mm256_hadd_ps(self, self);
            let halves = _mm256_hadd_ps(pairs, pairs);
            let upper = _mm256_extractf128_ps::<1>(halves);
            _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(halves), upper))
        }
    }

    #[inline(always)]
    unsafe fn sums(all: [Self; 8]) -> [f32; 8] {
        let [a, b, c, d, e, f, g, h] = all;
        let mut sums = [0.0; 8];
        // SAFETY: as the caller promises.
        unsafe {
            // Pairs of neighbours, twice: each half has a part of the sum of four vectors.
            let first = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let second = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
            let lower = _mm256_permute2f128_ps::<0x20>(first, second);
            let upper = _mm256_permute2f128_ps::<0x31>(first, second);
            _mm256_storeu_ps(sums.as_mut_ptr(), _mm256_add_ps(lower, upper));
        }
        sums
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: it is only a hint, for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

impl Vector for __m256 {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load_int8(from: *const i8) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        // SAFETY: as the caller promises.
        unsafe { _mm256_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { _mm256_storeu_ps(to, self) }
    }
}

/// Factors in bfloat16: 32 numbers, or 16 sums in float32 of the products of neighbours.
#[derive(Clone, Copy)]
struct Pairs(__m512);

impl Factors for Pairs {
    const LANES: usize = 32;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { _mm512_setzero_ps() })
    }

    /// Rounds the numbers.
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let (lower, upper) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            Self(std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(
                upper, lower,
            )))
        }
    }

    #[inline(always)]
    unsafe fn load_bfloat16(from: *const u16) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { _mm512_loadu_ps(from.cast()) })
    }

    #[inline(always)]
    unsafe fn times_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: as the caller promises. Both types are 512 bits.
        unsafe {
            let [one, other] = [self.0, other.0].map(|bits| std::mem::transmute::<__m512, __m512bh>(bits));
            Self(_mm512_dpbf16_ps(sum.0, one, other))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as the caller promises.
        unsafe { self.0.sum() }
    }

    #[inline(always)]
    unsafe fn sums(all: [Self; 8]) -> [f32; 8] {
        // SAFETY: as the caller promises.
        unsafe { __m512::sums(all.map(|one| one.0)) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: as the caller promises.
        unsafe { __m512::prefetch(at) }
    }
}

/// See [`products_of_bfloat16`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn products_of_pairs(
    cells: &[u16],
    width: usize,
    inputs: &[f32],
    outputs: &mut [&mut [f32]],
) {
    // SAFETY: as the caller promises.
    unsafe { products_of_bfloat16::<Pairs, 4>(cells, width, inputs, outputs) }
}

/// The functions above, compiled for the vectors of a processor.
macro_rules! compile {
    ($features:literal, $vector:ident, $wide:literal, $products:ident, $softmax:ident, $log_sum_exp:ident, $mix:ident,
     $round:ident, $layer_norm:ident, $gelu:ident, $largest:ident) => {
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $products(
            matrix: Matrix<'_>,
            width: usize,
            inputs: &[f32],
            outputs: &mut [&mut [f32]],
        ) {
            // SAFETY: as the caller promises.
            unsafe { super::blocks::products_of::<$vector, $wide>(matrix, width, inputs, outputs) }
        }

        #[target_feature(enable = $features)]
        pub(super) fn $softmax(scores: &mut [f32], scale: f32) {
            super::softmax(scores, scale);
        }

        #[target_feature(enable = $features)]
        pub(super) fn $log_sum_exp(values: &[f32]) -> f32 {
            super::log_sum_exp_of(values)
        }

        #[target_feature(enable = $features)]
        pub(super) fn $round(values: &[f32], width: usize, cells: &mut [i8], scales: &mut [f32]) {
            super::round_rows(values, width, cells, scales);
        }

        #[target_feature(enable = $features)]
        pub(super) fn $layer_norm(rows: &[f32], weight: &[f32], bias: &[f32], normed: &mut [f32]) {
            super::layer_norm_rows(rows, weight, bias, normed);
        }

        #[target_feature(enable = $features)]
        pub(super) fn $largest(values: &[f32]) -> f32 {
            super::largest_of(values, f32::NEG_INFINITY, |value| value)
        }

        #[target_feature(enable = $features)]
        pub(super) fn $gelu(values: &mut [f32]) {
            super::gelu_of(values);
        }

        #[target_feature(enable = $features)]
        pub(super) unsafe fn $mix(matrix: Matrix<'_>, width: usize, weights: &[f32], mixed: &mut [f32]) {
            // SAFETY: as the caller promises.
            unsafe { super::blocks::mix::<$vector, $wide>(matrix, width, weights, mixed) }
        }
    };
}

compile!(
    "avx512f",
    __m512,
    4,
    products_16,
    softmax_16,
    log_sum_exp_16,
    mix_16,
    round_16,
    layer_norm_16,
    gelu_16,
    largest_16
);
compile!(
    "avx2,fma",
    __m256,
    2,
    products_8,
    softmax_8,
    log_sum_exp_8,
    mix_8,
    round_8,
    layer_norm_8,
    gelu_8,
    largest_8
);
