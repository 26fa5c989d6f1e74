//! Gather and pool.
//!
//! Shapes: B bags, L ids in all bags together, D columns. Bag `b` owns positions
//! `offsets[b] .. offsets[b + 1]` (the last one ends at L).

use std::ops::Range;

use serde::Deserialize;

use super::columns::{at, columns, put};
use super::kernels::{Instructions, Kernel, LANES, LINE_BYTES, Simd};
use super::row_type::{Bf16, Fp16, Fp32, Int4, Int8, Int8Fp16, RowShape, RowType, Stored, stored_at, stored_columns};

/// Bytes of rows that are asked for before they are used: a third of the smallest first-level cache of today.
const AHEAD_BYTES: usize = 16 << 10;
/// Rows that are asked for before they are used, at least and at most.
const ROWS_AHEAD: (usize, usize) = (16, 128);

fn rows_ahead(row_bytes: usize) -> usize {
    (AHEAD_BYTES / row_bytes).clamp(ROWS_AHEAD.0, ROWS_AHEAD.1)
}

/// What becomes of the rows of one bag. An empty bag gives zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their sum, each row times its sample weight if there are any.
    Sum,
    /// Their sum divided by their number.
    Mean,
    /// Nothing: the output has a row for each position.
    None,
}

impl Pooling {
    /// Rows of output: a bag's, or a position's.
    pub fn outputs(self, offsets: &[u32], positions: usize) -> usize {
        if self == Self::None { positions } else { offsets.len() }
    }

    /// Positions of an output row.
    #[inline(always)]
    pub(super) fn positions(self, offsets: &[u32], output: usize, positions: usize) -> Range<usize> {
        if self == Self::None {
            return output..output + 1;
        }
        let end = offsets.get(output + 1).map_or(positions, |&end| end as usize);
        offsets[output] as usize..end
    }
}

/// One lookup whose rows have places.
#[derive(Debug, Clone, Copy)]
pub struct PlacedLookup<'a> {
    /// All weights of the slab, one row behind the other.
    pub weights: &'a [u8],
    /// What a row is.
    pub shape: RowShape,
    /// Place of each position.
    pub slots: &'a [u32],
    /// First position of each bag.
    pub offsets: &'a [u32],
    /// How rows are pooled.
    pub pooling: Pooling,
    /// Factor of each position, if there are any.
    pub sample_weights: Option<&'a [f32]>,
}

impl PlacedLookup<'_> {
    /// Rows of output.
    pub fn outputs(&self) -> usize {
        self.pooling.outputs(self.offsets, self.slots.len())
    }
}

/// An output row, and the rows that go into it.
struct Bag<'a> {
    lookup: &'a PlacedLookup<'a>,
    row_bytes: usize,
    rows_ahead: usize,
    positions: Range<usize>,
}

impl<'a> Bag<'a> {
    #[inline(always)]
    fn row(&self, position: usize) -> &'a [u8] {
        let start = self.lookup.slots[position] as usize * self.row_bytes;
        &self.lookup.weights[start..start + self.row_bytes]
    }

    /// Asks for the row of a later position.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, position: usize) {
        if position + self.rows_ahead < self.lookup.slots.len() {
            simd.prefetch(self.row(position + self.rows_ahead));
        }
    }

    /// What becomes of a sum.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, sum: S::V) -> S::V {
        let count = self.positions.len();
        if self.lookup.pooling == Pooling::Mean && count > 1 { simd.div(sum, simd.splat(count as f32)) } else { sum }
    }
}

struct Pool<'a> {
    lookup: PlacedLookup<'a>,
    outputs: Range<usize>,
    out: &'a mut [f32],
}

/// Adds a part of a row to `N` sums; the last vector has fewer than 16 columns if `TAIL`.
#[inline(always)]
fn add_row<S: Simd, R: Stored, const N: usize, const TAIL: bool>(
    simd: S,
    row: &[u8],
    factor: Option<S::V>,
    (column, dim): (usize, usize),
    sums: &mut [S::V; N],
) {
    let extra = R::extra(simd, row, dim);
    // One check of the bounds for all columns.
    let from = stored_columns::<R>(row, column, if TAIL { dim - column } else { N * LANES });
    for (vector, sum) in sums.iter_mut().enumerate() {
        let from = &from[R::bytes(vector * LANES)..];
        let is_tail = TAIL && vector == N - 1;
        let value = if is_tail { R::load_partial(simd, extra, from) } else { R::load(simd, extra, from) };
        *sum = simd.add(*sum, if let Some(factor) = factor { simd.mul(factor, value) } else { value });
    }
}

/// Pools `N` vectors of the rows of a bag, from a column on.
#[inline(always)]
fn pool_block<S: Simd, R: Stored, const N: usize, const TAIL: bool>(
    simd: S,
    bag: &Bag<'_>,
    column: usize,
    out: &mut [f32],
) {
    let (lookup, nbytes) = (bag.lookup, bag.row_bytes);
    let (weights, slots) = (lookup.weights, lookup.slots);
    let columns = (column, lookup.shape.dim);
    // Rows are asked for in the first pass over them.
    let begin = if column == 0 { bag.positions.start + bag.rows_ahead } else { slots.len() };
    let later = &slots[begin.min(slots.len())..];
    let factors = lookup.sample_weights.map(|factors| &factors[bag.positions.clone()]);
    let mut sums = [simd.splat(0.0); N];
    for (at, &slot) in slots[bag.positions.clone()].iter().enumerate() {
        if let Some(&later) = later.get(at) {
            let start = later as usize * nbytes;
            simd.prefetch_lines(&weights[start..start + nbytes], R::bytes(N * LANES).div_ceil(LINE_BYTES));
        }
        let start = slot as usize * nbytes;
        let row = &weights[start..start + nbytes];
        #[expect(clippy::manual_map, reason = "a closure would be compiled without the instructions")]
        let factor = match factors {
            Some(factors) => Some(simd.splat(factors[at])),
            None => None,
        };
        add_row::<S, R, N, TAIL>(simd, row, factor, columns, &mut sums);
    }
    for (vector, sum) in sums.into_iter().enumerate() {
        put(simd, bag.finish(simd, sum), out, column + vector * LANES);
    }
}

#[inline(always)]
fn pool_vectors<S: Simd, R: Stored, const N: usize>(simd: S, bag: &Bag<'_>, column: usize, out: &mut [f32]) {
    if column + N * LANES <= bag.lookup.shape.dim {
        pool_block::<S, R, N, false>(simd, bag, column, out);
    } else {
        pool_block::<S, R, N, true>(simd, bag, column, out);
    }
}

#[inline(always)]
fn pool<S: Simd, R: Stored>(simd: S, job: Pool<'_>) {
    let Pool { lookup, outputs, out } = job;
    let (dim, row_bytes) = (lookup.shape.dim, lookup.shape.weight_bytes());
    let rows_ahead = rows_ahead(row_bytes);
    for (output, out) in outputs.zip(out.chunks_exact_mut(dim)) {
        let positions = lookup.pooling.positions(lookup.offsets, output, lookup.slots.len());
        let bag = Bag { lookup: &lookup, row_bytes, rows_ahead, positions };
        let mut column = 0;
        while column < dim {
            let vectors = (dim - column).div_ceil(LANES).min(S::BLOCK);
            match vectors {
                1 => pool_vectors::<S, R, 1>(simd, &bag, column, out),
                2 => pool_vectors::<S, R, 2>(simd, &bag, column, out),
                3 => pool_vectors::<S, R, 3>(simd, &bag, column, out),
                4 => pool_vectors::<S, R, 4>(simd, &bag, column, out),
                5 => pool_vectors::<S, R, 5>(simd, &bag, column, out),
                6 => pool_vectors::<S, R, 6>(simd, &bag, column, out),
                7 => pool_vectors::<S, R, 7>(simd, &bag, column, out),
                _ => pool_vectors::<S, R, 8>(simd, &bag, column, out),
            }
            column += vectors * LANES;
        }
    }
}

/// Whether some row of a table is in one cache line more than its bytes fill: rows begin at multiples of the largest power of two
/// that divides their length.
const fn ends_in_a_line_more(row_bytes: usize) -> bool {
    row_bytes % LINE_BYTES > row_bytes & row_bytes.wrapping_neg()
}

/// As `pool` for rows of `N` vectors and `BYTES` bytes without sample weights: the compiler knows how long a row is.
#[inline(always)]
fn pool_exact<S: Simd, R: Stored, const N: usize, const BYTES: usize>(simd: S, job: Pool<'_>) {
    let Pool { lookup, outputs, out } = job;
    let (rows, _) = lookup.weights.as_chunks::<BYTES>();
    let rows_ahead = rows_ahead(BYTES);
    let slots = lookup.slots;
    for (output, out) in outputs.zip(out.chunks_exact_mut(N * LANES)) {
        let positions = lookup.pooling.positions(lookup.offsets, output, slots.len());
        let count = positions.len();
        let later = &slots[(positions.start + rows_ahead).min(slots.len())..];
        let mut sums = [simd.splat(0.0); N];
        for (at, &slot) in slots[positions].iter().enumerate() {
            if let Some(&later) = later.get(at) {
                if ends_in_a_line_more(BYTES) {
                    simd.prefetch_lines(&rows[later as usize], BYTES.div_ceil(LINE_BYTES));
                } else {
                    simd.prefetch(&rows[later as usize]);
                }
            }
            let row = &rows[slot as usize];
            let extra = R::extra(simd, row, N * LANES);
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = simd.add(*sum, R::load(simd, extra, &row[R::bytes(vector * LANES)..]));
            }
        }
        if lookup.pooling == Pooling::Mean && count > 1 {
            let count = simd.splat(count as f32);
            for sum in &mut sums {
                *sum = simd.div(*sum, count);
            }
        }
        for (lanes, &sum) in out.as_chunks_mut().0.iter_mut().zip(&sums) {
            simd.store(sum, lanes);
        }
    }
}

impl Kernel for Pool<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let RowShape { row_type, dim, .. } = self.lookup.shape;
        if self.lookup.sample_weights.is_none() && S::BLOCK >= 8 {
            match (row_type, dim) {
                (RowType::Fp32, 16) => return pool_exact::<S, Fp32, 1, 64>(simd, self),
                (RowType::Fp32, 32) => return pool_exact::<S, Fp32, 2, 128>(simd, self),
                (RowType::Fp32, 48) => return pool_exact::<S, Fp32, 3, 192>(simd, self),
                (RowType::Fp32, 64) => return pool_exact::<S, Fp32, 4, 256>(simd, self),
                (RowType::Fp32, 96) => return pool_exact::<S, Fp32, 6, 384>(simd, self),
                (RowType::Fp32, 128) => return pool_exact::<S, Fp32, 8, 512>(simd, self),
                (RowType::Fp16, 32) => return pool_exact::<S, Fp16, 2, 64>(simd, self),
                (RowType::Fp16, 64) => return pool_exact::<S, Fp16, 4, 128>(simd, self),
                (RowType::Fp16, 128) => return pool_exact::<S, Fp16, 8, 256>(simd, self),
                (RowType::Bf16, 32) => return pool_exact::<S, Bf16, 2, 64>(simd, self),
                (RowType::Bf16, 64) => return pool_exact::<S, Bf16, 4, 128>(simd, self),
                (RowType::Bf16, 128) => return pool_exact::<S, Bf16, 8, 256>(simd, self),
                (RowType::Int8Fp16, 32) => return pool_exact::<S, Int8Fp16, 2, 36>(simd, self),
                (RowType::Int8Fp16, 64) => return pool_exact::<S, Int8Fp16, 4, 68>(simd, self),
                (RowType::Int8Fp16, 128) => return pool_exact::<S, Int8Fp16, 8, 132>(simd, self),
                (RowType::Int4, 32) => return pool_exact::<S, Int4, 2, 20>(simd, self),
                (RowType::Int4, 64) => return pool_exact::<S, Int4, 4, 36>(simd, self),
                (RowType::Int4, 128) => return pool_exact::<S, Int4, 8, 68>(simd, self),
                _ => {}
            }
        }
        match row_type {
            RowType::Fp32 => pool::<S, Fp32>(simd, self),
            RowType::Fp16 => pool::<S, Fp16>(simd, self),
            RowType::Bf16 => pool::<S, Bf16>(simd, self),
            RowType::Int8 => pool::<S, Int8>(simd, self),
            RowType::Int8Fp16 => pool::<S, Int8Fp16>(simd, self),
            RowType::Int4 => pool::<S, Int4>(simd, self),
        }
    }
}

/// Pools some of the output rows of a lookup into `out`, which has D columns for each.
///
/// Additions run in the order of positions, starting from zero, column by column.
pub fn pool_rows(instructions: Instructions, lookup: PlacedLookup<'_>, outputs: Range<usize>, out: &mut [f32]) {
    debug_assert_eq!(out.len(), outputs.len() * lookup.shape.dim, "one row an output");
    instructions.run(Pool { lookup, outputs, out });
}

struct WeightGradient<'a> {
    lookup: PlacedLookup<'a>,
    gradients: &'a [f32],
    out: &'a mut [f32],
}

#[inline(always)]
fn weight_gradient<S: Simd, R: Stored>(simd: S, job: WeightGradient<'_>) {
    let WeightGradient { lookup, gradients, out } = job;
    let (dim, row_bytes) = (lookup.shape.dim, lookup.shape.weight_bytes());
    let rows_ahead = rows_ahead(row_bytes);
    for (output, gradient) in gradients.chunks_exact(dim).enumerate() {
        let positions = lookup.pooling.positions(lookup.offsets, output, lookup.slots.len());
        let bag = Bag { lookup: &lookup, row_bytes, rows_ahead, positions };
        for position in bag.positions.clone() {
            bag.prefetch(simd, position);
            let row = bag.row(position);
            let mut lanes = simd.splat(0.0);
            for column in columns(dim) {
                let value = stored_at::<S, R>(simd, row, column, dim);
                lanes = simd.add(lanes, simd.mul(value, at(simd, gradient, column)));
            }
            out[position] = simd.sum(lanes);
        }
    }
}

impl Kernel for WeightGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.lookup.shape.row_type {
            RowType::Fp32 => weight_gradient::<S, Fp32>(simd, self),
            RowType::Fp16 => weight_gradient::<S, Fp16>(simd, self),
            RowType::Bf16 => weight_gradient::<S, Bf16>(simd, self),
            RowType::Int8 => weight_gradient::<S, Int8>(simd, self),
            RowType::Int8Fp16 => weight_gradient::<S, Int8Fp16>(simd, self),
            RowType::Int4 => weight_gradient::<S, Int4>(simd, self),
        }
    }
}

/// Gradient of each sample weight: the dot product of its row and its bag's gradient.
pub fn gradient_of_sample_weights(
    instructions: Instructions,
    lookup: PlacedLookup<'_>,
    gradients: &[f32],
    out: &mut [f32],
) {
    instructions.run(WeightGradient { lookup, gradients, out });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_in_a_line_more_than_its_bytes_fill_is_known() {
        for row_bytes in 1..600 {
            let lines = |row: usize| (row * row_bytes + row_bytes - 1) / LINE_BYTES - row * row_bytes / LINE_BYTES + 1;
            let is_in_more = (0..LINE_BYTES).any(|row| lines(row) > row_bytes.div_ceil(LINE_BYTES));
            assert_eq!(ends_in_a_line_more(row_bytes), is_in_more, "{row_bytes} bytes");
        }
    }
}
