//! What a store is made of, as it comes from Python.

use serde::Deserialize;

use crate::backend::BackendConfig;
use crate::device::{DeviceSpec, FaultSpec};
use crate::embedding::{OptimizerConfig, TableConfig};
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

/// One tier, from fastest to slowest in `StoreConfig::tiers`. The last one is the home of all rows.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierConfig {
    /// Name, for statistics and budgets.
    pub name: String,
    /// The device that it imitates.
    pub device: DeviceSpec,
    /// Where its bytes really are. The fastest tier is always in memory.
    pub backend: BackendConfig,
    /// Its cache; `None` for the home tier.
    pub cache: Option<Budget>,
    /// Injected faults; the fastest tier has none.
    #[serde(default)]
    pub faults: FaultSpec,
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

/// Everything about a store.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Tables; their position is their number in every call.
    pub tables: Vec<TableConfig>,
    /// Tiers, from fastest to slowest.
    pub tiers: Vec<TierConfig>,
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
}

impl StoreConfig {
    /// Reads the JSON form that Python hands over.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| Error::new(ErrorKind::Config, format!("not a store configuration: {error}")))
    }
}
