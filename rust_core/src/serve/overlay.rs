//! Rows that were updated and are not yet in their place. A query takes what it needs of them as it begins, so it sees all of an
//! update or nothing of it.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::row_cache::RowKey;
use crate::rng::MixHasher;

/// One updated row.
#[derive(Debug, Clone)]
struct UpdatedRow {
    stored: Arc<[u8]>,
    number: u64,
}

/// A row that has to be put in its place, and the number of its update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Waiting {
    pub(super) key: RowKey,
    pub(super) number: u64,
}

/// The updated rows of all tables.
#[derive(Debug, Clone, Default)]
pub(super) struct Overlay {
    rows: HashMap<RowKey, UpdatedRow, BuildHasherDefault<MixHasher>>,
    /// Rows of each table.
    of_tables: Vec<u32>,
    used_bytes: u64,
}

/// What a row costs besides its bytes: its entry in a map that has just grown, at a load of seven sixteenths; the counts of its `Arc`
/// with the header and rounding of an allocation; and while it is put in its place two notes of that and an entry in a set.
const ROW_BYTES: u64 = (size_of::<RowKey>() + size_of::<UpdatedRow>() + 1) as u64 * 16 / 7
    + 32
    + 2 * size_of::<Waiting>() as u64
    + (size_of::<RowKey>() + 1) as u64 * 16 / 7;

impl Overlay {
    /// Whether rows of a table are in it.
    #[inline]
    pub(super) fn has(&self, table: usize) -> bool {
        self.of_tables.get(table).is_some_and(|&rows| rows > 0)
    }

    /// A row as it is stored; empty where rows are only imagined.
    #[inline]
    pub(super) fn get(&self, table: usize, row: u64) -> Option<&Arc<[u8]>> {
        self.rows.get(&RowKey::new(table, row)).map(|new| &new.stored)
    }

    /// The same, if it is of this update.
    pub(super) fn get_of(&self, waiting: Waiting) -> Option<&Arc<[u8]>> {
        self.rows.get(&waiting.key).filter(|new| new.number == waiting.number).map(|new| &new.stored)
    }

    /// Puts a row in, which takes `row_bytes` though it may only be imagined.
    pub(super) fn put(&mut self, table: usize, row: u64, stored: Arc<[u8]>, row_bytes: u64, number: u64) {
        if self.rows.insert(RowKey::new(table, row), UpdatedRow { stored, number }).is_none() {
            self.of_tables.resize(self.of_tables.len().max(table + 1), 0);
            self.of_tables[table] += 1;
            self.used_bytes += Self::bytes_for(1, row_bytes);
        }
    }

    /// Takes a row out, unless it was updated again.
    pub(super) fn remove(&mut self, waiting: Waiting, row_bytes: u64) {
        if self.get_of(waiting).is_some() {
            self.rows.remove(&waiting.key);
            self.of_tables[waiting.key.table()] -= 1;
            self.used_bytes -= Self::bytes_for(1, row_bytes);
        }
        if self.rows.is_empty() {
            // Rows of another length may come, and the map is as large as it was.
            self.rows = HashMap::default();
        }
    }

    /// All rows, in no order.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        self.rows.iter().map(|(&key, new)| Waiting { key, number: new.number }).collect()
    }

    /// What so many rows take.
    pub(super) fn bytes_for(rows: u64, row_bytes: u64) -> u64 {
        rows * (ROW_BYTES + row_bytes)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Memory of all rows.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.used_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_updated_again_stays() {
        let mut overlay = Overlay::default();
        let put = |overlay: &mut Overlay, row, byte, number| overlay.put(1, row, Arc::from([byte]), 1, number);
        put(&mut overlay, 6, 1, 1);
        put(&mut overlay, 5, 1, 1);
        let first = overlay.waiting();
        assert!(first.len() == 2 && overlay.has(1) && !overlay.has(0));
        put(&mut overlay, 5, 2, 2);
        put(&mut overlay, 7, 2, 2);
        assert_eq!(overlay.memory_bytes(), Overlay::bytes_for(3, 1));
        assert_eq!(first.iter().filter(|&&waiting| overlay.get_of(waiting).is_some()).count(), 1);
        first.iter().for_each(|&waiting| overlay.remove(waiting, 1));
        let found = |row: u64| overlay.get(1, row).map(|row| row[0]);
        assert_eq!([5, 6, 7].map(found), [Some(2), None, Some(2)]);
        overlay.waiting().iter().for_each(|&waiting| overlay.remove(waiting, 1));
        assert!(overlay.is_empty() && !overlay.has(1) && overlay.memory_bytes() == 0);
    }
}
