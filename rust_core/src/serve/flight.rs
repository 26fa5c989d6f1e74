//! One query under way in virtual time, and what its parts cost a thread.

use serde::Deserialize;

use super::config::ServeConfig;
use super::queries::Query;
use super::residency::{Placement, Probed, Read};

/// What a host spends, in picoseconds where a single one is less than a nanosecond's worth.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostCosts {
    /// A query, apart from what follows.
    pub query_ns: u64,
    /// Looking for one row or one list in a cache.
    pub probe_ps: u64,
    /// Adding one row to its sum,
    pub row_ps: u64,
    /// and each byte of it,
    pub byte_ps: u64,
    /// and each column that is a code.
    pub dequantise_ps: u64,
    /// Handing one read to the device.
    pub submit_ps: u64,
    /// Taking one read from the device, by interrupt or by polling.
    pub complete_ps: u64,
    /// A page fault, apart from the read.
    pub fault_ps: u64,
    /// Lower dense layers of a query.
    pub lower_ns: u64,
    /// Interaction and upper dense layers of all its candidates.
    pub upper_ns: u64,
}

/// Where a query is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its caches are being probed.
    Probing,
    /// Its reads are under way, and nothing else is to be done before they are here.
    Waiting,
    /// Its item side is being looked up while reads may be under way.
    Items,
    /// The last part.
    Finishing,
}

/// A query under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) arrived_ns: u64,
    pub(super) query: Query,
    pub(super) probed: Vec<Probed>,
    pub(super) reads: Vec<Read>,
    pub(super) stage: Stage,
    pub(super) reads_left: u32,
    /// Whether item side and lower dense layers are done.
    pub(super) is_item_side_done: bool,
    /// Of a mapped file: the pages that are still to be touched, the last first.
    pub(super) pages: Vec<u64>,
}

/// What one row costs when it is pooled, by table.
#[derive(Debug, Clone)]
pub(super) struct RowCosts {
    row_ps: Vec<u64>,
    is_fixed: Vec<bool>,
}

impl RowCosts {
    pub(super) fn new(config: &ServeConfig, host: &HostCosts) -> Self {
        let cost = |table: &super::TableConfig| {
            let codes = if table.row_type.is_quantised() { table.columns as u64 } else { 0 };
            host.row_ps + host.byte_ps * table.row_bytes() + host.dequantise_ps * codes
        };
        Self {
            row_ps: config.tables.iter().map(cost).collect(),
            is_fixed: config.tables.iter().map(|table| table.placement == Placement::Fixed).collect(),
        }
    }

    /// Rows of the tables that are in memory, or of those that are not.
    pub(super) fn lists_ps(&self, query: &Query, in_memory: bool) -> u64 {
        let lists = query.tables.iter().zip(&self.row_ps).zip(&self.is_fixed);
        let chosen = lists.filter(|&(_, &is_fixed)| is_fixed == in_memory);
        chosen.map(|((lists, ps), _)| lists.rows.len() as u64 * ps).sum()
    }

    /// Rows that were gathered.
    pub(super) fn gathered_ps(&self, probed: &[Probed]) -> u64 {
        probed.iter().map(|probed| u64::from(probed.rows) * self.row_ps[probed.table]).sum()
    }
}

/// A query that was just begun.
pub(super) fn new_flight(arrived_ns: u64, query: Query) -> Flight {
    Flight {
        arrived_ns,
        query,
        probed: Vec::new(),
        reads: Vec::new(),
        stage: Stage::Probing,
        reads_left: 0,
        is_item_side_done: false,
        pages: Vec::new(),
    }
}
