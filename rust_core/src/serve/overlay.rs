//! Rows that were updated and are not yet in their place. A query has the overlay of its begin until its end, so it sees all
//! of an update or nothing of it.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use crate::rng::MixHasher;

/// One updated row.
#[derive(Debug, Clone)]
pub(super) struct UpdatedRow {
    /// As it is stored.
    pub(super) stored: Box<[u8]>,
    /// The number of its update.
    pub(super) number: u64,
}

/// The updated rows of one table.
pub(super) type UpdatedRows = HashMap<u64, UpdatedRow, BuildHasherDefault<MixHasher>>;

/// The updated rows of all tables; changed by making another one.
#[derive(Debug, Clone, Default)]
pub(super) struct Overlay {
    tables: Vec<Option<Arc<UpdatedRows>>>,
    /// The number of the last update in it.
    pub(super) number: u64,
}

/// What a row costs in an overlay besides its bytes: its entry in a map at a load of seven eighths, and the header of an allocation.
const ROW_BYTES: u64 = (size_of::<u64>() + size_of::<UpdatedRow>()) as u64 * 8 / 7 + 16;

impl Overlay {
    /// The updated rows of a table; `None` if there are none.
    pub(super) fn of(&self, table: usize) -> Option<&UpdatedRows> {
        self.tables.get(table)?.as_deref()
    }

    /// With more rows of a table, under the next number.
    pub(super) fn with(&self, table: usize, rows: impl Iterator<Item = (u64, Box<[u8]>)>) -> Self {
        let mut overlay = self.clone();
        overlay.number += 1;
        overlay.tables.resize(overlay.tables.len().max(table + 1), None);
        let number = overlay.number;
        let updated = Arc::make_mut(overlay.tables[table].get_or_insert_default());
        updated.extend(rows.map(|(row, stored)| (row, UpdatedRow { stored, number })));
        overlay
    }

    /// Without the rows that `written` has, unless they were updated again since.
    pub(super) fn without(&self, written: &Self) -> Self {
        let mut overlay = self.clone();
        for (table, place) in overlay.tables.iter_mut().enumerate() {
            let (Some(rows), Some(written)) = (place.as_mut(), written.of(table)) else { continue };
            let rows = Arc::make_mut(rows);
            rows.retain(|row, new| written.get(row).is_none_or(|written| written.number != new.number));
            if rows.is_empty() {
                *place = None;
            }
        }
        overlay
    }

    /// Tables with updated rows.
    pub(super) fn tables(&self) -> impl Iterator<Item = (usize, &UpdatedRows)> {
        self.tables.iter().enumerate().filter_map(|(table, rows)| Some((table, &**rows.as_ref()?)))
    }

    /// Without any rows, under the next number.
    pub(super) fn emptied(&self) -> Self {
        Self { tables: Vec::new(), number: self.number + 1 }
    }

    /// What so many rows take.
    pub(super) fn bytes_for(rows: u64, row_bytes: u64) -> u64 {
        rows * (ROW_BYTES + row_bytes)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.tables().next().is_none()
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.tables().map(|(_, rows)| rows.len()).sum()
    }

    /// Memory of all rows.
    pub(super) fn memory_bytes(&self) -> u64 {
        let of = |rows: &UpdatedRows| rows.values().map(|row| ROW_BYTES + row.stored.len() as u64).sum::<u64>();
        self.tables().map(|(_, rows)| of(rows)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_updated_again_stays() {
        let row = |row: u64, byte: u8| (row, Box::from([byte]));
        let first = Overlay::default().with(1, [row(5, 1), row(6, 1)].into_iter());
        let second = first.with(1, [row(5, 2), row(7, 2)].into_iter());
        let left = second.without(&first);
        let found = |number: u64| left.of(1).and_then(|rows| rows.get(&number)).map(|row| row.stored[0]);
        assert_eq!([5, 6, 7].map(found), [Some(2), None, Some(2)]);
        assert!(first.without(&first).is_empty() && left.of(0).is_none());
        assert_eq!((first.len(), left.number), (2, 2), "nothing changes what somebody sees");
    }
}
