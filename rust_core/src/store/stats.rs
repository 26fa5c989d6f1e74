//! What a store did, per tier and per table.

use super::Store;
use crate::backend::BackendInfo;
use crate::device::{DeviceStats, Lateness, TransferRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::tier::{LowerTiers, PartCounts, RowPool};

/// Memory of a store, by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Rows whose home is the fastest tier.
    pub resident_bytes: u64,
    /// Room for cached rows.
    pub cached_bytes: u64,
    /// Room for rows in flight.
    pub staging_bytes: u64,
    /// Keys, policies, indices, locations, dirty and presence bits.
    pub metadata_bytes: u64,
    /// Locations of rows in logs that the kernel may page out; not part of the sum.
    pub paged_index_bytes: u64,
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

/// Counters of one table in the fastest tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) asked_rows: u64,
    pub(super) unique_rows: u64,
    pub(super) in_flight_hits: u64,
    pub(super) memory_hits: u64,
    pub(super) initialised_rows: u64,
    pub(super) memory_bytes: u64,
}

/// One tier.
#[derive(Debug, Clone)]
pub struct TierStats {
    /// Name of the tier.
    pub name: String,
    /// Rows (byte-addressable) or blocks (block device) that it caches between batches now.
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

/// One table.
#[derive(Debug, Clone)]
pub struct TableStats {
    /// Name of the table.
    pub name: String,
    /// Ids looked up.
    pub asked_rows: u64,
    /// Distinct rows per ticket, summed.
    pub unique_rows: u64,
    /// Distinct rows that another ticket already had in flight; they count as hits of the fastest tier.
    pub in_flight_hits: u64,
    /// Rows that came into being.
    pub initialised_rows: u64,
    /// Row images sent down from memory.
    pub rows_written_back: u64,
    /// Blocks read to change a part of them.
    pub read_modify_writes: u64,
    /// Tiers, the fastest first; of that one only rows and the bytes that were asked for are counted.
    pub tiers: Vec<PartCounts>,
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
    /// Rows that compaction of logs moved.
    pub rows_compacted: u64,
    /// Times that a plan waited for compaction.
    pub compaction_stalls: u64,
    /// Gradient values that were not finite.
    pub non_finite_values: u64,
    /// Rows in memory that are newer than below.
    pub dirty_rows: u64,
    /// Memory by purpose.
    pub memory: MemoryReport,
    /// How punctual a wall-clock run was.
    pub lateness: Lateness,
    /// Tickets admitted or queued and not released.
    pub open_tickets: usize,
}

/// What happened when; times on the store's clock.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// Transfers of the lower tiers, in order of submission; `device` counts from the second tier on.
    pub transfers: Vec<TransferRecord>,
    /// (time in ns, rows in memory that are newer than below), after each release.
    pub dirty_rows: Vec<(u64, u64)>,
}

impl Store {
    /// What was remembered for a timeline; empty if the store was not opened with one.
    pub fn timeline(&self) -> Result<Timeline> {
        let dirty_rows = self.lock()?.dirty_samples.clone();
        Ok(Timeline { transfers: self.schedule().log().to_vec(), dirty_rows })
    }

    /// Everything counted so far, by table.
    pub fn table_stats(&self) -> Result<Vec<TableStats>> {
        let state = self.lock()?;
        let stats = |(number, table): (usize, &super::Table)| {
            let counters = &state.counters[number];
            let parts = table.first_part..table.first_part + table.parts;
            let lower = state.lower.as_ref();
            let sum =
                |counts: fn(&LowerTiers) -> &[u64]| lower.map_or(0, |lower| counts(lower)[parts.clone()].iter().sum());
            let memory = PartCounts {
                probed_rows: counters.unique_rows - counters.initialised_rows,
                hit_rows: counters.memory_hits,
                asked_bytes: counters.memory_bytes,
                ..PartCounts::default()
            };
            let below = (0..lower.map_or(0, LowerTiers::len)).map(|tier| {
                let mut counts = PartCounts::default();
                if let Some(lower) = lower {
                    parts.clone().for_each(|part| counts.add(&lower.counts[part * lower.len() + tier]));
                }
                counts
            });
            TableStats {
                name: table.config.name.clone(),
                asked_rows: counters.asked_rows,
                unique_rows: counters.unique_rows,
                in_flight_hits: counters.in_flight_hits,
                initialised_rows: counters.initialised_rows,
                tiers: std::iter::once(memory).chain(below).collect(),
                rows_written_back: sum(|lower| &lower.rows_written_back),
                read_modify_writes: sum(|lower| &lower.read_modify_writes),
            }
        };
        Ok(self.tables.iter().enumerate().map(stats).collect())
    }

    /// Everything counted so far.
    pub fn stats(&self) -> Result<StoreStats> {
        let tables = self.table_stats()?;
        let state = self.lock()?;
        let now_ns = self.clock.now_ns();
        let mut tiers = Vec::new();
        let in_memory = self.memory.resident_bytes + self.memory.cached_bytes + self.memory.staging_bytes;
        let mut schedule = self.schedule();
        if self.clock.is_virtual() {
            schedule.advance_to(now_ns);
        }
        for (position, config) in self.config.tiers.iter().enumerate() {
            let (info, snapshot, held, occupied) = if position == 0 {
                let held = state.pools.iter().map(|pool| pool.cached() as u64).sum();
                (BackendInfo::new("ram"), state.memory.snapshot(0), held, in_memory)
            } else {
                let worker = self.worker.as_ref().expect("a store with lower tiers has a worker");
                let backend = &worker.backends()[position - 1];
                let held = state.lower.as_ref().map_or(0, |lower| lower.caches[position - 1].len() as u64);
                (backend.info(), schedule.snapshot(position - 1), held, backend.len_bytes())
            };
            let sum = |of: fn(&PartCounts) -> u64| tables.iter().map(|table| of(&table.tiers[position])).sum();
            tiers.push(TierStats {
                name: config.name.clone(),
                held,
                probed_rows: sum(|tier| tier.probed_rows),
                hit_rows: sum(|tier| tier.hit_rows),
                asked_bytes: sum(|tier| tier.asked_bytes),
                device: DeviceStats::new(&config.device, info, snapshot, now_ns, occupied),
            });
        }
        let sum = |of: fn(&TableStats) -> u64| tables.iter().map(of).sum();
        Ok(StoreStats {
            tiers,
            asked_rows: sum(|table| table.asked_rows),
            unique_rows: sum(|table| table.unique_rows),
            in_flight_hits: sum(|table| table.in_flight_hits),
            initialised_rows: sum(|table| table.initialised_rows),
            rows_written_back: sum(|table| table.rows_written_back),
            read_modify_writes: sum(|table| table.read_modify_writes),
            rows_compacted: state.compactions.iter().map(|compaction| compaction.moved_rows).sum(),
            compaction_stalls: state.compactions.iter().map(|compaction| compaction.stalls).sum(),
            non_finite_values: state.non_finite_values,
            dirty_rows: state.pools.iter().map(RowPool::dirty_count).sum(),
            memory: self.memory,
            lateness: state.lateness.clone(),
            open_tickets: state.tickets.len(),
        })
    }
}
