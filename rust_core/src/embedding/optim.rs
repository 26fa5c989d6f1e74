//! Optimizers on one row. The arithmetic is that of docs/design/embedding-kernels.md: nothing is fused or approximated, and
//! sums over the columns use 16 lanes and a fixed tree.

use serde::Deserialize;

use super::columns::{at, columns, put};
use super::kernels::{Instructions, Kernel, Simd};

/// What turns a row's gradient into an update.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// `w -= lr * g`, or with momentum `m = momentum * m + g`, `w -= lr * m`.
    Sgd {
        /// What is kept of the last step; 0 for none.
        #[serde(default)]
        momentum: f32,
        /// Added to the gradient, times the weights.
        #[serde(default)]
        weight_decay: f32,
    },
    /// `s += g^2`, `w -= lr * g / (sqrt(s) + eps)` (Duchi et al., 2011).
    Adagrad {
        /// Keeps the division defined.
        eps: f32,
        /// Added to the gradient, times the weights.
        #[serde(default)]
        weight_decay: f32,
    },
    /// One accumulator a row: `s += mean(g^2)`, `w -= lr / (sqrt(s) + eps) * g` (FBGEMM, `rowwise_adagrad`).
    RowwiseAdagrad {
        /// Keeps the division defined.
        eps: f32,
        /// Added to the gradient, times the weights.
        #[serde(default)]
        weight_decay: f32,
    },
    /// Kingma and Ba, 2015; moments of rows that are not looked up stay.
    Adam(Moments),
    /// Adam with one second moment a row (FBGEMM, `partial_rowwise_adam`).
    PartialRowwiseAdam(Moments),
    /// Adam whose step is scaled by the ratio of the norms of row and step (You et al., 2020; by row as in FBGEMM).
    Lamb(Moments),
}

/// Parameters of the optimizers with moments.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Keeps the division defined.
    pub eps: f32,
    /// Added to the gradient, or with LAMB to the step, times the weights.
    #[serde(default)]
    pub weight_decay: f32,
}

impl OptimizerConfig {
    /// Row-wise `AdaGrad` without weight decay.
    pub const fn rowwise_adagrad(eps: f32) -> Self {
        Self::RowwiseAdagrad { eps, weight_decay: 0.0 }
    }

    /// SGD without momentum and weight decay.
    pub const fn sgd() -> Self {
        Self::Sgd { momentum: 0.0, weight_decay: 0.0 }
    }

    /// Floats of state of a row with so many columns.
    pub fn state_floats(&self, dim: usize) -> usize {
        match self {
            Self::Sgd { momentum, .. } => {
                if *momentum == 0.0 {
                    0
                } else {
                    dim
                }
            }
            Self::Adagrad { .. } => dim,
            Self::RowwiseAdagrad { .. } => 1,
            Self::Adam(_) | Self::Lamb(_) => 2 * dim,
            Self::PartialRowwiseAdam(_) => dim + 1,
        }
    }

    fn moments(&self) -> Option<Moments> {
        match *self {
            Self::Adam(moments) | Self::PartialRowwiseAdam(moments) | Self::Lamb(moments) => Some(moments),
            _ => None,
        }
    }
}

/// An optimizer at one step: everything that does not depend on the row.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    optimizer: OptimizerConfig,
    lr: f32,
    /// `1 / (1 - beta1^t)`.
    correction1: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    correction2: f32,
    /// `lr / (1 - beta1^t)`.
    corrected_lr: f32,
}

impl Step {
    /// If it is row-wise `AdaGrad` without weight decay.
    pub(super) fn rowwise_rule(&self) -> Option<RowwiseRule> {
        match self.optimizer {
            OptimizerConfig::RowwiseAdagrad { eps, weight_decay: 0.0 } => Some(RowwiseRule { lr: self.lr, eps }),
            _ => None,
        }
    }

    /// Step `number`, from 1, of an optimizer.
    pub fn new(optimizer: OptimizerConfig, lr: f32, number: u64) -> Self {
        let (mut bias1, mut bias2) = (1.0, 1.0);
        if let Some(moments) = optimizer.moments() {
            bias1 = 1.0 - libm::pow(f64::from(moments.beta1), number as f64);
            bias2 = 1.0 - libm::pow(f64::from(moments.beta2), number as f64);
        }
        Self {
            optimizer,
            lr,
            correction1: (1.0 / bias1) as f32,
            correction2: (1.0 / libm::sqrt(bias2)) as f32,
            corrected_lr: (f64::from(lr) / bias1) as f32,
        }
    }
}

/// `g += weight_decay * w`.
#[inline(always)]
fn decay<S: Simd>(simd: S, weight_decay: f32, weights: &[f32], gradient: &mut [f32]) {
    if weight_decay == 0.0 {
        return;
    }
    let factor = simd.splat(weight_decay);
    for column in columns(gradient.len()) {
        let sum = simd.add(at(simd, gradient, column), simd.mul(factor, at(simd, weights, column)));
        put(simd, sum, gradient, column);
    }
}

/// `w -= factor * x`.
#[inline(always)]
pub(super) fn descend<S: Simd>(simd: S, factor: f32, direction: &[f32], weights: &mut [f32]) {
    let factor = simd.splat(factor);
    for column in columns(weights.len()) {
        let step = simd.mul(factor, at(simd, direction, column));
        put(simd, simd.sub(at(simd, weights, column), step), weights, column);
    }
}

#[inline(always)]
pub(super) fn lanes_of_squares<S: Simd>(simd: S, values: &[f32]) -> S::V {
    let mut lanes = simd.splat(0.0);
    for column in columns(values.len()) {
        let value = at(simd, values, column);
        lanes = simd.add(lanes, simd.mul(value, value));
    }
    lanes
}

#[inline(always)]
pub(super) fn sum_of_squares<S: Simd>(simd: S, values: &[f32]) -> f32 {
    simd.sum(lanes_of_squares(simd, values))
}

/// Row-wise `AdaGrad` without weight decay, for 16 rows at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowwiseRule {
    lr: f32,
    eps: f32,
}

impl RowwiseRule {
    /// The accumulators with the squares of this step.
    #[inline(always)]
    pub(super) fn accumulate<S: Simd>(simd: S, squares: S::V, states: S::V, dim: usize) -> S::V {
        simd.add(states, simd.div(squares, simd.splat(dim as f32)))
    }

    /// What multiplies the gradients.
    #[inline(always)]
    pub(super) fn factors<S: Simd>(self, simd: S, sums: S::V) -> S::V {
        simd.div(simd.splat(self.lr), simd.add(simd.sqrt(sums), simd.splat(self.eps)))
    }
}

/// `x = beta * x + (1 - beta) * g`.
#[inline(always)]
fn average<S: Simd>(simd: S, beta: f32, old: S::V, new: S::V) -> S::V {
    simd.add(simd.mul(simd.splat(beta), old), simd.mul(simd.splat(1.0 - beta), new))
}

/// Brings both moments up to date; gives the first one, and the root of the corrected second one plus `eps`.
#[inline(always)]
fn adam_moments<S: Simd>(
    simd: S,
    step: &Step,
    moments: Moments,
    (first, second): (&mut [f32], &mut [f32]),
    gradient: &[f32],
    column: usize,
) -> (S::V, S::V) {
    let g = at(simd, gradient, column);
    let m = average(simd, moments.beta1, at(simd, first, column), g);
    let v = average(simd, moments.beta2, at(simd, second, column), simd.mul(g, g));
    put(simd, m, first, column);
    put(simd, v, second, column);
    let root = simd.mul(simd.sqrt(v), simd.splat(step.correction2));
    (m, simd.add(root, simd.splat(moments.eps)))
}

#[inline(always)]
fn adam<S: Simd>(simd: S, step: &Step, moments: Moments, weights: &mut [f32], state: &mut [f32], gradient: &[f32]) {
    let (first, second) = state.split_at_mut(weights.len());
    let lr = simd.splat(step.corrected_lr);
    for column in columns(weights.len()) {
        let (m, root) = adam_moments(simd, step, moments, (first, second), gradient, column);
        let moved = simd.mul(lr, simd.div(m, root));
        put(simd, simd.sub(at(simd, weights, column), moved), weights, column);
    }
}

#[inline(always)]
fn partial_rowwise_adam<S: Simd>(
    simd: S,
    step: &Step,
    moments: Moments,
    weights: &mut [f32],
    state: &mut [f32],
    gradient: &[f32],
) {
    let (first, second) = state.split_at_mut(weights.len());
    let mean = sum_of_squares(simd, gradient) / gradient.len() as f32;
    second[0] = moments.beta2 * second[0] + (1.0 - moments.beta2) * mean;
    let factor = step.corrected_lr / (second[0].sqrt() * step.correction2 + moments.eps);
    for column in columns(weights.len()) {
        let m = average(simd, moments.beta1, at(simd, first, column), at(simd, gradient, column));
        put(simd, m, first, column);
    }
    descend(simd, factor, first, weights);
}

/// `gradient` becomes the step before it is scaled.
#[inline(always)]
fn lamb<S: Simd>(simd: S, step: &Step, moments: Moments, weights: &mut [f32], state: &mut [f32], gradient: &mut [f32]) {
    let (first, second) = state.split_at_mut(weights.len());
    for column in columns(weights.len()) {
        let (m, root) = adam_moments(simd, step, moments, (first, second), gradient, column);
        let ratio = simd.div(simd.mul(m, simd.splat(step.correction1)), root);
        let decayed = simd.mul(simd.splat(moments.weight_decay), at(simd, weights, column));
        put(simd, simd.add(ratio, decayed), gradient, column);
    }
    let norm_of_weights = sum_of_squares(simd, weights).sqrt();
    let norm_of_step = sum_of_squares(simd, gradient).sqrt();
    let is_zero = norm_of_weights == 0.0 || norm_of_step == 0.0;
    let factor = if is_zero { step.lr } else { step.lr * norm_of_weights / norm_of_step };
    descend(simd, factor, gradient, weights);
}

/// One step on a row of D weights with its state; `gradient` of D is used up.
#[inline(always)]
pub(super) fn update_row<S: Simd>(simd: S, step: &Step, weights: &mut [f32], state: &mut [f32], gradient: &mut [f32]) {
    match step.optimizer {
        OptimizerConfig::Sgd { momentum, weight_decay } => {
            decay(simd, weight_decay, weights, gradient);
            if momentum == 0.0 {
                descend(simd, step.lr, gradient, weights);
                return;
            }
            for column in columns(weights.len()) {
                let kept = simd.mul(simd.splat(momentum), at(simd, state, column));
                put(simd, simd.add(kept, at(simd, gradient, column)), state, column);
            }
            descend(simd, step.lr, state, weights);
        }
        OptimizerConfig::Adagrad { eps, weight_decay } => {
            decay(simd, weight_decay, weights, gradient);
            let (lr, eps) = (simd.splat(step.lr), simd.splat(eps));
            for column in columns(weights.len()) {
                let g = at(simd, gradient, column);
                let sum = simd.add(at(simd, state, column), simd.mul(g, g));
                put(simd, sum, state, column);
                let moved = simd.mul(lr, simd.div(g, simd.add(simd.sqrt(sum), eps)));
                put(simd, simd.sub(at(simd, weights, column), moved), weights, column);
            }
        }
        OptimizerConfig::RowwiseAdagrad { eps, weight_decay } => {
            decay(simd, weight_decay, weights, gradient);
            state[0] += sum_of_squares(simd, gradient) / gradient.len() as f32;
            descend(simd, step.lr / (state[0].sqrt() + eps), gradient, weights);
        }
        OptimizerConfig::Adam(moments) => {
            decay(simd, moments.weight_decay, weights, gradient);
            adam(simd, step, moments, weights, state, gradient);
        }
        OptimizerConfig::PartialRowwiseAdam(moments) => {
            decay(simd, moments.weight_decay, weights, gradient);
            partial_rowwise_adam(simd, step, moments, weights, state, gradient);
        }
        OptimizerConfig::Lamb(moments) => lamb(simd, step, moments, weights, state, gradient),
    }
}

struct CountNonFinite<'a>(&'a [f32]);

impl Kernel for CountNonFinite<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u64 {
        let mut count = 0;
        for column in columns(self.0.len()) {
            count += u64::from(simd.count_non_finite(at(simd, self.0, column)));
        }
        count
    }
}

/// How many values are NaN or infinite.
pub fn count_non_finite(instructions: Instructions, values: &[f32]) -> u64 {
    instructions.run(CountNonFinite(values))
}

#[cfg(test)]
mod tests {
    use super::super::kernels::{LANES, Scalar};
    use super::*;

    #[test]
    fn sixteen_lanes_and_a_tree_are_the_documented_order() {
        // 17 columns: column 16 joins column 0 in lane 0 before the tree.
        let values: Vec<f32> = (0..17).map(|column| 1.0 + column as f32 * 1e-3).collect();
        let mut lanes: Vec<f32> = values[..LANES].iter().map(|v| v * v).collect();
        lanes[0] += values[16] * values[16];
        for half in [8, 4, 2, 1] {
            lanes = (0..half).map(|lane| lanes[lane] + lanes[lane + half]).collect();
        }
        assert_eq!(sum_of_squares(Scalar, &values).to_bits(), lanes[0].to_bits());
    }

    #[test]
    fn adagrad_follows_its_closed_form_on_a_constant_gradient() {
        let (mut weights, mut state) = ([1.0f32; 4], [0.0f32]);
        for number in 1..=10u8 {
            let step = Step::new(OptimizerConfig::rowwise_adagrad(0.0), 0.1, u64::from(number));
            update_row(Scalar, &step, &mut weights, &mut state, &mut [2.0; 4]);
            assert!((state[0] - 4.0 * f32::from(number)).abs() < 1e-4);
        }
        // Each step moves by lr * g / (|g| * sqrt(n)).
        let moved: f32 = (1..=10u8).map(|n| 0.1 / f32::from(n).sqrt()).sum();
        assert!((weights[0] - (1.0 - moved)).abs() < 1e-5);
    }

    #[test]
    fn the_first_step_of_adam_is_the_learning_rate_whatever_the_gradient() {
        // m / (1 - b1) = g and sqrt(v / (1 - b2)) = |g|, so w moves by lr * sign(g).
        let moments = Moments { beta1: 0.9, beta2: 0.999, eps: 0.0, weight_decay: 0.0 };
        let step = Step::new(OptimizerConfig::Adam(moments), 0.1, 1);
        let (mut weights, mut state) = ([0.0f32; 3], [0.0f32; 6]);
        let mut gradient = [1e-3, -5.0, 1e3];
        update_row(Scalar, &step, &mut weights, &mut state, &mut gradient);
        for (weight, moved) in weights.iter().zip([-0.1, 0.1, -0.1]) {
            assert!((weight - moved).abs() < 1e-6, "{weights:?}");
        }
    }
}
