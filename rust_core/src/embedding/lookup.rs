//! Gather and pool.
//!
//! Shapes: B bags, L ids in all bags together, D columns. Bag `b` owns positions
//! `offsets[b] .. offsets[b + 1]` (the last one ends at L).

use serde::Deserialize;

use super::optim::lane_dot;

/// What becomes of the rows of one bag. An empty bag gives zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their sum, each row times its sample weight if there are any.
    Sum,
    /// Their sum divided by their number.
    Mean,
}

/// Pools rows into `out` of B x D. Row of slot `s` is `weights[s * dim .. (s + 1) * dim]`.
///
/// Additions run in the order of positions, starting from zero, column by column.
pub fn pool_rows(
    weights: &[f32],
    dim: usize,
    slots: &[u32],
    offsets: &[u32],
    pooling: Pooling,
    sample_weights: Option<&[f32]>,
    out: &mut [f32],
) {
    debug_assert_eq!(out.len(), offsets.len() * dim, "one pooled row a bag");
    for (bag, pooled) in out.chunks_exact_mut(dim).enumerate() {
        let positions = bag_range(offsets, bag, slots.len());
        pooled.fill(0.0);
        for position in positions.clone() {
            let start = slots[position] as usize * dim;
            let row = &weights[start..start + dim];
            match sample_weights {
                None => pooled.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value),
                Some(factors) => {
                    let factor = factors[position];
                    pooled.iter_mut().zip(row).for_each(|(sum, &value)| *sum += factor * value);
                }
            }
        }
        if pooling == Pooling::Mean && positions.len() > 1 {
            let count = positions.len() as f32;
            pooled.iter_mut().for_each(|sum| *sum /= count);
        }
    }
}

/// Gradient of each sample weight: the dot product of its row and its bag's gradient.
pub fn gradient_of_sample_weights(
    weights: &[f32],
    dim: usize,
    slots: &[u32],
    offsets: &[u32],
    gradients: &[f32],
    out: &mut [f32],
) {
    for (bag, gradient) in gradients.chunks_exact(dim).enumerate() {
        for position in bag_range(offsets, bag, slots.len()) {
            let start = slots[position] as usize * dim;
            out[position] = lane_dot(&weights[start..start + dim], gradient);
        }
    }
}

/// Positions of a bag.
pub(super) fn bag_range(offsets: &[u32], bag: usize, positions: usize) -> std::ops::Range<usize> {
    let end = offsets.get(bag + 1).map_or(positions, |&end| end as usize);
    offsets[bag] as usize..end
}
