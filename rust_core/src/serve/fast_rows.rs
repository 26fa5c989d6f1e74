//! The layout for large rows: an index, a list, and a slot for each row of one width.

use super::row_cache::{RowKey, check_memory};
use crate::cache::{METADATA_BYTES_PER_ROW_MAX, PolicyKind, Slots};
use crate::error::Result;

/// Slots are numbers of 32 bits, the last of which is none.
const SLOTS_MAX: u64 = u32::MAX as u64 - 1;

/// Rows of one width.
#[derive(Debug, Clone)]
pub(super) struct FastRows {
    slots: Slots,
    capacity: usize,
    memory: Vec<u8>,
    row_bytes: usize,
    keeps_rows: bool,
}

impl FastRows {
    /// As many rows as fit in `memory_bytes`, and no more than `rows_max`; `None` if that is none.
    pub(super) fn new(
        memory_bytes: u64,
        rows_max: u64,
        row_bytes: usize,
        policy: PolicyKind,
        keeps_rows: bool,
    ) -> Result<Option<Self>> {
        let capacity = (memory_bytes / Self::bytes_for(1, row_bytes as u64)).min(rows_max).min(SLOTS_MAX) as usize;
        if capacity == 0 {
            return Ok(None);
        }
        let stored_bytes = if keeps_rows { row_bytes } else { 0 };
        check_memory(capacity * (stored_bytes + METADATA_BYTES_PER_ROW_MAX))?;
        let slots = Slots::new(policy, capacity, capacity, 0)?;
        let memory = vec![0; capacity * stored_bytes];
        Ok(Some(Self { slots, capacity, memory, row_bytes, keeps_rows }))
    }

    /// Memory that so many rows take, whether rows are kept or imagined.
    pub(super) fn bytes_for(rows: u64, row_bytes: u64) -> u64 {
        rows * (row_bytes + METADATA_BYTES_PER_ROW_MAX as u64)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        (self.capacity * self.row_bytes + self.slots.metadata_bytes()) as u64
    }

    pub(super) fn rows(&self) -> u64 {
        self.slots.cached() as u64
    }

    fn place(&mut self, slot: u32) -> &mut [u8] {
        let begin = slot as usize * self.row_bytes;
        &mut self.memory[begin..begin + self.row_bytes]
    }

    pub(super) fn get(&mut self, key: RowKey, out: Option<&mut [u8]>) -> bool {
        let Some(slot) = self.slots.get(key.packed()) else { return false };
        self.slots.hit(slot, key.packed());
        if let Some(out) = out {
            out.copy_from_slice(self.place(slot));
        }
        true
    }

    pub(super) fn insert(&mut self, key: RowKey, row: &[u8]) {
        if self.slots.cached() == self.capacity {
            self.slots.evict();
        }
        if let Some(slot) = self.slots.insert(key.packed())
            && self.keeps_rows
        {
            self.place(slot).copy_from_slice(row);
        }
    }

    pub(super) fn remove(&mut self, key: RowKey) {
        if let Some(slot) = self.slots.get(key.packed()) {
            self.slots.remove(slot);
        }
    }

    pub(super) fn clear(&mut self) {
        while self.slots.evict().is_some() {}
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = RowKey> {
        self.slots.cached_keys().filter_map(RowKey::from_packed)
    }
}
