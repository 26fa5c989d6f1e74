//! Key -> slot: open addressing with linear probing and deletion by backward shift.
//!
//! The table stores slots only; the key of a slot is in the caller's array. That is 7.3 bytes per
//! slot at the load of 11/20 that is used here, where a general map would need a second copy of the
//! key. At a load of 4/5 a probe for an absent key costs 13 steps, here 3.

use crate::rng;

const EMPTY: u32 = u32::MAX;

/// An index over slots `0..capacity`, whose keys live in a slice that the caller passes in.
#[derive(Debug)]
pub struct KeyIndex {
    buckets: Vec<u32>,
}

impl KeyIndex {
    /// For at most `capacity` keys at a time.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity < EMPTY as usize, "slots are 32-bit numbers");
        Self { buckets: vec![EMPTY; capacity * 20 / 11 + 2] }
    }

    /// Bytes of memory.
    pub fn metadata_bytes(&self) -> usize {
        self.buckets.len() * size_of::<u32>()
    }

    /// Home bucket of a key. The range reduction is multiplicative, so any length works.
    #[inline]
    fn home(&self, key: u64) -> usize {
        ((u128::from(rng::mix(key)) * self.buckets.len() as u128) >> 64) as usize
    }

    #[inline]
    fn next(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    /// The slot of a key.
    #[inline]
    pub fn get(&self, keys: &[u64], key: u64) -> Option<u32> {
        let mut bucket = self.home(key);
        loop {
            let slot = self.buckets[bucket];
            if slot == EMPTY {
                return None;
            }
            if keys[slot as usize] == key {
                return Some(slot);
            }
            bucket = self.next(bucket);
        }
    }

    /// Adds a key that is not present; `keys[slot]` already holds it.
    pub fn insert(&mut self, keys: &[u64], slot: u32) {
        let mut bucket = self.home(keys[slot as usize]);
        while self.buckets[bucket] != EMPTY {
            bucket = self.next(bucket);
        }
        self.buckets[bucket] = slot;
    }

    /// Removes a key that is present.
    pub fn remove(&mut self, keys: &[u64], key: u64) {
        let mut hole = self.home(key);
        while keys[self.buckets[hole] as usize] != key {
            hole = self.next(hole);
        }
        // Entries behind the hole move up if their home does not lie between the hole and them.
        let mut bucket = hole;
        loop {
            bucket = self.next(bucket);
            let slot = self.buckets[bucket];
            if slot == EMPTY {
                break;
            }
            let home = self.home(keys[slot as usize]);
            let stays = if hole <= bucket { hole < home && home <= bucket } else { hole < home || home <= bucket };
            if !stays {
                self.buckets[hole] = slot;
                hole = bucket;
            }
        }
        self.buckets[hole] = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn behaves_as_a_hash_map(actions in prop::collection::vec((0u64..40, any::<bool>()), 0..400)) {
            const CAPACITY: usize = 24;
            let mut index = KeyIndex::new(CAPACITY);
            let mut keys = vec![0u64; CAPACITY];
            let mut free: Vec<u32> = (0..CAPACITY as u32).collect();
            let mut model: HashMap<u64, u32> = HashMap::new();
            for (key, add) in actions {
                prop_assert_eq!(index.get(&keys, key), model.get(&key).copied());
                if add && !model.contains_key(&key) {
                    if let Some(slot) = free.pop() {
                        keys[slot as usize] = key;
                        index.insert(&keys, slot);
                        model.insert(key, slot);
                    }
                } else if !add && let Some(slot) = model.remove(&key) {
                    index.remove(&keys, key);
                    free.push(slot);
                }
            }
            for (key, slot) in model {
                prop_assert_eq!(index.get(&keys, key), Some(slot));
            }
        }
    }
}
