//! Rows whose counts follow a histogram of reuse, as Meta publishes it of its embedding lookups: the share of rows,
//! and the share of lookups, that rows with one lookup have, with two, with three or four, and so on.

use super::zipf::Scatter;
use crate::error::{Error, ErrorKind, Result};
use crate::rng;

/// A bin without a share of rows (it was rounded to 0) has rows of this many times its lower bound.
const MEAN_OVER_LOWER: f64 = 1.4;
/// The last bin has no upper bound; its rows have at most so many times its lower bound.
const LAST_BIN_SPAN: f64 = 64.0;

/// Every access of a table: which row, in an order that is chance.
#[derive(Debug)]
pub(super) struct ReuseTable {
    /// Lookups of the rows before this one.
    starts: Vec<u64>,
    order: Scatter,
    places: Scatter,
}

impl ReuseTable {
    /// `lookups_all` accesses over at most `rows` rows.
    ///
    /// # Errors
    ///
    /// `Config` if the histogram needs more rows than the table has.
    pub(super) fn new(
        row_shares: &[f64],
        lookup_shares: &[f64],
        reuse_mean: f64,
        rows: u64,
        lookups_all: u64,
        key: u64,
    ) -> Result<Self> {
        let lower_bound = |bin: usize| if bin == 0 { 0.0 } else { (1u64 << (bin - 1)) as f64 };
        // Scaled down, a bin may have fewer lookups than one of its rows; the others share what it had.
        let all: f64 = lookup_shares.iter().sum();
        let is_possible = |bin: usize| lookup_shares[bin] / all * lookups_all as f64 > lower_bound(bin);
        let possible: f64 =
            (0..lookup_shares.len()).filter(|&bin| is_possible(bin)).map(|bin| lookup_shares[bin]).sum();
        let rows_all = lookups_all as f64 / reuse_mean;
        let mut starts = vec![0u64];
        let mut next = 0u64;
        let mut owed = 0.0;
        for (bin, (&row_share, &lookup_share)) in row_shares.iter().zip(lookup_shares).enumerate() {
            if !is_possible(bin) {
                continue;
            }
            let lower = lower_bound(bin);
            let upper = if bin + 1 == row_shares.len() { lower * LAST_BIN_SPAN } else { (1u64 << bin) as f64 };
            // What one bin could not place goes to the next one, so that the sum comes out.
            let lookups = (lookup_share / possible * lookups_all as f64 + owed).max(0.0);
            let mean = if row_share > 0.0 { lookups / (row_share * rows_all) } else { lower * MEAN_OVER_LOWER };
            let mean = mean.clamp(lower + 1.0, upper);
            // A whole number of rows, and then the mean that their lookups have, if it stays within the bin.
            let count = if lookups > lower { (lookups / mean).round().max((lookups / upper).ceil()) } else { 0.0 };
            let mean = if count > 0.0 { (lookups / count).clamp(lower + 1.0, upper) } else { mean };
            if starts.len() as f64 + count > rows as f64 + 1.0 {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "{lookups_all} lookups with this reuse go to more rows, but the table has {rows}; give it more, \
                         or make fewer batches"
                    ),
                ));
            }
            owed = lookups;
            let half_width = (mean - lower - 1.0).min(upper - mean);
            for row in 0..count as u64 {
                // Counts are spread evenly around the mean, within the bin.
                let offset = ((row as f64 + 0.5) / count * 2.0 - 1.0) * half_width;
                let lookups = (mean + offset).round().clamp(lower + 1.0, upper);
                owed -= lookups;
                next += lookups as u64;
                starts.push(next);
            }
        }
        if next == 0 {
            let text = format!("{lookups_all} lookups are too few for this histogram of reuse; make more batches");
            return Err(Error::new(ErrorKind::Config, text));
        }
        Ok(Self {
            starts,
            order: Scatter::new(next, rng::stream(key, super::CHOICES)),
            places: Scatter::new(rows, rng::stream(key, super::PLACES)),
        })
    }

    /// The row of access number `access`.
    pub(super) fn row(&self, access: u64) -> u64 {
        let lookups = self.starts[self.starts.len() - 1];
        let place = self.order.at(access % lookups);
        self.places.at(self.starts.partition_point(|&start| start <= place) as u64 - 1)
    }
}
