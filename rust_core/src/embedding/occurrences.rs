//! Which rows occur where in the lookups of a step: the order in which contributions to a row are added.

use super::kernels::Simd;
use super::lookup::Pooling;
use super::sort::{Pairs, sort_by_slot};

/// The gradient of one lookup: B outputs over L positions; L outputs without pooling.
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
    /// Outputs x D.
    pub gradients: &'a [f32],
}

/// Memory that updates use again.
#[derive(Debug, Default)]
pub struct Scratch {
    keys: Vec<u64>,
    other: Vec<u64>,
}

/// The slot of an occurrence; its source is in the lower half of the key.
#[inline(always)]
pub(super) fn slot_of(key: u64) -> u32 {
    (key >> 32) as u32
}

/// What multiplies or divides the gradient of a source.
#[derive(Debug, Clone, Copy)]
enum Factor {
    Times(f32),
    Over(f32),
}

/// Occurrences by source: an output of a contribution, or a position of it if every position has its own factor.
#[derive(Debug)]
pub(super) struct Occurrences<'a> {
    contributions: &'a [Contribution<'a>],
    /// Of each source, a row of gradients.
    gradients: Vec<&'a [f32]>,
    /// Of each source; empty if all are 1.
    factors: Vec<Factor>,
    are_far: bool,
}

/// Gradients of so many floats are in a second-level cache, which holds them all.
const NEAR_FLOATS_MAX: usize = 128 << 10;

impl<'a> Occurrences<'a> {
    /// Lists the sources of all contributions, whose rows have so many columns.
    pub(super) fn of(contributions: &'a [Contribution<'a>], dim: usize) -> Self {
        let is_plain = contributions.iter().all(|of| of.sample_weights.is_none() && of.pooling != Pooling::Mean);
        let count = |of: &Contribution<'_>| match of.sample_weights {
            Some(_) => of.slots.len(),
            None => of.pooling.outputs(of.offsets, of.slots.len()),
        };
        let sources = contributions.iter().map(count).sum();
        let mut gradients = Vec::with_capacity(sources);
        let mut factors = Vec::with_capacity(if is_plain { 0 } else { sources });
        for of in contributions {
            if is_plain {
                gradients.extend(of.gradients.chunks_exact(dim));
                continue;
            }
            for (output, gradient) in of.gradients.chunks_exact(dim).enumerate() {
                let positions = of.pooling.positions(of.offsets, output, of.slots.len());
                if let Some(weights) = of.sample_weights {
                    gradients.resize(gradients.len() + positions.len(), gradient);
                    factors.extend(weights[positions].iter().map(|&weight| Factor::Times(weight)));
                } else {
                    let is_mean = of.pooling == Pooling::Mean;
                    gradients.push(gradient);
                    factors.push(if is_mean { Factor::Over(positions.len() as f32) } else { Factor::Times(1.0) });
                }
            }
        }
        let floats: usize = contributions.iter().map(|of| of.gradients.len()).sum();
        Self { contributions, gradients, factors, are_far: floats > NEAR_FLOATS_MAX }
    }

    /// All occurrences, sorted by slot; equal slots keep their order.
    pub(super) fn sort<'s>(&self, scratch: &'s mut Scratch) -> &'s [u64] {
        sort_by_slot(self, &mut scratch.keys, &mut scratch.other);
        &scratch.keys
    }

    #[inline(always)]
    pub(super) fn gradient(&self, key: u64) -> &'a [f32] {
        self.gradients[key as u32 as usize]
    }

    /// Whether the gradients are too many for a second-level cache.
    #[inline(always)]
    pub(super) fn are_far(&self) -> bool {
        self.are_far
    }

    /// Whether every gradient counts once.
    #[inline(always)]
    pub(super) fn are_plain(&self) -> bool {
        self.factors.is_empty()
    }

    /// A part of the gradient of an occurrence, as it counts.
    #[inline(always)]
    pub(super) fn weighted<S: Simd>(&self, simd: S, key: u64, value: S::V) -> S::V {
        if self.factors.is_empty() {
            return value;
        }
        match self.factors[key as u32 as usize] {
            Factor::Times(factor) => simd.mul(simd.splat(factor), value),
            Factor::Over(factor) => simd.div(value, simd.splat(factor)),
        }
    }
}

impl Pairs for Occurrences<'_> {
    fn count(&self) -> usize {
        self.contributions.iter().map(|of| of.slots.len()).sum()
    }

    fn largest(&self) -> u32 {
        self.contributions.iter().filter_map(|of| of.slots.iter().max()).max().copied().unwrap_or(0)
    }

    #[inline]
    fn each(&self, mut visit: impl FnMut(u32, u32)) {
        let mut source = 0;
        for of in self.contributions {
            if of.sample_weights.is_some() || of.pooling == Pooling::None {
                for &slot in of.slots {
                    visit(slot, source);
                    source += 1;
                }
                continue;
            }
            for output in 0..of.offsets.len() {
                for &slot in &of.slots[of.pooling.positions(of.offsets, output, of.slots.len())] {
                    visit(slot, source);
                }
                source += 1;
            }
        }
    }
}
