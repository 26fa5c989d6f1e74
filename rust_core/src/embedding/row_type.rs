//! How the weights of a row are stored, and kernels that read rows.
//!
//! docs/design/embedding-kernels.md has the rules. State and sums are 32-bit floats whatever the type.

use serde::{Deserialize, Serialize};

use super::columns::{columns, put};
use super::kernels::{Instructions, Kernel, LANES, Simd};

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
    /// As `Int8` with scale and bias as 16-bit floats: what is served, not trained.
    Int8Fp16,
    /// Codes of 4 bits, of two columns the first in the lower half of their byte, then a scale and a bias of the row as
    /// 16-bit floats: what is served, not trained.
    Int4,
}

/// Bytes of scale and bias behind the codes of an int8 row.
pub(super) const SCALE_AND_BIAS_BYTES: usize = 8;
/// The same where they are 16-bit floats.
pub(super) const HALF_SCALE_AND_BIAS_BYTES: usize = 4;

impl RowType {
    /// Its name in configurations and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int8Fp16 => "int8_fp16",
            Self::Int4 => "int4",
        }
    }

    /// Whether rows are codes with a scale and a bias.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Int8 | Self::Int8Fp16 | Self::Int4)
    }

    /// Whether rows of it can be updated by an optimizer.
    pub fn is_trained(self) -> bool {
        !matches!(self, Self::Int8Fp16 | Self::Int4)
    }

    /// Bytes of the weights of a row.
    pub fn row_bytes(self, dim: usize) -> usize {
        match self {
            Self::Fp32 => dim * 4,
            Self::Fp16 | Self::Bf16 => dim * 2,
            Self::Int8 => dim + SCALE_AND_BIAS_BYTES,
            Self::Int8Fp16 => dim + HALF_SCALE_AND_BIAS_BYTES,
            Self::Int4 => dim.div_ceil(2) + HALF_SCALE_AND_BIAS_BYTES,
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

/// Reads columns of a stored row.
pub(super) trait Stored: Copy {
    /// Bytes of the first columns.
    fn bytes(columns: usize) -> usize;
    /// What a row has besides its elements.
    type Extra<S: Simd>: Copy;
    fn extra<S: Simd>(simd: S, row: &[u8], dim: usize) -> Self::Extra<S>;
    /// 16 columns; `from` begins with them.
    fn load<S: Simd>(simd: S, extra: Self::Extra<S>, from: &[u8]) -> S::V;
    /// The columns in `from`, fewer than 16; the other lanes are anything finite.
    fn load_partial<S: Simd>(simd: S, extra: Self::Extra<S>, from: &[u8]) -> S::V;
}

#[inline(always)]
fn chunk<const BYTES: usize>(from: &[u8]) -> &[u8; BYTES] {
    from.first_chunk().expect("a row has all its columns")
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
#[derive(Debug, Clone, Copy)]
pub(super) struct Int8Fp16;
#[derive(Debug, Clone, Copy)]
pub(super) struct Int4;

impl Stored for Fp32 {
    type Extra<S: Simd> = ();

    #[inline(always)]
    fn bytes(columns: usize) -> usize {
        columns * 4
    }

    #[inline(always)]
    fn extra<S: Simd>(_simd: S, _row: &[u8], _dim: usize) {}

    #[inline(always)]
    fn load<S: Simd>(simd: S, (): (), from: &[u8]) -> S::V {
        simd.load_f32(chunk(from))
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (): (), from: &[u8]) -> S::V {
        simd.load_f32_partial(from)
    }
}

impl Stored for Fp16 {
    type Extra<S: Simd> = ();

    #[inline(always)]
    fn bytes(columns: usize) -> usize {
        columns * 2
    }

    #[inline(always)]
    fn extra<S: Simd>(_simd: S, _row: &[u8], _dim: usize) {}

    #[inline(always)]
    fn load<S: Simd>(simd: S, (): (), from: &[u8]) -> S::V {
        simd.load_f16(chunk(from))
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (): (), from: &[u8]) -> S::V {
        simd.load_f16(&padded(from))
    }
}

impl Stored for Bf16 {
    type Extra<S: Simd> = ();

    #[inline(always)]
    fn bytes(columns: usize) -> usize {
        columns * 2
    }

    #[inline(always)]
    fn extra<S: Simd>(_simd: S, _row: &[u8], _dim: usize) {}

    #[inline(always)]
    fn load<S: Simd>(simd: S, (): (), from: &[u8]) -> S::V {
        simd.float_of(simd.load_high_half(chunk(from)))
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (): (), from: &[u8]) -> S::V {
        simd.float_of(simd.load_high_half(&padded(from)))
    }
}

impl Stored for Int8 {
    type Extra<S: Simd> = (S::V, S::V);

    #[inline(always)]
    fn bytes(columns: usize) -> usize {
        columns
    }

    #[inline(always)]
    fn extra<S: Simd>(simd: S, row: &[u8], dim: usize) -> (S::V, S::V) {
        let extra = &row[dim..dim + SCALE_AND_BIAS_BYTES];
        let scale = f32::from_le_bytes(*chunk(extra));
        let bias = f32::from_le_bytes(*chunk(&extra[4..]));
        (simd.splat(scale), simd.splat(bias))
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, (scale, bias): (S::V, S::V), from: &[u8]) -> S::V {
        simd.add(simd.mul(simd.load_u8(chunk(from)), scale), bias)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (scale, bias): (S::V, S::V), from: &[u8]) -> S::V {
        simd.add(simd.mul(simd.load_u8(&padded(from)), scale), bias)
    }
}

/// Scale and bias as 16-bit floats behind the codes.
#[inline(always)]
fn half_scale_and_bias<S: Simd>(simd: S, row: &[u8], codes: usize) -> (S::V, S::V) {
    let extra = &row[codes..codes + HALF_SCALE_AND_BIAS_BYTES];
    (simd.splat_f16(*chunk(extra)), simd.splat_f16(*chunk(&extra[2..])))
}

impl Stored for Int8Fp16 {
    type Extra<S: Simd> = (S::V, S::V);

    #[inline(always)]
    fn bytes(columns: usize) -> usize {
        columns
    }

    #[inline(always)]
    fn extra<S: Simd>(simd: S, row: &[u8], dim: usize) -> (S::V, S::V) {
        half_scale_and_bias(simd, row, dim)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, extra: (S::V, S::V), from: &[u8]) -> S::V {
        Int8::load(simd, extra, from)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, extra: (S::V, S::V), from: &[u8]) -> S::V {
        Int8::load_partial(simd, extra, from)
    }
}

impl Stored for Int4 {
    type Extra<S: Simd> = (S::V, S::V);

    #[inline(always)]
    fn bytes(columns: usize) -> usize {
        columns.div_ceil(2)
    }

    #[inline(always)]
    fn extra<S: Simd>(simd: S, row: &[u8], dim: usize) -> (S::V, S::V) {
        half_scale_and_bias(simd, row, dim.div_ceil(2))
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, (scale, bias): (S::V, S::V), from: &[u8]) -> S::V {
        simd.add(simd.mul(simd.load_u4(*chunk(from)), scale), bias)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, (scale, bias): (S::V, S::V), from: &[u8]) -> S::V {
        simd.add(simd.mul(simd.load_u4(padded(from)), scale), bias)
    }
}

/// The bytes of some columns of a stored row; `column` is a multiple of 16.
#[inline(always)]
pub(super) fn stored_columns<R: Stored>(row: &[u8], column: usize, count: usize) -> &[u8] {
    &row[R::bytes(column)..R::bytes(column + count)]
}

/// Up to 16 columns of a stored row.
#[inline(always)]
pub(super) fn stored_at<S: Simd, R: Stored>(simd: S, row: &[u8], column: usize, dim: usize) -> S::V {
    let extra = R::extra(simd, row, dim);
    if column + LANES <= dim {
        R::load(simd, extra, stored_columns::<R>(row, column, LANES))
    } else {
        R::load_partial(simd, extra, stored_columns::<R>(row, column, dim - column))
    }
}

#[inline(always)]
fn decode<S: Simd, R: Stored>(simd: S, row: &[u8], values: &mut [f32]) {
    let dim = values.len();
    for column in columns(dim) {
        put(simd, stored_at::<S, R>(simd, row, column, dim), values, column);
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
        RowType::Int8Fp16 => decode::<S, Int8Fp16>(simd, row, values),
        RowType::Int4 => decode::<S, Int4>(simd, row, values),
    }
}

struct Decode<'a> {
    shape: RowShape,
    rows: &'a [u8],
    values: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.rows.chunks_exact(self.shape.weight_bytes());
        for (row, values) in rows.zip(self.values.chunks_exact_mut(self.shape.dim)) {
            decode_row(simd, self.shape.row_type, row, values);
        }
    }
}

/// The floats of stored rows, one behind the other: count x D from count x row bytes.
pub fn decode_rows(instructions: Instructions, row_type: RowType, dim: usize, rows: &[u8], values: &mut [f32]) {
    let shape = RowShape { row_type, dim, state_floats: 0 };
    instructions.run(Decode { shape, rows, values });
}
