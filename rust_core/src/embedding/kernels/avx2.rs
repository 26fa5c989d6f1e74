//! Sixteen floats in two AVX2 registers.
#![expect(unsafe_code, reason = "instructions that not every processor has")]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _MM_FROUND_TO_ZERO, _mm_add_ps, _mm_add_ss,
    _mm_and_si128, _mm_cvtepu8_epi16, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_movehl_ps, _mm_or_si128, _mm_packus_epi16, _mm_packus_epi32, _mm_set1_epi8, _mm_shuffle_ps, _mm_slli_epi16,
    _mm_srli_si128, _mm_storeu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_blendv_epi8,
    _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps,
    _mm256_cmpeq_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_cvtps_epi32, _mm256_cvtps_ph, _mm256_cvttps_epi32, _mm256_div_ps, _mm256_extractf128_ps,
    _mm256_extracti128_si256, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps, _mm256_mul_ps,
    _mm256_mullo_epi32, _mm256_or_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_slli_epi32,
    _mm256_sqrt_ps, _mm256_srl_epi32, _mm256_srli_epi32, _mm256_storeu_ps, _mm256_sub_ps, _mm256_xor_si256,
};

use super::{Kernel, LANES, LINE_BYTES, Simd, prefetch};

/// Exists only where the processor has AVX2 and F16C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: this token exists only where the processor has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// One instruction.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `Avx2` exists only where the processor has the instruction; pointers are of arrays of its width.
        unsafe { $call }
    };
}

/// The same instruction on both registers.
macro_rules! both {
    ($instruction:path, $a:expr) => {
        [op!($instruction($a[0])), op!($instruction($a[1]))]
    };
    ($instruction:path, $a:expr, $b:expr) => {
        [op!($instruction($a[0], $b[0])), op!($instruction($a[1], $b[1]))]
    };
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
const TOWARD_ZERO: i32 = _MM_FROUND_TO_ZERO;

type V = [__m256; 2];
type I = [__m256i; 2];

/// 16-bit integers from 32-bit ones below 2^16.
#[inline(always)]
fn narrow(eight: __m256i) -> __m128i {
    let (low, high) = (op!(_mm256_castsi256_si128(eight)), op!(_mm256_extracti128_si256::<1>(eight)));
    op!(_mm_packus_epi32(low, high))
}

#[inline(always)]
fn eight_halves(from: &[u8; 32]) -> [__m128i; 2] {
    let (eights, _) = from.as_chunks::<16>();
    [op!(_mm_loadu_si128(eights[0].as_ptr().cast())), op!(_mm_loadu_si128(eights[1].as_ptr().cast()))]
}

#[inline(always)]
fn put(halves: [__m128i; 2], to: &mut [u8; 32]) {
    for (half, place) in halves.into_iter().zip(to.as_chunks_mut::<16>().0) {
        op!(_mm_storeu_si128(place.as_mut_ptr().cast(), half));
    }
}

/// Codes of 4 bits as bytes, in their order: each byte in 16 bits, its upper half moved into their upper byte.
#[inline(always)]
pub(super) fn sixteen_codes(packed: [u8; 8]) -> __m128i {
    let wide = {
        let bytes = op!(_mm_loadl_epi64(packed.as_ptr().cast()));
        op!(_mm_cvtepu8_epi16(bytes))
    };
    let moved = op!(_mm_slli_epi16::<4>(wide));
    let both = op!(_mm_or_si128(wide, moved));
    let low_halves = op!(_mm_set1_epi8(0x0f));
    op!(_mm_and_si128(both, low_halves))
}

impl Simd for Avx2 {
    type V = V;
    type I = I;
    const BLOCK: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> V {
        [op!(_mm256_set1_ps(value)); 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> V {
        let (eights, _) = from.as_chunks::<8>();
        [op!(_mm256_loadu_ps(eights[0].as_ptr())), op!(_mm256_loadu_ps(eights[1].as_ptr()))]
    }

    #[inline(always)]
    fn store(self, value: V, to: &mut [f32; LANES]) {
        for (half, place) in value.into_iter().zip(to.as_chunks_mut::<8>().0) {
            op!(_mm256_storeu_ps(place.as_mut_ptr(), half));
        }
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn sqrt(self, a: V) -> V {
        both!(_mm256_sqrt_ps, a)
    }

    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        let eight = op!(_mm256_add_ps(a[0], a[1]));
        let (low, high) = (op!(_mm256_castps256_ps128(eight)), op!(_mm256_extractf128_ps::<1>(eight)));
        let four = op!(_mm_add_ps(low, high));
        let upper = op!(_mm_movehl_ps(four, four));
        let two = op!(_mm_add_ps(four, upper));
        let upper = op!(_mm_shuffle_ps::<1>(two, two));
        let one = op!(_mm_add_ss(two, upper));
        op!(_mm_cvtss_f32(one))
    }

    #[inline(always)]
    fn count_non_finite(self, a: V) -> u32 {
        let exponent = self.splat_int(0x7f80_0000);
        let bits = self.and(self.bits(a), exponent);
        let full = both!(_mm256_cmpeq_epi32, bits, exponent);
        let [low, high] = both!(_mm256_movemask_ps, self.float_of(full));
        low.count_ones() + high.count_ones()
    }

    #[inline(always)]
    fn splat_int(self, value: u32) -> I {
        [op!(_mm256_set1_epi32(value as i32)); 2]
    }

    #[inline(always)]
    fn iota(self) -> I {
        [op!(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)), op!(_mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))]
    }

    #[inline(always)]
    fn add_int(self, a: I, b: I) -> I {
        both!(_mm256_add_epi32, a, b)
    }

    #[inline(always)]
    fn mul_int(self, a: I, b: I) -> I {
        both!(_mm256_mullo_epi32, a, b)
    }

    #[inline(always)]
    fn and(self, a: I, b: I) -> I {
        both!(_mm256_and_si256, a, b)
    }

    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        both!(_mm256_or_si256, a, b)
    }

    #[inline(always)]
    fn xor(self, a: I, b: I) -> I {
        both!(_mm256_xor_si256, a, b)
    }

    #[inline(always)]
    fn shr<const BITS: u32>(self, a: I) -> I {
        // The intrinsic wants a signed constant; a constant count compiles to the same instruction.
        let count = op!(_mm_cvtsi32_si128(BITS as i32));
        [op!(_mm256_srl_epi32(a[0], count)), op!(_mm256_srl_epi32(a[1], count))]
    }

    #[inline(always)]
    fn bits(self, a: V) -> I {
        both!(_mm256_castps_si256, a)
    }

    #[inline(always)]
    fn float_of(self, a: I) -> V {
        both!(_mm256_castsi256_ps, a)
    }

    #[inline(always)]
    fn to_float(self, a: I) -> V {
        both!(_mm256_cvtepi32_ps, a)
    }

    #[inline(always)]
    fn select_nan(self, x: V, if_nan: I, otherwise: I) -> I {
        let mask =
            self.bits([op!(_mm256_cmp_ps::<_CMP_UNORD_Q>(x[0], x[0])), op!(_mm256_cmp_ps::<_CMP_UNORD_Q>(x[1], x[1]))]);
        [
            op!(_mm256_blendv_epi8(otherwise[0], if_nan[0], mask[0])),
            op!(_mm256_blendv_epi8(otherwise[1], if_nan[1], mask[1])),
        ]
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> V {
        let (halves, _) = from.as_chunks::<32>();
        [op!(_mm256_loadu_ps(halves[0].as_ptr().cast())), op!(_mm256_loadu_ps(halves[1].as_ptr().cast()))]
    }

    #[inline(always)]
    fn store_f32(self, value: V, to: &mut [u8; 64]) {
        for (half, place) in value.into_iter().zip(to.as_chunks_mut::<32>().0) {
            op!(_mm256_storeu_ps(place.as_mut_ptr().cast(), half));
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> V {
        let halves = eight_halves(from);
        both!(_mm256_cvtph_ps, halves)
    }

    #[inline(always)]
    fn store_f16(self, value: V, to: &mut [u8; 32]) {
        put([op!(_mm256_cvtps_ph::<NEAREST>(value[0])), op!(_mm256_cvtps_ph::<NEAREST>(value[1]))], to);
    }

    #[inline(always)]
    fn store_f16_toward_zero(self, value: V, to: &mut [u8; 32]) {
        put([op!(_mm256_cvtps_ph::<TOWARD_ZERO>(value[0])), op!(_mm256_cvtps_ph::<TOWARD_ZERO>(value[1]))], to);
    }

    #[inline(always)]
    fn load_high_half(self, from: &[u8; 32]) -> I {
        let halves = eight_halves(from);
        let wide = both!(_mm256_cvtepu16_epi32, halves);
        both!(_mm256_slli_epi32::<16>, wide)
    }

    #[inline(always)]
    fn store_high_half(self, value: I, to: &mut [u8; 32]) {
        let high = both!(_mm256_srli_epi32::<16>, value);
        put([narrow(high[0]), narrow(high[1])], to);
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> V {
        let (eights, _) = from.as_chunks::<8>();
        let codes: [__m128i; 2] =
            [op!(_mm_loadl_epi64(eights[0].as_ptr().cast())), op!(_mm_loadl_epi64(eights[1].as_ptr().cast()))];
        let wide = both!(_mm256_cvtepu8_epi32, codes);
        both!(_mm256_cvtepi32_ps, wide)
    }

    #[inline(always)]
    fn load_u4(self, from: [u8; 8]) -> V {
        let codes = sixteen_codes(from);
        let upper = op!(_mm_srli_si128::<8>(codes));
        let wide = [op!(_mm256_cvtepu8_epi32(codes)), op!(_mm256_cvtepu8_epi32(upper))];
        both!(_mm256_cvtepi32_ps, wide)
    }

    #[inline(always)]
    fn store_u8(self, value: V, nearest: bool, to: &mut [u8; 16]) {
        let wide = if nearest { both!(_mm256_cvtps_epi32, value) } else { both!(_mm256_cvttps_epi32, value) };
        let (low, high) = (narrow(wide[0]), narrow(wide[1]));
        let codes = op!(_mm_packus_epi16(low, high));
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
}
