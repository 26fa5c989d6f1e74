//! What is generated. Python checks and documents these fields (`tiermem.config.synth`); here they are checked
//! again for what would make no sense to compute.

use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::trace::TraceTable;

/// One generated trace.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SynthConfig {
    /// Everything follows from it.
    pub seed: u64,
    /// Batches of the whole trace.
    pub batches: u64,
    /// The first batch of the part that is made: parts made apart are the same bits as the whole.
    pub first_batch: u64,
    /// The first batch after that part.
    pub end_batch: u64,
    /// Bags of each table in a batch.
    pub bags_per_batch: u32,
    /// Tables with their mean bag lengths.
    pub tables: Vec<SynthTable>,
    /// The law.
    pub law: Law,
}

/// One table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SynthTable {
    /// Its name.
    pub name: String,
    /// Ids are below it.
    pub rows: u64,
    /// Bytes of one row's image.
    pub row_bytes: u64,
    /// Mean ids per bag; a fraction makes some bags one longer.
    pub pooling: f64,
}

/// How popular rows are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skew {
    /// Of Zipf-Mandelbrot.
    pub exponent: f64,
    /// Of Zipf-Mandelbrot: flattens the head.
    pub shift: f64,
    /// Probabilities of the hottest rows, which stand outside the law.
    pub heavy_hitters: Vec<f64>,
}

/// What makes one access depend on others.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum Law {
    /// Nothing: independent draws.
    Zipf {
        /// Popularity.
        skew: Skew,
    },
    /// The stack distances of another trace, table by table.
    StackDistance {
        /// The other trace, with as many tables.
        like: PathBuf,
    },
    /// Working sets whose rows are replaced one after the other.
    Drift {
        /// Popularity within the working set.
        skew: Skew,
        /// Share of a table's rows that is in the working set.
        working_set: f64,
        /// Share of the working set that is replaced in each batch.
        turnover: f64,
        /// Share of accesses that go to any row of the table, most of which are asked for once.
        once: f64,
    },
    /// One drawn id per bag; the others are a function of it.
    MultiHot {
        /// Popularity of the drawn id.
        skew: Skew,
    },
    /// Bags that repeat over the samples of one session.
    Session {
        /// Popularity.
        skew: Skew,
        /// Mean samples per session.
        samples: f64,
        /// Share of the tables, the first ones, that repeat.
        repeated: f64,
    },
    /// Tables indexed by hashed n-grams of a stream of tokens.
    Ngram {
        /// Popularity of tokens.
        skew: Skew,
        /// Different tokens.
        vocabulary: u64,
        /// Share of tokens that follow from the one before.
        predictable: f64,
        /// The order of the n-gram of each table.
        orders: Vec<u32>,
    },
    /// Counts of rows as a histogram of reuse says; the order is chance.
    Reuse {
        /// Share of the rows in each bin (0,1], (1,2], (2,4], ...
        rows: Vec<f64>,
        /// Share of the lookups in each bin.
        lookups: Vec<f64>,
        /// Lookups over rows.
        reuse_mean: f64,
    },
}

/// A random draw is keyed by the bag and its place in it, 20 bits of which are the place.
const BAGS_MAX: u64 = 1 << 40;
/// Beyond it the ranks of the law cannot be told apart in double precision.
const SHIFT_MAX: f64 = 1e9;

fn refuse<T>(text: String) -> Result<T> {
    Err(Error::new(ErrorKind::Config, text))
}

impl Skew {
    fn check(&self) -> Result<()> {
        let hot: f64 = self.heavy_hitters.iter().sum();
        let valid = self.heavy_hitters.iter().all(|share| (0.0..=1.0).contains(share)) && hot <= 1.0;
        if !valid {
            return refuse(format!("heavy_hitters are probabilities that add up to 1 at the most, not to {hot}"));
        }
        for (name, value, most) in [("exponent", self.exponent, 1e3), ("shift", self.shift, SHIFT_MAX)] {
            if !(0.0..=most).contains(&value) {
                return refuse(format!("{name} is {value}; it is from 0 to {most}"));
            }
        }
        Ok(())
    }
}

impl SynthConfig {
    /// Checks everything that another trace is not needed for.
    ///
    /// # Errors
    ///
    /// `Config` names the value.
    pub fn check(&self) -> Result<()> {
        if self.tables.is_empty() || self.bags_per_batch == 0 {
            return refuse("a trace needs tables, and batches with at least one bag".into());
        }
        if self.batches.saturating_mul(u64::from(self.bags_per_batch)) > BAGS_MAX {
            return refuse(format!(
                "{} batches of {} bags are more than 2^40 bags; make fewer",
                self.batches, self.bags_per_batch
            ));
        }
        if self.first_batch >= self.end_batch || self.end_batch > self.batches || self.batches > 1 << 40 {
            return refuse(format!(
                "batches {} to {} are no part of a trace of {} batches",
                self.first_batch, self.end_batch, self.batches
            ));
        }
        for table in &self.tables {
            let ids = table.pooling * f64::from(self.bags_per_batch);
            if !(table.pooling >= 0.0 && table.pooling <= 1e6 && ids < f64::from(u32::MAX)) {
                return refuse(format!(
                    "table \"{}\" has a pooling of {}; from 0 to a million is possible, with fewer than 2^32 ids \
                     in a batch",
                    table.name, table.pooling
                ));
            }
        }
        let share = |name: &str, value: f64| {
            if (0.0..=1.0).contains(&value) { Ok(()) } else { refuse(format!("{name} is {value}; it is a share")) }
        };
        match &self.law {
            Law::Zipf { skew } | Law::MultiHot { skew } => skew.check(),
            Law::StackDistance { .. } => Ok(()),
            Law::Drift { skew, working_set, turnover, once } => {
                share("working_set", *working_set)?;
                share("turnover", *turnover)?;
                share("once", *once)?;
                if *turnover > 0.0 && *working_set > 0.5 {
                    return refuse(format!(
                        "working_set is {working_set}; rows are replaced by others only up to half of the table"
                    ));
                }
                skew.check()
            }
            Law::Session { skew, samples, repeated } => {
                share("repeated", *repeated)?;
                if !(*samples >= 1.0 && *samples <= 1e4) {
                    return refuse(format!("samples is {samples}; a session has from 1 to 10,000 samples"));
                }
                skew.check()
            }
            Law::Ngram { skew, vocabulary, predictable, orders } => {
                share("predictable", *predictable)?;
                if *vocabulary == 0 || orders.len() != self.tables.len() || orders.iter().any(|&n| n == 0 || n > 64) {
                    return refuse("an n-gram trace needs tokens, and an order from 1 to 64 for each table".into());
                }
                skew.check()
            }
            Law::Reuse { rows, lookups, reuse_mean } => {
                if let Some(table) = self.tables.iter().find(|table| table.pooling.fract() != 0.0) {
                    return refuse(format!(
                        "table \"{}\" has a pooling of {}; a histogram of reuse needs a whole number",
                        table.name, table.pooling
                    ));
                }
                if !(*reuse_mean >= 1.0 && reuse_mean.is_finite()) || lookups.iter().sum::<f64>() <= 0.0 {
                    return refuse(format!("a reuse of {reuse_mean} lookups per row is not possible; 1 at the least"));
                }
                if rows.len() < 2 || rows.len() != lookups.len() || rows.len() > 40 {
                    return refuse("rows and lookups are shares of the same bins, from 2 to 40 of them".into());
                }
                rows.iter().try_for_each(|&value| share("a share of rows", value))?;
                lookups.iter().try_for_each(|&value| share("a share of lookups", value))
            }
        }
    }

    /// The tables as a trace has them.
    pub fn trace_tables(&self) -> Vec<TraceTable> {
        let table =
            |table: &SynthTable| TraceTable { name: table.name.clone(), rows: table.rows, row_bytes: table.row_bytes };
        self.tables.iter().map(table).collect()
    }
}
