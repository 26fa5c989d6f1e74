//! Any row leaves: the floor that every other policy is measured against.

use super::Policy;
use crate::bits::BitSet;
use crate::rng;

/// A seeded choice among all slots.
#[derive(Debug, Clone)]
pub struct Random {
    key: u64,
    draws: u64,
    admitted: u32,
    /// In flight, or not in use.
    detached: BitSet,
}

impl Random {
    /// For `capacity` slots; the choices follow from `seed`.
    pub fn new(capacity: usize, seed: u64) -> Self {
        Self { key: rng::stream(seed, 0), draws: 0, admitted: 0, detached: BitSet::new(capacity as u64) }
    }
}

impl Policy for Random {
    #[inline]
    fn admit(&mut self, slot: u32, _key: u64) {
        // A cache fills its slots in order and then gives a victim's slot away again.
        self.admitted = self.admitted.max(slot + 1);
        self.detached.remove(u64::from(slot));
    }

    #[inline]
    fn hit(&mut self, _slot: u32, _key: u64) {}

    #[inline]
    fn evict(&mut self, _keys: &[u64]) -> u32 {
        self.draws += 1;
        let mut slot = ((u128::from(rng::draw(self.key, self.draws)) * u128::from(self.admitted)) >> 64) as u32;
        // Rows in flight are passed over.
        while self.detached.contains(u64::from(slot)) {
            slot = if slot + 1 == self.admitted { 0 } else { slot + 1 };
        }
        self.detached.insert(u64::from(slot));
        slot
    }

    #[inline]
    fn detach(&mut self, slot: u32) {
        self.detached.insert(u64::from(slot));
    }

    #[inline]
    fn attach(&mut self, slot: u32) {
        self.detached.remove(u64::from(slot));
    }

    #[inline]
    fn is_detached(&self, slot: u32) -> bool {
        self.detached.contains(u64::from(slot))
    }

    fn forget(&mut self, slot: u32) {
        self.detach(slot);
    }

    fn coldest_first(&self) -> Vec<u32> {
        (0..self.admitted).filter(|&slot| !self.detached.contains(u64::from(slot))).collect()
    }

    fn metadata_bytes(&self) -> usize {
        self.detached.metadata_bytes()
    }
}
