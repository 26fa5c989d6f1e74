//! Gradients of all lookups of the tables of one slab, summed by row in a documented order, then one optimizer step a row.
//! No gradient tensor of lookups x columns is ever made.

use super::columns::{Columns, ColumnsMut, InMemory, Registers, VECTORS_MAX, Values, at, put};
use super::encode::{NoiseKey, encode_row, noise_of_row};
use super::kernels::{Instructions, Kernel, LANES, Simd};
use super::occurrences::{Contribution, Occurrences, Scratch, slot_of};
use super::optim::{Step, sum_of_squares, update_row};
use super::row_type::{RowShape, decode_row};
use super::threads::Threads;

/// Occurrences whose rows and gradients are asked for before they are used.
const KEYS_AHEAD: usize = 24;
/// Pieces of an update for each thread, so that an uneven one does not decide.
const PIECES_PER_THREAD: usize = 4;

/// The sum of the gradients of a row in registers.
#[inline(always)]
fn sum_in_registers<S: Simd, const N: usize>(
    simd: S,
    occurrences: &Occurrences<'_>,
    group: &[u64],
    dim: usize,
) -> Registers<S, N> {
    let mut sums = Registers::new(simd, dim);
    if occurrences.are_plain() {
        for &key in group {
            sums.add(simd, occurrences.gradient(key));
        }
        return sums;
    }
    for &key in group {
        let gradient = Values(occurrences.gradient(key));
        for vector in 0..N {
            let value = occurrences.weighted(simd, key, gradient.get(simd, vector));
            let sum = simd.add(sums.get(simd, vector), value);
            sums.set(simd, vector, sum);
        }
    }
    sums
}

/// The sum of the gradients of a wide row.
#[inline(always)]
fn sum_in_memory<S: Simd>(simd: S, occurrences: &Occurrences<'_>, group: &[u64], out: &mut [f32]) {
    for column in (0..out.len().div_ceil(LANES)).map(|vector| vector * LANES) {
        let mut sum = simd.splat(0.0);
        for &key in group {
            let value = at(simd, occurrences.gradient(key), column);
            sum = simd.add(sum, occurrences.weighted(simd, key, value));
        }
        put(simd, sum, out, column);
    }
}

/// A part of a slab: the rows from slot `first` on.
struct Piece<'a> {
    keys: &'a [u64],
    first: usize,
    weights: &'a mut [u8],
    state: &'a mut [f32],
    touched: Touched,
}

/// Which rows were updated.
struct Touched {
    rows: u64,
    /// Slot and contribution of each, if somebody asks.
    list: Option<Vec<(u32, u32)>>,
}

pub(super) struct Update<'a, 'b> {
    pub(super) occurrences: &'b Occurrences<'a>,
    piece: &'b mut Piece<'a>,
    pub(super) shape: RowShape,
    step: &'b Step,
    row_of: RowOf<'b>,
}

impl Update<'_, '_> {
    /// The occurrences of the piece.
    #[inline(always)]
    pub(super) fn keys(&self) -> &[u64] {
        self.piece.keys
    }

    /// Whether all rows are rounded at random, or none; nothing if some are.
    pub(super) fn rounding(&self) -> Option<bool> {
        self.occurrences.all_noisy()
    }

    /// Asks for what a later occurrence needs.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        let piece = &self.piece;
        let Some(&later) = piece.keys.get(at + KEYS_AHEAD) else { return };
        if self.occurrences.are_far() {
            simd.prefetch_floats(self.occurrences.gradient(later));
        }
        if slot_of(later) != slot_of(piece.keys[at + KEYS_AHEAD - 1]) {
            let row = slot_of(later) as usize - piece.first;
            let (nbytes, state_floats) = (self.shape.weight_bytes(), self.shape.state_floats);
            simd.prefetch(&piece.weights[row * nbytes..(row + 1) * nbytes]);
            simd.prefetch_floats(&piece.state[row * state_floats..(row + 1) * state_floats]);
        }
    }

    /// The end of the group that begins at a key; asks for what later ones need.
    #[inline(always)]
    fn end_of_group<S: Simd>(&self, simd: S, begin: usize) -> usize {
        let keys = self.piece.keys;
        let slot = slot_of(keys[begin]);
        let mut end = begin;
        while end < keys.len() && slot_of(keys[end]) == slot {
            self.prefetch(simd, end);
            end += 1;
        }
        end
    }

    /// Whose row it is; remembers that it was touched.
    #[inline(always)]
    pub(super) fn touch(&mut self, key: u64) -> NoiseKey {
        let (slot, contribution) = (slot_of(key), self.occurrences.contribution(key));
        self.piece.touched.rows += 1;
        if let Some(list) = &mut self.piece.touched.list {
            list.push((slot, contribution));
        }
        match self.occurrences.noise(contribution) {
            Some(table) => Some(noise_of_row(table, (self.row_of)(contribution as usize, slot))),
            None => None,
        }
    }

    /// The stored weights of a row, and its state.
    #[inline(always)]
    pub(super) fn row(&mut self, slot: u32) -> (&mut [u8], &mut [f32]) {
        let row = slot as usize - self.piece.first;
        let (nbytes, state_floats) = (self.shape.weight_bytes(), self.shape.state_floats);
        (
            &mut self.piece.weights[row * nbytes..(row + 1) * nbytes],
            &mut self.piece.state[row * state_floats..(row + 1) * state_floats],
        )
    }

    /// One row after the other; `N` vectors hold a row, or 0 if it is wider than registers.
    #[inline(always)]
    pub(super) fn rows<S: Simd, const N: usize>(&mut self, simd: S) {
        let (shape, step, occurrences) = (self.shape, self.step, self.occurrences);
        let wide = if N == 0 { shape.dim } else { 0 };
        let (mut wide_weights, mut wide_gradient) = (vec![0.0; wide], vec![0.0; wide]);
        let mut begin = 0;
        while begin < self.piece.keys.len() {
            let end = self.end_of_group(simd, begin);
            let group = &self.piece.keys[begin..end];
            let noise = self.touch(group[0]);
            let (stored, state) = self.row(slot_of(group[0]));
            if N == 0 {
                sum_in_memory(simd, occurrences, group, &mut wide_gradient);
                let (mut weights, mut gradient) = (InMemory(&mut wide_weights), InMemory(&mut wide_gradient));
                step_row(simd, step, shape, noise, stored, state, (&mut weights, &mut gradient));
            } else {
                let mut gradient: Registers<S, N> = sum_in_registers(simd, occurrences, group, shape.dim);
                let mut weights: Registers<S, N> = Registers::new(simd, shape.dim);
                step_row(simd, step, shape, noise, stored, state, (&mut weights, &mut gradient));
            }
            begin = end;
        }
    }

    #[inline(always)]
    fn run_rows<S: Simd, const N: usize>(&mut self, simd: S) {
        match self.step.rowwise_rule() {
            Some(rule) if self.occurrences.are_plain() => self.rowwise_adagrad::<S, N>(simd, rule),
            _ => self.rows::<S, N>(simd),
        }
    }
}

/// Reads a row, makes one step, and stores it.
#[inline(always)]
fn step_row<S: Simd, C: ColumnsMut<S>>(
    simd: S,
    step: &Step,
    shape: RowShape,
    noise: NoiseKey,
    stored: &mut [u8],
    state: &mut [f32],
    (weights, gradient): (&mut C, &mut C),
) {
    decode_row(simd, shape, stored, weights);
    update_row(simd, step, shape.dim, weights, state, gradient);
    encode_row(simd, shape, weights, noise, stored);
}

impl Kernel for Update<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        match self.shape.dim.div_ceil(LANES) {
            1 => self.run_rows::<S, 1>(simd),
            2 => self.run_rows::<S, 2>(simd),
            3 => self.run_rows::<S, 3>(simd),
            4 => self.run_rows::<S, 4>(simd),
            5 => self.run_rows::<S, 5>(simd),
            6 => self.run_rows::<S, 6>(simd),
            7 => self.run_rows::<S, 7>(simd),
            VECTORS_MAX => self.run_rows::<S, VECTORS_MAX>(simd),
            _ => self.rows::<S, 0>(simd),
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
/// applies one step to each touched row; gives their number. Calls `touched(slot, contribution)`, if there is one, for each, in
/// ascending order of slots; `contribution` is the first one with the row.
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
    touched: Option<&mut dyn FnMut(u32, usize)>,
) -> u64 {
    let Slab { mut weights, mut state, shape } = slab;
    let occurrences = Occurrences::of(contributions, shape.dim);
    let keys = occurrences.sort(scratch);
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
        let list = touched.is_some().then(|| Vec::with_capacity(end - begin));
        let touched = Touched { rows: 0, list };
        all.push(Piece { keys: &keys[begin..end], first, weights: mine, state: my_state, touched });
        (begin, first) = (end, first + rows);
    }
    runtime.threads.each(all.iter_mut().collect(), |piece| {
        runtime.instructions.run(Update { occurrences: &occurrences, piece, shape, step, row_of });
    });
    if let Some(touched) = touched {
        let lists = all.iter().filter_map(|piece| piece.touched.list.as_ref());
        lists.flatten().for_each(|&(slot, contribution)| touched(slot, contribution as usize));
    }
    all.iter().map(|piece| piece.touched.rows).sum()
}

struct Norms<'a> {
    occurrences: &'a Occurrences<'a>,
    keys: &'a [u64],
    dim: usize,
}

impl Kernel for Norms<'_> {
    type Output = Vec<(u32, f32)>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let mut gradient = vec![0.0; self.dim];
        let mut norms = Vec::new();
        for group in self.keys.chunk_by(|&a, &b| slot_of(a) == slot_of(b)) {
            sum_in_memory(simd, self.occurrences, group, &mut gradient);
            norms.push((group[0] as u32, sum_of_squares(simd, &InMemory(&mut gradient))));
        }
        norms
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
    let occurrences = Occurrences::of(contributions, dim);
    let keys = occurrences.sort(scratch);
    let mut norms = instructions.run(Norms { occurrences: &occurrences, keys, dim });
    norms.sort_unstable_by_key(|&(occurrence, _)| occurrence);
    norms.iter().map(|&(_, norm)| f64::from(norm)).sum()
}
