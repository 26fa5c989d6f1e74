//! Sixteen floats at a time. A kernel is written once over [`Simd`]; the operations are those of IEEE 754 without contraction, lane
//! by lane, so that every implementation gives the same bits. No closure is around an operation on vectors: it would be compiled
//! without the instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::fmt;
use std::sync::OnceLock;

use serde::Deserialize;

pub(super) use scalar::{Scalar, max_f32, min_f32};

use crate::error::{Error, ErrorKind, Result};

/// Lanes of a vector, and lane sums of a reduction over the columns.
pub const LANES: usize = 16;

/// Bytes of a cache line.
pub(super) const LINE_BYTES: usize = 64;

/// A vector of 16 floats or 16 unsigned integers. Methods take a token that exists only where the processor has the
/// instructions. `min` and `max` give their second argument if the two are equal or any is not a number.
pub(super) trait Simd: Copy {
    /// 16 floats.
    type V: Copy;
    /// 16 integers of 32 bits; they wrap around.
    type I: Copy;
    /// Vectors that one pass over rows sums at most.
    const BLOCK: usize;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, value: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Lanes 8..16 onto 0..8, then 4, 2, 1.
    fn sum(self, a: Self::V) -> f32;
    /// How many lanes are NaN or infinite.
    fn count_non_finite(self, a: Self::V) -> u32;

    fn splat_int(self, value: u32) -> Self::I;
    /// 0, 1, ... 15.
    fn iota(self) -> Self::I;
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    fn shr<const BITS: u32>(self, a: Self::I) -> Self::I;
    fn bits(self, a: Self::V) -> Self::I;
    fn float_of(self, a: Self::I) -> Self::V;
    /// Integers below 2^24.
    fn to_float(self, a: Self::I) -> Self::V;
    /// Lanes of `if_nan` where `x` is not a number, of `otherwise` elsewhere.
    fn select_nan(self, x: Self::V, if_nan: Self::I, otherwise: Self::I) -> Self::I;

    /// 16 floats, little-endian.
    fn load_f32(self, from: &[u8; 64]) -> Self::V;
    fn store_f32(self, value: Self::V, to: &mut [u8; 64]);
    fn load_f16(self, from: &[u8; 32]) -> Self::V;
    /// To nearest, ties to even.
    fn store_f16(self, value: Self::V, to: &mut [u8; 32]);
    fn store_f16_toward_zero(self, value: Self::V, to: &mut [u8; 32]);
    /// 16 integers of 16 bits, widened and shifted up by 16.
    fn load_high_half(self, from: &[u8; 32]) -> Self::I;
    /// The upper 16 bits of each lane.
    fn store_high_half(self, value: Self::I, to: &mut [u8; 32]);
    fn load_u8(self, from: &[u8; 16]) -> Self::V;
    /// Floats in 0 ..= 255, to nearest even or toward zero.
    fn store_u8(self, value: Self::V, nearest: bool, to: &mut [u8; 16]);

    /// 16 codes of 4 bits, the first of two in the lower half of their byte.
    #[inline(always)]
    fn load_u4(self, from: [u8; 8]) -> Self::V {
        let mut codes = [0; LANES];
        for (two, &byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(&from) {
            *two = [byte & 0x0f, byte >> 4];
        }
        self.load_u8(&codes)
    }

    /// A 16-bit float in every lane.
    #[inline(always)]
    fn splat_f16(self, from: [u8; 2]) -> Self::V {
        let mut halves = [0; 32];
        halves.as_chunks_mut::<2>().0.fill(from);
        self.load_f16(&halves)
    }

    /// Asks for the cache lines of `row`.
    fn prefetch(self, row: &[u8]);
    /// Asks for so many cache lines from the first of `row` on, and for its last.
    fn prefetch_lines(self, row: &[u8], lines: usize);
    /// Asks for the cache lines of `row`.
    fn prefetch_floats(self, row: &[f32]);

    /// Fewer than 16 floats; the other lanes are `fill`.
    #[inline(always)]
    fn load_partial(self, from: &[f32], fill: f32) -> Self::V {
        let mut lanes = [fill; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// The first lanes.
    #[inline(always)]
    fn store_partial(self, value: Self::V, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(value, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// `sum` of each of 16 vectors.
    #[inline(always)]
    fn sum_each(self, vectors: &[Self::V; LANES]) -> Self::V {
        let mut sums = [0.0; LANES];
        for (sum, &vector) in sums.iter_mut().zip(vectors) {
            *sum = self.sum(vector);
        }
        self.load(&sums)
    }

    /// As many bytes of floats as there is room for.
    #[inline(always)]
    fn store_f32_partial(self, value: Self::V, to: &mut [u8]) {
        let mut bytes = [0; 64];
        self.store_f32(value, &mut bytes);
        to.copy_from_slice(&bytes[..to.len()]);
    }

    /// As many bytes of floats as there are; the other lanes are zero.
    #[inline(always)]
    fn load_f32_partial(self, from: &[u8]) -> Self::V {
        let mut bytes = [0; 64];
        bytes[..from.len()].copy_from_slice(from);
        self.load_f32(&bytes)
    }
}

/// Asks for the cache lines of so many bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(unsafe_code, reason = "an instruction with an address")]
fn prefetch(start: *const u8, nbytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let mut offset = 0;
    while offset < nbytes {
        // SAFETY: every processor of this architecture has the instruction, and it takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset).cast()) };
        offset += LINE_BYTES;
    }
}

/// Something to compute with any implementation. `run` is `#[inline(always)]`, so that it is compiled for each.
pub(super) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instructions that kernels use. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SimdLevel {
    /// No particular ones.
    Scalar,
    /// AVX2 and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Token {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

/// A level that this processor has.
#[derive(Debug, Clone, Copy)]
pub struct Instructions(Token);

impl Instructions {
    /// The best that this processor has; asked once.
    pub fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| {
            let levels = [SimdLevel::Avx512, SimdLevel::Avx2];
            levels.into_iter().find_map(|level| Self::at(level).ok()).unwrap_or(Self(Token::Scalar(Scalar)))
        })
    }

    /// Those of a level.
    ///
    /// # Errors
    ///
    /// `Unsupported` if this processor does not have them.
    pub fn at(level: SimdLevel) -> Result<Self> {
        let token = match level {
            SimdLevel::Scalar => Some(Token::Scalar(Scalar)),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => avx2::Avx2::detect().map(Token::Avx2),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => avx512::Avx512::detect().map(Token::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        };
        token
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("this processor has no {level} instructions")))
    }

    /// Every level that this processor has, the plainest first.
    pub fn all() -> Vec<Self> {
        let levels = [SimdLevel::Scalar, SimdLevel::Avx2, SimdLevel::Avx512];
        levels.into_iter().filter_map(|level| Self::at(level).ok()).collect()
    }

    /// Which ones these are.
    pub fn level(self) -> SimdLevel {
        match self.0 {
            Token::Scalar(_) => SimdLevel::Scalar,
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => SimdLevel::Avx2,
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => SimdLevel::Avx512,
        }
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Token::Scalar(simd) => kernel.run(simd),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(simd) => simd.run(kernel),
        }
    }
}
