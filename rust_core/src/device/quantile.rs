//! Sampling a latency distribution that is given by its quantiles.
//!
//! The quantile function is tabulated at survival probabilities that halve from octave to octave,
//! with eight steps in each, and interpolated linearly in between. One draw costs a count of
//! leading zeros and a multiplication, and no transcendental function: the same bits on every host.

/// Survival probabilities go down to 2^-`OCTAVES`; rarer draws get the maximum.
const OCTAVES: usize = 40;
/// Steps per octave.
const STEPS: usize = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// A tabulated quantile function in nanoseconds.
#[derive(Debug, Clone)]
pub struct QuantileTable {
    /// Entry `octave * (STEPS + 1) + step` is the quantile at survival probability
    /// `2^-(octave + 1) * (1 + step / STEPS)`; both ends of an octave are stored.
    knots_ns: Vec<u64>,
}

/// Survival probability of a knot, as `x = -log2`.
fn knot_x(octave: usize, step: usize) -> f64 {
    (octave + 1) as f64 - libm::log2(1.0 + step as f64 / STEPS as f64)
}

impl QuantileTable {
    /// From `(probability, ns)` points, ascending in both. Below the median the distribution starts
    /// at `min_ns`; beyond the last point it runs up to `max_ns`, which is reached at 2^-40. Between
    /// points the logarithm of the latency is linear in the logarithm of the survival probability:
    /// a tail that grows by decades is not made heavier than its two ends say.
    ///
    /// Caller: `max_ns` is below 2^32, so that the interpolation cannot overflow.
    pub fn new(min_ns: u64, points: &[(f64, u64)], max_ns: u64) -> Self {
        debug_assert!(max_ns < 1 << 32, "see the caller's duty");
        // libm is a pure-Rust library, the same on every host.
        let mut curve = vec![(0.0, min_ns.max(1) as f64)];
        curve.extend(points.iter().map(|&(p, ns)| (-libm::log2(1.0 - p), ns as f64)));
        curve.push((OCTAVES as f64, max_ns as f64));
        let value = |x: f64| {
            let upper = curve.iter().position(|&(at, _)| at >= x).unwrap_or(curve.len() - 1).max(1);
            let ((x0, y0), (x1, y1)) = (curve[upper - 1], curve[upper]);
            let share = if x1 > x0 { ((x - x0) / (x1 - x0)).clamp(0.0, 1.0) } else { 1.0 };
            libm::round(y0 * libm::exp2(share * libm::log2(y1 / y0))) as u64
        };
        let knots = (0..OCTAVES).flat_map(|octave| (0..=STEPS).map(move |step| knot_x(octave, step)));
        Self { knots_ns: knots.map(value).collect() }
    }

    /// The table whose mean is `mean_ns`: the least latency follows from it and the points.
    /// `None` if no least latency in `[floor_ns, median]` gives that mean.
    pub fn with_mean(mean_ns: u64, floor_ns: u64, points: &[(f64, u64)], max_ns: u64) -> Option<Self> {
        let median_ns = points.first()?.1;
        let (mut low, mut high) = (floor_ns, median_ns);
        let mean_at = |min_ns| Self::new(min_ns, points, max_ns).mean_ns();
        if median_ns < floor_ns || mean_at(low) > mean_ns as f64 + 1.0 || mean_at(high) < mean_ns as f64 - 1.0 {
            return None;
        }
        while low + 1 < high {
            let middle = low.midpoint(high);
            if mean_at(middle) <= mean_ns as f64 { low = middle } else { high = middle }
        }
        Some(Self::new(low, points, max_ns))
    }

    /// Mean of the distribution.
    pub fn mean_ns(&self) -> f64 {
        let mut mean = self.sample(0) as f64 * libm::exp2(-(OCTAVES as f64));
        for octave in 0..OCTAVES {
            for step in 0..STEPS {
                let at = octave * (STEPS + 1) + step;
                let weight = libm::exp2(-(octave as f64 + 1.0)) / STEPS as f64;
                mean += weight * (self.knots_ns[at] + self.knots_ns[at + 1]) as f64 / 2.0;
            }
        }
        mean
    }

    /// The quantile whose survival probability is `bits / 2^64`.
    #[inline]
    pub fn sample(&self, bits: u64) -> u64 {
        let octave = bits.leading_zeros() as usize;
        if octave >= OCTAVES {
            return self.knots_ns[(OCTAVES - 1) * (STEPS + 1)];
        }
        // Below the leading one: the step in the octave, then 32 bits of the place within the step.
        let mantissa = bits << octave << 1;
        let step = (mantissa >> (64 - STEP_BITS)) as usize;
        let fraction = (mantissa << STEP_BITS) >> 32;
        let at = octave * (STEPS + 1) + step;
        let (rarer, commoner) = (self.knots_ns[at], self.knots_ns[at + 1]);
        rarer - (((rarer - commoner) * fraction) >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn empirical_quantiles_and_mean_match_the_points() {
        let points = [(0.5, 76_000), (0.99, 96_000), (0.999, 120_000)];
        let table = QuantileTable::new(70_000, &points, 500_000);
        let mut values: Vec<u64> = (0..1_000_000).map(|n| table.sample(rng::draw(3, n))).collect();
        let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
        assert!((mean / table.mean_ns() - 1.0).abs() < 1e-3, "{mean} against {}", table.mean_ns());
        values.sort_unstable();
        for (probability, expected) in points {
            let found = values[(probability * values.len() as f64) as usize] as f64;
            // A kink of the curve inside a step is off by up to a hundredth.
            assert!((found / expected as f64 - 1.0).abs() < 0.02, "p{probability}: {found}");
        }
        assert!(*values.last().unwrap() <= 500_000);
        assert!(values[0] >= 70_000);
    }

    #[test]
    fn the_least_latency_follows_from_the_mean() {
        let points = [(0.5, 76_000), (0.99, 96_000)];
        let table = QuantileTable::with_mean(75_000, 1_000, &points, 200_000).unwrap();
        assert!((table.mean_ns() - 75_000.0).abs() < 1.0);
        assert!(QuantileTable::with_mean(10_000, 1_000, &points, 200_000).is_none());
        assert!(QuantileTable::with_mean(90_000, 1_000, &points, 200_000).is_none());
    }

    #[test]
    fn sampling_is_monotone_and_bounded() {
        let table = QuantileTable::new(10, &[(0.5, 20)], 1000);
        let mut last = u64::MAX;
        for bits in [0, 1, 1 << 20, 1 << 40, 1 << 62, 1 << 63, u64::MAX] {
            let value = table.sample(bits);
            assert!(value <= last, "a larger survival probability is a smaller latency");
            last = value;
        }
        assert_eq!(table.sample(0), 1000);
    }
}
