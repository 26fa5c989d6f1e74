//! Latency histograms with a fixed relative error.

use hdrhistogram::Histogram;

/// Highest latency that is told apart; above it, counts saturate into the last bucket.
const LATENCY_NS_MAX: u64 = 100_000_000_000;
/// Three significant digits: a percentile is at most 0.1 % off.
const SIGNIFICANT_DIGITS: u8 = 3;

/// A high-dynamic-range histogram of nanoseconds.
#[derive(Debug, Clone)]
pub struct LatencyHistogram {
    inner: Histogram<u64>,
    sum_ns: u128,
    max_ns: u64,
}

/// Percentiles of one histogram, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LatencySummary {
    /// Number of values.
    pub count: u64,
    /// Mean, rounded down; exact, not from buckets.
    pub mean_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 95th percentile.
    pub p95_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// 99.99th percentile.
    pub p9999_ns: u64,
    /// 99.999th percentile.
    pub p99999_ns: u64,
    /// Largest value; exact.
    pub max_ns: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        let inner = Histogram::new_with_max(LATENCY_NS_MAX, SIGNIFICANT_DIGITS)
            .expect("the bounds are constants that the library accepts");
        Self { inner, sum_ns: 0, max_ns: 0 }
    }
}

impl LatencyHistogram {
    /// Adds one value.
    #[inline]
    pub fn record(&mut self, latency_ns: u64) {
        self.inner.saturating_record(latency_ns);
        self.sum_ns += u128::from(latency_ns);
        self.max_ns = self.max_ns.max(latency_ns);
    }

    /// Adds one value `count` times.
    pub fn record_many(&mut self, latency_ns: u64, count: u64) {
        if count > 0 {
            self.inner.saturating_record_n(latency_ns, count);
            self.sum_ns += u128::from(latency_ns) * u128::from(count);
            self.max_ns = self.max_ns.max(latency_ns);
        }
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.inner.len()
    }

    /// Adds all values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.inner.add(&other.inner).expect("all histograms here have the same bounds");
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// Percentiles of all values so far.
    pub fn summary(&self) -> LatencySummary {
        let count = self.inner.len();
        if count == 0 {
            return LatencySummary::default();
        }
        // A bucket's value is its upper end, which may lie above the largest value in it.
        let at = |quantile: f64| self.inner.value_at_quantile(quantile).min(self.max_ns);
        LatencySummary {
            count,
            mean_ns: (self.sum_ns / u128::from(count)) as u64,
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p95_ns: at(0.95),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            p9999_ns: at(0.9999),
            p99999_ns: at(0.99999),
            max_ns: self.max_ns,
        }
    }

    /// Points `(latency_ns, share of values at or below)` of the distribution, for a plot.
    pub fn cdf(&self) -> Vec<(u64, f64)> {
        let total = self.inner.len() as f64;
        let mut seen = 0u64;
        self.inner
            .iter_recorded()
            .map(|step| {
                seen += step.count_at_value();
                (step.value_iterated_to(), seen as f64 / total)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_tenth_of_a_percent() {
        let mut histogram = LatencyHistogram::default();
        for value in 1..=100_000u64 {
            histogram.record(value);
        }
        let summary = histogram.summary();
        assert_eq!(summary.count, 100_000);
        assert_eq!(summary.mean_ns, 50_000);
        for (found, exact) in [(summary.p50_ns, 50_000.0), (summary.p99_ns, 99_000.0)] {
            assert!((found as f64 / exact - 1.0).abs() < 1e-3, "{found} against {exact}");
        }
        let cdf = histogram.cdf();
        assert!((cdf.last().unwrap().1 - 1.0).abs() < 1e-12);
    }
}
