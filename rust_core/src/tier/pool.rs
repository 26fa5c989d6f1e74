//! Rows of one width in the fastest tier: cached rows and rows in flight over one slab.

use crate::backend::AlignedBuffer;
use crate::bits::BitSet;
use crate::cache::{LruSlots, METADATA_BYTES_PER_ROW_MAX};
use crate::error::Result;

/// Slots of one width. `cached` rows are listed in recency order, rows in flight are pinned; each
/// has its own budget, and a row changes between the two without being copied.
#[derive(Debug)]
pub struct RowPool {
    /// Keys, recency and pins.
    pub slots: LruSlots,
    /// Slots whose row is newer than below.
    pub dirty: BitSet,
    /// Scratch of an admission: slots that the ticket has already seen. Clear in between.
    pub seen: BitSet,
    weights: AlignedBuffer,
    state: AlignedBuffer,
    weight_floats: usize,
    state_floats: usize,
    cache_rows: usize,
    staging_rows: usize,
}

impl RowPool {
    /// Room for `cache_rows` rows between batches and `staging_rows` rows in flight.
    pub fn new(weight_floats: usize, state_floats: usize, cache_rows: usize, staging_rows: usize) -> Result<Self> {
        let capacity = cache_rows + staging_rows;
        Ok(Self {
            slots: LruSlots::new(capacity),
            dirty: BitSet::new(capacity as u64),
            seen: BitSet::new(capacity as u64),
            weights: AlignedBuffer::try_zeroed(capacity * weight_floats * size_of::<f32>())?,
            state: AlignedBuffer::try_zeroed(capacity * state_floats * size_of::<f32>())?,
            weight_floats,
            state_floats,
            cache_rows,
            staging_rows,
        })
    }

    /// Memory that a pool of so many slots needs at most, metadata included.
    pub fn bytes_for(row_bytes: u64, slots: u64) -> u64 {
        slots.saturating_mul(row_bytes + METADATA_BYTES_PER_ROW_MAX as u64)
    }

    /// Rows that may stay between batches.
    pub fn cache_rows(&self) -> usize {
        self.cache_rows
    }

    /// Rows that may be in flight.
    pub fn staging_rows(&self) -> usize {
        self.staging_rows
    }

    /// Bytes of one row in memory.
    pub fn row_bytes(&self) -> usize {
        (self.weight_floats + self.state_floats) * size_of::<f32>()
    }

    /// Bytes of keys, links, index and bits.
    pub fn metadata_bytes(&self) -> usize {
        self.slots.metadata_bytes() + self.dirty.metadata_bytes() + self.seen.metadata_bytes()
    }

    /// All weights; the row of a slot starts at `slot * weight_floats`.
    pub fn weights(&self) -> &[f32] {
        self.weights.as_f32()
    }

    /// All weights and all state, to update.
    pub fn rows_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (self.weights.as_f32_mut(), self.state.as_f32_mut())
    }

    /// Weights and state of one row.
    pub fn row(&self, slot: u32) -> (&[f32], &[f32]) {
        let slot = slot as usize;
        let weights = &self.weights.as_f32()[slot * self.weight_floats..(slot + 1) * self.weight_floats];
        let state = &self.state.as_f32()[slot * self.state_floats..(slot + 1) * self.state_floats];
        (weights, state)
    }

    /// Weights and state of one row, to fill.
    pub fn row_mut(&mut self, slot: u32) -> (&mut [f32], &mut [f32]) {
        let slot = slot as usize;
        let weights = &mut self.weights.as_f32_mut()[slot * self.weight_floats..(slot + 1) * self.weight_floats];
        let state = &mut self.state.as_f32_mut()[slot * self.state_floats..(slot + 1) * self.state_floats];
        (weights, state)
    }

    /// Frees slots until the cache is within its budget. Calls `write_back(key, weights, state)`
    /// for each victim that is newer than below; a clean victim is dropped.
    pub fn trim(&mut self, mut write_back: impl FnMut(u64, &[f32], &[f32])) {
        while self.slots.listed() > self.cache_rows {
            let Some(slot) = self.slots.oldest() else { return };
            if self.dirty.remove(u64::from(slot)) {
                let (weights, state) = self.row(slot);
                write_back(self.slots.key(slot), weights, state);
            }
            self.slots.remove(slot);
        }
    }
}
