//! The row that was used least often leaves; of several, the one that was used least recently.
//!
//! Counts are those since the row came in (no memory of rows that left) and stop at 255: a row that was
//! used so often competes with others like it by recency alone.

use super::Policy;
use crate::cache::list::{Links, List};

const COUNTS: usize = 256;

/// A list for each count, in order of use.
#[derive(Debug, Clone)]
pub struct Lfu {
    links: Links,
    counts: Vec<u8>,
    lists: Box<[List; COUNTS]>,
    /// No list below it has a slot.
    least: usize,
}

impl Lfu {
    /// For `capacity` slots.
    pub fn new(capacity: usize) -> Self {
        Self {
            links: Links::new(capacity),
            counts: vec![0; capacity],
            lists: Box::new([List::EMPTY; COUNTS]),
            least: 0,
        }
    }
}

impl Lfu {
    /// Whether one row alone has not been used since it came in: the next miss takes it out.
    pub fn has_lone_newcomer(&self) -> bool {
        !self.lists[0].is_empty() && self.lists[0].oldest == self.lists[0].newest
    }
}

impl Policy for Lfu {
    #[inline]
    fn admit(&mut self, slot: u32, _key: u64) {
        self.counts[slot as usize] = 0;
        self.links.push_newest(&mut self.lists[0], slot);
        self.least = 0;
    }

    #[inline]
    fn hit(&mut self, slot: u32, _key: u64) {
        let count = &mut self.counts[slot as usize];
        let before = usize::from(*count);
        *count = count.saturating_add(1);
        if !self.links.is_out(slot) {
            self.links.unlink(&mut self.lists[before], slot);
            self.links.push_newest(&mut self.lists[usize::from(*count)], slot);
        }
    }

    #[inline]
    fn evict(&mut self, _keys: &[u64]) -> u32 {
        while self.lists[self.least].is_empty() {
            self.least += 1;
        }
        self.links.pop_oldest(&mut self.lists[self.least])
    }

    #[inline]
    fn detach(&mut self, slot: u32) {
        if !self.links.is_out(slot) {
            self.links.unlink(&mut self.lists[usize::from(self.counts[slot as usize])], slot);
        }
    }

    #[inline]
    fn attach(&mut self, slot: u32) {
        let count = usize::from(self.counts[slot as usize]);
        self.links.push_newest(&mut self.lists[count], slot);
        self.least = self.least.min(count);
    }

    #[inline]
    fn is_detached(&self, slot: u32) -> bool {
        self.links.is_out(slot)
    }

    fn forget(&mut self, slot: u32) {
        self.detach(slot);
    }

    fn coldest_first(&self) -> Vec<u32> {
        self.lists.iter().flat_map(|&list| self.links.iter(list)).collect()
    }

    fn metadata_bytes(&self) -> usize {
        self.links.metadata_bytes() + self.counts.len() + size_of_val(&*self.lists)
    }
}
