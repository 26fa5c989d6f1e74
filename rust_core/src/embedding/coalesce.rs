//! Gradients of all lookups of the tables of one slab, summed by row in a documented order, then one optimizer step a row.
//! No gradient tensor of lookups x columns is ever made.

use super::kernels::{Instructions, Kernel, LANES, Simd};
use super::lookup::Pooling;
use super::optim::{Step, sum_of_squares, update_row};
use super::row_type::{NoiseKey, RowShape, at, decode_row, encode_row, noise_of_row, put};
use super::sort::sort_by_slot;
use super::threads::Threads;

/// Occurrences whose rows and gradients are asked for before they are used.
const KEYS_AHEAD: usize = 12;
/// Pieces of an update for each thread, so that an uneven one does not decide.
const PIECES_PER_THREAD: usize = 4;

/// The gradient of one pooled lookup: B outputs over L positions.
#[derive(Debug, Clone, Copy)]
pub struct Contribution<'a> {
    /// Slot of each position.
    pub slots: &'a [u32],
    /// First position of each bag.
    pub offsets: &'a [u32],
    /// How the bag was pooled.
    pub pooling: Pooling,
    /// Factor of each position, if the lookup had any.
    pub sample_weights: Option<&'a [f32]>,
    /// B x D.
    pub gradients: &'a [f32],
    /// The noise of its table in this step, if its rows are rounded at random.
    pub noise: Option<u64>,
}

/// What an occurrence adds to its row.
#[derive(Debug, Clone, Copy)]
struct Source {
    contribution: u32,
    output: u32,
    factor: f32,
}

/// Memory that updates use again.
#[derive(Debug, Default)]
pub struct Scratch {
    keys: Vec<u64>,
    other: Vec<u64>,
    sources: Vec<Source>,
}

/// Occurrences in order: each key is (slot, number of its source), sorted by slot; equal slots keep their order.
#[derive(Clone, Copy)]
struct Sorted<'a> {
    contributions: &'a [Contribution<'a>],
    sources: &'a [Source],
    dim: usize,
}

fn slot_of(key: u64) -> u32 {
    (key >> 32) as u32
}

impl Scratch {
    /// Lists and sorts the occurrences of all contributions.
    fn sort<'a>(&'a mut self, contributions: &'a [Contribution<'a>], dim: usize) -> (Sorted<'a>, &'a [u64]) {
        let Self { keys, other, sources } = self;
        keys.clear();
        sources.clear();
        keys.reserve(contributions.iter().map(|contribution| contribution.slots.len()).sum());
        for (number, contribution) in contributions.iter().enumerate() {
            let positions = contribution.slots.len();
            for output in 0..contribution.pooling.outputs(contribution.offsets, positions) {
                let range = contribution.pooling.positions(contribution.offsets, output, positions);
                let source = Source { contribution: number as u32, output: output as u32, factor: range.len() as f32 };
                let slots = &contribution.slots[range.clone()];
                if let Some(weights) = contribution.sample_weights {
                    for (&slot, &factor) in slots.iter().zip(&weights[range]) {
                        keys.push(u64::from(slot) << 32 | sources.len() as u64);
                        sources.push(Source { factor, ..source });
                    }
                } else {
                    keys.extend(slots.iter().map(|&slot| u64::from(slot) << 32 | sources.len() as u64));
                    sources.push(source);
                }
            }
        }
        sort_by_slot(keys, other);
        (Sorted { contributions, sources, dim }, keys)
    }
}

impl<'a> Sorted<'a> {
    #[inline(always)]
    fn source(&self, key: u64) -> (&'a Contribution<'a>, Source) {
        let source = self.sources[key as u32 as usize];
        (&self.contributions[source.contribution as usize], source)
    }

    #[inline(always)]
    fn gradient(&self, key: u64) -> &'a [f32] {
        let (contribution, source) = self.source(key);
        let start = source.output as usize * self.dim;
        &contribution.gradients[start..start + self.dim]
    }

    /// Sums `N` vectors of the gradients of one row, from a column on.
    #[inline(always)]
    fn sum_block<S: Simd, const N: usize>(&self, simd: S, group: &[u64], column: usize, out: &mut [f32]) {
        let mut sums = [simd.splat(0.0); N];
        for &key in group {
            let (contribution, source) = self.source(key);
            let start = source.output as usize * self.dim;
            let gradient = &contribution.gradients[start..start + self.dim];
            let factor = simd.splat(source.factor);
            for (vector, sum) in sums.iter_mut().enumerate() {
                let value = at(simd, gradient, column + vector * LANES);
                let value = match (contribution.pooling, contribution.sample_weights) {
                    (Pooling::Mean, _) => simd.div(value, factor),
                    (_, Some(_)) => simd.mul(factor, value),
                    (_, None) => value,
                };
                *sum = simd.add(*sum, value);
            }
        }
        for (vector, sum) in sums.into_iter().enumerate() {
            put(simd, sum, out, column + vector * LANES);
        }
    }

    #[inline(always)]
    fn sum<S: Simd>(&self, simd: S, group: &[u64], out: &mut [f32]) {
        let vectors = self.dim.div_ceil(LANES);
        let mut done = 0;
        while done < vectors {
            let column = done * LANES;
            done += match vectors - done {
                4.. => {
                    self.sum_block::<S, 4>(simd, group, column, out);
                    4
                }
                2.. => {
                    self.sum_block::<S, 2>(simd, group, column, out);
                    2
                }
                _ => {
                    self.sum_block::<S, 1>(simd, group, column, out);
                    1
                }
            };
        }
    }
}

/// A part of a slab: the rows from slot `first` on.
struct Piece<'a> {
    keys: &'a [u64],
    first: usize,
    weights: &'a mut [u8],
    state: &'a mut [f32],
    touched: Vec<(u32, u32)>,
}

struct Update<'a, 'b> {
    sorted: Sorted<'a>,
    piece: &'b mut Piece<'a>,
    shape: RowShape,
    step: &'b Step,
    row_of: RowOf<'b>,
}

impl Kernel for Update<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { sorted, piece, shape, step, row_of } = self;
        let (dim, nbytes, state_floats) = (shape.dim, shape.weight_bytes(), shape.state_floats);
        let (mut weights, mut gradient) = (vec![0.0; dim], vec![0.0; dim]);
        let mut at = 0;
        while at < piece.keys.len() {
            let slot = slot_of(piece.keys[at]);
            let begin = at;
            while at < piece.keys.len() && slot_of(piece.keys[at]) == slot {
                if let Some(&later) = piece.keys.get(at + KEYS_AHEAD) {
                    let row = slot_of(later) as usize - piece.first;
                    simd.prefetch(&piece.weights[row * nbytes..(row + 1) * nbytes]);
                    simd.prefetch_floats(&piece.state[row * state_floats..(row + 1) * state_floats]);
                    simd.prefetch_floats(sorted.gradient(later));
                }
                at += 1;
            }
            let group = &piece.keys[begin..at];
            sorted.sum(simd, group, &mut gradient);
            let (contribution, source) = sorted.source(group[0]);
            let noise: NoiseKey =
                contribution.noise.map(|table| noise_of_row(table, row_of(source.contribution as usize, slot)));
            let row = slot as usize - piece.first;
            let stored = &mut piece.weights[row * nbytes..(row + 1) * nbytes];
            let state = &mut piece.state[row * state_floats..(row + 1) * state_floats];
            decode_row(simd, shape.row_type, stored, &mut weights);
            update_row(simd, step, &mut weights, state, &mut gradient);
            encode_row(simd, shape.row_type, &weights, noise, stored);
            piece.touched.push((slot, source.contribution));
        }
    }
}

/// All rows of a slab: weights one row behind the other, and their state.
pub struct Slab<'a> {
    /// Rows x bytes of a row.
    pub weights: &'a mut [u8],
    /// Rows x floats of state.
    pub state: &'a mut [f32],
    /// What a row is.
    pub shape: RowShape,
}

/// Gives the number in its table of the row at a slot, and of the contribution that has it.
pub type RowOf<'a> = &'a (dyn Fn(usize, u32) -> u64 + Sync);

/// How an update is computed; none of it changes a bit.
#[derive(Clone, Copy)]
pub struct Runtime<'a> {
    /// Instructions of the kernels.
    pub instructions: Instructions,
    /// Threads that share the rows.
    pub threads: &'a Threads,
}

/// Sums the contributions to each row in order (lookup, bag, position), starting from zero, and
/// applies one step to each touched row. Calls `touched(slot, contribution)` for each, in ascending order of slots; `contribution`
/// is the first one with the row.
///
/// A position contributes its bag's gradient, divided by the bag's length for a mean, or times its sample weight.
/// `row_of` is asked for rows that are rounded at random.
pub fn coalesce_and_update(
    runtime: Runtime<'_>,
    contributions: &[Contribution<'_>],
    step: &Step,
    slab: Slab<'_>,
    scratch: &mut Scratch,
    row_of: RowOf<'_>,
    mut touched: impl FnMut(u32, usize),
) {
    let Slab { mut weights, mut state, shape } = slab;
    let (sorted, keys) = scratch.sort(contributions, shape.dim);
    let pieces = if runtime.threads.count() == 1 { 1 } else { runtime.threads.count() * PIECES_PER_THREAD };
    let mut all = Vec::with_capacity(pieces);
    let (mut begin, mut first) = (0, 0);
    for number in 1..=pieces {
        let mut end = (keys.len() * number / pieces).max(begin);
        while end < keys.len() && end > 0 && slot_of(keys[end]) == slot_of(keys[end - 1]) {
            end += 1;
        }
        if end == begin {
            continue;
        }
        // Rows up to the last one of this piece are its own.
        let rows = slot_of(keys[end - 1]) as usize + 1 - first;
        let (mine, rest) = weights.split_at_mut(rows * shape.weight_bytes());
        weights = rest;
        let (my_state, rest) = state.split_at_mut(rows * shape.state_floats);
        state = rest;
        all.push(Piece { keys: &keys[begin..end], first, weights: mine, state: my_state, touched: Vec::new() });
        (begin, first) = (end, first + rows);
    }
    runtime.threads.each(all.iter_mut().collect(), |piece| {
        piece.touched.reserve(piece.keys.len());
        runtime.instructions.run(Update { sorted, piece, shape, step, row_of });
    });
    for piece in &all {
        piece.touched.iter().for_each(|&(slot, contribution)| touched(slot, contribution as usize));
    }
}

struct Norms<'a> {
    sorted: Sorted<'a>,
    keys: &'a [u64],
}

impl Kernel for Norms<'_> {
    type Output = Vec<(u32, f32)>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let mut gradient = vec![0.0; self.sorted.dim];
        let groups = self.keys.chunk_by(|&a, &b| slot_of(a) == slot_of(b));
        groups
            .map(|group| {
                self.sorted.sum(simd, group, &mut gradient);
                (group[0] as u32, sum_of_squares(simd, &gradient))
            })
            .collect()
    }
}

/// The sum of the squares of the gradients of all rows, each summed over its occurrences first. Rows are added in the
/// order of their first occurrence, which no placement changes.
pub fn squared_gradient_norm(
    instructions: Instructions,
    contributions: &[Contribution<'_>],
    dim: usize,
    scratch: &mut Scratch,
) -> f64 {
    let (sorted, keys) = scratch.sort(contributions, dim);
    let mut norms = instructions.run(Norms { sorted, keys });
    norms.sort_unstable_by_key(|&(occurrence, _)| occurrence);
    norms.iter().map(|&(_, norm)| f64::from(norm)).sum()
}
