//! Slots with keys, a policy that says which of them leaves, and pins that keep it from leaving.
//!
//! A slot is free, cached (the policy may choose it) or pinned (a batch in flight uses it, once or several times). A
//! pinned slot can never be a victim, so "in flight" and "cached" are two budgets over one slab, and a row
//! changes between them without being copied.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::finder::{Finder, KeySpace};
use super::index::GROUP;
use super::policy::{AnyPolicy, Policy, PolicyKind};
use crate::error::Result;
use crate::rng::MixHasher;

/// No slot, and what a look for an absent key gives.
pub(crate) const NONE: u32 = u32::MAX;

/// Keys in slots.
#[derive(Debug, Clone)]
pub struct Slots {
    /// Of a free slot: the next free one.
    keys: Vec<u64>,
    index: Finder,
    policy: AnyPolicy,
    /// How often a slot is pinned beyond the first time. Whether it is pinned at all the policy knows.
    further_pins: HashMap<u32, u32, BuildHasherDefault<MixHasher>>,
    free: u32,
    never_used: u32,
    cached: usize,
    pinned: usize,
}

impl Slots {
    /// `slots` free slots, of which at most `rows` are cached at a time; the caller keeps to that.
    ///
    /// # Errors
    ///
    /// `Config` if the policy knows the future.
    pub fn new(kind: PolicyKind, slots: usize, rows: usize, seed: u64) -> Result<Self> {
        Self::over(kind, slots, rows, seed, None)
    }

    /// As `new`; that there are no other keys than these may make finding them faster.
    pub fn over(kind: PolicyKind, slots: usize, rows: usize, seed: u64, space: Option<&KeySpace>) -> Result<Self> {
        Ok(Self {
            keys: vec![0; slots],
            index: Finder::new(slots, space),
            policy: AnyPolicy::new(kind, slots, rows, seed)?,
            further_pins: HashMap::default(),
            free: NONE,
            never_used: 0,
            cached: 0,
            pinned: 0,
        })
    }

    /// Bytes of memory for keys, index and policy. Rows that several batches in flight share cost some 16 bytes more each.
    pub fn metadata_bytes(&self) -> usize {
        self.keys.len() * size_of::<u64>() + self.index.metadata_bytes() + self.policy.metadata_bytes()
    }

    /// Number of slots.
    pub fn capacity(&self) -> usize {
        self.keys.len()
    }

    /// Number of cached keys.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Number of pinned keys.
    pub fn pinned(&self) -> usize {
        self.pinned
    }

    /// The slot of a key, cached or pinned.
    #[inline]
    pub fn get(&self, key: u64) -> Option<u32> {
        self.index.get(&self.keys, key)
    }

    /// The slots of several keys; where there is none, `u32::MAX`.
    #[inline]
    pub fn get_group(&self, wanted: &[u64; GROUP], found: &mut [u32; GROUP]) {
        self.index.get_group(&self.keys, wanted, found);
    }

    /// The key in a slot that is in use.
    #[inline]
    pub fn key(&self, slot: u32) -> u64 {
        self.keys[slot as usize]
    }

    /// Whether a slot in use is pinned.
    #[inline]
    pub fn is_pinned(&self, slot: u32) -> bool {
        self.policy.is_detached(slot)
    }

    /// Gives an absent key a slot; it is cached. `None` if no slot is free.
    pub fn insert(&mut self, key: u64) -> Option<u32> {
        let slot = if self.free != NONE {
            let slot = self.free;
            self.free = self.keys[slot as usize] as u32;
            slot
        } else if (self.never_used as usize) < self.keys.len() {
            self.never_used += 1;
            self.never_used - 1
        } else {
            return None;
        };
        self.keys[slot as usize] = key;
        self.index.insert(&self.keys, slot);
        self.policy.admit(slot, key);
        self.cached += 1;
        Some(slot)
    }

    /// The key in a slot is asked for. The caller has it at hand; reading it here would wait for memory.
    #[inline]
    pub fn hit(&mut self, slot: u32, key: u64) {
        debug_assert_eq!(self.keys[slot as usize], key, "the key of this slot");
        self.policy.hit(slot, key);
    }

    /// Pins a slot in use once more.
    #[inline]
    pub fn pin(&mut self, slot: u32) {
        if self.is_pinned(slot) {
            *self.further_pins.entry(slot).or_insert(0) += 1;
            return;
        }
        self.policy.detach(slot);
        self.cached -= 1;
        self.pinned += 1;
    }

    /// Takes one pin away; gives whether that was the last one. The slot is then to be kept or removed.
    #[inline]
    #[must_use]
    pub fn unpin(&mut self, slot: u32) -> bool {
        debug_assert!(self.is_pinned(slot), "unpin follows pin");
        if !self.further_pins.is_empty()
            && let Some(count) = self.further_pins.get_mut(&slot)
        {
            *count -= 1;
            if *count == 0 {
                self.further_pins.remove(&slot);
            }
            return false;
        }
        true
    }

    /// A slot without pins is cached from now on.
    #[inline]
    pub fn keep(&mut self, slot: u32) {
        self.policy.attach(slot);
        self.pinned -= 1;
        self.cached += 1;
    }

    /// A slot that was pinned and has no pins any more is free from now on.
    pub fn remove_pinned(&mut self, slot: u32) {
        self.pinned -= 1;
        self.policy.forget(slot);
        self.free_slot(slot);
    }

    /// A cached slot is free from now on.
    pub fn remove(&mut self, slot: u32) {
        self.cached -= 1;
        self.policy.forget(slot);
        self.free_slot(slot);
    }

    /// Frees the cached slot that the policy chooses: the slot and the key that it had.
    pub fn evict(&mut self) -> Option<(u32, u64)> {
        if self.cached == 0 {
            return None;
        }
        let slot = self.policy.evict(&self.keys);
        let key = self.keys[slot as usize];
        self.cached -= 1;
        self.free_slot(slot);
        Some((slot, key))
    }

    /// The keys that are in use.
    pub fn cached_keys(&self) -> impl Iterator<Item = u64> {
        let in_use = |&slot: &u32| self.get(self.keys[slot as usize]) == Some(slot);
        (0..self.never_used).filter(in_use).map(|slot| self.keys[slot as usize])
    }

    /// Tells the policy what a later batch will ask for; see [`Policy::announce`].
    pub fn announce(&mut self, keys: &[u64]) -> Result<()> {
        self.policy.announce(keys, |key| self.index.get(&self.keys, key))
    }

    /// Tells the policy that the next announced batch begins.
    pub fn begin_batch(&mut self) {
        self.policy.begin_batch(|key| self.index.get(&self.keys, key));
    }

    fn free_slot(&mut self, slot: u32) {
        self.index.remove(&self.keys, slot);
        self.keys[slot as usize] = u64::from(self.free);
        self.free = slot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::METADATA_BYTES_PER_ROW_MAX;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const KINDS: [PolicyKind; 8] = [
        PolicyKind::Lru,
        PolicyKind::Lfu,
        PolicyKind::Clock,
        PolicyKind::S3Fifo,
        PolicyKind::Sieve,
        PolicyKind::Lookahead,
        PolicyKind::Auto,
        PolicyKind::Random,
    ];

    #[test]
    fn metadata_with_dirty_and_scratch_bits_stays_below_the_contract() {
        for kind in KINDS {
            let rows = 100_000;
            let slots = Slots::new(kind, rows, rows, 1).unwrap();
            let bits = 2 * rows / 8;
            let most = if kind == PolicyKind::Clock { 16 } else { METADATA_BYTES_PER_ROW_MAX };
            let nbytes = slots.metadata_bytes() + bits;
            assert!(nbytes <= most * rows, "{kind}: {} bytes a row", nbytes as f64 / rows as f64);
        }
        assert!(Slots::new(PolicyKind::Min, 1, 1, 1).is_err());
    }

    /// What the test does to a key.
    #[derive(Debug, Clone)]
    enum Action {
        Use(u64),
        Unpin(usize),
        Remove(u64),
        Announce(Vec<u64>),
        Begin,
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let action = prop_oneof![
            6 => (0u64..24).prop_map(Action::Use),
            5 => (0usize..100).prop_map(Action::Unpin),
            1 => (0u64..24).prop_map(Action::Remove),
            1 => prop::collection::vec(0u64..24, 0..6).prop_map(Action::Announce),
            1 => Just(Action::Begin),
        ];
        prop::collection::vec(action, 1..400)
    }

    proptest! {
        /// Under every policy: a key is where it was put until it is chosen or removed, and a pinned key is never chosen.
        #[test]
        fn pinned_keys_stay_and_others_are_chosen_once(
            actions in actions(), kind in prop::sample::select(&KINDS), rows in 1usize..6, by_number in any::<bool>(),
        ) {
            const PINNED_MAX: usize = 8;
            // As many slots as make finding by number worth it, of which only some are used.
            let space = KeySpace { lens: vec![8, 8, 8], shift: 3 };
            let spare = if by_number { 16 } else { 0 };
            let space = by_number.then_some(&space);
            let mut slots = Slots::over(kind, rows + PINNED_MAX + spare, rows, 1, space).unwrap();
            let mut model: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
            let mut pins: Vec<u64> = Vec::new();
            let mut announced = 0;
            for action in actions {
                match action {
                    Action::Use(key) => {
                        let distinct: std::collections::BTreeSet<_> = pins.iter().collect();
                        if distinct.len() == PINNED_MAX && !pins.contains(&key) {
                            continue;
                        }
                        let slot = if let Some(&(slot, _)) = model.get(&key) {
                            prop_assert_eq!(slots.get(key), Some(slot));
                            slots.hit(slot, key);
                            slot
                        } else {
                            prop_assert_eq!(slots.get(key), None);
                            let slot = slots.insert(key).expect("pinned and cached rows keep to their numbers");
                            prop_assert!(model.values().all(|&(other, _)| other != slot));
                            slot
                        };
                        slots.pin(slot);
                        model.entry(key).or_insert((slot, 0)).1 += 1;
                        pins.push(key);
                    }
                    Action::Unpin(at) if !pins.is_empty() => {
                        let key = pins.swap_remove(at % pins.len());
                        let entry = model.get_mut(&key).unwrap();
                        entry.1 -= 1;
                        let (slot, left) = *entry;
                        prop_assert_eq!(slots.unpin(slot), left == 0);
                        if left == 0 {
                            if key.is_multiple_of(7) {
                                slots.remove_pinned(slot);
                                model.remove(&key);
                            } else {
                                slots.keep(slot);
                            }
                        }
                        while slots.cached() > rows {
                            let (slot, key) = slots.evict().unwrap();
                            prop_assert_eq!(model.remove(&key), Some((slot, 0)), "{} was chosen", key);
                        }
                    }
                    Action::Remove(key) => {
                        if let Some(&(slot, 0)) = model.get(&key) {
                            slots.remove(slot);
                            model.remove(&key);
                        }
                    }
                    Action::Announce(keys) if announced < 50 => {
                        slots.announce(&keys).unwrap();
                        announced += 1;
                    }
                    Action::Begin => slots.begin_batch(),
                    Action::Unpin(_) | Action::Announce(_) => {}
                }
                prop_assert_eq!(slots.cached(), model.values().filter(|entry| entry.1 == 0).count());
                prop_assert_eq!(slots.pinned(), model.values().filter(|entry| entry.1 > 0).count());
                for (&key, &(slot, count)) in &model {
                    prop_assert_eq!(slots.get(key), Some(slot));
                    prop_assert_eq!(slots.is_pinned(slot), count > 0);
                }
                let wanted: [u64; GROUP] = std::array::from_fn(|n| n as u64 % 24);
                let mut found = [0; GROUP];
                slots.get_group(&wanted, &mut found);
                for (key, slot) in wanted.iter().zip(found) {
                    prop_assert_eq!(model.get(key).map(|entry| entry.0), (slot != NONE).then_some(slot));
                }
            }
            while let Some((slot, key)) = slots.evict() {
                prop_assert_eq!(model.remove(&key), Some((slot, 0)));
            }
            prop_assert!(model.values().all(|entry| entry.1 > 0), "every cached key was chosen in the end");
        }
    }
}
