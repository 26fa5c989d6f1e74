//! Sixteen plain floats: what every other implementation is compared with.

use super::{LANES, Simd};

/// The token of plain arithmetic.
#[derive(Debug, Clone, Copy)]
pub(in crate::embedding) struct Scalar;

type V = [f32; LANES];
type I = [u32; LANES];

/// The smaller one; `b` if they are equal or any is not a number, as x86 has it.
#[inline(always)]
pub(in crate::embedding) fn min_f32(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The larger one; `b` if they are equal or any is not a number.
#[inline(always)]
pub(in crate::embedding) fn max_f32(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn zip(a: V, b: V, of: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|lane| of(a[lane], b[lane]))
}

#[inline(always)]
fn zip_int(a: I, b: I, of: impl Fn(u32, u32) -> u32) -> I {
    std::array::from_fn(|lane| of(a[lane], b[lane]))
}

#[inline(always)]
fn halves(from: &[u8; 32]) -> [u16; LANES] {
    std::array::from_fn(|lane| u16::from_le_bytes([from[2 * lane], from[2 * lane + 1]]))
}

#[inline(always)]
fn put_halves(to: &mut [u8; 32], of: impl Fn(usize) -> u16) {
    for (lane, two) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *two = of(lane).to_le_bytes();
    }
}

impl Simd for Scalar {
    type V = V;
    type I = I;
    const BLOCK: usize = 1;

    #[inline(always)]
    fn splat(self, value: f32) -> V {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &V) -> V {
        *from
    }

    #[inline(always)]
    fn store(self, value: V, to: &mut V) {
        *to = value;
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, min_f32)
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, max_f32)
    }

    #[inline(always)]
    fn sqrt(self, a: V) -> V {
        a.map(f32::sqrt)
    }

    #[inline(always)]
    fn sum(self, mut a: V) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                a[lane] += a[lane + half];
            }
            half /= 2;
        }
        a[0]
    }

    #[inline(always)]
    fn count_non_finite(self, a: V) -> u32 {
        a.iter().map(|value| u32::from(!value.is_finite())).sum()
    }

    #[inline(always)]
    fn splat_int(self, value: u32) -> I {
        [value; LANES]
    }

    #[inline(always)]
    fn iota(self) -> I {
        std::array::from_fn(|lane| lane as u32)
    }

    #[inline(always)]
    fn add_int(self, a: I, b: I) -> I {
        zip_int(a, b, u32::wrapping_add)
    }

    #[inline(always)]
    fn mul_int(self, a: I, b: I) -> I {
        zip_int(a, b, u32::wrapping_mul)
    }

    #[inline(always)]
    fn and(self, a: I, b: I) -> I {
        zip_int(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        zip_int(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn xor(self, a: I, b: I) -> I {
        zip_int(a, b, |a, b| a ^ b)
    }

    #[inline(always)]
    fn shr<const BITS: u32>(self, a: I) -> I {
        a.map(|lane| lane >> BITS)
    }

    #[inline(always)]
    fn bits(self, a: V) -> I {
        a.map(f32::to_bits)
    }

    #[inline(always)]
    fn float_of(self, a: I) -> V {
        a.map(f32::from_bits)
    }

    #[inline(always)]
    fn to_float(self, a: I) -> V {
        a.map(|lane| lane as f32)
    }

    #[inline(always)]
    fn select_nan(self, x: V, if_nan: I, otherwise: I) -> I {
        std::array::from_fn(|lane| if x[lane].is_nan() { if_nan[lane] } else { otherwise[lane] })
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> V {
        let (fours, _) = from.as_chunks::<4>();
        std::array::from_fn(|lane| f32::from_le_bytes(fours[lane]))
    }

    #[inline(always)]
    fn store_f32(self, value: V, to: &mut [u8; 64]) {
        for (four, lane) in to.as_chunks_mut::<4>().0.iter_mut().zip(value) {
            *four = lane.to_le_bytes();
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> V {
        halves(from).map(f32_from_f16)
    }

    #[inline(always)]
    fn store_f16(self, value: V, to: &mut [u8; 32]) {
        put_halves(to, |lane| f16_from_f32(value[lane], false));
    }

    #[inline(always)]
    fn store_f16_toward_zero(self, value: V, to: &mut [u8; 32]) {
        put_halves(to, |lane| f16_from_f32(value[lane], true));
    }

    #[inline(always)]
    fn load_high_half(self, from: &[u8; 32]) -> I {
        halves(from).map(|half| u32::from(half) << 16)
    }

    #[inline(always)]
    fn store_high_half(self, value: I, to: &mut [u8; 32]) {
        put_halves(to, |lane| (value[lane] >> 16) as u16);
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> V {
        from.map(f32::from)
    }

    #[inline(always)]
    fn store_u8(self, value: V, nearest: bool, to: &mut [u8; 16]) {
        *to = value.map(|lane| if nearest { lane.round_ties_even() as u8 } else { lane as u8 });
    }

    #[inline(always)]
    fn prefetch(self, _row: &[u8]) {}

    #[inline(always)]
    fn prefetch_lines(self, _row: &[u8], _lines: usize) {}

    #[inline(always)]
    fn prefetch_floats(self, _row: &[f32]) {}
}

/// The float of a half: exact.
fn f32_from_f16(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let (exponent, mantissa) = (u32::from(half >> 10) & 0x1f, u32::from(half & 0x3ff));
    let bits = match exponent {
        0 => return f32::from_bits(sign | (mantissa as f32 * (1.0 / 16_777_216.0)).to_bits()),
        // Infinity stays; a NaN becomes a quiet one, as the processor does it.
        31 => 0x7f80_0000 | mantissa << 13 | if mantissa == 0 { 0 } else { 0x0040_0000 },
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | bits)
}

/// The half of a float: the nearest, ties to even and infinity beyond the largest; or toward zero.
fn f16_from_f32(value: f32, toward_zero: bool) -> u16 {
    const TWO_TO_16: u32 = 0x4780_0000;
    const TWO_TO_MINUS_14: u32 = 0x3880_0000;
    let bits = value.to_bits();
    let (sign, bits) = ((bits >> 16) as u16 & 0x8000, bits & 0x7fff_ffff);
    if bits >= 0x7f80_0000 {
        let quiet = if bits == 0x7f80_0000 { 0 } else { 0x200 | (bits >> 13 & 0x3ff) as u16 };
        return sign | 0x7c00 | quiet;
    }
    if bits >= TWO_TO_16 {
        return sign | if toward_zero { 0x7bff } else { 0x7c00 };
    }
    // The kept part, what is cut off, and a half of its unit.
    let (kept, cut, half) = if bits >= TWO_TO_MINUS_14 {
        let shifted = bits - 0x3800_0000;
        (shifted >> 13, shifted & 0x1fff, 0x1000)
    } else {
        // In units of 2^-24. Below 2^-25 nothing is left.
        let exponent = bits >> 23;
        if exponent < 102 {
            return sign;
        }
        let (mantissa, shift) = (bits & 0x7f_ffff | 0x80_0000, 126 - exponent);
        (mantissa >> shift, mantissa & ((1 << shift) - 1), 1 << (shift - 1))
    };
    let up = !toward_zero && (cut > half || (cut == half && kept & 1 == 1));
    sign | (kept + u32::from(up)) as u16
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "conversions are exact")]
mod tests {
    use crate::embedding::{Instructions, RowType, decode_rows, encode_rows};

    #[test]
    fn every_half_is_its_value_and_comes_back() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let row: Vec<u8> = all.iter().flat_map(|half| half.to_le_bytes()).collect();
        let (mut values, mut back) = (vec![7.0; all.len()], row.clone());
        for (instructions, noise) in Instructions::all().into_iter().flat_map(|of| [(of, None), (of, Some(1))]) {
            back.fill(0xaa);
            decode_rows(instructions, RowType::Fp16, all.len(), &row, &mut values);
            encode_rows(instructions, RowType::Fp16, all.len(), &values, noise, &mut back);
            for ((&half, &value), back) in all.iter().zip(&values).zip(back.as_chunks().0) {
                let sign = if half >> 15 == 1 { -1.0 } else { 1.0 };
                let magnitude = match (i32::from(half >> 10 & 0x1f), f64::from(half & 0x3ff)) {
                    (0, mantissa) => mantissa * 2f64.powi(-24),
                    (31, mantissa) if mantissa > 0.0 => f64::NAN,
                    (31, _) => f64::INFINITY,
                    (exponent, mantissa) => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
                };
                let expected = sign * magnitude;
                assert_eq!(half >> 15 == 1, value.is_sign_negative());
                assert!(f64::from(value) == expected || (value.is_nan() && expected.is_nan()), "{half:x} is {value}");
                let quiet = if value.is_nan() { 0x200 } else { 0 };
                assert_eq!(u16::from_le_bytes(*back), half | quiet, "{half:x} is {value} at {instructions:?}");
            }
        }
    }
}
