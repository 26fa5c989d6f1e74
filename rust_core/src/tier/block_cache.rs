//! A tier between the fastest and the home tier: a cache of home blocks on a block device.

use super::layout::BlockKey;
use crate::bits::BitSet;
use crate::cache::LruSlots;

/// Which home blocks a middle tier holds, where, and which of them are newer than below.
#[derive(Debug)]
pub struct BlockCache {
    slots: LruSlots,
    dirty: BitSet,
    slot_bytes: u64,
}

/// A block that has to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Which block.
    pub key: BlockKey,
    /// Where it was on this tier's device.
    pub offset: u64,
    /// Whether it is newer than the tier below.
    pub dirty: bool,
}

impl BlockCache {
    /// `capacity` blocks of at most `slot_bytes`.
    pub fn new(capacity: usize, slot_bytes: u64) -> Self {
        Self { slots: LruSlots::new(capacity), dirty: BitSet::new(capacity as u64), slot_bytes }
    }

    /// Bytes that the tier's device must hold.
    pub fn device_bytes(&self) -> u64 {
        self.slots.capacity() as u64 * self.slot_bytes
    }

    /// Bytes of memory.
    pub fn metadata_bytes(&self) -> usize {
        self.slots.metadata_bytes() + self.dirty.metadata_bytes()
    }

    /// Blocks held now.
    pub fn len(&self) -> usize {
        self.slots.listed()
    }

    /// Whether no block is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a block is; it becomes the most recently used.
    pub fn touch(&mut self, key: BlockKey) -> Option<u64> {
        let slot = self.slots.get(key.0)?;
        self.slots.touch(slot);
        Some(u64::from(slot) * self.slot_bytes)
    }

    /// Where a block is, without using it.
    pub fn peek(&self, key: BlockKey) -> Option<u64> {
        self.slots.get(key.0).map(|slot| u64::from(slot) * self.slot_bytes)
    }

    /// Gives an absent block a place; says who had to leave for it.
    pub fn insert(&mut self, key: BlockKey) -> (u64, Option<Evicted>) {
        let evicted = (self.slots.listed() == self.slots.capacity()).then(|| self.evict()).flatten();
        let slot = self.slots.insert_pinned(key.0).expect("an eviction made room");
        self.slots.unpin(slot);
        (u64::from(slot) * self.slot_bytes, evicted)
    }

    fn evict(&mut self) -> Option<Evicted> {
        let slot = self.slots.oldest()?;
        let evicted = Evicted {
            key: BlockKey(self.slots.key(slot)),
            offset: u64::from(slot) * self.slot_bytes,
            dirty: self.dirty.remove(u64::from(slot)),
        };
        self.slots.remove(slot);
        Some(evicted)
    }

    /// The block is newer than below from now on. It is held.
    pub fn mark_dirty(&mut self, key: BlockKey) {
        let slot = self.slots.get(key.0).expect("only a held block becomes dirty");
        self.dirty.insert(u64::from(slot));
    }
}
