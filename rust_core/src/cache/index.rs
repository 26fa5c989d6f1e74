//! Key -> slot: open addressing with linear probing and deletion by backward shift.
//!
//! A bucket is one 32-bit word: the slot, and above it as many bits of the key's hash as are left
//! (14 for 200,000 slots), so that a probe reads the key of nearly no other slot. The keys themselves are
//! in the caller's array. That makes 6.2 bytes per slot at the load of 20/31 that is used here, where a
//! general map would need a second copy of the key.

use crate::rng;

const EMPTY: u32 = u32::MAX;
/// Keys that are looked up together.
pub const GROUP: usize = 32;

/// An index over slots `0..capacity`, whose keys live in a slice that the caller passes in.
#[derive(Debug, Clone)]
pub struct KeyIndex {
    buckets: Vec<u32>,
    /// The bits of a bucket that hold the slot.
    slot_mask: u32,
}

impl KeyIndex {
    /// For at most `capacity` keys at a time.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity < EMPTY as usize, "slots are 32-bit numbers");
        // No slot has all bits of the mask, so no bucket in use looks empty.
        let slot_mask = u32::MAX >> (capacity as u32 | 1).leading_zeros();
        Self { buckets: vec![EMPTY; capacity * 31 / 20 + 2], slot_mask }
    }

    /// Bytes of memory.
    pub fn metadata_bytes(&self) -> usize {
        self.buckets.len() * size_of::<u32>()
    }

    /// Home bucket of a hash. The range reduction is multiplicative, so any length works; it uses the
    /// upper bits, the tag the lower ones.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize
    }

    #[inline]
    fn next(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    /// The slot of a key.
    #[inline]
    pub fn get(&self, keys: &[u64], key: u64) -> Option<u32> {
        let hash = rng::mix(key);
        let tag = hash as u32 & !self.slot_mask;
        let mut bucket = self.home(hash);
        loop {
            let word = self.buckets[bucket];
            if word == EMPTY {
                return None;
            }
            let slot = word & self.slot_mask;
            if word & !self.slot_mask == tag && keys[slot as usize] == key {
                return Some(slot);
            }
            bucket = self.next(bucket);
        }
    }

    /// The slots of several keys. The reads of all of them are under way at once, where one `get` after the other would
    /// wait for two reads each.
    #[inline]
    pub fn get_group(&self, keys: &[u64], wanted: &[u64; GROUP], found: &mut [u32; GROUP]) {
        let mut words = [0u32; GROUP];
        for (word, &key) in words.iter_mut().zip(wanted) {
            *word = self.buckets[self.home(rng::mix(key))];
        }
        for ((word, &key), found) in words.iter().zip(wanted).zip(found.iter_mut()) {
            let slot = word & self.slot_mask;
            // An empty bucket has all bits of the mask, which is no slot.
            let is_it = keys.get(slot as usize) == Some(&key);
            *found = if is_it && *word != EMPTY { slot } else { EMPTY };
        }
        for (found, &key) in found.iter_mut().zip(wanted) {
            if *found == EMPTY {
                *found = self.get(keys, key).unwrap_or(EMPTY);
            }
        }
    }

    /// Adds a key that is not present; `keys[slot]` already holds it.
    pub fn insert(&mut self, keys: &[u64], slot: u32) {
        let hash = rng::mix(keys[slot as usize]);
        let mut bucket = self.home(hash);
        while self.buckets[bucket] != EMPTY {
            bucket = self.next(bucket);
        }
        self.buckets[bucket] = (hash as u32 & !self.slot_mask) | slot;
    }

    /// Removes the key of a slot that is present.
    pub fn remove(&mut self, keys: &[u64], slot: u32) {
        let hash = rng::mix(keys[slot as usize]);
        let word = (hash as u32 & !self.slot_mask) | slot;
        let mut hole = self.home(hash);
        while self.buckets[hole] != word {
            hole = self.next(hole);
        }
        // Entries behind the hole move up if their home does not lie between the hole and them.
        let mut bucket = hole;
        loop {
            bucket = self.next(bucket);
            let word = self.buckets[bucket];
            if word == EMPTY {
                break;
            }
            let home = self.home(rng::mix(keys[(word & self.slot_mask) as usize]));
            let stays = if hole <= bucket { hole < home && home <= bucket } else { hole < home || home <= bucket };
            if !stays {
                self.buckets[hole] = word;
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
                    index.remove(&keys, slot);
                    free.push(slot);
                }
            }
            let wanted: [u64; GROUP] = std::array::from_fn(|n| n as u64);
            let mut found = [0; GROUP];
            index.get_group(&keys, &wanted, &mut found);
            for (key, slot) in wanted.iter().zip(found) {
                prop_assert_eq!(model.get(key).copied(), (slot != EMPTY).then_some(slot));
            }
            for (key, slot) in model {
                prop_assert_eq!(index.get(&keys, key), Some(slot));
            }
        }
    }
}
