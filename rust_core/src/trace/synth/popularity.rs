//! Which row is asked for, when nothing else decides: heavy hitters, and Zipf-Mandelbrot for the others.

use super::config::Skew;
use super::zipf::{Scatter, Zipf, unit};
use crate::rng;

/// Draws rows of one table.
#[derive(Debug)]
pub(super) struct Popularity {
    /// Running sums of the probabilities of the heavy hitters.
    hot: Vec<f64>,
    others: Zipf,
    rows: u64,
    scatter: Option<Scatter>,
}

impl Popularity {
    /// Rows of one rank are scattered over the table, so that hot rows are no neighbours.
    pub(super) fn new(skew: &Skew, rows: u64, scatter: Scatter) -> Self {
        Self { scatter: Some(scatter), ..Self::unscattered(skew, rows) }
    }

    /// Gives ranks instead of rows.
    pub(super) fn unscattered(skew: &Skew, rows: u64) -> Self {
        let hot: Vec<f64> = skew
            .heavy_hitters
            .iter()
            .take(rows as usize)
            .scan(0.0, |sum, share| {
                *sum += share;
                Some(*sum)
            })
            .collect();
        let others = rows.saturating_sub(hot.len() as u64).max(1);
        Self { hot, others: Zipf::new(others, skew.exponent, skew.shift), rows, scatter: None }
    }

    /// The row that belongs to a key of the random stream.
    #[inline]
    pub(super) fn row(&self, key: u64) -> u64 {
        let rank = self.rank(key);
        self.scatter.map_or(rank, |scatter| scatter.at(rank))
    }

    fn rank(&self, key: u64) -> u64 {
        let Some(&all) = self.hot.last() else { return self.others.rank(key) };
        let chance = unit(rng::mix(!key));
        if chance < all {
            return self.hot.partition_point(|&sum| sum <= chance) as u64;
        }
        (self.hot.len() as u64 + self.others.rank(key)).min(self.rows - 1)
    }
}
