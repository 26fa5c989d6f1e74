//! An engine in virtual time: queries that arrive whether earlier ones are done or not, threads, devices.
//!
//! A thread probes the caches and submits the reads of a query, looks up what is in memory while they are under way, and is
//! free for another query if they take longer. Decisions are those of `residency`, as in the engine that moves bytes.

use serde::Deserialize;

use super::config::{MemoryUse, ServeConfig};
use super::flight::{Flight, HostCosts, RowCosts, new_flight};
use super::layout::{RowLayout, Span};
use super::mapped::MappedPages;
use super::overlay::Overlay;
use super::queries::{Queries, Query, QueryConfig};
use super::residency::{CacheCounters, Placement, Residency, TableBags};
use super::run::Run;
use super::virtual_reads::ReadCounters;
use crate::device::{DeviceSnapshot, FaultSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::stats::LatencyHistogram;

/// Picoseconds that a parameter may be at most: a second.
const COST_PS_MAX: u64 = 1_000_000_000_000;

/// Queries that are kept from one run to the next.
const PREPARED_MAX: u64 = 20_000;

/// Rows that are updated while queries are served.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteLoad {
    /// Updates a second. 0: none.
    pub updates_per_s: u64,
    /// Bytes that one reads from one device and writes to every device: the block around its row. They are spread evenly over time,
    /// though an engine puts rows in their place when its room for them is full.
    pub nbytes: u64,
}

/// Everything about a simulation but its load.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulationConfig {
    /// What decides what is read from where.
    pub serve: ServeConfig,
    /// What the host spends.
    pub host: HostCosts,
    /// Serving threads.
    pub threads: u32,
    /// Whether reads are under way while the item side is looked up.
    pub is_overlapped: bool,
    /// Whether tables are in a mapped file instead, whose pages the kernel caches.
    pub is_mapped: bool,
    /// Versions of the tables that there is room for.
    pub versions: u64,
    /// The queries.
    pub queries: QueryConfig,
    /// Rows that are updated meanwhile.
    pub writes: WriteLoad,
    /// Injected slowness.
    pub faults: FaultSpec,
    /// Seed of arrivals and of latency draws.
    pub seed: u64,
}

/// A load.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Queries a second that arrive.
    pub queries_per_s: f64,
    /// The first one.
    pub first_query: u64,
    /// How many.
    pub queries: u64,
    /// A query that takes longer ends the run: the load is too high. 0: none does.
    pub give_up_ns: u64,
}

/// What a run found.
#[derive(Debug, Clone)]
pub struct SimulationReport {
    /// From arrival to answer.
    pub latency: LatencyHistogram,
    /// Queries that were answered.
    pub queries: u64,
    /// From the first arrival to the last answer.
    pub elapsed_ns: u64,
    /// Whether a query took too long and the run ended there.
    pub gave_up: bool,
    /// Time for which threads worked, all together; waiting for a mapped page is no work.
    pub busy_ns: u64,
    /// Caches.
    pub caches: CacheCounters,
    /// Reads.
    pub reads: ReadCounters,
    /// Pages of a mapped file that were touched, and those that were not there.
    pub pages: (u64, u64),
    /// Devices.
    pub devices: Vec<DeviceSnapshot>,
    /// Memory that caches used in the end.
    pub cached_bytes: u64,
}

/// Shares of rows found in a part of a warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmUpPart {
    /// Queries until its end.
    pub queries: u64,
    /// What the caches did in it.
    pub caches: CacheCounters,
    /// Pages touched in it, and those that were not there.
    pub pages: (u64, u64),
}

/// An engine in virtual time with warm caches, for any number of runs from the same state.
pub struct Simulation {
    pub(super) config: SimulationConfig,
    queries: Queries,
    pub(super) layouts: Vec<RowLayout>,
    pub(super) device_bytes: u64,
    pub(super) costs: RowCosts,
    memory: MemoryUse,
    warm: Caches,
    /// The queries of the last run: those of the next one are mostly the same.
    prepared: Prepared,
}

/// Queries from a number on.
#[derive(Default)]
struct Prepared {
    first: u64,
    queries: Vec<Query>,
}

/// What a run changes and another one must not see.
#[derive(Clone)]
pub(super) struct Caches {
    pub(super) residency: Residency,
    /// Rows that were updated and are not yet in their place.
    pub(super) overlay: Overlay,
    pub(super) mapped: Option<MappedPages>,
}

impl Simulation {
    /// With cold caches.
    ///
    /// # Errors
    ///
    /// `Config` for what does not go together, `Capacity` if the memory is too small or the device is.
    pub fn new(config: SimulationConfig) -> Result<Self> {
        config.serve.check()?;
        let refuse = |why: String| Err(Error::new(ErrorKind::Config, why));
        if config.threads == 0 {
            return refuse("an engine has at least one thread".into());
        }
        let host = &config.host;
        let costs = [host.probe_ps, host.row_ps, host.byte_ps, host.dequantise_ps, host.submit_ps, host.complete_ps];
        if costs.iter().any(|&ps| ps > COST_PS_MAX) || host.fault_ps > COST_PS_MAX {
            return refuse("a cost on the host is at most a second".into());
        }
        config.faults.validate()?;
        let is_fixed = config.serve.tables.iter().map(|table| table.placement == Placement::Fixed).collect();
        let queries = Queries::new(&config.queries, is_fixed)?;
        if !(1..=2).contains(&config.versions) {
            return refuse(format!("versions must be 1 or 2, not {}", config.versions));
        }
        let memory = config.serve.memory(config.versions)?;
        let on_device = config.serve.tables.iter().filter(|table| table.placement != Placement::Fixed);
        // The longest row that is updated; those in memory are not.
        let needed = on_device.map(|table| Overlay::bytes_for(1, table.row_bytes())).max().unwrap_or(0);
        if config.writes.updates_per_s > 0 && needed > config.serve.memory.update_bytes {
            let message = "there is no room for one updated row; give more in update_bytes";
            return Err(Error::new(ErrorKind::Capacity, message)
                .with_context("needed_bytes", needed)
                .with_context("update_bytes", config.serve.memory.update_bytes));
        }
        // A file that is mapped has no gaps.
        let block_bytes = if config.is_mapped { 1 } else { config.serve.device.block_bytes };
        let (layouts, device_bytes) = config.serve.layouts(0, block_bytes);
        let needed = config.versions * device_bytes;
        if needed > config.serve.device.spec.capacity_bytes {
            return Err(Error::new(
                ErrorKind::Capacity,
                "the device is smaller than the tables on it; use a larger one",
            )
            .with_context("device", &config.serve.device.spec.name)
            .with_context("needed_bytes", needed)
            .with_context("capacity_bytes", config.serve.device.spec.capacity_bytes));
        }
        let mapped = config.is_mapped.then(|| MappedPages::new(memory.pooled_bytes + memory.row_cache_bytes));
        let residency = config.serve.residency(&memory, false)?;
        let warm = Caches { residency, overlay: Overlay::default(), mapped: mapped.transpose()? };
        let costs = RowCosts::new(&config.serve, &config.host);
        let simulation =
            Self { config, queries, layouts, device_bytes, costs, memory, warm, prepared: Prepared::default() };
        simulation.check_ids()?;
        Ok(simulation)
    }

    /// Ids of a trace may be any; those of tables on the device must be rows.
    fn check_ids(&self) -> Result<()> {
        let laws = match &self.config.queries {
            QueryConfig::Generated { tables, .. } => &tables[..],
            QueryConfig::Trace { .. } => &[],
        };
        if let Some((law, table)) =
            laws.iter().zip(&self.config.serve.tables).find(|(law, table)| law.rows > table.rows)
        {
            return Err(Error::new(ErrorKind::Config, "queries are of more rows than the table has")
                .with_context("table", &table.name)
                .with_context("rows", law.rows));
        }
        let mut query = Query::default();
        for number in 0..self.queries.count().unwrap_or(1) {
            self.queries.fill(number, &mut query);
            if query.tables.len() != self.config.serve.tables.len() {
                let message = "the queries are not of as many tables as the engine";
                return Err(Error::new(ErrorKind::Config, message).with_context("tables", query.tables.len()));
            }
            for (table, lists) in self.config.serve.tables.iter().zip(&query.tables) {
                if let Some(id) = lists.rows.iter().find(|&&id| id >= table.rows) {
                    return Err(Error::new(ErrorKind::Input, "an id of a query is not a row of its table")
                        .with_context("table", &table.name)
                        .with_context("id", id)
                        .with_context("rows", table.rows));
                }
            }
        }
        Ok(())
    }

    /// Where the memory goes.
    pub fn memory(&self) -> MemoryUse {
        self.memory
    }

    /// How many queries there are; `None`: as many as one likes.
    pub fn queries(&self) -> Option<u64> {
        self.queries.count()
    }

    /// A query: ids, and where each list begins, of each table. Ids of tables in memory mean nothing where queries are generated.
    pub fn query(&self, number: u64) -> Vec<(Vec<i64>, Vec<i64>)> {
        let mut query = Query::default();
        self.queries.fill(number, &mut query);
        let signed = |rows: Vec<u64>| rows.into_iter().map(|row| row as i64).collect();
        let starts = |starts: Vec<u32>| starts.into_iter().map(i64::from).collect();
        query.tables.into_iter().map(|lists| (signed(lists.rows), starts(lists.starts))).collect()
    }

    /// Warms the caches with queries that take no time, and says how they did in each of `parts` parts.
    pub fn warm_up(&mut self, first_query: u64, queries: u64, parts: u64) -> Vec<WarmUpPart> {
        let mut found = Vec::new();
        let mut query = Query::default();
        let mut before = (self.warm.residency.counters, self.warm.pages());
        for number in 0..queries {
            self.queries.fill(first_query + number, &mut query);
            if let Some(mapped) = &mut self.warm.mapped {
                for page in pages_of(&self.config.serve, &self.layouts, &query) {
                    mapped.touch(page);
                }
            } else {
                let mut flight = new_flight(0, std::mem::take(&mut query));
                probe(&self.config.serve, &mut self.warm, &mut flight);
                fill(&mut self.warm.residency, &flight);
                query = flight.query;
            }
            if (number + 1) * parts / queries > number * parts / queries {
                let after = (self.warm.residency.counters, self.warm.pages());
                found.push(WarmUpPart {
                    queries: number + 1,
                    caches: difference(after.0, before.0),
                    pages: (after.1.0 - before.1.0, after.1.1 - before.1.1),
                });
                before = after;
            }
        }
        found
    }

    /// Forgets what the caches hold.
    pub fn cool_down(&mut self) {
        self.warm.residency.rows.clear();
        drop(self.warm.residency.pooled.take());
        if let Some(mapped) = &mut self.warm.mapped {
            mapped.clear();
        }
    }

    fn prepare(&mut self, first: u64, count: u64) {
        if self.prepared.first != first {
            self.prepared = Prepared { first, queries: Vec::new() };
        }
        for number in self.prepared.queries.len() as u64..count {
            let mut query = Query::default();
            self.queries.fill(first + number, &mut query);
            self.prepared.queries.push(query);
        }
    }

    /// A query of a run.
    pub(super) fn fill(&self, number: u64, query: &mut Query) {
        match self.prepared.queries.get(number.wrapping_sub(self.prepared.first) as usize) {
            Some(prepared) => query.clone_from(prepared),
            None => self.queries.fill(number, query),
        }
    }

    /// Runs a load from the warm state, which it does not change.
    ///
    /// # Errors
    ///
    /// `Config` for a rate that is none or for queries that are not there.
    pub fn run(&mut self, load: &Load) -> Result<SimulationReport> {
        let rate = load.queries_per_s;
        if !(rate > 0.0 && rate <= 1e9) || load.queries == 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "a load has at least one query, and between 0 and 10^9 a second",
            ));
        }
        let last = load.first_query.saturating_add(load.queries);
        if self.queries.count().is_some_and(|count| last > count) {
            return Err(Error::new(ErrorKind::Config, "the trace has fewer queries than warm-up and load ask for")
                .with_context("queries", self.queries.count().unwrap_or(0)));
        }
        self.prepare(load.first_query, load.queries.min(PREPARED_MAX));
        let mut caches = self.warm.clone();
        caches.residency.counters = CacheCounters::default();
        caches.mapped.iter_mut().for_each(MappedPages::reset_counts);
        let mut run = Run::new(self, caches, *load);
        run.go();
        Ok(run.report())
    }
}

/// What was counted between two moments.
pub(super) fn difference(after: CacheCounters, before: CacheCounters) -> CacheCounters {
    CacheCounters {
        rows: after.rows - before.rows,
        row_hits: after.row_hits - before.row_hits,
        updated_rows: after.updated_rows - before.updated_rows,
        lists: after.lists - before.lists,
        list_hits: after.list_hits - before.list_hits,
        list_hit_rows: after.list_hit_rows - before.list_hit_rows,
    }
}

impl Caches {
    /// Updated rows are in their place: what was cached of them is gone.
    pub(super) fn flush(&mut self) {
        let mut rows = std::mem::take(&mut self.overlay).waiting();
        rows.sort_unstable();
        let keys = rows.iter().map(|waiting| waiting.key).collect();
        self.residency.pooled.invalidate(&self.residency.pooled.hashes(), &keys);
        rows.iter().for_each(|waiting| self.residency.rows.remove(waiting.key));
    }

    /// Pages of a mapped file that were touched, and those that were not there.
    pub(super) fn pages(&self) -> (u64, u64) {
        self.mapped.as_ref().map_or((0, 0), MappedPages::counts)
    }
}

/// Looks for all that is not fixed in memory.
pub(super) fn probe(config: &ServeConfig, caches: &mut Caches, flight: &mut Flight) {
    for (table, lists) in flight.query.tables.iter().enumerate() {
        if config.tables[table].placement != Placement::Fixed {
            let bags = TableBags { table, rows: &lists.rows, starts: &lists.starts };
            flight.probed.push(caches.residency.probe(bags, &caches.overlay));
        }
    }
}

/// Puts what was read and pooled into the caches.
pub(super) fn fill(residency: &mut Residency, flight: &Flight) {
    for probed in &flight.probed {
        let lists = &flight.query.tables[probed.table];
        let bags = TableBags { table: probed.table, rows: &lists.rows, starts: &lists.starts };
        for missing in &probed.missing {
            residency.fill(probed.table, missing.row, &[]);
        }
        for (&bag, _) in probed.bags.iter().zip(&probed.keeps).filter(|(_, keeps)| **keeps) {
            residency.fill_pooled(probed.table, bags.bag(bag as usize), &[]);
        }
    }
}

/// The pages that a query touches, in the order in which it does.
pub(super) fn pages_of(config: &ServeConfig, layouts: &[RowLayout], query: &Query) -> Vec<u64> {
    let mut pages = Vec::new();
    for (table, lists) in query.tables.iter().enumerate() {
        if config.tables[table].placement != Placement::Fixed {
            for &row in &lists.rows {
                let Span { offset, nbytes } = layouts[table].blocks(row);
                pages.extend(MappedPages::pages(offset, nbytes));
            }
        }
    }
    pages
}
