//! What a store did, per tier.

use super::Store;
use crate::backend::BackendInfo;
use crate::device::{DeviceStats, Lateness};
use crate::error::{Error, ErrorKind, Result};
use crate::tier::PlanCounts;

/// Memory of a store, by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Rows whose home is the fastest tier.
    pub resident_bytes: u64,
    /// Room for cached rows.
    pub cached_bytes: u64,
    /// Room for rows in flight.
    pub staging_bytes: u64,
    /// Keys, links, indices, dirty and presence bits.
    pub metadata_bytes: u64,
    /// The limit that the sum keeps.
    pub limit_bytes: Option<u64>,
}

impl MemoryReport {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.resident_bytes + self.cached_bytes + self.staging_bytes + self.metadata_bytes
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.limit_bytes {
            Some(limit) if self.total_bytes() > limit => Err(Error::new(
                ErrorKind::Capacity,
                "the store needs more memory than its limit; lower the cache or the staging budget",
            )
            .with_context("needed_bytes", self.total_bytes())
            .with_context("limit_bytes", limit)
            .with_context("resident_bytes", self.resident_bytes)
            .with_context("cached_bytes", self.cached_bytes)
            .with_context("staging_bytes", self.staging_bytes)
            .with_context("metadata_bytes", self.metadata_bytes)),
            _ => Ok(()),
        }
    }
}

/// Counters of rows, over all tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Ids looked up.
    pub(super) asked_rows: u64,
    /// Distinct rows per ticket, summed.
    pub(super) unique_rows: u64,
    /// Of these, rows that another ticket had in flight.
    pub(super) in_flight_hits: u64,
    /// Rows found per tier, the fastest first.
    pub(super) tier_hits: Vec<u64>,
    /// Rows that did not exist yet.
    pub(super) initialised: u64,
    /// Row images sent down from the fastest tier.
    pub(super) rows_written_back: u64,
    /// Blocks read to change a part of them.
    pub(super) read_modify_writes: u64,
    /// Bytes of the rows that were asked of each tier.
    pub(super) asked_bytes: Vec<u64>,
}

impl Counters {
    pub(super) fn new(tiers: usize) -> Self {
        Self { tier_hits: vec![0; tiers], asked_bytes: vec![0; tiers], ..Self::default() }
    }
}

impl Counters {
    /// Adds what a plan does.
    pub(super) fn add_plan(&mut self, counts: &PlanCounts) {
        for (block_tier, (&hits, &nbytes)) in counts.row_hits.iter().zip(&counts.asked_bytes).enumerate() {
            self.tier_hits[block_tier + 1] += hits;
            self.asked_bytes[block_tier + 1] += nbytes;
        }
        self.rows_written_back += counts.rows_written_back;
        self.read_modify_writes += counts.read_modify_writes;
    }
}

/// One tier.
#[derive(Debug, Clone)]
pub struct TierStats {
    /// Name of the tier.
    pub name: String,
    /// Rows (fastest tier) or blocks (middle tier) that it holds between batches now; 0 for the home tier.
    pub held: u64,
    /// Distinct rows that exist and were looked for in this tier.
    pub probed_rows: u64,
    /// Of these, found here.
    pub hit_rows: u64,
    /// Bytes of the rows found here.
    pub asked_bytes: u64,
    /// The device.
    pub device: DeviceStats,
}

/// A store.
#[derive(Debug, Clone)]
pub struct StoreStats {
    /// Tiers, the fastest first.
    pub tiers: Vec<TierStats>,
    /// Ids looked up.
    pub asked_rows: u64,
    /// Distinct rows per ticket, summed.
    pub unique_rows: u64,
    /// Distinct rows that another ticket already had in flight; they count as hits of the fastest tier.
    pub in_flight_hits: u64,
    /// Rows that came into being.
    pub initialised_rows: u64,
    /// Row images sent down from the fastest tier.
    pub rows_written_back: u64,
    /// Blocks read to change a part of them.
    pub read_modify_writes: u64,
    /// Memory by purpose.
    pub memory: MemoryReport,
    /// How punctual a wall-clock run was.
    pub lateness: Lateness,
    /// Tickets admitted or queued and not released.
    pub open_tickets: usize,
}

impl Store {
    /// Everything counted so far.
    pub fn stats(&self) -> Result<StoreStats> {
        let state = self.lock()?;
        let now_ns = self.clock.now_ns();
        let counters = &state.counters;
        // Rows that come into being are found nowhere and cost no device read.
        let mut probed = counters.unique_rows - counters.initialised;
        let mut tiers = Vec::new();
        let in_memory = self.memory.resident_bytes + self.memory.cached_bytes + self.memory.staging_bytes;
        let mut schedule = self.schedule();
        if self.clock.is_virtual() {
            schedule.advance_to(now_ns);
        }
        for (position, config) in self.config.tiers.iter().enumerate() {
            let hits = counters.tier_hits[position];
            let (info, snapshot, held, occupied) = if position == 0 {
                let info = BackendInfo::new("ram");
                (
                    info,
                    state.memory.snapshot(0),
                    state.pools.iter().map(|pool| pool.slots.listed() as u64).sum(),
                    in_memory,
                )
            } else {
                let worker = self.worker.as_ref().expect("a store with block tiers has a worker");
                let middle = state.block_tiers.as_ref().and_then(|tiers| tiers.middle.get(position - 1));
                (
                    worker.backends()[position - 1].info(),
                    schedule.snapshot(position - 1),
                    middle.map_or(0, |cache| cache.len() as u64),
                    worker.backends()[position - 1].len_bytes(),
                )
            };
            tiers.push(TierStats {
                name: config.name.clone(),
                held,
                probed_rows: probed,
                hit_rows: hits,
                asked_bytes: counters.asked_bytes[position],
                device: DeviceStats::new(&config.device, info, snapshot, now_ns, occupied),
            });
            probed = probed.saturating_sub(hits);
        }
        Ok(StoreStats {
            tiers,
            asked_rows: counters.asked_rows,
            unique_rows: counters.unique_rows,
            in_flight_hits: counters.in_flight_hits,
            initialised_rows: counters.initialised,
            rows_written_back: counters.rows_written_back,
            read_modify_writes: counters.read_modify_writes,
            memory: self.memory,
            lateness: state.lateness.clone(),
            open_tickets: state.tickets.len(),
        })
    }
}
