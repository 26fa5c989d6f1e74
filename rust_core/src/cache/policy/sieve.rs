//! SIEVE (Zhang, Yang, Yue, Vigfusson, Rashmi; NSDI 2024): rows stay in order of arrival, and a hand goes from
//! the oldest to the newest, taking out the first row that was not used since it last came by.

use super::Policy;
use crate::bits::BitSet;
use crate::cache::list::{Links, List, NIL};

/// A list in order of arrival, two bits per slot, and the hand.
#[derive(Debug, Clone)]
pub struct Sieve {
    links: Links,
    list: List,
    visited: BitSet,
    /// In flight; they keep their place in the list.
    detached: BitSet,
    hand: u32,
}

impl Sieve {
    /// For `capacity` slots.
    pub fn new(capacity: usize) -> Self {
        let bits = || BitSet::new(capacity as u64);
        Self { links: Links::new(capacity), list: List::EMPTY, visited: bits(), detached: bits(), hand: NIL }
    }
}

impl Policy for Sieve {
    #[inline]
    fn admit(&mut self, slot: u32, _key: u64) {
        self.links.push_newest(&mut self.list, slot);
    }

    #[inline]
    fn hit(&mut self, slot: u32, _key: u64) {
        self.visited.insert(u64::from(slot));
    }

    #[inline]
    fn evict(&mut self, _keys: &[u64]) -> u32 {
        let mut slot = if self.hand == NIL { self.list.oldest } else { self.hand };
        while self.detached.contains(u64::from(slot)) || self.visited.remove(u64::from(slot)) {
            let newer = self.links.newer(slot);
            slot = if newer == NIL { self.list.oldest } else { newer };
        }
        self.hand = self.links.newer(slot);
        self.links.unlink(&mut self.list, slot);
        slot
    }

    #[inline]
    fn detach(&mut self, slot: u32) {
        self.detached.insert(u64::from(slot));
    }

    #[inline]
    fn attach(&mut self, slot: u32) {
        self.detached.remove(u64::from(slot));
        if self.links.is_out(slot) {
            self.links.push_newest(&mut self.list, slot);
        }
    }

    #[inline]
    fn is_detached(&self, slot: u32) -> bool {
        self.links.is_out(slot) || self.detached.contains(u64::from(slot))
    }

    fn forget(&mut self, slot: u32) {
        if !self.links.is_out(slot) {
            if self.hand == slot {
                self.hand = self.links.newer(slot);
            }
            self.links.unlink(&mut self.list, slot);
        }
        self.detached.remove(u64::from(slot));
        self.visited.remove(u64::from(slot));
    }

    /// In order of arrival: first those that were not used.
    fn coldest_first(&self) -> Vec<u32> {
        let used = |slot: &u32| self.visited.contains(u64::from(*slot));
        let attached = |slot: &u32| !self.detached.contains(u64::from(*slot));
        let all = || self.links.iter(self.list).filter(attached);
        all().filter(|slot| !used(slot)).chain(all().filter(used)).collect()
    }

    fn metadata_bytes(&self) -> usize {
        self.links.metadata_bytes() + self.visited.metadata_bytes() + self.detached.metadata_bytes()
    }
}
