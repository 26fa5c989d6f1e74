//! Row-wise `AdaGrad` in groups of 16 rows, so that no row waits for the root and the quotients of another. The operations
//! on each row are those of [`update_row`](super::optim::update_row), and so are the bits.

use super::coalesce::Update;
use super::encode::{Encoder, NearestBf16, NearestFp16, NoiseKey, RandomBf16, RandomFp16, WholeFp32, encode_int8};
use super::kernels::{LANES, Simd};
use super::occurrences::slot_of;
use super::optim::RowwiseRule;
use super::row_type::{Bf16, Fp16, Fp32, Int8, RowType, Stored, stored_columns};

/// Reads and stores rows of one type with one rounding.
trait Codec: Copy {
    type Stored: Stored;
    fn encode<S: Simd, const N: usize, const FULL: bool>(
        simd: S,
        values: &[S::V; N],
        dim: usize,
        noise: NoiseKey,
        row: &mut [u8],
    );
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
#[derive(Clone, Copy)]
struct AsInt8;

macro_rules! codec {
    ($codec:ty, $stored:ty, $bytes:literal, |$noise:ident| $encoder:expr) => {
        impl Codec for $codec {
            type Stored = $stored;

            #[inline(always)]
            fn encode<S: Simd, const N: usize, const FULL: bool>(
                simd: S,
                values: &[S::V; N],
                _dim: usize,
                $noise: NoiseKey,
                row: &mut [u8],
            ) {
                store_vectors::<S, N, $bytes, FULL>(simd, $encoder, values, row);
            }
        }
    };
}

codec!(AsFp32, Fp32, 64, |_noise| WholeFp32);
codec!(AsNearestFp16, Fp16, 32, |_noise| NearestFp16);
codec!(AsRandomFp16, Fp16, 32, |noise| RandomFp16(noise.unwrap_or(0)));
codec!(AsNearestBf16, Bf16, 32, |_noise| NearestBf16);
codec!(AsRandomBf16, Bf16, 32, |noise| RandomBf16(noise.unwrap_or(0)));

impl Codec for AsInt8 {
    type Stored = Int8;

    #[inline(always)]
    fn encode<S: Simd, const N: usize, const FULL: bool>(
        simd: S,
        values: &[S::V; N],
        dim: usize,
        noise: NoiseKey,
        row: &mut [u8],
    ) {
        let mut lanes = [[0.0; LANES]; N];
        for (lanes, &value) in lanes.iter_mut().zip(values) {
            simd.store(value, lanes);
        }
        encode_int8(simd, &lanes.as_flattened()[..dim], noise, row);
    }
}

#[inline(always)]
fn store_vectors<S: Simd, const N: usize, const BYTES: usize, const FULL: bool>(
    simd: S,
    encoder: impl Encoder<BYTES>,
    values: &[S::V; N],
    row: &mut [u8],
) {
    let (full, rest) = row.as_chunks_mut::<BYTES>();
    if FULL {
        let full: &mut [[u8; BYTES]; N] = full.first_chunk_mut().expect("a row has all its columns");
        for (vector, (to, &value)) in full.iter_mut().zip(values).enumerate() {
            encoder.store(simd, value, vector * LANES, to);
        }
        return;
    }
    for (vector, (to, &value)) in full.iter_mut().zip(values).enumerate() {
        encoder.store(simd, value, vector * LANES, to);
    }
    let mut bytes = [0; BYTES];
    encoder.store(simd, values[N - 1], (N - 1) * LANES, &mut bytes);
    rest.copy_from_slice(&bytes[..rest.len()]);
}

#[inline(always)]
fn load_row<S: Simd, R: Stored, const N: usize, const FULL: bool>(simd: S, row: &[u8], dim: usize) -> [S::V; N] {
    let extra = R::extra(simd, row, dim);
    let mut values = [simd.splat(0.0); N];
    let from = stored_columns::<R>(row, 0, if FULL { N * LANES } else { dim });
    for (vector, value) in values.iter_mut().enumerate() {
        let from = &from[vector * LANES * R::COLUMN_BYTES..];
        *value = if FULL || vector < N - 1 { R::load(simd, extra, from) } else { R::load_partial(simd, extra, from) };
    }
    values
}

/// Adds a row of gradients.
#[inline(always)]
fn add<S: Simd, const N: usize, const FULL: bool>(simd: S, sums: &mut [S::V; N], gradient: &[f32]) {
    let (full, rest) = gradient.as_chunks::<LANES>();
    if FULL {
        let full: &[[f32; LANES]; N] = full.first_chunk().expect("a gradient has all its columns");
        for (sum, lanes) in sums.iter_mut().zip(full) {
            *sum = simd.add(*sum, simd.load(lanes));
        }
        return;
    }
    for (sum, lanes) in sums.iter_mut().zip(full) {
        *sum = simd.add(*sum, simd.load(lanes));
    }
    sums[N - 1] = simd.add(sums[N - 1], simd.load_partial(rest, 0.0));
}

impl Update<'_, '_> {
    /// The sum of the gradients of the row of a key, its lanes of squares, and the end of its occurrences.
    #[inline(always)]
    fn sum_row<S: Simd, const N: usize, const FULL: bool>(&self, simd: S, begin: usize) -> ([S::V; N], S::V, usize) {
        let keys = self.keys();
        let slot = slot_of(keys[begin]);
        let mut sums = [simd.splat(0.0); N];
        let mut at = begin;
        loop {
            self.prefetch(simd, at);
            add::<S, N, FULL>(simd, &mut sums, self.occurrences.gradient(keys[at]));
            at += 1;
            if at == keys.len() || slot_of(keys[at]) != slot {
                break;
            }
        }
        let mut squares = simd.splat(0.0);
        for &sum in &sums {
            squares = simd.add(squares, simd.mul(sum, sum));
        }
        (sums, squares, at)
    }

    #[inline(always)]
    fn blocks<S: Simd, C: Codec, const N: usize, const FULL: bool>(&mut self, simd: S, rule: RowwiseRule) {
        let dim = self.shape.dim;
        let mut gradients = [[simd.splat(0.0); N]; LANES];
        let mut squares = [simd.splat(0.0); LANES];
        let mut first_keys = [0; LANES];
        let mut begin = 0;
        while begin < self.keys().len() {
            let mut count = 0;
            while count < LANES && begin < self.keys().len() {
                first_keys[count] = self.keys()[begin];
                (gradients[count], squares[count], begin) = self.sum_row::<S, N, FULL>(simd, begin);
                count += 1;
            }
            let mut states = [0.0; LANES];
            for (state, &key) in states.iter_mut().zip(&first_keys[..count]) {
                *state = self.row(slot_of(key)).1[0];
            }
            let sums = rule.accumulate(simd, simd.sum_each(&squares), simd.load(&states), dim);
            simd.store(sums, &mut states);
            let mut factors = [0.0; LANES];
            simd.store(rule.factors(simd, sums), &mut factors);
            for at in 0..count {
                let key = first_keys[at];
                let noise = self.touch(key);
                let (stored, state) = self.row(slot_of(key));
                state[0] = states[at];
                let mut weights = load_row::<S, C::Stored, N, FULL>(simd, stored, dim);
                let factor = simd.splat(factors[at]);
                for (weight, &gradient) in weights.iter_mut().zip(&gradients[at]) {
                    *weight = simd.sub(*weight, simd.mul(factor, gradient));
                }
                C::encode::<S, N, FULL>(simd, &weights, dim, noise, stored);
            }
        }
    }

    #[inline(always)]
    fn of_codec<S: Simd, C: Codec, const N: usize>(&mut self, simd: S, rule: RowwiseRule) {
        if self.shape.dim == N * LANES {
            self.blocks::<S, C, N, true>(simd, rule);
        } else {
            self.blocks::<S, C, N, false>(simd, rule);
        }
    }

    /// All rows of the piece; `N` vectors hold one, and gradients are plain sums.
    #[inline(always)]
    pub(super) fn rowwise_adagrad<S: Simd, const N: usize>(&mut self, simd: S, rule: RowwiseRule) {
        // Tables of one slab may be rounded differently: without noise a row is rounded to the nearest.
        match (self.shape.row_type, self.rounding()) {
            (RowType::Fp32, _) => self.of_codec::<S, AsFp32, N>(simd, rule),
            (RowType::Fp16, Some(false)) => self.of_codec::<S, AsNearestFp16, N>(simd, rule),
            (RowType::Fp16, Some(true)) => self.of_codec::<S, AsRandomFp16, N>(simd, rule),
            (RowType::Bf16, Some(false)) => self.of_codec::<S, AsNearestBf16, N>(simd, rule),
            (RowType::Bf16, Some(true)) => self.of_codec::<S, AsRandomBf16, N>(simd, rule),
            (RowType::Int8, _) => self.of_codec::<S, AsInt8, N>(simd, rule),
            (_, None) => self.rows::<S, N>(simd),
        }
    }
}
