//! Slots with keys, and the least recently used among those that are not pinned.
//!
//! A slot is free, listed (it is cached: in the recency list) or pinned (a batch in flight uses it:
//! out of the list, with a count). A pinned slot can never be a victim, so "in flight" and
//! "cached" are two budgets over one slab, and a row changes between them without being copied.

use super::index::KeyIndex;

const NIL: u32 = u32::MAX;
/// In `next`: the slot is pinned, and `previous` holds how often.
const PINNED: u32 = u32::MAX - 1;

/// Recency order over a slab of slots.
#[derive(Debug)]
pub struct LruSlots {
    keys: Vec<u64>,
    previous: Vec<u32>,
    next: Vec<u32>,
    index: KeyIndex,
    newest: u32,
    oldest: u32,
    free: u32,
    never_used: u32,
    listed: usize,
    pinned: usize,
}

impl LruSlots {
    /// `capacity` free slots.
    pub fn new(capacity: usize) -> Self {
        Self {
            keys: vec![0; capacity],
            previous: vec![NIL; capacity],
            next: vec![NIL; capacity],
            index: KeyIndex::new(capacity),
            newest: NIL,
            oldest: NIL,
            free: NIL,
            never_used: 0,
            listed: 0,
            pinned: 0,
        }
    }

    /// Bytes of memory for keys, links and index.
    pub fn metadata_bytes(&self) -> usize {
        self.keys.len() * (size_of::<u64>() + 2 * size_of::<u32>()) + self.index.metadata_bytes()
    }

    /// Number of slots.
    pub fn capacity(&self) -> usize {
        self.keys.len()
    }

    /// Number of cached (listed) keys.
    pub fn listed(&self) -> usize {
        self.listed
    }

    /// Number of pinned keys.
    pub fn pinned(&self) -> usize {
        self.pinned
    }

    /// The slot of a key, listed or pinned.
    #[inline]
    pub fn get(&self, key: u64) -> Option<u32> {
        self.index.get(&self.keys, key)
    }

    /// The key in a slot that is in use.
    pub fn key(&self, slot: u32) -> u64 {
        self.keys[slot as usize]
    }

    /// Whether a slot in use is pinned.
    #[inline]
    pub fn is_pinned(&self, slot: u32) -> bool {
        self.next[slot as usize] == PINNED
    }

    /// Gives an absent key a slot, pinned once. `None` if no slot is free.
    pub fn insert_pinned(&mut self, key: u64) -> Option<u32> {
        let slot = if self.free != NIL {
            let slot = self.free;
            self.free = self.next[slot as usize];
            slot
        } else if (self.never_used as usize) < self.keys.len() {
            self.never_used += 1;
            self.never_used - 1
        } else {
            return None;
        };
        self.keys[slot as usize] = key;
        self.index.insert(&self.keys, slot);
        self.next[slot as usize] = PINNED;
        self.previous[slot as usize] = 1;
        self.pinned += 1;
        Some(slot)
    }

    /// Pins a slot in use once more; takes it out of the recency list the first time.
    pub fn pin(&mut self, slot: u32) {
        if self.is_pinned(slot) {
            self.previous[slot as usize] += 1;
            return;
        }
        self.unlink(slot);
        self.next[slot as usize] = PINNED;
        self.previous[slot as usize] = 1;
        self.pinned += 1;
    }

    /// Takes one pin away; the last one makes the slot the most recently used.
    pub fn unpin(&mut self, slot: u32) {
        debug_assert!(self.is_pinned(slot), "unpin follows pin");
        self.previous[slot as usize] -= 1;
        if self.previous[slot as usize] == 0 {
            self.pinned -= 1;
            self.link_newest(slot);
        }
    }

    /// Makes a listed slot the most recently used.
    pub fn touch(&mut self, slot: u32) {
        self.unlink(slot);
        self.link_newest(slot);
    }

    /// The least recently used slot that is not pinned.
    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    /// Frees a listed slot and forgets its key.
    pub fn remove(&mut self, slot: u32) {
        self.unlink(slot);
        self.index.remove(&self.keys, slot);
        self.next[slot as usize] = self.free;
        self.free = slot;
    }

    #[cfg(test)]
    /// Listed slots, from the least to the most recently used.
    fn iter_listed(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.oldest(), |&slot| {
            let newer = self.previous[slot as usize];
            (newer != NIL).then_some(newer)
        })
    }

    fn unlink(&mut self, slot: u32) {
        let (newer, older) = (self.previous[slot as usize], self.next[slot as usize]);
        if newer == NIL {
            self.newest = older;
        } else {
            self.next[newer as usize] = older;
        }
        if older == NIL {
            self.oldest = newer;
        } else {
            self.previous[older as usize] = newer;
        }
        self.listed -= 1;
    }

    fn link_newest(&mut self, slot: u32) {
        self.previous[slot as usize] = NIL;
        self.next[slot as usize] = self.newest;
        if self.newest == NIL {
            self.oldest = slot;
        } else {
            self.previous[self.newest as usize] = slot;
        }
        self.newest = slot;
        self.listed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn metadata_stays_below_the_contract() {
        let slots = LruSlots::new(10_000);
        assert!(slots.metadata_bytes() <= 10_000 * crate::cache::METADATA_BYTES_PER_ROW_MAX);
    }

    proptest! {
        /// Against a vector in recency order, the oldest first.
        #[test]
        fn evicts_as_a_list_would(accesses in prop::collection::vec(0u64..30, 1..300), capacity in 1usize..12) {
            let mut slots = LruSlots::new(capacity + 1);
            let mut model: Vec<u64> = Vec::new();
            for key in accesses {
                let hit = slots.get(key);
                prop_assert_eq!(hit.is_some(), model.contains(&key));
                if let Some(slot) = hit {
                    slots.pin(slot);
                    slots.unpin(slot);
                } else {
                    let slot = slots.insert_pinned(key).expect("one slot more than the model holds");
                    slots.unpin(slot);
                }
                model.retain(|&other| other != key);
                model.push(key);
                if slots.listed() > capacity {
                    let victim = slots.oldest().expect("listed is above zero");
                    prop_assert_eq!(slots.key(victim), model.remove(0));
                    slots.remove(victim);
                }
            }
            let order: Vec<u64> = slots.iter_listed().map(|slot| slots.key(slot)).collect();
            prop_assert_eq!(order, model);
        }
    }
}
