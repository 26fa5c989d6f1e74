//! The columns of a row as vectors: in registers for rows of up to 128 columns, in memory for wider ones. Optimizers and
//! rounding are written once over both.

use super::kernels::{LANES, Simd};

/// Vectors of a row that registers hold at most.
pub(super) const VECTORS_MAX: usize = 8;

/// The columns of a row, 16 at a time; lanes behind the last column are zero.
pub(super) trait Columns<S: Simd> {
    fn vectors(&self) -> usize;
    fn get(&self, simd: S, vector: usize) -> S::V;
}

/// Columns that change.
pub(super) trait ColumnsMut<S: Simd>: Columns<S> {
    fn set(&mut self, simd: S, vector: usize, value: S::V);
}

/// A row in registers.
#[derive(Clone, Copy)]
pub(super) struct Registers<S: Simd, const N: usize> {
    vectors: [S::V; N],
    /// Lanes of the last vector that are columns; 16 if all are.
    last: usize,
}

impl<S: Simd, const N: usize> Registers<S, N> {
    /// Zeros for so many columns.
    #[inline(always)]
    pub(super) fn new(simd: S, dim: usize) -> Self {
        Self { vectors: [simd.splat(0.0); N], last: dim - (N - 1) * LANES }
    }

    /// Adds a row of floats.
    #[inline(always)]
    pub(super) fn add(&mut self, simd: S, values: &[f32]) {
        let (full, rest) = values.as_chunks::<LANES>();
        if let Some(full) = full.first_chunk::<N>() {
            for (sum, lanes) in self.vectors.iter_mut().zip(full) {
                *sum = simd.add(*sum, simd.load(lanes));
            }
        } else {
            for (sum, lanes) in self.vectors.iter_mut().zip(full) {
                *sum = simd.add(*sum, simd.load(lanes));
            }
            self.vectors[N - 1] = simd.add(self.vectors[N - 1], simd.load_partial(rest, 0.0));
        }
    }
}

impl<S: Simd, const N: usize> Columns<S> for Registers<S, N> {
    #[inline(always)]
    fn vectors(&self) -> usize {
        N
    }

    #[inline(always)]
    fn get(&self, _simd: S, vector: usize) -> S::V {
        self.vectors[vector]
    }
}

impl<S: Simd, const N: usize> ColumnsMut<S> for Registers<S, N> {
    #[inline(always)]
    fn set(&mut self, simd: S, vector: usize, value: S::V) {
        let is_partial = vector == N - 1 && self.last < LANES;
        self.vectors[vector] = if is_partial { simd.keep_first(value, self.last) } else { value };
    }
}

/// A row in memory.
pub(super) struct InMemory<'a>(pub(super) &'a mut [f32]);

impl<S: Simd> Columns<S> for InMemory<'_> {
    #[inline(always)]
    fn vectors(&self) -> usize {
        self.0.len().div_ceil(LANES)
    }

    #[inline(always)]
    fn get(&self, simd: S, vector: usize) -> S::V {
        at(simd, self.0, vector * LANES)
    }
}

impl<S: Simd> ColumnsMut<S> for InMemory<'_> {
    #[inline(always)]
    fn set(&mut self, simd: S, vector: usize, value: S::V) {
        put(simd, value, self.0, vector * LANES);
    }
}

/// A row in memory, to read.
pub(super) struct Values<'a>(pub(super) &'a [f32]);

impl<S: Simd> Columns<S> for Values<'_> {
    #[inline(always)]
    fn vectors(&self) -> usize {
        self.0.len().div_ceil(LANES)
    }

    #[inline(always)]
    fn get(&self, simd: S, vector: usize) -> S::V {
        at(simd, self.0, vector * LANES)
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
    at_or(simd, values, column, 0.0)
}

/// 16 values from a column on, and something else behind the last.
#[inline(always)]
pub(super) fn at_or<S: Simd>(simd: S, values: &[f32], column: usize, fill: f32) -> S::V {
    let rest = &values[column..];
    if let Some(full) = rest.first_chunk() { simd.load(full) } else { simd.load_partial(rest, fill) }
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
