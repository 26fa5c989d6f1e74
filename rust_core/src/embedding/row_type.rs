//! How the weights of a row are stored: types, rounding, and kernels that read and write rows.
//!
//! docs/design/embedding-kernels.md has the rules. State and sums are 32-bit floats whatever the type.

use serde::{Deserialize, Serialize};

use super::kernels::{Instructions, Kernel, LANES, Simd, max_f32, min_f32};
use crate::rng;

/// The type of the stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowType {
    /// 32-bit floats.
    #[default]
    Fp32,
    /// 16-bit floats of IEEE 754.
    Fp16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// Codes of 8 bits, then a scale and a bias of the row as 32-bit floats.
    Int8,
}

/// Bytes of scale and bias behind the codes of an int8 row.
pub const SCALE_AND_BIAS_BYTES: usize = 8;

impl RowType {
    /// Its name in configurations and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of the weights of a row.
    pub fn row_bytes(self, dim: usize) -> usize {
        match self {
            Self::Fp32 => dim * 4,
            Self::Fp16 | Self::Bf16 => dim * 2,
            Self::Int8 => dim + SCALE_AND_BIAS_BYTES,
        }
    }
}

/// How a row that was updated is stored in a type of fewer bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Up or down at random, so that the expected value is exact.
    #[default]
    Stochastic,
    /// To the nearest value.
    Nearest,
}

/// What tells rows of one slab: all have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Type of the weights.
    pub row_type: RowType,
    /// Columns.
    pub dim: usize,
    /// Floats of optimizer state.
    pub state_floats: usize,
}

impl RowShape {
    /// Bytes of the weights of a row.
    pub fn weight_bytes(&self) -> usize {
        self.row_type.row_bytes(self.dim)
    }
}

/// Reads 16 columns of a stored row.
pub(super) trait Stored: Copy {
    /// What a row has besides its elements.
    type Extra<S: Simd>: Copy;
    fn extra<S: Simd>(simd: S, row: &[u8], dim: usize) -> Self::Extra<S>;
    fn load<S: Simd>(simd: S, extra: Self::Extra<S>, row: &[u8], column: usize) -> S::V;
    /// The last columns, fewer than 16; the other lanes are anything finite.
    fn load_partial<S: Simd>(simd: S, extra: Self::Extra<S>, row: &[u8], column: usize, dim: usize) -> S::V;
}

#[inline(always)]
fn chunk<const BYTES: usize>(row: &[u8], at: usize) -> &[u8; BYTES] {
    row[at..].first_chunk().expect("a row has all its columns")
}

#[inline(always)]
fn padded<const BYTES: usize>(rest: &[u8]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..rest.len()].copy_from_slice(rest);
    bytes
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Fp32;
#[derive(Debug, Clone, Copy)]
pub(super) struct Fp16;
#[derive(Debug, Clone, Copy)]
pub(super) struct Bf16;
#[derive(Debug, Clone, Copy)]
pub(super) struct Int8;

impl Stored for Fp32 {
    type Extra<S: Simd> = ();

    #[inline(always)]
    fn extra<S: Simd>(_simd: S, _row: &[u8], _dim: usize) {}

    #[inline(always)]
    fn load<S: Simd>(simd: S, (): (), row: &[u8], column: usize) -> S::V {
        simd.load_f32(chunk(row, column * 4))
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (): (), row: &[u8], column: usize, dim: usize) -> S::V {
        simd.load_f32_partial(&row[column * 4..dim * 4])
    }
}

impl Stored for Fp16 {
    type Extra<S: Simd> = ();

    #[inline(always)]
    fn extra<S: Simd>(_simd: S, _row: &[u8], _dim: usize) {}

    #[inline(always)]
    fn load<S: Simd>(simd: S, (): (), row: &[u8], column: usize) -> S::V {
        simd.load_f16(chunk(row, column * 2))
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (): (), row: &[u8], column: usize, dim: usize) -> S::V {
        simd.load_f16(&padded(&row[column * 2..dim * 2]))
    }
}

impl Stored for Bf16 {
    type Extra<S: Simd> = ();

    #[inline(always)]
    fn extra<S: Simd>(_simd: S, _row: &[u8], _dim: usize) {}

    #[inline(always)]
    fn load<S: Simd>(simd: S, (): (), row: &[u8], column: usize) -> S::V {
        simd.float_of(simd.load_high_half(chunk(row, column * 2)))
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (): (), row: &[u8], column: usize, dim: usize) -> S::V {
        simd.float_of(simd.load_high_half(&padded(&row[column * 2..dim * 2])))
    }
}

impl Stored for Int8 {
    type Extra<S: Simd> = (S::V, S::V);

    #[inline(always)]
    fn extra<S: Simd>(simd: S, row: &[u8], dim: usize) -> (S::V, S::V) {
        let scale = f32::from_le_bytes(*chunk(row, dim));
        let bias = f32::from_le_bytes(*chunk(row, dim + 4));
        (simd.splat(scale), simd.splat(bias))
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, (scale, bias): (S::V, S::V), row: &[u8], column: usize) -> S::V {
        simd.add(simd.mul(simd.load_u8(chunk(row, column)), scale), bias)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (scale, bias): (S::V, S::V), row: &[u8], column: usize, dim: usize) -> S::V {
        simd.add(simd.mul(simd.load_u8(&padded(&row[column..dim])), scale), bias)
    }
}

/// The first column of each vector of a row.
#[inline(always)]
pub(super) fn columns(dim: usize) -> impl Iterator<Item = usize> {
    (0..dim.div_ceil(LANES)).map(|vector| vector * LANES)
}

/// 16 values from a column on; zeros behind the last.
#[inline(always)]
pub(super) fn at<S: Simd>(simd: S, values: &[f32], column: usize) -> S::V {
    let rest = &values[column..];
    rest.first_chunk().map_or_else(|| simd.load_partial(rest, 0.0), |full| simd.load(full))
}

/// Stores up to 16 values from a column on.
#[inline(always)]
pub(super) fn put<S: Simd>(simd: S, value: S::V, values: &mut [f32], column: usize) {
    let rest = &mut values[column..];
    match rest.first_chunk_mut() {
        Some(full) => simd.store(value, full),
        None => simd.store_partial(value, rest),
    }
}

#[inline(always)]
fn decode<S: Simd, R: Stored>(simd: S, row: &[u8], values: &mut [f32]) {
    let dim = values.len();
    let extra = R::extra(simd, row, dim);
    for column in columns(dim) {
        let value = if column + LANES <= dim {
            R::load(simd, extra, row, column)
        } else {
            R::load_partial(simd, extra, row, column, dim)
        };
        put(simd, value, values, column);
    }
}

/// The floats of a stored row.
#[inline(always)]
pub(super) fn decode_row<S: Simd>(simd: S, row_type: RowType, row: &[u8], values: &mut [f32]) {
    match row_type {
        RowType::Fp32 => decode::<S, Fp32>(simd, row, values),
        RowType::Fp16 => decode::<S, Fp16>(simd, row, values),
        RowType::Bf16 => decode::<S, Bf16>(simd, row, values),
        RowType::Int8 => decode::<S, Int8>(simd, row, values),
    }
}

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

#[inline(always)]
fn store_halves<S: Simd>(simd: S, values: &[f32], row: &mut [u8], mut store: impl FnMut(S::V, usize, &mut [u8; 32])) {
    for column in columns(values.len()) {
        let value = at(simd, values, column);
        let rest = &mut row[column * 2..];
        if let Some(full) = rest.first_chunk_mut() {
            store(value, column, full);
        } else {
            let mut halves = [0; 32];
            store(value, column, &mut halves);
            rest.copy_from_slice(&halves[..rest.len()]);
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
fn encode_bf16<S: Simd>(simd: S, value: S::V, addend: S::I, to: &mut [u8; 32]) {
    let bits = simd.bits(value);
    let rounded = simd.add_int(bits, addend);
    let quiet = simd.or(bits, simd.splat_int(0x0040_0000));
    simd.store_high_half(simd.select_nan(value, quiet, rounded), to);
}

#[inline(always)]
fn encode_int8<S: Simd>(simd: S, values: &[f32], noise: NoiseKey, row: &mut [u8]) {
    let dim = values.len();
    let load = |column: usize, fill: f32| {
        let rest = &values[column..];
        rest.first_chunk().map_or_else(|| simd.load_partial(rest, fill), |full| simd.load(full))
    };
    let (mut low, mut high) = (simd.splat(f32::INFINITY), simd.splat(f32::NEG_INFINITY));
    let mut non_finite = 0;
    for column in columns(dim) {
        low = simd.min(low, load(column, f32::INFINITY));
        high = simd.max(high, load(column, f32::NEG_INFINITY));
        non_finite += simd.count_non_finite(load(column, 0.0));
    }
    let fold = |vector: S::V, of: fn(f32, f32) -> f32| {
        let mut lanes = [0.0; LANES];
        simd.store(vector, &mut lanes);
        lanes.into_iter().reduce(of).unwrap_or(0.0)
    };
    let (low, high) = (fold(low, min_f32), fold(high, max_f32));
    let scale = if non_finite > 0 { f32::NAN } else { (high - low) / 255.0 };
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let (codes, extra) = row.split_at_mut(dim);
    extra[..4].copy_from_slice(&scale.to_le_bytes());
    extra[4..].copy_from_slice(&low.to_le_bytes());
    for column in columns(dim) {
        let scaled = simd.mul(simd.sub(at(simd, values, column), simd.splat(low)), simd.splat(inverse));
        let scaled = match noise {
            None => scaled,
            Some(key) => {
                let bits = simd.shr::<8>(random_bits(simd, key, column));
                simd.add(scaled, simd.mul(simd.to_float(bits), simd.splat(1.0 / 16_777_216.0)))
            }
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
        (RowType::Fp32, _) => {
            for column in columns(values.len()) {
                let value = at(simd, values, column);
                let rest = &mut row[column * 4..];
                if let Some(full) = rest.first_chunk_mut() {
                    simd.store_f32(value, full);
                } else {
                    let mut bytes = [0; 64];
                    simd.store_f32(value, &mut bytes);
                    rest.copy_from_slice(&bytes[..rest.len()]);
                }
            }
        }
        (RowType::Fp16, None) => store_halves(simd, values, row, |value, _, to| simd.store_f16(value, to)),
        (RowType::Fp16, Some(key)) => store_halves(simd, values, row, |value, column, to| {
            simd.store_f16_toward_zero(dither_f16(simd, value, random_bits(simd, key, column)), to);
        }),
        (RowType::Bf16, None) => store_halves(simd, values, row, |value, _, to| {
            // Half a unit, less the least when the kept part is even.
            let odd = simd.and(simd.shr::<16>(simd.bits(value)), simd.splat_int(1));
            encode_bf16(simd, value, simd.add_int(odd, simd.splat_int(0x7fff)), to);
        }),
        (RowType::Bf16, Some(key)) => store_halves(simd, values, row, |value, column, to| {
            encode_bf16(simd, value, simd.shr::<16>(random_bits(simd, key, column)), to);
        }),
        (RowType::Int8, noise) => encode_int8(simd, values, noise, row),
    }
}

struct Decode<'a> {
    row_type: RowType,
    dim: usize,
    rows: &'a [u8],
    values: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.rows.chunks_exact(self.row_type.row_bytes(self.dim));
        for (row, values) in rows.zip(self.values.chunks_exact_mut(self.dim)) {
            decode_row(simd, self.row_type, row, values);
        }
    }
}

struct Encode<'a> {
    row_type: RowType,
    dim: usize,
    values: &'a [f32],
    noise: NoiseKey,
    rows: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.rows.chunks_exact_mut(self.row_type.row_bytes(self.dim));
        for (row, values) in rows.zip(self.values.chunks_exact(self.dim)) {
            encode_row(simd, self.row_type, values, self.noise, row);
        }
    }
}

/// The floats of stored rows, one behind the other: count x D from count x row bytes.
pub fn decode_rows(instructions: Instructions, row_type: RowType, dim: usize, rows: &[u8], values: &mut [f32]) {
    instructions.run(Decode { row_type, dim, rows, values });
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
    instructions.run(Encode { row_type, dim, values, noise, rows });
}
