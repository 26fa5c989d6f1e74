//! Any row leaves: the floor that every other policy is measured against.

use super::Policy;
use crate::rng;

/// A seeded choice among all slots.
#[derive(Debug)]
pub struct Random {
    key: u64,
    draws: u64,
    admitted: u32,
}

impl Random {
    /// The choices follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { key: rng::stream(seed, 0), draws: 0, admitted: 0 }
    }
}

impl Policy for Random {
    #[inline]
    fn admit(&mut self, slot: u32, _key: u64) {
        // A cache fills its slots in order and then gives a victim's slot away again.
        self.admitted = self.admitted.max(slot + 1);
    }

    #[inline]
    fn hit(&mut self, _slot: u32, _key: u64) {}

    #[inline]
    fn evict(&mut self, _keys: &[u64]) -> u32 {
        self.draws += 1;
        ((u128::from(rng::draw(self.key, self.draws)) * u128::from(self.admitted)) >> 64) as u32
    }

    fn coldest_first(&self) -> Vec<u32> {
        (0..self.admitted).collect()
    }

    fn metadata_bytes(&self) -> usize {
        0
    }
}
