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
            let mut bytes = [0; BYTES];
            encoder.store(simd, value, column, &mut bytes);
            rest.copy_from_slice(&bytes[..rest.len()]);
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

#[inline(always)]
pub(super) fn encode_int8<S: Simd>(simd: S, values: &[f32], noise: NoiseKey, row: &mut [u8]) {
    let dim = values.len();
    let (mut low, mut high) = (simd.splat(f32::INFINITY), simd.splat(f32::NEG_INFINITY));
    let mut non_finite = 0;
    for column in columns(dim) {
        low = simd.min(low, at_or(simd, values, column, f32::INFINITY));
        high = simd.max(high, at_or(simd, values, column, f32::NEG_INFINITY));
        non_finite += simd.count_non_finite(at(simd, values, column));
    }
    let (mut lows, mut highs) = ([0.0; LANES], [0.0; LANES]);
    simd.store(low, &mut lows);
    simd.store(high, &mut highs);
    let low = lows.into_iter().reduce(min_f32).unwrap_or(0.0);
    let high = highs.into_iter().reduce(max_f32).unwrap_or(0.0);
    let scale = (high - low) / 255.0;
    let scale = if non_finite > 0 || !scale.is_finite() { f32::NAN } else { scale };
    // Values too close for a scale in single precision become the least of them.
    let inverse = if scale > 0.0 && (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
    let (codes, extra) = row.split_at_mut(dim);
    extra[..4].copy_from_slice(&scale.to_le_bytes());
    extra[4..].copy_from_slice(&low.to_le_bytes());
    for column in columns(dim) {
        let scaled = simd.mul(simd.sub(at(simd, values, column), simd.splat(low)), simd.splat(inverse));
        let scaled = if let Some(key) = noise {
            let bits = simd.shr::<8>(random_bits(simd, key, column));
            simd.add(scaled, simd.mul(simd.to_float(bits), simd.splat(1.0 / 16_777_216.0)))
        } else {
            scaled
        };
        let scaled = simd.max(simd.min(scaled, simd.splat(255.0)), simd.splat(0.0));
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
