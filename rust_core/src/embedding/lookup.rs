//! Gather and pool.
//!
//! Shapes: B bags, L ids in all bags together, D columns. Bag `b` owns positions
//! `offsets[b] .. offsets[b + 1]` (the last one ends at L).

use std::ops::Range;

use serde::Deserialize;

use super::kernels::{Instructions, Kernel, LANES, Simd};
use super::row_type::{Bf16, Fp16, Fp32, Int8, RowShape, RowType, Stored, at, columns, put};

/// Rows that are asked for before they are used.
const ROWS_AHEAD: usize = 16;

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

    #[inline(always)]
    fn row(&self, position: usize) -> &[u8] {
        let nbytes = self.shape.weight_bytes();
        let start = self.slots[position] as usize * nbytes;
        &self.weights[start..start + nbytes]
    }

    /// Asks for the row of a later position.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, position: usize) {
        if position + ROWS_AHEAD < self.slots.len() {
            simd.prefetch(self.row(position + ROWS_AHEAD));
        }
    }
}

struct Pool<'a> {
    lookup: PlacedLookup<'a>,
    outputs: Range<usize>,
    out: &'a mut [f32],
}

/// Sums `N` vectors of the rows of some positions, from a column on.
#[inline(always)]
fn pool_block<S: Simd, R: Stored, const N: usize, const FIRST: bool>(
    simd: S,
    lookup: &PlacedLookup<'_>,
    positions: Range<usize>,
    column: usize,
    out: &mut [f32],
) {
    let dim = lookup.shape.dim;
    let count = positions.len();
    let mut sums = [simd.splat(0.0); N];
    let load = |row: &[u8], vector: usize| {
        let column = column + vector * LANES;
        let extra = R::extra(simd, row, dim);
        if column + LANES <= dim {
            R::load(simd, extra, row, column)
        } else {
            R::load_partial(simd, extra, row, column, dim)
        }
    };
    if let Some(factors) = lookup.sample_weights {
        for position in positions {
            if FIRST {
                lookup.prefetch(simd, position);
            }
            let (row, factor) = (lookup.row(position), simd.splat(factors[position]));
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = simd.add(*sum, simd.mul(factor, load(row, vector)));
            }
        }
    } else {
        for position in positions {
            if FIRST {
                lookup.prefetch(simd, position);
            }
            let row = lookup.row(position);
            for (vector, sum) in sums.iter_mut().enumerate() {
                *sum = simd.add(*sum, load(row, vector));
            }
        }
    }
    if lookup.pooling == Pooling::Mean && count > 1 {
        let count = simd.splat(count as f32);
        sums = sums.map(|sum| simd.div(sum, count));
    }
    for (vector, sum) in sums.into_iter().enumerate() {
        put(simd, sum, out, column + vector * LANES);
    }
}

#[inline(always)]
fn pool<S: Simd, R: Stored>(simd: S, job: Pool<'_>) {
    let Pool { lookup, outputs, out } = job;
    let dim = lookup.shape.dim;
    let vectors = dim.div_ceil(LANES);
    for (output, out) in outputs.zip(out.chunks_exact_mut(dim)) {
        let positions = lookup.pooling.positions(lookup.offsets, output, lookup.slots.len());
        let mut done = 0;
        while done < vectors {
            let (left, positions, column) = (vectors - done, positions.clone(), done * LANES);
            done += match (left, done == 0) {
                (8.., true) if S::BLOCK >= 8 => {
                    pool_block::<S, R, 8, true>(simd, &lookup, positions, column, out);
                    8
                }
                (8.., false) if S::BLOCK >= 8 => {
                    pool_block::<S, R, 8, false>(simd, &lookup, positions, column, out);
                    8
                }
                (4.., true) if S::BLOCK >= 4 => {
                    pool_block::<S, R, 4, true>(simd, &lookup, positions, column, out);
                    4
                }
                (4.., false) if S::BLOCK >= 4 => {
                    pool_block::<S, R, 4, false>(simd, &lookup, positions, column, out);
                    4
                }
                (2.., true) => {
                    pool_block::<S, R, 2, true>(simd, &lookup, positions, column, out);
                    2
                }
                (2.., false) => {
                    pool_block::<S, R, 2, false>(simd, &lookup, positions, column, out);
                    2
                }
                (_, true) => {
                    pool_block::<S, R, 1, true>(simd, &lookup, positions, column, out);
                    1
                }
                (_, false) => {
                    pool_block::<S, R, 1, false>(simd, &lookup, positions, column, out);
                    1
                }
            };
        }
    }
}

impl Kernel for Pool<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.lookup.shape.row_type {
            RowType::Fp32 => pool::<S, Fp32>(simd, self),
            RowType::Fp16 => pool::<S, Fp16>(simd, self),
            RowType::Bf16 => pool::<S, Bf16>(simd, self),
            RowType::Int8 => pool::<S, Int8>(simd, self),
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
    let dim = lookup.shape.dim;
    for (output, gradient) in gradients.chunks_exact(dim).enumerate() {
        for position in lookup.pooling.positions(lookup.offsets, output, lookup.slots.len()) {
            lookup.prefetch(simd, position);
            let row = lookup.row(position);
            let extra = R::extra(simd, row, dim);
            let mut lanes = simd.splat(0.0);
            for column in columns(dim) {
                let value = if column + LANES <= dim {
                    R::load(simd, extra, row, column)
                } else {
                    R::load_partial(simd, extra, row, column, dim)
                };
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
