//! CLOCK (Corbato 1968): a hand goes round, and passes over a row that was used since it last came by.

use super::Policy;
use crate::bits::BitSet;

/// Two bits per slot, and the hand.
#[derive(Debug, Clone)]
pub struct Clock {
    referenced: BitSet,
    /// In flight, or not in use.
    detached: BitSet,
    hand: u32,
    admitted: u32,
}

impl Clock {
    /// For `capacity` slots.
    pub fn new(capacity: usize) -> Self {
        let bits = || BitSet::new(capacity as u64);
        Self { referenced: bits(), detached: bits(), hand: 0, admitted: 0 }
    }

    fn after(&self, slot: u32) -> u32 {
        if slot + 1 == self.admitted { 0 } else { slot + 1 }
    }
}

impl Policy for Clock {
    #[inline]
    fn admit(&mut self, slot: u32, _key: u64) {
        self.admitted = self.admitted.max(slot + 1);
        self.detached.remove(u64::from(slot));
    }

    #[inline]
    fn hit(&mut self, slot: u32, _key: u64) {
        self.referenced.insert(u64::from(slot));
    }

    #[inline]
    fn evict(&mut self, _keys: &[u64]) -> u32 {
        while self.detached.contains(u64::from(self.hand)) || self.referenced.remove(u64::from(self.hand)) {
            self.hand = self.after(self.hand);
        }
        let victim = self.hand;
        self.detached.insert(u64::from(victim));
        self.hand = self.after(self.hand);
        victim
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
        self.detached.insert(u64::from(slot));
        self.referenced.remove(u64::from(slot));
    }

    /// From the hand on: first those that were not used.
    fn coldest_first(&self) -> Vec<u32> {
        let attached = |slot: &u32| !self.detached.contains(u64::from(*slot));
        let round = || (self.hand..self.admitted).chain(0..self.hand.min(self.admitted)).filter(attached);
        let used = |slot: &u32| self.referenced.contains(u64::from(*slot));
        round().filter(|slot| !used(slot)).chain(round().filter(used)).collect()
    }

    fn metadata_bytes(&self) -> usize {
        self.referenced.metadata_bytes() + self.detached.metadata_bytes()
    }
}
