//! What of a query is in memory, and what has to be read: the same decisions for an engine that moves bytes and for a
//! simulation that imagines them.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use serde::{Deserialize, Serialize};

use super::layout::{RowLayout, Span};
use super::overlay::Overlay;
use super::pooled_cache::{PooledCache, SameList};
use super::row_cache::{CachedTable, RowCache, RowCacheConfig, RowKey};
use crate::cache::PolicyKind;
use crate::error::Result;
use crate::rng::MixHasher;

/// Where the rows of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// In memory.
    Fixed,
    /// On the device; those that were used are cached.
    Cached,
    /// On the device, each time.
    Uncached,
}

/// The memory of the caches.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheConfig {
    /// Of cached rows, their metadata included.
    pub(super) row_bytes: u64,
    pub(super) dense_row_bytes_max: usize,
    pub(super) policy: PolicyKind,
    /// Of pooled results, their lists included. 0: none are kept.
    pub(super) pooled_bytes: u64,
    pub(super) pooled_ids_min: usize,
    pub(super) pooled_match: SameList,
}

/// A table as the caches see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServedTable {
    pub(super) rows: u64,
    pub(super) row_bytes: u32,
    pub(super) columns: usize,
    pub(super) placement: Placement,
}

/// What the caches did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounters {
    /// Rows of tables on the device that were asked for, those of pooled results not counted.
    pub rows: u64,
    /// Of these, in the row cache.
    pub row_hits: u64,
    /// Of these, updated and not yet written.
    pub updated_rows: u64,
    /// Lists that were looked for among the pooled results.
    pub lists: u64,
    /// Of these, there.
    pub list_hits: u64,
    /// Rows that those would have asked for.
    pub list_hit_rows: u64,
}

/// A row that has to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    /// Which of the gathered rows it is.
    pub(super) position: u32,
    pub(super) row: u64,
    /// Which read brings it; set by `reads_of`.
    pub(super) read: u32,
}

/// What of the bags of one table is there.
#[derive(Debug, Default)]
pub(super) struct Probed {
    pub(super) table: usize,
    /// Bags whose result was cached.
    pub(super) pooled_bags: Vec<u32>,
    /// Those results, one behind the other.
    pub(super) pooled: Vec<f32>,
    /// The other bags,
    pub(super) bags: Vec<u32>,
    /// whether the result of each may be kept: no row of it is waiting to be put in its place,
    pub(super) keeps: Vec<bool>,
    /// where the rows of each begin,
    pub(super) starts: Vec<u32>,
    /// the rows,
    pub(super) rows: u32,
    /// their bytes as they are stored, those that are missing not yet,
    pub(super) stored: Vec<u8>,
    /// and those that are missing.
    pub(super) missing: Vec<Missing>,
}

/// One read of a query: of one table, so that its limit is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) table: u32,
    pub(super) span: Span,
}

/// The bags of one table in a query: rows, and where the rows of each bag begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableBags<'a> {
    pub(super) table: usize,
    pub(super) rows: &'a [u64],
    pub(super) starts: &'a [u32],
}

impl<'a> TableBags<'a> {
    pub(super) fn bag(&self, bag: usize) -> &'a [u64] {
        let end = self.starts.get(bag + 1).map_or(self.rows.len(), |&end| end as usize);
        &self.rows[self.starts[bag] as usize..end]
    }
}

/// The caches of an engine.
#[derive(Debug, Clone)]
pub(super) struct Residency {
    tables: Vec<ServedTable>,
    pub(super) rows: RowCache,
    pub(super) pooled: PooledCache,
    pooled_ids_min: usize,
    keeps_rows: bool,
    pub(super) counters: CacheCounters,
}

impl Residency {
    pub(super) fn new(config: &CacheConfig, tables: Vec<ServedTable>, keeps_rows: bool) -> Result<Self> {
        let row_config = RowCacheConfig {
            memory_bytes: config.row_bytes,
            dense_row_bytes_max: config.dense_row_bytes_max,
            policy: config.policy,
            keeps_rows,
        };
        let cached = |table: &ServedTable| CachedTable {
            rows: table.rows,
            row_bytes: table.row_bytes,
            is_cached: table.placement == Placement::Cached,
        };
        let rows = RowCache::new(&row_config, &tables.iter().map(cached).collect::<Vec<_>>())?;
        let pooled = PooledCache::new(config.pooled_bytes, config.pooled_match);
        let pooled_ids_min = if config.pooled_bytes == 0 { usize::MAX } else { config.pooled_ids_min };
        Ok(Self { tables, rows, pooled, pooled_ids_min, keeps_rows, counters: CacheCounters::default() })
    }

    /// Looks for the bags of a table on the device. Rows that were updated and not yet written are in `overlay`.
    pub(super) fn probe(&mut self, bags: TableBags<'_>, overlay: &Overlay) -> Probed {
        let ServedTable { columns, row_bytes, .. } = self.tables[bags.table];
        let row_bytes = if self.keeps_rows { row_bytes as usize } else { 0 };
        let has_updates = overlay.has(bags.table);
        let updated = |row: u64| if has_updates { overlay.get(bags.table, row) } else { None };
        let mut probed = Probed { table: bags.table, ..Probed::default() };
        for bag in 0..bags.starts.len() {
            let rows = bags.bag(bag);
            let keeps = rows.len() >= self.pooled_ids_min && rows.iter().all(|&row| updated(row).is_none());
            if keeps {
                self.counters.lists += 1;
                if let Some(pooled) = self.pooled.get(bags.table, rows) {
                    self.counters.list_hits += 1;
                    self.counters.list_hit_rows += rows.len() as u64;
                    probed.pooled_bags.push(bag as u32);
                    probed.pooled.extend_from_slice(pooled);
                    debug_assert!(pooled.is_empty() || pooled.len() == columns, "a result is a row");
                    continue;
                }
            }
            probed.bags.push(bag as u32);
            probed.keeps.push(keeps);
            probed.starts.push(probed.rows);
            for &row in rows {
                let begin = probed.stored.len();
                probed.stored.resize(begin + row_bytes, 0);
                let place = self.keeps_rows.then_some(&mut probed.stored[begin..]);
                self.counters.rows += 1;
                if let Some(new) = updated(row) {
                    self.counters.updated_rows += 1;
                    if let Some(place) = place {
                        place.copy_from_slice(new);
                    }
                } else if self.rows.get(RowKey::new(bags.table, row), place) {
                    self.counters.row_hits += 1;
                } else {
                    probed.missing.push(Missing { position: probed.rows, row, read: 0 });
                }
                probed.rows += 1;
            }
        }
        probed
    }

    /// A row was read.
    pub(super) fn fill(&mut self, table: usize, row: u64, stored: &[u8]) {
        if self.rows.caches(table) {
            self.rows.insert(RowKey::new(table, row), stored);
        }
    }

    /// A list was pooled, all rows of which were in their place.
    pub(super) fn fill_pooled(&mut self, table: usize, rows: &[u64], pooled: &[f32]) {
        self.pooled.insert(table, rows, self.tables[table].columns, pooled);
    }

    /// Memory of both caches.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.rows.memory_bytes() + self.pooled.used_bytes()
    }
}

/// The reads that bring what is missing, each span once, and the bytes of the different rows that are missing.
pub(super) fn reads_of(probed: &mut [Probed], layouts: &[RowLayout], is_sub_block: bool) -> (Vec<Read>, u64) {
    let (mut reads, mut asked_bytes) = (Vec::new(), 0);
    let mut of_row: HashMap<u64, u32, BuildHasherDefault<MixHasher>> = HashMap::default();
    let mut of_span = of_row.clone();
    for of_table in probed {
        let layout = &layouts[of_table.table];
        of_row.clear();
        of_span.clear();
        for missing in &mut of_table.missing {
            missing.read = *of_row.entry(missing.row).or_insert_with(|| {
                asked_bytes += layout.row_bytes();
                let span = layout.read(missing.row, is_sub_block);
                *of_span.entry(span.offset).or_insert_with(|| {
                    reads.push(Read { table: of_table.table as u32, span });
                    reads.len() as u32 - 1
                })
            });
        }
    }
    (reads, asked_bytes)
}
