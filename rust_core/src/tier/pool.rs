//! Rows of one width in the fastest tier: resident rows, cached rows and rows in flight over one slab.

use crate::backend::AlignedBuffer;
use crate::bits::BitSet;
use crate::cache::{GROUP, KeySpace, METADATA_BYTES_PER_ROW_MAX, PolicyKind, Slots};
use crate::error::Result;
use crate::planted::{Fault, is_planted};

/// How many rows a pool has room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolSize {
    /// Rows whose home is here; they have the first places.
    pub resident_rows: usize,
    /// Rows that may stay between batches.
    pub cache_rows: usize,
    /// Rows that may be in flight.
    pub staging_rows: usize,
}

impl PoolSize {
    /// All of them.
    pub fn rows(&self) -> usize {
        self.resident_rows + self.cache_rows + self.staging_rows
    }
}

/// A slab of rows of one width. Cached rows are ordered by the policy, rows in flight are pinned; each has its own
/// budget, and a row changes between the two without being copied.
#[derive(Debug)]
pub struct RowPool {
    slots: Slots,
    /// Slots whose row is newer than below.
    dirty: BitSet,
    /// Scratch of an admission: slots that the ticket has already seen. Clear in between.
    seen: BitSet,
    weights: AlignedBuffer,
    state: AlignedBuffer,
    weight_bytes: usize,
    state_floats: usize,
    size: PoolSize,
}

impl RowPool {
    /// An empty pool for these rows.
    pub fn new(
        weight_bytes: usize,
        state_floats: usize,
        size: PoolSize,
        policy: PolicyKind,
        seed: u64,
        rows: &KeySpace,
    ) -> Result<Self> {
        let slots = size.cache_rows + size.staging_rows;
        Ok(Self {
            slots: Slots::over(policy, slots, size.cache_rows, seed, Some(rows))?,
            dirty: BitSet::new(slots as u64),
            seen: BitSet::new(slots as u64),
            weights: AlignedBuffer::try_zeroed(size.rows() * weight_bytes)?,
            state: AlignedBuffer::try_zeroed(size.rows() * state_floats * size_of::<f32>())?,
            weight_bytes,
            state_floats,
            size,
        })
    }

    /// Memory that a pool of so many rows needs at most, metadata included.
    pub fn bytes_for(row_bytes: u64, size: PoolSize) -> u64 {
        let slots = (size.cache_rows + size.staging_rows) as u64;
        (size.rows() as u64)
            .saturating_mul(row_bytes)
            .saturating_add(slots.saturating_mul(METADATA_BYTES_PER_ROW_MAX as u64))
    }

    /// Its budgets.
    pub fn size(&self) -> PoolSize {
        self.size
    }

    /// Rows cached between batches now.
    pub fn cached(&self) -> usize {
        self.slots.cached()
    }

    /// Rows in flight now.
    pub fn pinned(&self) -> usize {
        self.slots.pinned()
    }

    /// Bytes of one row in memory.
    pub fn row_bytes(&self) -> usize {
        self.weight_bytes + self.state_floats * size_of::<f32>()
    }

    /// Bytes of keys, policy, index and bits.
    pub fn metadata_bytes(&self) -> usize {
        self.slots.metadata_bytes() + self.dirty.metadata_bytes() + self.seen.metadata_bytes()
    }

    fn place(&self, slot: u32) -> u32 {
        self.size.resident_rows as u32 + slot
    }

    fn slot(&self, place: u32) -> u32 {
        place - self.size.resident_rows as u32
    }

    /// The place of a key that is cached or in flight.
    #[inline]
    pub fn get(&self, key: u64) -> Option<u32> {
        self.slots.get(key).map(|slot| self.place(slot))
    }

    /// The key at a place in use.
    pub fn key(&self, place: u32) -> u64 {
        self.slots.key(self.slot(place))
    }

    /// Whether a place in use is that of a row in flight.
    pub fn is_pinned(&self, place: u32) -> bool {
        self.slots.is_pinned(self.slot(place))
    }

    /// Looks several keys up; `admit` takes what it finds as a hint.
    #[inline]
    pub fn look_up(&self, keys: &[u64; GROUP], hints: &mut [u32; GROUP]) {
        self.slots.get_group(keys, hints);
    }

    /// A row of the ticket that is being admitted: it is asked for and pinned, once a ticket. Gives its place, and how
    /// this ticket met it. `None` if there is no room. The hint is from this admission: what was found then is still there,
    /// what was not may have come since.
    #[inline]
    pub fn admit(&mut self, key: u64, hint: u32) -> Option<(u32, Met)> {
        let known = if hint == u32::MAX { self.slots.get(key) } else { Some(hint) };
        let (slot, met) = if let Some(slot) = known {
            if is_planted(Fault::LostPin) && self.slots.is_pinned(slot) {
                return Some((self.place(slot), Met::Before));
            }
            if !self.seen.insert(u64::from(slot)) {
                return Some((self.place(slot), Met::Before));
            }
            self.slots.hit(slot, key);
            (slot, if self.slots.is_pinned(slot) { Met::InFlight } else { Met::Cached })
        } else {
            let slot = self.slots.insert(key)?;
            self.seen.insert(u64::from(slot));
            (slot, Met::New)
        };
        self.slots.pin(slot);
        Some((self.place(slot), met))
    }

    /// The admission is over.
    pub fn forget_seen(&mut self, place: u32) {
        let slot = self.slot(place);
        self.seen.remove(u64::from(slot));
    }

    /// Takes one pin away; gives whether that was the last one. The row is then to be kept or to leave.
    #[inline]
    #[must_use]
    pub fn unpin(&mut self, place: u32) -> bool {
        self.slots.unpin(self.slot(place))
    }

    /// A row without pins is cached from now on.
    pub fn keep(&mut self, place: u32) {
        self.slots.keep(self.slot(place));
    }

    /// A row without pins leaves. `leave(key, weights, state, is_dirty)` sees it last.
    pub fn dismiss(&mut self, place: u32, leave: impl FnOnce(u64, &[u8], &[f32], bool)) {
        let slot = self.slot(place);
        let is_dirty = self.dirty.remove(u64::from(slot));
        let (weights, state) = self.row(place);
        leave(self.slots.key(slot), weights, state, is_dirty);
        self.slots.remove_pinned(slot);
    }

    /// Lets one row more leave if the cache is beyond its budget; gives whether it was. `leave` as in `dismiss`.
    pub fn trim_one(&mut self, leave: impl FnOnce(u64, &[u8], &[f32], bool)) -> bool {
        if self.slots.cached() <= self.size.cache_rows {
            return false;
        }
        let Some((slot, key)) = self.slots.evict() else { return false };
        let is_dirty = self.dirty.remove(u64::from(slot));
        let (weights, state) = self.row(self.place(slot));
        leave(key, weights, state, is_dirty);
        true
    }

    /// The row is newer than below from now on. Resident rows have nothing below.
    #[inline]
    pub fn mark_dirty(&mut self, place: u32) {
        if is_planted(Fault::SkippedDirtyBit) && place.is_multiple_of(3) {
            return;
        }
        if place >= self.size.resident_rows as u32 {
            let slot = self.slot(place);
            self.dirty.insert(u64::from(slot));
        }
    }

    /// Rows that are newer than below, by key and place.
    pub fn dirty_rows(&self) -> Vec<(u64, u32)> {
        self.dirty.iter().map(|slot| (self.slots.key(slot as u32), self.place(slot as u32))).collect()
    }

    /// How many rows are newer than below.
    pub fn dirty_count(&self) -> u64 {
        self.dirty.count()
    }

    /// The row was written down.
    pub fn mark_clean(&mut self, place: u32) {
        let slot = self.slot(place);
        self.dirty.remove(u64::from(slot));
    }

    /// Tells the policy what a later batch will ask for.
    pub fn announce(&mut self, keys: &[u64]) -> Result<()> {
        self.slots.announce(keys)
    }

    /// Tells the policy that the next announced batch begins.
    pub fn begin_batch(&mut self) {
        self.slots.begin_batch();
    }

    /// All weights; the row at a place starts at `place * weight_bytes`.
    pub fn weights(&self) -> &[u8] {
        &self.weights
    }

    /// All weights and all state, to update, and whose they are.
    pub fn split_mut(&mut self) -> (&mut [u8], &mut [f32], PoolKeys<'_>) {
        let keys = PoolKeys { slots: &self.slots, resident_rows: self.size.resident_rows as u32 };
        (&mut self.weights, self.state.as_f32_mut(), keys)
    }

    /// Weights and state of one row.
    pub fn row(&self, place: u32) -> (&[u8], &[f32]) {
        let place = place as usize;
        let weights = &self.weights[place * self.weight_bytes..(place + 1) * self.weight_bytes];
        let state = &self.state.as_f32()[place * self.state_floats..(place + 1) * self.state_floats];
        (weights, state)
    }

    /// Weights and state of one row, to fill.
    pub fn row_mut(&mut self, place: u32) -> (&mut [u8], &mut [f32]) {
        let place = place as usize;
        let weights = &mut self.weights[place * self.weight_bytes..(place + 1) * self.weight_bytes];
        let state = &mut self.state.as_f32_mut()[place * self.state_floats..(place + 1) * self.state_floats];
        (weights, state)
    }

    /// Fills a row from its image.
    pub fn fill(&mut self, place: u32, image: &[u8]) {
        let (weights, state) = self.row_mut(place);
        let (image, rest) = image.split_at(weights.len());
        weights.copy_from_slice(image);
        copy_floats(rest, state);
    }
}

/// Whose the rows of a pool are.
#[derive(Debug, Clone, Copy)]
pub struct PoolKeys<'a> {
    slots: &'a Slots,
    resident_rows: u32,
}

impl PoolKeys<'_> {
    /// The key at a place in use; nothing if a resident row is there.
    pub fn of(&self, place: u32) -> Option<u64> {
        place.checked_sub(self.resident_rows).map(|slot| self.slots.key(slot))
    }
}

/// Floats from their bytes.
pub fn copy_floats(from: &[u8], to: &mut [f32]) {
    for (float, bytes) in to.iter_mut().zip(from.as_chunks().0) {
        *float = f32::from_ne_bytes(*bytes);
    }
}

/// How the ticket that is being admitted met a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// In a lookup of its own before this one.
    Before,
    /// Another ticket has it in flight.
    InFlight,
    /// In the cache.
    Cached,
    /// Nowhere in memory; its row is to be filled.
    New,
}
