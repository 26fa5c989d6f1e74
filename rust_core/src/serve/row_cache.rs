//! One cache for the rows of all tables on a device, with a layout for small rows and one for large ones behind one face.

use std::sync::Arc;

use super::dense_rows::DenseRows;
use super::fast_rows::FastRows;
use crate::backend::AlignedBuffer;
use crate::cache::PolicyKind;
use crate::error::{Error, ErrorKind, Result};

const ROW_BITS: u32 = 36;
/// Tables that can be served together.
pub(super) const TABLES_MAX: usize = (1 << 12) - 1;
/// Rows that a served table may have.
pub(super) const ROWS_MAX: u64 = 1 << ROW_BITS;

/// A row of a table, in 48 bits that are not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RowKey(u64);

impl RowKey {
    pub(super) fn new(table: usize, row: u64) -> Self {
        debug_assert!(table < TABLES_MAX && row < ROWS_MAX, "checked as an engine is opened");
        Self((table as u64 + 1) << ROW_BITS | row)
    }

    pub(super) fn from_packed(packed: u64) -> Option<Self> {
        (packed >> ROW_BITS > 0).then_some(Self(packed))
    }

    pub(super) fn packed(self) -> u64 {
        self.0
    }

    pub(super) fn table(self) -> usize {
        (self.0 >> ROW_BITS) as usize - 1
    }

    pub(super) fn row(self) -> u64 {
        self.0 & (ROWS_MAX - 1)
    }
}

/// Whether there is so much memory at all: known before `vec!`, which takes pages as they are used and cannot fail, asks for it.
///
/// # Errors
///
/// `Capacity` with the bytes.
pub(super) fn check_memory(nbytes: usize) -> Result<()> {
    AlignedBuffer::try_zeroed(nbytes).map(drop)
}

/// A table as the cache sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct CachedTable {
    pub(super) rows: u64,
    pub(super) row_bytes: u32,
    pub(super) is_cached: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Nowhere,
    Dense,
    Fast(usize),
}

/// What a cache is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowCacheConfig {
    pub(super) memory_bytes: u64,
    /// Rows up to this long go to the layout for small ones.
    pub(super) dense_row_bytes_max: usize,
    /// Who leaves among large rows.
    pub(super) policy: PolicyKind,
    /// Whether rows are kept, or only imagined, as for a simulation.
    pub(super) keeps_rows: bool,
}

/// The rows of all tables that are cached.
#[derive(Debug, Clone)]
pub(super) struct RowCache {
    dense: Option<DenseRows>,
    fast: Vec<Option<FastRows>>,
    routes: Vec<Route>,
}

impl RowCache {
    /// Divides the memory among the layouts and the widths of large rows in proportion to the bytes of their tables, and
    /// takes no more than all their rows need.
    pub(super) fn new(config: &RowCacheConfig, tables: &[CachedTable]) -> Result<Self> {
        if config.dense_row_bytes_max > DenseRows::ROW_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Config,
                format!("rows of more than {} bytes have no place among small rows", DenseRows::ROW_BYTES_MAX),
            )
            .with_context("dense_row_bytes_max", config.dense_row_bytes_max));
        }
        let mut widths: Vec<u32> = Vec::new();
        let mut routes = Vec::new();
        for table in tables {
            routes.push(if !table.is_cached {
                Route::Nowhere
            } else if table.row_bytes as usize <= config.dense_row_bytes_max {
                Route::Dense
            } else {
                let known = widths.iter().position(|&width| width == table.row_bytes);
                Route::Fast(known.unwrap_or_else(|| {
                    widths.push(table.row_bytes);
                    widths.len() - 1
                }))
            });
        }
        let of = |route: Route| tables.iter().zip(&routes).filter(move |&(_, &at)| at == route).map(|(table, _)| table);
        let nbytes = |table: &CachedTable| table.rows * u64::from(table.row_bytes);
        let all: u64 = tables.iter().filter(|table| table.is_cached).map(nbytes).sum();
        let share = |route: Route| {
            let part: u64 = of(route).map(nbytes).sum();
            (u128::from(config.memory_bytes) * u128::from(part) / u128::from(all.max(1))) as u64
        };
        let needed: u64 =
            of(Route::Dense).map(|table| DenseRows::bytes_for(table.rows, u64::from(table.row_bytes))).sum();
        let row_bytes: Arc<[u32]> = tables.iter().map(|table| table.row_bytes).collect();
        let shortest = of(Route::Dense).map(|table| table.row_bytes).min().unwrap_or(1);
        let dense = DenseRows::new(share(Route::Dense).min(needed), row_bytes, shortest, config.keeps_rows)?;
        let mut fast = Vec::new();
        for (class, &width) in widths.iter().enumerate() {
            let rows: u64 = of(Route::Fast(class)).map(|table| table.rows).sum();
            let memory_bytes = share(Route::Fast(class));
            fast.push(FastRows::new(memory_bytes, rows, width as usize, config.policy, config.keeps_rows)?);
        }
        Ok(Self { dense, fast, routes })
    }

    /// Whether rows of a table can be cached at all.
    pub(super) fn caches(&self, table: usize) -> bool {
        match self.routes[table] {
            Route::Nowhere => false,
            Route::Dense => self.dense.is_some(),
            Route::Fast(class) => self.fast[class].is_some(),
        }
    }

    /// Whether a row is there; copies it out and counts as a use of it.
    pub(super) fn get(&mut self, key: RowKey, out: Option<&mut [u8]>) -> bool {
        match self.routes[key.table()] {
            Route::Nowhere => false,
            Route::Dense => self.dense.as_mut().is_some_and(|rows| rows.get(key, out)),
            Route::Fast(class) => self.fast[class].as_mut().is_some_and(|rows| rows.get(key, out)),
        }
    }

    /// Puts a row in, instead of what was there under its key.
    pub(super) fn insert(&mut self, key: RowKey, row: &[u8]) {
        self.remove(key);
        match self.routes[key.table()] {
            Route::Nowhere => {}
            Route::Dense => {
                if let Some(rows) = &mut self.dense {
                    rows.insert(key, row);
                }
            }
            Route::Fast(class) => {
                if let Some(rows) = &mut self.fast[class] {
                    rows.insert(key, row);
                }
            }
        }
    }

    /// Takes a row out, if it is there.
    pub(super) fn remove(&mut self, key: RowKey) {
        match self.routes[key.table()] {
            Route::Nowhere => {}
            Route::Dense => {
                if let Some(rows) = &mut self.dense {
                    rows.remove(key);
                }
            }
            Route::Fast(class) => {
                if let Some(rows) = &mut self.fast[class] {
                    rows.remove(key);
                }
            }
        }
    }

    /// Takes all rows out.
    pub(super) fn clear(&mut self) {
        self.dense.iter_mut().for_each(DenseRows::clear);
        self.fast.iter_mut().flatten().for_each(FastRows::clear);
    }

    /// The keys of all rows that are cached.
    pub(super) fn keys(&self) -> Vec<RowKey> {
        let dense = self.dense.iter().flat_map(DenseRows::keys);
        dense.chain(self.fast.iter().flatten().flat_map(FastRows::keys)).collect()
    }

    /// Rows that are cached now.
    pub(super) fn rows(&self) -> u64 {
        let dense = self.dense.as_ref().map_or(0, DenseRows::rows);
        dense + self.fast.iter().flatten().map(FastRows::rows).sum::<u64>()
    }

    /// What it costs, metadata included.
    pub(super) fn memory_bytes(&self) -> u64 {
        let dense = self.dense.as_ref().map_or(0, DenseRows::memory_bytes);
        dense + self.fast.iter().flatten().map(FastRows::memory_bytes).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const TABLES: [CachedTable; 5] = [
        CachedTable { rows: 60, row_bytes: 20, is_cached: true },
        CachedTable { rows: 60, row_bytes: 255, is_cached: true },
        CachedTable { rows: 60, row_bytes: 300, is_cached: true },
        CachedTable { rows: 60, row_bytes: 700, is_cached: true },
        CachedTable { rows: 60, row_bytes: 64, is_cached: false },
    ];

    fn cache(memory_bytes: u64, keeps_rows: bool) -> RowCache {
        let config = RowCacheConfig { memory_bytes, dense_row_bytes_max: 255, policy: PolicyKind::Lru, keeps_rows };
        RowCache::new(&config, &TABLES).unwrap()
    }

    fn row(key: RowKey, version: u8) -> Vec<u8> {
        let bytes = TABLES[key.table()].row_bytes as usize;
        (0..bytes).map(|at| (at as u64 ^ key.row()) as u8 ^ version ^ key.table() as u8).collect()
    }

    proptest! {
        /// What is found is what was put in last; a cache that only imagines rows finds the same ones; memory is kept.
        #[test]
        fn never_gives_another_row(
            actions in prop::collection::vec((0u8..3, 0usize..5, 0u64..60, any::<u8>()), 0..600),
            memory_bytes in 0u64..60_000,
        ) {
            let (mut real, mut imagined) = (cache(memory_bytes, true), cache(memory_bytes, false));
            prop_assert!(real.memory_bytes() <= memory_bytes && imagined.memory_bytes() == real.memory_bytes());
            let mut model: HashMap<RowKey, Vec<u8>> = HashMap::new();
            for (action, table, number, version) in actions {
                let key = RowKey::new(table, number);
                prop_assert_eq!((key.table(), key.row()), (table, number));
                match action {
                    0 => {
                        let mut out = vec![0; TABLES[table].row_bytes as usize];
                        let is_there = real.get(key, Some(&mut out));
                        prop_assert_eq!(imagined.get(key, None), is_there);
                        prop_assert!(!is_there || Some(&out) == model.get(&key));
                        prop_assert!(!is_there || real.caches(table));
                    }
                    1 => {
                        real.insert(key, &row(key, version));
                        imagined.insert(key, &[]);
                        model.insert(key, row(key, version));
                        prop_assert!(real.get(key, None) == real.caches(table), "what was put in last is there");
                        imagined.get(key, None);
                    }
                    _ => {
                        real.remove(key);
                        imagined.remove(key);
                        model.remove(&key);
                        prop_assert!(!real.get(key, None));
                    }
                }
                let mut keys = real.keys();
                prop_assert_eq!(keys.len() as u64, real.rows());
                prop_assert_eq!(&keys, &imagined.keys());
                keys.sort_unstable();
                keys.dedup();
                prop_assert_eq!(keys.len() as u64, real.rows(), "no row is there twice");
            }
            real.clear();
            prop_assert_eq!(real.rows(), 0);
        }
    }

    #[test]
    fn memory_for_all_rows_keeps_all_rows() {
        let mut cache = cache(1 << 20, true);
        let needed = TABLES[..4].iter().map(|table| table.rows * u64::from(table.row_bytes)).sum::<u64>();
        assert!(cache.memory_bytes() < 2 * needed, "no more than the rows need: {}", cache.memory_bytes());
        let keys: Vec<RowKey> = (0..4).flat_map(|table| (0..60).map(move |row| RowKey::new(table, row))).collect();
        keys.iter().for_each(|&key| cache.insert(key, &row(key, 0)));
        let there = keys.iter().filter(|&&key| cache.get(key, None)).count();
        assert!(there > keys.len() * 9 / 10, "{there} of {} are there", keys.len());
    }

    #[test]
    fn the_latest_used_rows_stay() {
        for table in 0..4 {
            let mut cache = cache(40_000, true);
            let hot = RowKey::new(table, 59);
            for number in 0..10_000u64 {
                let key = RowKey::new(table, number % 59);
                if !cache.get(key, None) {
                    cache.insert(key, &row(key, 0));
                }
                if !cache.get(hot, None) {
                    assert!(number < 2, "the row of every second access is still there at {number}");
                    cache.insert(hot, &row(hot, 0));
                }
            }
        }
    }

    #[test]
    fn rows_too_long_for_a_bucket_are_refused() {
        let config =
            RowCacheConfig { memory_bytes: 0, dense_row_bytes_max: 513, policy: PolicyKind::Lru, keeps_rows: true };
        assert_eq!(RowCache::new(&config, &TABLES).unwrap_err().kind(), ErrorKind::Config);
    }
}
