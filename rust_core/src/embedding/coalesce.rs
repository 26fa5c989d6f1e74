//! Gradients of all lookups of a table, summed by row in a documented order, then one optimizer
//! step a row. No gradient tensor of lookups x columns is ever made.

use super::lookup::{Pooling, bag_range};
use super::optim::{OptimizerConfig, rowwise_adagrad, sgd};

/// The gradient of one pooled lookup: B bags over L positions.
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
}

/// Sums the contributions to each row in order (lookup, bag, position), starting from zero, and
/// applies one step to each touched row. Calls `touched(slot)` for each, in ascending order.
///
/// A position contributes its bag's gradient, divided by the bag's length for a mean, or times its sample weight.
pub fn coalesce_and_update(
    contributions: &[Contribution<'_>],
    dim: usize,
    optimizer: OptimizerConfig,
    lr: f32,
    (weights, state): (&mut [f32], &mut [f32]),
    mut touched: impl FnMut(u32),
) {
    // Each key is (slot, number of the occurrence): sorting by slot keeps the order of occurrences.
    let mut bags: Vec<(u32, u32)> = Vec::new();
    let mut factors: Vec<f32> = Vec::new();
    let mut keys: Vec<u64> = Vec::new();
    for (lookup, contribution) in contributions.iter().enumerate() {
        for bag in 0..contribution.offsets.len() {
            let positions = bag_range(contribution.offsets, bag, contribution.slots.len());
            let count = positions.len();
            for position in positions {
                keys.push((u64::from(contribution.slots[position]) << 32) | bags.len() as u64);
                bags.push((lookup as u32, bag as u32));
                factors.push(match contribution.pooling {
                    Pooling::Sum => contribution.sample_weights.map_or(1.0, |weights| weights[position]),
                    Pooling::Mean => count as f32,
                });
            }
        }
    }
    sort_by_slot(&mut keys);
    let mut gradient = vec![0.0f32; dim];
    for group in keys.chunk_by(|a, b| a >> 32 == b >> 32) {
        gradient.fill(0.0);
        for &key in group {
            let occurrence = key as u32 as usize;
            let (lookup, bag) = bags[occurrence];
            let contribution = &contributions[lookup as usize];
            let start = bag as usize * dim;
            let source = &contribution.gradients[start..start + dim];
            let factor = factors[occurrence];
            let sums = gradient.iter_mut().zip(source);
            match (contribution.pooling, contribution.sample_weights) {
                (Pooling::Sum, None) => sums.for_each(|(sum, &g)| *sum += g),
                (Pooling::Sum, Some(_)) => sums.for_each(|(sum, &g)| *sum += factor * g),
                (Pooling::Mean, _) => sums.for_each(|(sum, &g)| *sum += g / factor),
            }
        }
        let slot = (group[0] >> 32) as u32;
        let row = &mut weights[slot as usize * dim..(slot as usize + 1) * dim];
        match optimizer {
            OptimizerConfig::Sgd => sgd(row, &gradient, lr),
            OptimizerConfig::RowwiseAdagrad { eps } => {
                rowwise_adagrad(row, &mut state[slot as usize], &gradient, lr, eps);
            }
        }
        touched(slot);
    }
}

/// Sorts by the upper 32 bits and keeps the order of equal ones: least significant digit first.
fn sort_by_slot(keys: &mut Vec<u64>) {
    const DIGIT_BITS: u32 = 11;
    let largest = keys.iter().map(|key| key >> 32).max().unwrap_or(0);
    let mut other = vec![0u64; keys.len()];
    let mut shift = 32;
    while shift < 64 && largest >> (shift - 32) > 0 {
        let digit = |key: u64| (key >> shift) as usize & ((1 << DIGIT_BITS) - 1);
        let mut starts = [0u32; 1 << DIGIT_BITS];
        keys.iter().for_each(|&key| starts[digit(key)] += 1);
        let mut sum = 0;
        for start in &mut starts {
            sum += std::mem::replace(start, sum);
        }
        for &key in keys.iter() {
            let start = &mut starts[digit(key)];
            other[*start as usize] = key;
            *start += 1;
        }
        std::mem::swap(keys, &mut other);
        shift += DIGIT_BITS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorting_is_stable(slots in prop::collection::vec(prop_oneof![0u64..50, 0u64..5_000_000_000 % (1 << 32)], 0..300)) {
            let mut keys: Vec<u64> = slots.iter().enumerate().map(|(n, slot)| (slot << 32) | n as u64).collect();
            let mut expected = keys.clone();
            expected.sort_unstable();
            sort_by_slot(&mut keys);
            prop_assert_eq!(keys, expected);
        }
    }

    #[test]
    fn duplicates_are_summed_before_the_non_linear_step() {
        // One row, looked up twice in one bag and once in another: g = 1 + 1 + 2.
        let contribution = Contribution {
            slots: &[0, 0, 0],
            offsets: &[0, 2],
            pooling: Pooling::Sum,
            sample_weights: None,
            gradients: &[1.0, 2.0],
        };
        let (mut weights, mut state) = ([0.0f32], [0.0f32]);
        let optimizer = OptimizerConfig::RowwiseAdagrad { eps: 0.0 };
        let mut touched = Vec::new();
        coalesce_and_update(&[contribution], 1, optimizer, 0.5, (&mut weights, &mut state), |slot| touched.push(slot));
        assert_eq!((weights, state, touched), ([-0.5], [16.0], vec![0]));
    }
}
