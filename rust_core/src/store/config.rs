//! What a store is made of, as it comes from Python.

use serde::Deserialize;

use crate::backend::BackendConfig;
use crate::cache::PolicyKind;
use crate::device::{DeviceSpec, FaultSpec};
use crate::embedding::{OptimizerConfig, RowShape, SimdLevel, TableConfig};
use crate::error::{Error, ErrorKind, Result};

/// How much of a tier caches rows.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Budget {
    /// So many bytes of row images.
    Bytes(u64),
    /// This share of the bytes of all rows.
    Fraction(f64),
}

/// How rows lie on the block device that is their home.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HomeLayout {
    /// Each row has its place; writing a part of a block reads it first.
    InPlace,
    /// Rows that are written are appended, and compaction makes room.
    Log {
        /// What is written and becomes free at once.
        segment_bytes: u64,
        /// Room beyond that of the rows, as a share of it.
        spare: f64,
        /// Compaction in the background may cause at most this share of all rows written.
        compaction_share: f64,
        /// Whether the locations of the rows are in a file beside that of the tier, so that the kernel may page them out.
        #[serde(default)]
        paged_index: bool,
    },
}

fn one() -> usize {
    1
}

fn s3fifo() -> PolicyKind {
    PolicyKind::S3Fifo
}

fn in_place() -> HomeLayout {
    HomeLayout::InPlace
}

/// One tier, from fastest to slowest in `StoreConfig::tiers`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierConfig {
    /// Name, for statistics and budgets.
    pub name: String,
    /// The device that it imitates.
    pub device: DeviceSpec,
    /// Where its bytes really are. The fastest tier is always in memory.
    pub backend: BackendConfig,
    /// Its cache; `None` if it is a home only.
    pub cache: Option<Budget>,
    /// Who leaves its cache.
    #[serde(default = "s3fifo")]
    pub policy: PolicyKind,
    /// How rows lie here that are at home here; only for block devices.
    #[serde(default = "in_place")]
    pub layout: HomeLayout,
    /// Injected faults; the fastest tier has none.
    #[serde(default)]
    pub faults: FaultSpec,
}

/// Where a table, or a range of its rows, lives.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartConfig {
    /// Table number.
    pub table: usize,
    /// First row.
    pub first_row: u64,
    /// Number of rows.
    pub rows: u64,
    /// Position of the tier that is its home; in tier 0 its rows are resident.
    pub home: usize,
    /// Positions of the tiers above its home that cache it.
    pub cached_by: Vec<usize>,
    /// Whether a row is in one tier at a time.
    pub exclusive: bool,
}

/// Which clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockMode {
    /// Nobody waits.
    Virtual,
    /// Waiting waits.
    Wall,
}

/// What becomes of gradients that are not finite. They are counted in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// They are applied, as torch does.
    #[default]
    Pass,
    /// The call fails, and no row of its lookup changes.
    Refuse,
}

/// Everything about a store.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Tables; their position is their number in every call.
    pub tables: Vec<TableConfig>,
    /// Tiers, from fastest to slowest.
    pub tiers: Vec<TierConfig>,
    /// Where the rows live; `None`: all in the last tier, cached by every tier above that has a cache.
    #[serde(default)]
    pub parts: Option<Vec<PartConfig>>,
    /// Optimizer of all tables.
    pub optimizer: OptimizerConfig,
    /// Memory for the rows of the batches in flight.
    pub staging_bytes: u64,
    /// No more memory than this for resident, cached and staged rows and metadata; `None`: no limit.
    pub memory_limit_bytes: Option<u64>,
    /// Clock.
    pub clock: ClockMode,
    /// Seed of initial values and of latency draws.
    pub seed: u64,
    /// Gradients that are not finite.
    #[serde(default)]
    pub non_finite_gradients: NonFinite,
    /// Whether transfers and dirty rows are remembered, for a timeline.
    #[serde(default)]
    pub timeline: bool,
    /// Threads that share the work of one lookup or update.
    #[serde(default = "one")]
    pub threads: usize,
    /// Instructions of the kernels; `None`: the best that the processor has. They change no bit.
    #[serde(default)]
    pub simd: Option<SimdLevel>,
}

impl StoreConfig {
    /// Reads the JSON form that Python hands over.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| Error::new(ErrorKind::Config, format!("not a store configuration: {error}")))
    }

    /// What a row of a table is.
    pub(super) fn row_shape(&self, table: usize) -> RowShape {
        let TableConfig { dim, row_type, .. } = self.tables[table];
        RowShape { row_type, dim, state_floats: self.optimizer.state_floats(dim) }
    }

    /// Where the rows live, each table's ranges in order of their first row.
    pub(super) fn placed_parts(&self) -> Result<Vec<PartConfig>> {
        let home = self.tiers.len() - 1;
        let Some(parts) = &self.parts else {
            let cached_by: Vec<usize> = (0..home).filter(|&tier| self.tiers[tier].cache.is_some()).collect();
            let whole = |(table, config): (usize, &TableConfig)| PartConfig {
                table,
                first_row: 0,
                rows: config.rows,
                home,
                cached_by: cached_by.clone(),
                exclusive: false,
            };
            return Ok(self.tables.iter().enumerate().map(whole).collect());
        };
        let mut parts = parts.clone();
        parts.sort_by_key(|part| (part.table, part.first_row));
        let mut next = vec![0; self.tables.len()];
        for part in &parts {
            let Some(table) = self.tables.get(part.table) else {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("a placement names table {}; the store has {} tables", part.table, self.tables.len()),
                ));
            };
            let place = |why: String| Err(Error::new(ErrorKind::Config, why).with_context("table", &table.name));
            if part.rows == 0 || part.first_row != next[part.table] {
                return place(format!(
                    "the ranges of a table follow one another without gaps; row {} is where the next one begins, not {}",
                    next[part.table], part.first_row
                ));
            }
            next[part.table] = part.first_row.saturating_add(part.rows);
            let above = |tier: &usize| *tier < part.home && self.tiers[*tier].cache.is_some();
            if part.home >= self.tiers.len() || !part.cached_by.iter().all(above) {
                return place(
                    "a home is one of the tiers, and the tiers that cache it are above it and have a cache budget"
                        .into(),
                );
            }
        }
        for (table, &end) in self.tables.iter().zip(&next) {
            if end != table.rows {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("a placement gives a home to {end} rows of a table of {} rows", table.rows),
                )
                .with_context("table", &table.name));
            }
        }
        Ok(parts)
    }
}
