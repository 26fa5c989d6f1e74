//! Sixteen floats in one AVX-512 register.
#![expect(unsafe_code, reason = "instructions that not every processor has")]

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _CMP_UNORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_FROUND_TO_ZERO,
    _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps, _mm_shuffle_ps, _mm_storeu_si128,
    _mm256_add_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_loadu_si256, _mm256_storeu_si256,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castps512_ps256,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_cvtps_ph,
    _mm512_cvttps_epi32, _mm512_div_ps, _mm512_extractf32x8_ps, _mm512_fpclass_ps_mask, _mm512_loadu_ps,
    _mm512_mask_blend_epi32, _mm512_mask_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_mullo_epi32, _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setr_epi32, _mm512_slli_epi32, _mm512_sqrt_ps, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
    _mm512_xor_si512,
};

use super::avx2::sixteen_codes;
use super::{Kernel, LANES, LINE_BYTES, Simd, prefetch};

/// Exists only where the processor has AVX-512 F, BW, DQ and VL, and F16C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: this token exists only where the processor has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// One instruction.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `Avx512` exists only where the processor has the instruction; pointers are of arrays of its width.
        unsafe { $call }
    };
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
const TOWARD_ZERO: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
/// Quiet and signalling NaN, and both infinities.
const NON_FINITE: i32 = 0x01 | 0x08 | 0x10 | 0x80;

#[inline(always)]
fn mask(lanes: usize) -> u16 {
    debug_assert!(lanes < LANES, "a partial vector");
    (1u16 << lanes) - 1
}

impl Simd for Avx512 {
    type V = __m512;
    type I = __m512i;
    const BLOCK: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        op!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        op!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; LANES]) {
        op!(_mm512_storeu_ps(to.as_mut_ptr(), value));
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        op!(_mm512_sqrt_ps(a))
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        let (low, high) = (op!(_mm512_castps512_ps256(a)), op!(_mm512_extractf32x8_ps::<1>(a)));
        let eight = op!(_mm256_add_ps(low, high));
        let (low, high) = (op!(_mm256_castps256_ps128(eight)), op!(_mm256_extractf128_ps::<1>(eight)));
        let four = op!(_mm_add_ps(low, high));
        let upper = op!(_mm_movehl_ps(four, four));
        let two = op!(_mm_add_ps(four, upper));
        let upper = op!(_mm_shuffle_ps::<1>(two, two));
        let one = op!(_mm_add_ss(two, upper));
        op!(_mm_cvtss_f32(one))
    }

    #[inline(always)]
    fn count_non_finite(self, a: __m512) -> u32 {
        op!(_mm512_fpclass_ps_mask::<NON_FINITE>(a)).count_ones()
    }

    #[inline(always)]
    fn splat_int(self, value: u32) -> __m512i {
        op!(_mm512_set1_epi32(value as i32))
    }

    #[inline(always)]
    fn iota(self) -> __m512i {
        op!(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
    }

    #[inline(always)]
    fn add_int(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn mul_int(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_and_si512(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn shr<const BITS: u32>(self, a: __m512i) -> __m512i {
        op!(_mm512_srli_epi32::<BITS>(a))
    }

    #[inline(always)]
    fn bits(self, a: __m512) -> __m512i {
        op!(_mm512_castps_si512(a))
    }

    #[inline(always)]
    fn float_of(self, a: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(a))
    }

    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn select_nan(self, x: __m512, if_nan: __m512i, otherwise: __m512i) -> __m512i {
        let mask = op!(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x));
        op!(_mm512_mask_blend_epi32(mask, otherwise, if_nan))
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> __m512 {
        op!(_mm512_loadu_ps(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn store_f32(self, value: __m512, to: &mut [u8; 64]) {
        op!(_mm512_storeu_ps(to.as_mut_ptr().cast(), value));
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> __m512 {
        let halves: __m256i = op!(_mm256_loadu_si256(from.as_ptr().cast()));
        op!(_mm512_cvtph_ps(halves))
    }

    #[inline(always)]
    fn store_f16(self, value: __m512, to: &mut [u8; 32]) {
        let halves = op!(_mm512_cvtps_ph::<NEAREST>(value));
        op!(_mm256_storeu_si256(to.as_mut_ptr().cast(), halves));
    }

    #[inline(always)]
    fn store_f16_toward_zero(self, value: __m512, to: &mut [u8; 32]) {
        let halves = op!(_mm512_cvtps_ph::<TOWARD_ZERO>(value));
        op!(_mm256_storeu_si256(to.as_mut_ptr().cast(), halves));
    }

    #[inline(always)]
    fn load_high_half(self, from: &[u8; 32]) -> __m512i {
        let halves: __m256i = op!(_mm256_loadu_si256(from.as_ptr().cast()));
        let wide = op!(_mm512_cvtepu16_epi32(halves));
        op!(_mm512_slli_epi32::<16>(wide))
    }

    #[inline(always)]
    fn store_high_half(self, value: __m512i, to: &mut [u8; 32]) {
        let high = op!(_mm512_srli_epi32::<16>(value));
        let halves = op!(_mm512_cvtepi32_epi16(high));
        op!(_mm256_storeu_si256(to.as_mut_ptr().cast(), halves));
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> __m512 {
        let codes: __m128i = op!(_mm_loadu_si128(from.as_ptr().cast()));
        let wide = op!(_mm512_cvtepu8_epi32(codes));
        op!(_mm512_cvtepi32_ps(wide))
    }

    #[inline(always)]
    fn load_u4(self, from: [u8; 8]) -> __m512 {
        let wide = op!(_mm512_cvtepu8_epi32(sixteen_codes(from)));
        op!(_mm512_cvtepi32_ps(wide))
    }

    #[inline(always)]
    fn store_u8(self, value: __m512, nearest: bool, to: &mut [u8; 16]) {
        let wide = if nearest { op!(_mm512_cvtps_epi32(value)) } else { op!(_mm512_cvttps_epi32(value)) };
        let codes = op!(_mm512_cvtepi32_epi8(wide));
        op!(_mm_storeu_si128(to.as_mut_ptr().cast(), codes));
    }

    #[inline(always)]
    fn prefetch(self, row: &[u8]) {
        prefetch(row.as_ptr(), row.len());
    }

    #[inline(always)]
    fn prefetch_lines(self, row: &[u8], lines: usize) {
        prefetch(row.as_ptr(), lines * LINE_BYTES);
        prefetch(row.as_ptr().wrapping_add(row.len()).wrapping_sub(1), 1);
    }

    #[inline(always)]
    fn prefetch_floats(self, row: &[f32]) {
        prefetch(row.as_ptr().cast(), size_of_val(row));
    }

    #[inline(always)]
    fn load_partial(self, from: &[f32], fill: f32) -> __m512 {
        let (mask, fill) = (mask(from.len()), self.splat(fill));
        op!(_mm512_mask_loadu_ps(fill, mask, from.as_ptr()))
    }

    #[inline(always)]
    fn store_partial(self, value: __m512, to: &mut [f32]) {
        op!(_mm512_mask_storeu_ps(to.as_mut_ptr(), mask(to.len()), value));
    }

    #[inline(always)]
    fn store_f32_partial(self, value: __m512, to: &mut [u8]) {
        let mask = mask(to.len() / size_of::<f32>());
        op!(_mm512_mask_storeu_ps(to.as_mut_ptr().cast(), mask, value));
    }

    #[inline(always)]
    fn load_f32_partial(self, from: &[u8]) -> __m512 {
        op!(_mm512_maskz_loadu_ps(mask(from.len() / size_of::<f32>()), from.as_ptr().cast()))
    }
}
