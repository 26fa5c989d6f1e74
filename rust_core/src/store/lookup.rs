//! Lookups as they come in: checked, and turned into what an admission works with.

use super::Store;
use crate::embedding::{place_ids, rows_of_ids};
use crate::error::{Error, ErrorKind, Result};

/// One lookup of a batch: `offsets[b]` is the first position of bag `b` in `ids`.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// Table number.
    pub table: usize,
    /// Rows of all bags.
    pub ids: &'a [i64],
    /// First position of each bag; ascending, and the first is 0.
    pub offsets: &'a [i64],
}

/// A checked lookup that has no places yet.
pub(super) struct QueuedLookup {
    pub(super) table: usize,
    pub(super) ids: QueuedIds,
    pub(super) offsets: Vec<u32>,
}

/// What a lookup asks for.
pub(super) enum QueuedIds {
    /// Places in the fastest tier, of a table that is resident as a whole.
    Resident(Vec<u32>),
    /// Rows of a table.
    Rows(Vec<u64>),
}

impl QueuedIds {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Resident(places) => places.len(),
            Self::Rows(rows) => rows.len(),
        }
    }

    /// The rows that may have to be fetched.
    pub(super) fn fetched(&self) -> &[u64] {
        match self {
            Self::Resident(_) => &[],
            Self::Rows(rows) => rows,
        }
    }
}

impl Store {
    pub(super) fn check_lookup(&self, lookup: &Lookup<'_>) -> Result<QueuedLookup> {
        let table = self.table(lookup.table)?;
        let place = |error: Error| error.with_context("table", &table.config.name);
        let count = lookup.ids.len();
        let mut offsets = Vec::with_capacity(lookup.offsets.len());
        let mut before = 0;
        for (bag, &offset) in lookup.offsets.iter().enumerate() {
            if offset < before || offset > count as i64 || (bag == 0 && offset != 0) {
                return Err(place(Error::new(
                    ErrorKind::Input,
                    "offsets must start at 0, ascend, and stay within the ids",
                ))
                .with_context("bag", bag)
                .with_context("offset", offset)
                .with_context("ids", count));
            }
            before = offset;
            offsets.push(offset as u32);
        }
        if count > u32::MAX as usize || (lookup.offsets.is_empty() && count > 0) {
            return Err(place(Error::new(
                ErrorKind::Input,
                "a lookup needs an offset for each bag, and fewer than 2^32 ids",
            ))
            .with_context("ids", count));
        }
        let (ids, largest) = if let Some(first) = table.resident_first {
            let (places, largest) = place_ids(self.instructions, lookup.ids, first);
            (QueuedIds::Resident(places), largest)
        } else {
            let (rows, largest) = rows_of_ids(self.instructions, lookup.ids);
            (QueuedIds::Rows(rows), largest)
        };
        if count > 0 && largest >= table.config.rows {
            let is_outside = |&id: &i64| id as u64 >= table.config.rows;
            let position = lookup.ids.iter().position(is_outside).unwrap_or(0);
            return Err(place(Error::new(
                ErrorKind::Input,
                format!("id {} is out of range; ids are 0 to {}", lookup.ids[position], table.config.rows - 1),
            ))
            .with_context("position", position));
        }
        Ok(QueuedLookup { table: lookup.table, ids, offsets })
    }
}
