//! Zipf-Mandelbrot numbers, and a bijection that scatters them over the rows of a table.

use crate::rng;

/// Draws ranks `0..count` with probability in proportion to `(rank + 1 + shift) ^ -exponent`, in constant time.
///
/// Rejection-inversion: Hoermann and Derflinger, ACM Transactions on Modeling and Computer Simulation 6(3), 1996.
/// The areas under the curve are inverted, and what they have too much is rejected; few draws need a second try.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Zipf {
    count: f64,
    exponent: f64,
    shift: f64,
    area_first: f64,
    area_last: f64,
    accept_below: f64,
}

impl Zipf {
    /// `count` is at least 1; `exponent` and `shift` are finite and not negative.
    pub(crate) fn new(count: u64, exponent: f64, shift: f64) -> Self {
        let mut zipf =
            Self { count: count as f64, exponent, shift, area_first: 0.0, area_last: 0.0, accept_below: 0.0 };
        zipf.area_first = zipf.area(1.5) - zipf.height(1.0);
        zipf.area_last = zipf.area(zipf.count + 0.5);
        zipf.accept_below = 2.0 - zipf.area_inverse(zipf.area(2.5) - zipf.height(2.0));
        zipf
    }

    /// The rank that belongs to a key of the random stream; another key, another draw.
    #[inline]
    pub(crate) fn rank(&self, key: u64) -> u64 {
        let mut tries = 0;
        loop {
            let uniform = unit(rng::draw(key, tries));
            let area = self.area_last + uniform * (self.area_first - self.area_last);
            let x = self.area_inverse(area);
            let number = (x + 0.5).floor().clamp(1.0, self.count);
            if number - x <= self.accept_below || area >= self.area(number + 0.5) - self.height(number) {
                return number as u64 - 1;
            }
            tries += 1;
        }
    }

    fn height(&self, x: f64) -> f64 {
        libm::exp(-self.exponent * libm::log(x + self.shift))
    }

    /// The area under the curve, up to a constant: `((x + shift) ^ (1 - exponent) - 1) / (1 - exponent)`.
    fn area(&self, x: f64) -> f64 {
        let log = libm::log(x + self.shift);
        let power = (1.0 - self.exponent) * log;
        // expm1(p) / p tends to 1 where the exponent is 1.
        if power.abs() < 1e-12 { log } else { libm::expm1(power) / power * log }
    }

    fn area_inverse(&self, area: f64) -> f64 {
        let slope = 1.0 - self.exponent;
        let scaled = (slope * area).max(-1.0);
        let log = if scaled.abs() < 1e-12 { area } else { libm::log1p(scaled) / scaled * area };
        libm::exp(log) - self.shift
    }
}

/// A uniform number in [0, 1) with 53 random bits.
#[inline]
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

/// A number below `count`, uniform but for 2^-64.
#[inline]
pub(crate) fn below(bits: u64, count: u64) -> u64 {
    ((u128::from(bits) * u128::from(count)) >> 64) as u64
}

/// A bijection of `0..count` that looks like chance: four Feistel rounds over the next power of four, walked until
/// the number is below `count` again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scatter {
    count: u64,
    half_bits: u32,
    key: u64,
}

impl Scatter {
    /// Another key, another bijection. `count` is from 1 to 2^62.
    pub(crate) fn new(count: u64, key: u64) -> Self {
        let bits = 64 - (count - 1).leading_zeros();
        Self { count, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Where a number goes; it is below the count.
    #[inline]
    pub(crate) fn at(&self, number: u64) -> u64 {
        debug_assert!(number < self.count);
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = number;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for round in 0..4 {
                (left, right) = (right, left ^ (rng::draw(self.key.wrapping_add(round), right) & mask));
            }
            value = left << self.half_bits | right;
            if value < self.count {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn scattering_is_a_bijection(count in 1u64..600, key in any::<u64>()) {
            let scatter = Scatter::new(count, key);
            let mut seen: Vec<u64> = (0..count).map(|number| scatter.at(number)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }

    /// Pearson's chi-square of 200,000 draws against the probabilities themselves.
    #[test]
    fn ranks_have_the_probabilities_of_the_law() {
        const DRAWS: u64 = 200_000;
        for (count, exponent, shift) in
            [(1, 1.0, 0.0), (50, 0.0, 0.0), (50, 0.89, 2.75), (300, 1.0, 0.0), (300, 1.05, 0.0), (40, 3.0, 10.0)]
        {
            let zipf = Zipf::new(count, exponent, shift);
            let mut seen = vec![0u64; count as usize];
            for number in 0..DRAWS {
                seen[zipf.rank(rng::draw(11, number)) as usize] += 1;
            }
            let weights: Vec<f64> = (1..=count).map(|rank| (rank as f64 + shift).powf(-exponent)).collect();
            let total: f64 = weights.iter().sum();
            let chi_square: f64 = seen
                .iter()
                .zip(&weights)
                .map(|(&seen, weight)| {
                    let expected = weight / total * DRAWS as f64;
                    (seen as f64 - expected).powi(2) / expected
                })
                .sum();
            // Mean and standard deviation of chi-square with k degrees of freedom: k and sqrt(2 k).
            let freedom = (count - 1) as f64;
            assert!(chi_square <= freedom + 5.0 * (2.0 * freedom).sqrt(), "{count} {exponent}: {chi_square}");
        }
    }
}
