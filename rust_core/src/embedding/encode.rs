//! Storing floats as rows: rounding to the nearest, and at random.
//!
//! docs/design/embedding-kernels.md has the rules.

use super::columns::{at, at_or, columns};
use super::kernels::{Instructions, Kernel, LANES, Simd, max_f32, min_f32};
use super::row_type::{RowShape, RowType};
use crate::rng;

/// 32 random bits for each of 16 columns.
#[inline(always)]
fn random_bits<S: Simd>(simd: S, key: u64, column: usize) -> S::I {
    const GOLDEN: u32 = 0x9e37_79b9;
    let element = simd.add_int(simd.iota(), simd.splat_int(column as u32));
    let mut x = simd.add_int(simd.splat_int(key as u32), simd.mul_int(element, simd.splat_int(GOLDEN)));
    // A bijection of 32 bits with low bias, found by C. Wellons ("hash-prospector", public domain).
    x = simd.xor(x, simd.shr::<16>(x));
    x = simd.mul_int(x, simd.splat_int(0x7feb_352d));
    x = simd.xor(x, simd.shr::<15>(x));
    x = simd.mul_int(x, simd.splat_int(0x846c_a68b));
    x = simd.xor(x, simd.shr::<16>(x));
    simd.xor(x, simd.splat_int((key >> 32) as u32))
}

/// Where the noise of a row comes from; nothing if it is rounded to nearest.
pub(super) type NoiseKey = Option<u64>;

/// The key of a row's noise in one step of one table: `table_key` is [`noise_of_table`].
#[inline]
pub(super) fn noise_of_row(table_key: u64, row: u64) -> u64 {
    rng::stream(table_key, row)
}

/// The key of the noise of one step of a table.
pub fn noise_of_table(seed: u64, step: u64, table: usize) -> u64 {
    rng::stream(rng::stream(seed, step), table as u64)
}

/// Stores 16 columns in so many bytes.
pub(super) trait Encoder<const BYTES: usize>: Copy {
    fn store<S: Simd>(self, simd: S, value: S::V, column: usize, to: &mut [u8; BYTES]);

    /// Stores fewer columns.
    #[inline(always)]
    fn store_partial<S: Simd>(self, simd: S, value: S::V, column: usize, to: &mut [u8]) {
        let mut bytes = [0; BYTES];
        self.store(simd, value, column, &mut bytes);
        to.copy_from_slice(&bytes[..to.len()]);
    }
}

#[derive(Clone, Copy)]
pub(super) struct WholeFp32;
#[derive(Clone, Copy)]
pub(super) struct NearestFp16;
#[derive(Clone, Copy)]
pub(super) struct RandomFp16(pub(super) u64);
#[derive(Clone, Copy)]
pub(super) struct NearestBf16;
#[derive(Clone, Copy)]
pub(super) struct RandomBf16(pub(super) u64);

impl Encoder<64> for WholeFp32 {
    #[inline(always)]
    fn store<S: Simd>(self, simd: S, value: S::V, _column: usize, to: &mut [u8; 64]) {
        simd.store_f32(value, to);
    }

    #[inline(always)]
    fn store_partial<S: Simd>(self, simd: S, value: S::V, _column: usize, to: &mut [u8]) {
        simd.store_f32_partial(value, to);
    }
}

impl Encoder<32> for NearestFp16 {
    #[inline(always)]
    fn store<S: Simd>(self, simd: S, value: S::V, _column: usize, to: &mut [u8; 32]) {
        simd.store_f16(value, to);
    }
}

impl Encoder<32> for RandomFp16 {
    #[inline(always)]
    fn store<S: Simd>(self, simd: S, value: S::V, column: usize, to: &mut [u8; 32]) {
        let value = dither_f16(simd, value, random_bits(simd, self.0, column));
        simd.store_f16_toward_zero(value, to);
    }
}

impl Encoder<32> for NearestBf16 {
    #[inline(always)]
    fn store<S: Simd>(self, simd: S, value: S::V, _column: usize, to: &mut [u8; 32]) {
        // Half a unit, less the least when the kept part is even.
        let odd = simd.and(simd.shr::<16>(simd.bits(value)), simd.splat_int(1));
        store_bf16(simd, value, simd.add_int(odd, simd.splat_int(0x7fff)), to);
    }
}

impl Encoder<32> for RandomBf16 {
    #[inline(always)]
    fn store<S: Simd>(self, simd: S, value: S::V, column: usize, to: &mut [u8; 32]) {
        store_bf16(simd, value, simd.shr::<16>(random_bits(simd, self.0, column)), to);
    }
}

#[inline(always)]
fn encode<S: Simd, const BYTES: usize>(simd: S, encoder: impl Encoder<BYTES>, values: &[f32], row: &mut [u8]) {
    for column in columns(values.len()) {
        let value = at(simd, values, column);
        let rest = &mut row[column / LANES * BYTES..];
        if let Some(full) = rest.first_chunk_mut() {
            encoder.store(simd, value, column, full);
        } else {
            encoder.store_partial(simd, value, column, rest);
        }
    }
}

/// Rounds at random to a half: a fraction of its unit is added, and the rest is cut.
#[inline(always)]
fn dither_f16<S: Simd>(simd: S, value: S::V, random: S::I) -> S::V {
    const UNIT_OF_SUBNORMALS: f32 = 1.0 / 16_777_216.0;
    const UNIT_OF_LARGEST: f32 = 32.0;
    let bits = simd.bits(value);
    let magnitude = simd.float_of(simd.and(bits, simd.splat_int(0x7fff_ffff)));
    let power = simd.float_of(simd.and(bits, simd.splat_int(0x7f80_0000)));
    let unit = simd.mul(power, simd.splat(1.0 / 1024.0));
    let unit = simd.min(simd.max(unit, simd.splat(UNIT_OF_SUBNORMALS)), simd.splat(UNIT_OF_LARGEST));
    let fraction = simd.mul(simd.to_float(simd.shr::<19>(random)), simd.splat(1.0 / 8192.0));
    let magnitude = simd.add(magnitude, simd.mul(fraction, unit));
    let sign = simd.and(bits, simd.splat_int(0x8000_0000));
    simd.float_of(simd.or(simd.bits(magnitude), sign))
}

#[inline(always)]
fn store_bf16<S: Simd>(simd: S, value: S::V, addend: S::I, to: &mut [u8; 32]) {
    let bits = simd.bits(value);
    let rounded = simd.add_int(bits, addend);
    let quiet = simd.or(bits, simd.splat_int(0x0040_0000));
    simd.store_high_half(simd.select_nan(value, quiet, rounded), to);
}

/// The least and the largest value, and whether all are finite.
#[inline(always)]
fn range_of<S: Simd>(simd: S, values: &[f32]) -> (f32, f32, bool) {
    let (mut low, mut high) = (simd.splat(f32::INFINITY), simd.splat(f32::NEG_INFINITY));
    let mut non_finite = 0;
    for column in columns(values.len()) {
        low = simd.min(low, at_or(simd, values, column, f32::INFINITY));
        high = simd.max(high, at_or(simd, values, column, f32::NEG_INFINITY));
        non_finite += simd.count_non_finite(at(simd, values, column));
    }
    let (mut lows, mut highs) = ([0.0; LANES], [0.0; LANES]);
    simd.store(low, &mut lows);
    simd.store(high, &mut highs);
    let low = lows.into_iter().reduce(min_f32).unwrap_or(0.0);
    let high = highs.into_iter().reduce(max_f32).unwrap_or(0.0);
    (low, high, non_finite == 0)
}

/// How far the values of a row lie apart from one code to the next, and where code 0 is.
#[derive(Debug, Clone, Copy)]
struct Scale {
    inverse: f32,
    bias: f32,
    largest: f32,
}

impl Scale {
    /// Values too close for a scale in single precision become the least of them.
    fn new(scale: f32, bias: f32, largest: f32) -> Self {
        let inverse = if scale > 0.0 && (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
        Self { inverse, bias, largest }
    }

    /// 16 codes, not yet rounded.
    #[inline(always)]
    fn codes<S: Simd>(&self, simd: S, values: &[f32], noise: NoiseKey, column: usize) -> S::V {
        let scaled = simd.mul(simd.sub(at(simd, values, column), simd.splat(self.bias)), simd.splat(self.inverse));
        let scaled = if let Some(key) = noise {
            let bits = simd.shr::<8>(random_bits(simd, key, column));
            simd.add(scaled, simd.mul(simd.to_float(bits), simd.splat(1.0 / 16_777_216.0)))
        } else {
            scaled
        };
        simd.max(simd.min(scaled, simd.splat(self.largest)), simd.splat(0.0))
    }

    /// Stores a byte for each column.
    #[inline(always)]
    fn store_bytes<S: Simd>(&self, simd: S, values: &[f32], noise: NoiseKey, codes: &mut [u8]) {
        for column in columns(values.len()) {
            let scaled = self.codes(simd, values, noise, column);
            let rest = &mut codes[column..];
            if let Some(full) = rest.first_chunk_mut() {
                simd.store_u8(scaled, noise.is_none(), full);
            } else {
                let mut bytes = [0; LANES];
                simd.store_u8(scaled, noise.is_none(), &mut bytes);
                rest.copy_from_slice(&bytes[..rest.len()]);
            }
        }
    }

    /// Stores half a byte for each column.
    #[inline(always)]
    fn store_nibbles<S: Simd>(&self, simd: S, values: &[f32], noise: NoiseKey, codes: &mut [u8]) {
        for (column, packed) in columns(values.len()).zip(codes.chunks_mut(LANES / 2)) {
            let mut bytes = [0; LANES];
            simd.store_u8(self.codes(simd, values, noise, column), noise.is_none(), &mut bytes);
            if let Some(behind) = bytes.get_mut(values.len() - column..) {
                behind.fill(0);
            }
            for (byte, two) in packed.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *byte = two[0] | two[1] << 4;
            }
        }
    }
}

#[inline(always)]
pub(super) fn encode_int8<S: Simd>(simd: S, values: &[f32], noise: NoiseKey, row: &mut [u8]) {
    let (low, high, is_finite) = range_of(simd, values);
    let scale = (high - low) / 255.0;
    let scale = if is_finite && scale.is_finite() { scale } else { f32::NAN };
    let (codes, extra) = row.split_at_mut(values.len());
    extra[..4].copy_from_slice(&scale.to_le_bytes());
    extra[4..].copy_from_slice(&low.to_le_bytes());
    Scale::new(scale, low, 255.0).store_bytes(simd, values, noise, codes);
}

/// A float as a half, to nearest, and the float that this is.
#[inline(always)]
fn half<S: Simd>(simd: S, value: f32) -> ([u8; 2], f32) {
    let mut halves = [0; 32];
    simd.store_f16(simd.splat(value), &mut halves);
    let bytes = [halves[0], halves[1]];
    let mut lanes = [0.0; LANES];
    simd.store(simd.splat_f16(bytes), &mut lanes);
    (bytes, lanes[0])
}

/// Writes scale and bias as halves; codes are of what those are, not of what they were rounded from.
#[inline(always)]
fn half_scale<S: Simd>(simd: S, values: &[f32], largest: f32, extra: &mut [u8]) -> Scale {
    let (low, high, is_finite) = range_of(simd, values);
    let (bias_bytes, bias) = half(simd, low);
    let (scale_bytes, scale) = half(simd, (high - bias) / largest);
    let is_finite = is_finite && scale.is_finite() && bias.is_finite();
    let (scale_bytes, scale) = if is_finite { (scale_bytes, scale) } else { half(simd, f32::NAN) };
    extra[..2].copy_from_slice(&scale_bytes);
    extra[2..].copy_from_slice(&bias_bytes);
    Scale::new(scale, bias, largest)
}

#[inline(always)]
fn encode_int8_fp16<S: Simd>(simd: S, values: &[f32], noise: NoiseKey, row: &mut [u8]) {
    let (codes, extra) = row.split_at_mut(values.len());
    half_scale(simd, values, 255.0, extra).store_bytes(simd, values, noise, codes);
}

#[inline(always)]
fn encode_int4<S: Simd>(simd: S, values: &[f32], noise: NoiseKey, row: &mut [u8]) {
    let (codes, extra) = row.split_at_mut(values.len().div_ceil(2));
    half_scale(simd, values, 15.0, extra).store_nibbles(simd, values, noise, codes);
}

/// Stores floats as a row.
#[inline(always)]
pub(super) fn encode_row<S: Simd>(simd: S, row_type: RowType, values: &[f32], noise: NoiseKey, row: &mut [u8]) {
    match (row_type, noise) {
        (RowType::Fp32, _) => encode::<S, 64>(simd, WholeFp32, values, row),
        (RowType::Fp16, None) => encode::<S, 32>(simd, NearestFp16, values, row),
        (RowType::Fp16, Some(key)) => encode::<S, 32>(simd, RandomFp16(key), values, row),
        (RowType::Bf16, None) => encode::<S, 32>(simd, NearestBf16, values, row),
        (RowType::Bf16, Some(key)) => encode::<S, 32>(simd, RandomBf16(key), values, row),
        (RowType::Int8, noise) => encode_int8(simd, values, noise, row),
        (RowType::Int8Fp16, noise) => encode_int8_fp16(simd, values, noise, row),
        (RowType::Int4, noise) => encode_int4(simd, values, noise, row),
    }
}

struct Encode<'a> {
    shape: RowShape,
    values: &'a [f32],
    noise: NoiseKey,
    rows: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.rows.chunks_exact_mut(self.shape.weight_bytes());
        for (row, values) in rows.zip(self.values.chunks_exact(self.shape.dim)) {
            encode_row(simd, self.shape.row_type, values, self.noise, row);
        }
    }
}

/// Stores floats as rows, each value rounded to the nearest; or at random with the noise of `noise`, which is the same
/// for each row: count x row bytes from count x D.
pub fn encode_rows(
    instructions: Instructions,
    row_type: RowType,
    dim: usize,
    values: &[f32],
    noise: Option<u64>,
    rows: &mut [u8],
) {
    let shape = RowShape { row_type, dim, state_floats: 0 };
    instructions.run(Encode { shape, values, noise, rows });
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "bits are the subject")]
mod tests {
    use super::super::decode_rows;
    use super::*;
    use proptest::prelude::*;

    /// The values of all halves from 0 up; behind the last finite one what would follow it.
    fn halves() -> Vec<f64> {
        let value = |half: i32| match (half >> 10, f64::from(half & 0x3ff)) {
            (0, mantissa) => mantissa * 2f64.powi(-24),
            (exponent, mantissa) => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
        };
        (0..=0x7c00).map(value).collect()
    }

    /// The last half that is no larger, without its sign.
    fn half_below(halves: &[f64], value: f32) -> usize {
        halves.partition_point(|&half| half <= f64::from(value.abs())) - 1
    }

    fn sign_of(value: f32) -> u16 {
        (value.to_bits() >> 16) as u16 & 0x8000
    }

    /// Which of two neighbours, `below` and the next one, is nearer.
    fn nearest(value: f32, below: u16, (down, up): (f64, f64)) -> u16 {
        let (down, up) = (f64::from(value.abs()) - down, up - f64::from(value.abs()));
        sign_of(value) | (below + u16::from(down > up || (down == up && below % 2 == 1)))
    }

    fn neighbours_in_bf16(value: f32) -> (f64, f64) {
        let [down, up] = [0, 1].map(|add| f32::from_bits(((value.abs().to_bits() >> 16) + add) << 16));
        (f64::from(down), if up.is_finite() { f64::from(up) } else { 2f64.powi(128) })
    }

    /// 32 bits of noise, as documented.
    fn noise(key: u64, element: u32) -> u32 {
        let mut x = (key as u32).wrapping_add(element.wrapping_mul(0x9e37_79b9));
        x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
        x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
        (x ^ x >> 16) ^ (key >> 32) as u32
    }

    fn random_half(halves: &[f64], value: f32, noise: u32) -> u16 {
        let exponent = (value.to_bits() >> 23 & 0xff) as i32 - 127;
        let sum = value.abs() + (noise >> 19) as f32 / 8192.0 * 2f32.powi((exponent - 10).clamp(-24, 5));
        sign_of(value) | half_below(halves, sum).min(0x7bff) as u16
    }

    fn encoded(instructions: Instructions, row_type: RowType, values: &[f32], noise: Option<u64>) -> Vec<u8> {
        let mut row = vec![0xaa; row_type.row_bytes(values.len())];
        encode_rows(instructions, row_type, values.len(), values, noise, &mut row);
        row
    }

    fn shorts(row: &[u8]) -> Vec<u16> {
        row.as_chunks().0.iter().map(|two| u16::from_le_bytes(*two)).collect()
    }

    fn decoded(instructions: Instructions, row_type: RowType, dim: usize, row: &[u8]) -> Vec<f32> {
        let mut values = vec![7.0; dim];
        decode_rows(instructions, row_type, dim, row, &mut values);
        values
    }

    /// Any bits, ordinary values, and those at and next to a neighbour or the middle of two.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        let next_to = |(bits, delta): (u32, u32)| f32::from_bits(bits.wrapping_add(delta).wrapping_sub(1));
        let middle = prop_oneof![
            (0x3_3000u32..0x4_8000).prop_map(|n| n << 12),
            (0u32..0x2_0000).prop_map(|n| n << 15),
            (0u32..2100).prop_map(|n| (n as f32 / -33_554_432.0).to_bits()),
        ];
        let value = prop_oneof![
            any::<u32>().prop_map(f32::from_bits),
            -4f32..4.0,
            (middle, 0u32..3).prop_map(next_to),
            prop::sample::select(&[0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 65_520.0]),
        ];
        prop::collection::vec(value, 1..70)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
        #[test]
        fn halves_are_rounded_as_documented(values in values(), key: u64) {
            let halves = halves();
            let expected = |value: f32, noise: u32| {
                let (bits, upper) = (value.to_bits(), (value.to_bits() >> 16) as u16);
                // A NaN is quiet and keeps the bits that there is room for.
                if !value.is_finite() {
                    let half = sign_of(value) | 0x7c00 | (bits >> 13 & 0x3ff) as u16;
                    let [half, upper] = if value.is_nan() { [half | 0x200, upper | 0x40] } else { [half, upper] };
                    return [half, half, upper, upper];
                }
                let (below, random_bf16) = (half_below(&halves, value), (bits + (noise >> 16)) >> 16);
                let fp16 = nearest(value, below as u16, (halves[below], *halves.get(below + 1).unwrap_or(&f64::MAX)));
                let bf16 = nearest(value, upper & 0x7fff, neighbours_in_bf16(value));
                [fp16, random_half(&halves, value, noise), bf16, random_bf16 as u16]
            };
            for instructions in Instructions::all() {
                let found = |row_type, noise| shorts(&encoded(instructions, row_type, &values, noise));
                let [fp16, bf16] = [RowType::Fp16, RowType::Bf16].map(|of| [found(of, None), found(of, Some(key))]);
                for (column, &value) in values.iter().enumerate() {
                    let found = [fp16[0][column], fp16[1][column], bf16[0][column], bf16[1][column]];
                    prop_assert_eq!(found, expected(value, noise(key, column as u32)), "{} {:?}", value, instructions);
                }
            }
        }

        #[test]
        fn codes_are_rounded_as_documented(values in values(), key: u64, is_tame: bool, is_random: bool) {
            let mut values: Vec<f32> = values.into_iter().filter(|value| !is_tame || value.abs() < 1e6).collect();
            prop_assume!(!values.is_empty());
            if key % 8 == 0 { values = vec![values[0]; values.len()]; }
            let (low, high) = values.iter().fold((values[0], values[0]), |(a, b), &v| (a.min(v), b.max(v)));
            let is_finite = values.iter().all(|value| value.is_finite()) && (high - low).is_finite();
            let (scale, noise_key) = ((high - low) / 255.0, is_random.then_some(key));
            // A scale that has no inverse makes a row constant.
            let inverse = if (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
            let expected = encoded(Instructions::all()[0], RowType::Int8, &values, noise_key);
            for instructions in Instructions::all() {
                let row = encoded(instructions, RowType::Int8, &values, noise_key);
                prop_assert_eq!(&row, &expected);
                let decoded = decoded(instructions, RowType::Int8, values.len(), &row);
                for (column, (&value, &found)) in values.iter().zip(&decoded).enumerate() {
                    prop_assert_eq!(found.is_nan(), !is_finite);
                    if !is_finite {
                        continue;
                    }
                    let noise = (noise(key, column as u32) >> 8) as f32 / 16_777_216.0;
                    let scaled = (value - low) * inverse;
                    let code = if is_random { (scaled + noise).floor() } else { scaled.round_ties_even() };
                    prop_assert_eq!(f32::from(row[column]), code.clamp(0.0, 255.0));
                    let steps = if is_random { 1.0 } else { 0.5 };
                    let rounding = f64::from(low.abs().max(high.abs())) * 2f64.powi(-22);
                    let largest = f64::from(scale) * (steps + 1e-4) + if low == high { 0.0 } else { rounding };
                    let error = (f64::from(found) - f64::from(value)).abs();
                    prop_assert!(error <= largest || (inverse == 0.0 && low < high));
                }
            }
        }
    }

    #[test]
    fn rounding_at_random_is_to_a_neighbour_and_right_on_average() {
        let (halves, best, count) = (halves(), Instructions::best(), 30_000.0);
        let ordinary = [0.0, -1.5, 1.0 / 3.0, -1.000_488_3, 1.999_999_9, 2.000_001, 1023.9, -65_503.0];
        let small = [3e-5, -6.103_515e-5, 6.103_6e-5, 5.9e-8, -2e-8, 1e-8, 9.87e-7f32];
        for value in ordinary.into_iter().chain(small) {
            let below = half_below(&halves, value);
            let neighbours = [(halves[below], halves[below + 1]), neighbours_in_bf16(value)];
            for (row_type, (down, up)) in [RowType::Fp16, RowType::Bf16].into_iter().zip(neighbours) {
                let mut ups = 0;
                for key in 0..100 {
                    let row = encoded(best, row_type, &[value; 300], Some(rng::stream(5, key)));
                    for found in decoded(best, row_type, 300, &row) {
                        let magnitude = f64::from(found * 1f32.copysign(value));
                        assert!(magnitude == down || magnitude == up, "{found} is no neighbour of {value}");
                        ups += u32::from(magnitude == up);
                    }
                }
                let share = (f64::from(value.abs()) - down) / (up - down);
                let error = (share * (1.0 - share) / count).sqrt();
                assert!((f64::from(ups) / count - share).abs() <= 4.0 * error, "{ups} times up from {value}");
            }
        }
    }
}
