//! What a tier between memory and the home of a table holds: units of one size (rows or home blocks) in slots on
//! its device.

use crate::bits::BitSet;
use crate::cache::{PolicyKind, Slots};
use crate::error::Result;

/// Which units a tier holds, where, and which of them are newer than below.
#[derive(Debug)]
pub struct UnitCache {
    slots: Slots,
    dirty: BitSet,
    first_offset: u64,
    slot_bytes: u64,
}

/// A unit that has to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Which unit.
    pub key: u64,
    /// Where it was on this tier's device.
    pub offset: u64,
    /// Whether it is newer than below.
    pub dirty: bool,
}

impl UnitCache {
    /// `capacity` units of at most `slot_bytes`, from `first_offset` of the device on.
    pub fn new(policy: PolicyKind, capacity: usize, slot_bytes: u64, first_offset: u64, seed: u64) -> Result<Self> {
        let slots = Slots::new(policy, capacity, capacity, seed)?;
        Ok(Self { slots, dirty: BitSet::new(capacity as u64), first_offset, slot_bytes })
    }

    /// Bytes on the tier's device.
    pub fn device_bytes(&self) -> u64 {
        self.slots.capacity() as u64 * self.slot_bytes
    }

    /// Bytes of memory.
    pub fn metadata_bytes(&self) -> usize {
        self.slots.metadata_bytes() + self.dirty.metadata_bytes()
    }

    /// Units held now.
    pub fn len(&self) -> usize {
        self.slots.cached()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn offset(&self, slot: u32) -> u64 {
        self.first_offset + u64::from(slot) * self.slot_bytes
    }

    /// Where a unit is; the policy is told that it was asked for.
    #[inline]
    pub fn touch(&mut self, key: u64) -> Option<u64> {
        let slot = self.slots.get(key)?;
        self.slots.hit(slot, key);
        Some(self.offset(slot))
    }

    /// Where a unit is.
    pub fn peek(&self, key: u64) -> Option<u64> {
        self.slots.get(key).map(|slot| self.offset(slot))
    }

    /// Gives an absent unit a place; says who had to leave for it.
    pub fn insert(&mut self, key: u64) -> (u64, Option<Evicted>) {
        let is_full = self.slots.cached() == self.slots.capacity();
        let evicted = is_full.then(|| self.slots.evict()).flatten().map(|(slot, key)| Evicted {
            key,
            offset: self.offset(slot),
            dirty: self.dirty.remove(u64::from(slot)),
        });
        let slot = self.slots.insert(key).expect("an eviction made room");
        (self.offset(slot), evicted)
    }

    /// Takes a unit out, without writing it anywhere.
    pub fn take(&mut self, key: u64) -> Option<Evicted> {
        let slot = self.slots.get(key)?;
        self.slots.remove(slot);
        Some(Evicted { key, offset: self.offset(slot), dirty: self.dirty.remove(u64::from(slot)) })
    }

    /// The unit is newer than below from now on. It is held.
    pub fn mark_dirty(&mut self, key: u64) {
        let slot = self.slots.get(key).expect("only a held unit becomes dirty");
        self.dirty.insert(u64::from(slot));
    }
}
