//! Pooled results by the list of rows that went into them.
//!
//! Source: Software Defined Memory (arXiv 2110.11489) keeps pooled embeddings under a hash of the index list. The hash does
//! not depend on the order, and it only finds an entry: the whole list decides.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use lru::LruCache;
use serde::Deserialize;

use super::row_cache::RowKey;
use crate::rng::{self, MixHasher};

/// What an entry costs besides its list and its result: its node in the list of uses, its place in the map at a load of
/// seven sixteenths as when it has just grown, and the headers of three allocations of 16 bytes each, as glibc has them.
const ENTRY_BYTES: u64 = (size_of::<u64>() + size_of::<Entry>() + 2 * size_of::<usize>() + 39 + 3 * 16) as u64;

/// Which lists are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SameList {
    /// The same rows in the same order: the result has the bits that pooling the list would give.
    #[default]
    InOrder,
    /// The same rows in any order: the sum may differ in its last bits.
    InAnyOrder,
}

#[derive(Debug, Clone)]
struct Entry {
    table: u32,
    rows: Box<[u64]>,
    pooled: Box<[f32]>,
    charged_bytes: u64,
}

/// Results of the latest lists, in no more memory than was given.
#[derive(Debug, Clone)]
pub(super) struct PooledCache {
    entries: LruCache<u64, Entry, BuildHasherDefault<MixHasher>>,
    memory_bytes: u64,
    used_bytes: u64,
    same: SameList,
    /// All ones; tests take most away, so that lists collide.
    hash_mask: u64,
}

impl PooledCache {
    pub(super) fn new(memory_bytes: u64, same: SameList) -> Self {
        let entries = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        Self { entries, memory_bytes, used_bytes: 0, same, hash_mask: u64::MAX }
    }

    fn hash(&self, table: usize, rows: &[u64]) -> u64 {
        let key = rng::stream(rows.len() as u64, table as u64);
        rows.iter().fold(key, |sum, &row| sum.wrapping_add(rng::mix(key ^ row))) & self.hash_mask
    }

    fn is_same(&self, entry: &Entry, table: usize, rows: &[u64]) -> bool {
        if entry.table as usize != table || entry.rows.len() != rows.len() {
            return false;
        }
        if self.same == SameList::InOrder || *entry.rows == *rows {
            return *entry.rows == *rows;
        }
        let sorted = |rows: &[u64]| {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            rows
        };
        sorted(&entry.rows) == sorted(rows)
    }

    /// The result of a list, if it is there.
    pub(super) fn get(&mut self, table: usize, rows: &[u64]) -> Option<&[f32]> {
        let hash = self.hash(table, rows);
        let entry = self.entries.peek(&hash)?;
        if !self.is_same(entry, table, rows) {
            return None;
        }
        self.entries.get(&hash).map(|entry| &*entry.pooled)
    }

    /// Keeps a result of `columns`, instead of whatever has the same hash; `pooled` is empty where it is only imagined.
    pub(super) fn insert(&mut self, table: usize, rows: &[u64], columns: usize, pooled: &[f32]) {
        let charged_bytes = ENTRY_BYTES + 8 * rows.len() as u64 + 4 * columns as u64;
        if charged_bytes > self.memory_bytes {
            return;
        }
        let hash = self.hash(table, rows);
        let entry = Entry { table: table as u32, rows: rows.into(), pooled: pooled.into(), charged_bytes };
        self.used_bytes += charged_bytes;
        if let Some(before) = self.entries.put(hash, entry) {
            self.used_bytes -= before.charged_bytes;
        }
        while self.used_bytes > self.memory_bytes
            && let Some((_, oldest)) = self.entries.pop_lru()
        {
            self.used_bytes -= oldest.charged_bytes;
        }
    }

    /// The hash of every result.
    pub(super) fn hashes(&self) -> Vec<u64> {
        self.entries.iter().map(|(&hash, _)| hash).collect()
    }

    /// Forgets those of the results under these hashes that one of the rows went into.
    pub(super) fn invalidate(&mut self, hashes: &[u64], rows: &HashSet<RowKey, BuildHasherDefault<MixHasher>>) {
        for hash in hashes {
            let is_stale = self.entries.peek(hash).is_some_and(|entry| {
                let key = |&row: &u64| RowKey::new(entry.table as usize, row);
                entry.rows.iter().map(key).any(|key| rows.contains(&key))
            });
            if is_stale && let Some(entry) = self.entries.pop(hash) {
                self.used_bytes -= entry.charged_bytes;
            }
        }
    }

    /// Forgets all; gives it to whoever has the time to drop it.
    pub(super) fn take(&mut self) -> Self {
        let empty = Self { hash_mask: self.hash_mask, ..Self::new(self.memory_bytes, self.same) };
        std::mem::replace(self, empty)
    }

    /// Results that are cached now.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What they cost.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn sorted(rows: &[u64]) -> Vec<u64> {
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        rows
    }

    proptest! {
        /// Whatever collides: what is found is the result of this very list, and memory is kept.
        #[test]
        fn never_gives_the_result_of_another_list(
            actions in prop::collection::vec((0u8..8, 0usize..3, prop::collection::vec(0u64..6, 1..5)), 0..300),
            hash_mask in prop::sample::select(&[0u64, 3, u64::MAX]),
            memory_bytes in 0u64..3000,
            in_any_order: bool,
        ) {
            let same = if in_any_order { SameList::InAnyOrder } else { SameList::InOrder };
            let mut cache = PooledCache { hash_mask, ..PooledCache::new(memory_bytes, same) };
            let key = |table: usize, rows: &[u64]| (table, if in_any_order { sorted(rows) } else { rows.to_vec() });
            let mut model: HashMap<(usize, Vec<u64>), Vec<f32>> = HashMap::new();
            for (number, (action, table, rows)) in actions.into_iter().enumerate() {
                match action {
                    0..3 => {
                        if let Some(found) = cache.get(table, &rows) {
                            prop_assert_eq!(Some(&found.to_vec()), model.get(&key(table, &rows)));
                        }
                    }
                    3..7 => {
                        let pooled = vec![number as f32; 4];
                        cache.insert(table, &rows, 4, &pooled);
                        model.insert(key(table, &rows), pooled);
                    }
                    _ => {
                        let stale = HashSet::from_iter([RowKey::new(table, rows[0])]);
                        cache.invalidate(&cache.hashes(), &stale);
                        model.retain(|(of, list), _| *of != table || !list.contains(&rows[0]));
                        prop_assert!(cache.get(table, &rows).is_none());
                    }
                }
                prop_assert!(cache.used_bytes() <= memory_bytes);
                let used: u64 = cache.entries.iter().map(|(_, entry)| entry.charged_bytes).sum();
                prop_assert_eq!(used, cache.used_bytes());
            }
            drop(cache.take());
            prop_assert_eq!((cache.len(), cache.used_bytes()), (0, 0));
        }

        #[test]
        fn the_hash_does_not_depend_on_the_order(rows in prop::collection::vec(any::<u64>(), 1..20)) {
            let mut cache = PooledCache::new(10_000, SameList::InAnyOrder);
            cache.insert(1, &rows, 1, &[7.0]);
            let mut turned = rows.clone();
            turned.reverse();
            prop_assert_eq!(cache.get(1, &turned), Some(&[7.0f32][..]));
            prop_assert_eq!(cache.get(0, &turned), None);
            let mut strict = PooledCache::new(10_000, SameList::InOrder);
            strict.insert(1, &rows, 1, &[7.0]);
            prop_assert_eq!(strict.get(1, &turned).is_some(), turned == rows);
        }
    }
}
