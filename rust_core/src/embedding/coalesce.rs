//! Gradients of all lookups of a table, summed by row in a documented order, then one optimizer step a row.
//! No gradient tensor of lookups x columns is ever made.

use super::columns::{at, columns, put};
use super::encode::{NoiseKey, encode_row, noise_of_row};
use super::kernels::{Instructions, Kernel, Simd};
use super::occurrences::{Contribution, Occurrences, Scratch, slot_of};
use super::optim::{Step, sum_of_squares, update_row};
use super::row_type::{RowShape, decode_row};
use super::threads::Threads;

/// Rows that are asked for before they are used.
const ROWS_AHEAD: usize = 12;
/// Occurrences of a piece of an update at least; fewer are not worth another thread.
const PIECE_KEYS_MIN: usize = 512;
/// Pieces of an update for each thread, so that an uneven one does not decide.
const PIECES_PER_THREAD: usize = 4;

/// The sum of the gradients of a row.
#[inline(always)]
pub(super) fn sum_gradients<S: Simd>(simd: S, occurrences: &Occurrences<'_>, group: &[u64], out: &mut [f32]) {
    for column in columns(out.len()) {
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
    rows: usize,
    /// Their slots, if somebody asks.
    slots: Option<Vec<u32>>,
}

pub(super) struct Update<'a, 'b> {
    pub(super) occurrences: &'b Occurrences<'a>,
    piece: &'b mut Piece<'a>,
    starts: Vec<u32>,
    pub(super) shape: RowShape,
    step: &'b Step,
    noise: Option<Noise<'b>>,
}

impl<'a> Update<'a, '_> {
    /// How many rows the piece updates.
    #[inline(always)]
    pub(super) fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// The occurrences of a row; asks for what a later row needs.
    #[inline(always)]
    pub(super) fn group<S: Simd>(&self, simd: S, number: usize) -> &'a [u64] {
        let piece = &self.piece;
        if let Some(&[begin, end]) = self.starts.get(number + ROWS_AHEAD..).and_then(|later| later.first_chunk()) {
            let later = &piece.keys[begin as usize..end as usize];
            let row = slot_of(later[0]) as usize - piece.first;
            let (nbytes, state_floats) = (self.shape.weight_bytes(), self.shape.state_floats);
            simd.prefetch(&piece.weights[row * nbytes..(row + 1) * nbytes]);
            simd.prefetch_floats(&piece.state[row * state_floats..(row + 1) * state_floats]);
            if self.occurrences.are_far() {
                for &key in later {
                    simd.prefetch_floats(self.occurrences.gradient(key));
                }
            }
        }
        &piece.keys[self.starts[number] as usize..self.starts[number + 1] as usize]
    }

    /// Counts an updated row; gives its noise, if it is rounded at random.
    #[inline(always)]
    pub(super) fn touch(&mut self, slot: u32) -> NoiseKey {
        self.piece.touched.rows += 1;
        if let Some(slots) = &mut self.piece.touched.slots {
            slots.push(slot);
        }
        self.noise.map(|noise| noise_of_row(noise.key, (noise.row_of)(slot)))
    }

    /// Whether rows are rounded at random.
    pub(super) fn is_random(&self) -> bool {
        self.noise.is_some()
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

    /// One row after the other.
    #[inline(always)]
    fn update_rows<S: Simd>(&mut self, simd: S) {
        let (shape, step, occurrences) = (self.shape, self.step, self.occurrences);
        let (mut weights, mut gradient) = (vec![0.0; shape.dim], vec![0.0; shape.dim]);
        for number in 0..self.rows() {
            let group = self.group(simd, number);
            let noise = self.touch(slot_of(group[0]));
            sum_gradients(simd, occurrences, group, &mut gradient);
            let (stored, state) = self.row(slot_of(group[0]));
            decode_row(simd, shape.row_type, stored, &mut weights);
            update_row(simd, step, &mut weights, state, &mut gradient);
            encode_row(simd, shape.row_type, &weights, noise, stored);
        }
    }
}

/// Where the occurrences of each row begin, and the end of the last ones.
fn starts_of_groups(keys: &[u64]) -> Vec<u32> {
    let mut starts = vec![0; keys.len() + 1];
    let mut count = 0;
    let mut before = keys.first().map_or(0, |&key| !slot_of(key));
    for (at, &key) in (0..).zip(keys) {
        // Without a branch: whether a row goes on is a coin that nobody can guess.
        starts[count] = at;
        count += usize::from(slot_of(key) != before);
        before = slot_of(key);
    }
    starts[count] = keys.len() as u32;
    starts.truncate(count + 1);
    starts
}

impl Kernel for Update<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        match self.step.rowwise_rule() {
            Some(rule) => self.rowwise_adagrad(simd, rule),
            None => self.update_rows(simd),
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

/// How rows of a type of fewer bits are rounded at random in one step of a table.
#[derive(Clone, Copy)]
pub struct Noise<'a> {
    /// [`noise_of_table`](super::noise_of_table).
    pub key: u64,
    /// The number in its table of the row at a slot.
    pub row_of: &'a (dyn Fn(u32) -> u64 + Sync),
}

/// How an update is computed; none of it changes a bit.
#[derive(Clone, Copy)]
pub struct Runtime<'a> {
    /// Instructions of the kernels.
    pub instructions: Instructions,
    /// Threads that share the rows.
    pub threads: &'a Threads,
}

/// Sums the contributions to each row of a table in order (lookup, bag, position), starting from zero, and applies one step to
/// each touched row; gives their number. `touched` gets their slots, in ascending order.
///
/// A position contributes its bag's gradient, divided by the bag's length for a mean, or times its sample weight. Without
/// noise rows are rounded to the nearest.
pub fn coalesce_and_update(
    runtime: Runtime<'_>,
    contributions: &[Contribution<'_>],
    step: &Step,
    slab: Slab<'_>,
    scratch: &mut Scratch,
    noise: Option<Noise<'_>>,
    touched: Option<&mut Vec<u32>>,
) -> usize {
    let Slab { mut weights, mut state, shape } = slab;
    let occurrences = Occurrences::of(contributions, shape.dim);
    let keys = occurrences.sort(scratch);
    let most = if runtime.threads.count() == 1 { 1 } else { runtime.threads.count() * PIECES_PER_THREAD };
    let pieces = (keys.len() / PIECE_KEYS_MIN).clamp(1, most);
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
        let slots = touched.is_some().then(|| Vec::with_capacity(end - begin));
        let touched = Touched { rows: 0, slots };
        all.push(Piece { keys: &keys[begin..end], first, weights: mine, state: my_state, touched });
        (begin, first) = (end, first + rows);
    }
    runtime.threads.each(all.iter_mut().collect(), |piece| {
        let starts = starts_of_groups(piece.keys);
        runtime.instructions.run(Update { occurrences: &occurrences, piece, starts, shape, step, noise });
    });
    if let Some(touched) = touched {
        all.iter().for_each(|piece| touched.extend(piece.touched.slots.iter().flatten()));
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
            sum_gradients(simd, self.occurrences, group, &mut gradient);
            norms.push((group[0] as u32, sum_of_squares(simd, &gradient)));
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
    // Rows that first occur in one bag are told apart by what they add.
    norms.sort_unstable_by_key(|&(source, norm)| (source, norm.to_bits()));
    norms.iter().map(|&(_, norm)| f64::from(norm)).sum()
}
