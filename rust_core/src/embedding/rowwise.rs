//! Row-wise `AdaGrad` in groups of 16 rows, so that no row waits for the root and the quotients of another. The operations
//! on each row are those of [`update_row`](super::optim::update_row), and so are the bits.

use super::coalesce::{Update, sum_gradients};
use super::columns;
use super::encode::{Encoder, NearestBf16, NearestFp16, NoiseKey, RandomBf16, RandomFp16, WholeFp32, encode_row};
use super::kernels::{LANES, Simd};
use super::occurrences::slot_of;
use super::optim::{RowwiseRule, descend, lanes_of_squares};
use super::row_type::{Bf16, Fp16, Fp32, RowType, Stored, decode_row, stored_columns};

/// Reads and stores rows of one type with one rounding.
trait Codec: Copy {
    type Stored: Stored;
    fn encode<S: Simd, const N: usize, const TAIL: bool>(simd: S, values: &[S::V; N], noise: NoiseKey, row: &mut [u8]);
}

#[derive(Clone, Copy)]
struct AsFp32;
#[derive(Clone, Copy)]
struct AsNearestFp16;
#[derive(Clone, Copy)]
struct AsRandomFp16;
#[derive(Clone, Copy)]
struct AsNearestBf16;
#[derive(Clone, Copy)]
struct AsRandomBf16;

macro_rules! codec {
    ($codec:ty, $stored:ty, $bytes:literal, |$noise:ident| $encoder:expr) => {
        impl Codec for $codec {
            type Stored = $stored;

            #[inline(always)]
            fn encode<S: Simd, const N: usize, const TAIL: bool>(
                simd: S,
                values: &[S::V; N],
                $noise: NoiseKey,
                row: &mut [u8],
            ) {
                store_vectors::<S, N, $bytes, TAIL>(simd, $encoder, values, row);
            }
        }
    };
}

codec!(AsFp32, Fp32, 64, |_noise| WholeFp32);
codec!(AsNearestFp16, Fp16, 32, |_noise| NearestFp16);
codec!(AsRandomFp16, Fp16, 32, |noise| RandomFp16(noise.unwrap_or(0)));
codec!(AsNearestBf16, Bf16, 32, |_noise| NearestBf16);
codec!(AsRandomBf16, Bf16, 32, |noise| RandomBf16(noise.unwrap_or(0)));

#[inline(always)]
fn store_vectors<S: Simd, const N: usize, const BYTES: usize, const TAIL: bool>(
    simd: S,
    encoder: impl Encoder<BYTES>,
    values: &[S::V; N],
    row: &mut [u8],
) {
    let (full, rest) = row.as_chunks_mut::<BYTES>();
    if TAIL {
        for (vector, (to, &value)) in full.iter_mut().zip(values).enumerate() {
            encoder.store(simd, value, vector * LANES, to);
        }
        encoder.store_partial(simd, values[N - 1], (N - 1) * LANES, rest);
        return;
    }
    let full: &mut [[u8; BYTES]; N] = full.first_chunk_mut().expect("a row has all its columns");
    for (vector, (to, &value)) in full.iter_mut().zip(values).enumerate() {
        encoder.store(simd, value, vector * LANES, to);
    }
}

#[inline(always)]
fn load_row<S: Simd, R: Stored, const N: usize, const TAIL: bool>(simd: S, row: &[u8], dim: usize) -> [S::V; N] {
    let extra = R::extra(simd, row, dim);
    let mut values = [simd.splat(0.0); N];
    let from = stored_columns::<R>(row, 0, if TAIL { dim } else { N * LANES });
    for (vector, value) in values.iter_mut().enumerate() {
        let from = &from[R::bytes(vector * LANES)..];
        let is_tail = TAIL && vector == N - 1;
        *value = if is_tail { R::load_partial(simd, extra, from) } else { R::load(simd, extra, from) };
    }
    values
}

impl Update<'_, '_> {
    /// The sum of the gradients of a row, and its lanes of squares.
    #[inline(always)]
    fn sum_row<S: Simd, const N: usize, const TAIL: bool>(&self, simd: S, group: &[u64]) -> ([S::V; N], S::V) {
        let occurrences = self.occurrences;
        let mut sums = [simd.splat(0.0); N];
        for &key in group {
            let gradient = occurrences.gradient(key);
            let gradient = if TAIL { gradient } else { &gradient[..N * LANES] };
            for (vector, sum) in sums.iter_mut().enumerate() {
                let value = columns::at(simd, gradient, vector * LANES);
                let is_plain = occurrences.are_plain();
                let value = if is_plain { value } else { occurrences.weighted(simd, key, value) };
                *sum = simd.add(*sum, value);
            }
        }
        let mut squares = simd.splat(0.0);
        for &sum in &sums {
            squares = simd.add(squares, simd.mul(sum, sum));
        }
        (sums, squares)
    }

    /// The states of up to 16 rows with the squares of this step, and what multiplies their gradients.
    #[inline(always)]
    fn factors<S: Simd>(
        &mut self,
        simd: S,
        rule: RowwiseRule,
        first_keys: &[u64],
        squares: &[S::V; LANES],
    ) -> [f32; LANES] {
        let mut states = [0.0; LANES];
        for (state, &key) in states.iter_mut().zip(first_keys) {
            *state = self.row(slot_of(key)).1[0];
        }
        let sums = RowwiseRule::accumulate(simd, simd.sum_each(squares), simd.load(&states), self.shape.dim);
        simd.store(sums, &mut states);
        for (&state, &key) in states.iter().zip(first_keys) {
            self.row(slot_of(key)).1[0] = state;
        }
        let mut factors = [0.0; LANES];
        simd.store(rule.factors(simd, sums), &mut factors);
        factors
    }

    /// Rows of `N` vectors, in registers.
    #[inline(always)]
    fn blocks<S: Simd, C: Codec, const N: usize, const TAIL: bool>(&mut self, simd: S, rule: RowwiseRule) {
        let dim = self.shape.dim;
        let mut gradients = [[simd.splat(0.0); N]; LANES];
        let mut squares = [simd.splat(0.0); LANES];
        let mut first_keys = [0; LANES];
        for begin in (0..self.rows()).step_by(LANES) {
            let count = (self.rows() - begin).min(LANES);
            for at in 0..count {
                let group = self.group(simd, begin + at);
                first_keys[at] = group[0];
                (gradients[at], squares[at]) = self.sum_row::<S, N, TAIL>(simd, group);
            }
            let factors = self.factors(simd, rule, &first_keys[..count], &squares);
            for at in 0..count {
                let noise = self.touch(slot_of(first_keys[at]));
                let (stored, _) = self.row(slot_of(first_keys[at]));
                let mut weights = load_row::<S, C::Stored, N, TAIL>(simd, stored, dim);
                let factor = simd.splat(factors[at]);
                for (weight, &gradient) in weights.iter_mut().zip(&gradients[at]) {
                    *weight = simd.sub(*weight, simd.mul(factor, gradient));
                }
                C::encode::<S, N, TAIL>(simd, &weights, noise, stored);
            }
        }
    }

    /// Rows of any number of columns, in memory.
    #[inline(always)]
    fn blocks_in_memory<S: Simd>(&mut self, simd: S, rule: RowwiseRule) {
        let (shape, occurrences) = (self.shape, self.occurrences);
        let mut gradients = vec![0.0; LANES * shape.dim];
        let mut weights = vec![0.0; shape.dim];
        let mut squares = [simd.splat(0.0); LANES];
        let mut first_keys = [0; LANES];
        for begin in (0..self.rows()).step_by(LANES) {
            let count = (self.rows() - begin).min(LANES);
            for (at, gradient) in gradients.chunks_exact_mut(shape.dim).take(count).enumerate() {
                let group = self.group(simd, begin + at);
                first_keys[at] = group[0];
                sum_gradients(simd, occurrences, group, gradient);
                squares[at] = lanes_of_squares(simd, gradient);
            }
            let factors = self.factors(simd, rule, &first_keys[..count], &squares);
            for (at, gradient) in gradients.chunks_exact(shape.dim).take(count).enumerate() {
                let noise = self.touch(slot_of(first_keys[at]));
                let (stored, _) = self.row(slot_of(first_keys[at]));
                decode_row(simd, shape.row_type, stored, &mut weights);
                descend(simd, factors[at], gradient, &mut weights);
                encode_row(simd, shape.row_type, &weights, noise, stored);
            }
        }
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(&mut self, simd: S, rule: RowwiseRule) {
        if self.shape.dim == N * LANES {
            self.blocks::<S, AsFp32, N, false>(simd, rule);
        } else if self.occurrences.are_plain() {
            self.blocks::<S, AsFp32, N, true>(simd, rule);
        } else {
            // A factor that is not finite would reach the lanes behind the last column.
            self.blocks_in_memory(simd, rule);
        }
    }

    /// Rows of up to 8 vectors of floats, the last of which may be partial.
    #[inline(always)]
    fn of_any_width<S: Simd>(&mut self, simd: S, rule: RowwiseRule) {
        match self.shape.dim.div_ceil(LANES) {
            1 => self.vectors::<S, 1>(simd, rule),
            2 => self.vectors::<S, 2>(simd, rule),
            3 => self.vectors::<S, 3>(simd, rule),
            4 => self.vectors::<S, 4>(simd, rule),
            5 => self.vectors::<S, 5>(simd, rule),
            6 => self.vectors::<S, 6>(simd, rule),
            7 => self.vectors::<S, 7>(simd, rule),
            8 => self.vectors::<S, 8>(simd, rule),
            _ => self.blocks_in_memory(simd, rule),
        }
    }

    /// Rows of the usual widths in registers, others in memory.
    #[inline(always)]
    fn of_width<S: Simd, C: Codec>(&mut self, simd: S, rule: RowwiseRule) {
        match self.shape.dim {
            16 => self.blocks::<S, C, 1, false>(simd, rule),
            32 => self.blocks::<S, C, 2, false>(simd, rule),
            64 => self.blocks::<S, C, 4, false>(simd, rule),
            128 => self.blocks::<S, C, 8, false>(simd, rule),
            _ => self.blocks_in_memory(simd, rule),
        }
    }

    /// All rows of the piece.
    #[inline(always)]
    pub(super) fn rowwise_adagrad<S: Simd>(&mut self, simd: S, rule: RowwiseRule) {
        match (self.shape.row_type, self.is_random()) {
            (RowType::Fp32, _) => self.of_any_width(simd, rule),
            (RowType::Fp16, false) => self.of_width::<S, AsNearestFp16>(simd, rule),
            (RowType::Fp16, true) => self.of_width::<S, AsRandomFp16>(simd, rule),
            (RowType::Bf16, false) => self.of_width::<S, AsNearestBf16>(simd, rule),
            (RowType::Bf16, true) => self.of_width::<S, AsRandomBf16>(simd, rule),
            // Scale and bias need the whole row.
            (RowType::Int8 | RowType::Int8Fp16 | RowType::Int4, _) => self.blocks_in_memory(simd, rule),
        }
    }
}
