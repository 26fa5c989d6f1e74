//! The least recently used row leaves.

use super::Policy;
use crate::cache::list::{Links, List};

/// One list in order of use.
#[derive(Debug, Clone)]
pub struct Lru {
    links: Links,
    list: List,
}

impl Lru {
    /// For `capacity` slots.
    pub fn new(capacity: usize) -> Self {
        Self { links: Links::new(capacity), list: List::EMPTY }
    }
}

impl Policy for Lru {
    #[inline]
    fn admit(&mut self, slot: u32, _key: u64) {
        self.links.push_newest(&mut self.list, slot);
    }

    #[inline]
    fn hit(&mut self, slot: u32, _key: u64) {
        if slot != self.list.newest && !self.links.is_out(slot) {
            self.links.unlink(&mut self.list, slot);
            self.links.push_newest(&mut self.list, slot);
        }
    }

    #[inline]
    fn evict(&mut self, _keys: &[u64]) -> u32 {
        self.links.pop_oldest(&mut self.list)
    }

    #[inline]
    fn detach(&mut self, slot: u32) {
        if !self.links.is_out(slot) {
            self.links.unlink(&mut self.list, slot);
        }
    }

    #[inline]
    fn attach(&mut self, slot: u32) {
        self.links.push_newest(&mut self.list, slot);
    }

    #[inline]
    fn is_detached(&self, slot: u32) -> bool {
        self.links.is_out(slot)
    }

    fn forget(&mut self, slot: u32) {
        self.detach(slot);
    }

    fn coldest_first(&self) -> Vec<u32> {
        self.links.iter(self.list).collect()
    }

    fn metadata_bytes(&self) -> usize {
        self.links.metadata_bytes()
    }
}
