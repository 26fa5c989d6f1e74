//! Optimizers on one row. Arithmetic order is part of the contract: reductions over the columns use
//! 16 lane sums and a fixed tree, nothing is fused or approximated, so that every later kernel
//! (SIMD of any width) can give the same bits.

use serde::Deserialize;

/// Lane sums of a reduction over the columns.
pub const LANES: usize = 16;

/// What turns a row's gradient into an update.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// `w -= lr * g`.
    Sgd,
    /// One accumulator a row: `m += mean(g^2)`, `step = lr / (sqrt(m) + eps)`, `w -= step * g`.
    RowwiseAdagrad {
        /// Keeps the division defined.
        eps: f32,
    },
}

impl OptimizerConfig {
    /// Floats of state in a row.
    pub fn state_floats(&self) -> usize {
        match self {
            Self::Sgd => 0,
            Self::RowwiseAdagrad { .. } => 1,
        }
    }
}

fn lane_tree(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of squares: column `c` goes to lane `c % 16`, then lanes 8..16 are added to 0..8, and so on.
pub fn lane_sum_of_squares(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for chunk in values.chunks(LANES) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += value * value);
    }
    lane_tree(lanes)
}

/// Dot product in the same order.
pub(super) fn lane_dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (a, b) in left.chunks(LANES).zip(right.chunks(LANES)) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (&a, &b))| *lane += a * b);
    }
    lane_tree(lanes)
}

/// One step of SGD on a row.
pub fn sgd(weights: &mut [f32], gradient: &[f32], lr: f32) {
    weights.iter_mut().zip(gradient).for_each(|(weight, &g)| *weight -= lr * g);
}

/// One step of row-wise `AdaGrad` on a row; `state` is its one accumulator.
///
/// Source of the rule: FBGEMM, `codegen/genscript/optimizers.py`, `rowwise_adagrad`.
pub fn rowwise_adagrad(weights: &mut [f32], state: &mut f32, gradient: &[f32], lr: f32, eps: f32) {
    *state += lane_sum_of_squares(gradient) / gradient.len() as f32;
    let step = lr / (state.sqrt() + eps);
    weights.iter_mut().zip(gradient).for_each(|(weight, &g)| *weight -= step * g);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_lanes_and_a_tree_are_the_documented_order() {
        // 17 columns: column 16 joins column 0 in lane 0 before the tree.
        let values: Vec<f32> = (0..17).map(|column| 1.0 + column as f32 * 1e-3).collect();
        let mut lanes: Vec<f32> = values[..16].iter().map(|v| v * v).collect();
        lanes[0] += values[16] * values[16];
        for half in [8, 4, 2, 1] {
            lanes = (0..half).map(|lane| lanes[lane] + lanes[lane + half]).collect();
        }
        assert_eq!(lane_sum_of_squares(&values).to_bits(), lanes[0].to_bits());
    }

    #[test]
    fn adagrad_follows_its_closed_form_on_a_constant_gradient() {
        let (mut weights, mut state) = ([1.0f32; 4], 0.0f32);
        for step in 1..=10u8 {
            rowwise_adagrad(&mut weights, &mut state, &[2.0; 4], 0.1, 0.0);
            assert!((state - 4.0 * f32::from(step)).abs() < 1e-4);
        }
        // Each step moves by lr * g / (|g| * sqrt(n)).
        let moved: f32 = (1..=10u8).map(|n| 0.1 / f32::from(n).sqrt()).sum();
        assert!((weights[0] - (1.0 - moved)).abs() < 1e-5);
    }
}
