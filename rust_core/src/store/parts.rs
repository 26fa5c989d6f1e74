//! Tables and their parts: which rows are where.

use crate::bits::BitSet;
use crate::embedding::{RowShape, TableConfig};

/// A table, or a range of its rows.
pub(super) struct Part {
    /// Table number.
    pub(super) table: usize,
    /// First row of it in the table.
    pub(super) first_row: u64,
    /// Its rows in memory.
    pub(super) place: Place,
}

impl Part {
    /// Bytes of memory.
    pub(super) fn metadata_bytes(&self) -> u64 {
        match &self.place {
            Place::Resident { present, .. } => present.metadata_bytes() as u64,
            Place::Pooled { .. } => 0,
        }
    }
}

/// The rows of a part in memory.
pub(super) enum Place {
    /// All of them, one after the other.
    Resident {
        /// Place of the first one in its pool.
        first: u32,
        /// Rows that have their initial values.
        present: BitSet,
        /// How many have not.
        absent: u64,
    },
    /// Those that are cached or in flight.
    Pooled {
        /// Whether rows may stay between batches.
        is_cached: bool,
        /// Whether clean rows go down as well.
        is_exclusive: bool,
    },
}

/// A table.
pub(super) struct Table {
    /// What it is.
    pub(super) config: TableConfig,
    /// What a row is.
    pub(super) shape: RowShape,
    /// The pool that has its rows in memory.
    pub(super) pool: usize,
    /// Whether any of its rows live below memory.
    pub(super) is_pooled: bool,
    /// The place of the first row, if the table is resident as a whole.
    pub(super) resident_first: Option<u32>,
    /// Its first part, and their number.
    pub(super) first_part: usize,
    pub(super) parts: usize,
}

impl Table {
    /// The row at a place of the fastest tier where it is resident.
    pub(super) fn resident_row(&self, parts: &[Part], place: u32) -> u64 {
        let mine = &parts[self.first_part..self.first_part + self.parts];
        // Of the parts that begin at or before the place, the last one has it.
        let mut rows = mine.iter().rev().filter_map(|part| match part.place {
            Place::Resident { first, .. } => place.checked_sub(first).map(|row| part.first_row + u64::from(row)),
            Place::Pooled { .. } => None,
        });
        rows.next().unwrap_or(0)
    }

    /// The part of a row, and the row's number in it.
    #[inline]
    pub(super) fn part_of(&self, parts: &[Part], row: u64) -> (usize, u64) {
        if self.parts == 1 {
            return (self.first_part, row);
        }
        let mine = &parts[self.first_part..self.first_part + self.parts];
        let part = self.first_part + mine.partition_point(|part| part.first_row <= row) - 1;
        (part, row - parts[part].first_row)
    }
}
