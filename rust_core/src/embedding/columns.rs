//! The columns of a row as vectors.

use super::kernels::{LANES, Simd};

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
