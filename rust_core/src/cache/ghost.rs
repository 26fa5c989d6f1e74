//! Rows that left not long ago, by fingerprint: 32 bits for each, in buckets of one cache line.
//!
//! An entry counts until `capacity` others came after it. Time is the number of insertions in ticks of
//! 1/256 of the capacity, so an entry may live up to 0.4 % longer. A bucket that is full loses its oldest
//! entry; at the load of 4/5 that is used here, 3 % of the entries go early (Poisson, mean 12.8 of 16 places). Two
//! keys are taken for each other with a probability of 3e-6 per look (12 entries of 22 bits).

use crate::rng;

const WAYS: usize = 16;
const AGE_BITS: u32 = 10;
const AGE_MASK: u32 = (1 << AGE_BITS) - 1;
const TICKS_PER_LIFE: u32 = 256;

/// A set of keys that forgets.
#[derive(Debug, Clone)]
pub(super) struct Ghost {
    /// A fingerprint above a tick; 0 is an empty place, so no fingerprint is 0.
    buckets: Vec<[u32; WAYS]>,
    /// Ticks that an entry counts.
    life: u32,
    insertions_per_tick: u32,
    insertions_per_sweep: u32,
    now: u32,
    until_tick: u32,
    until_sweep: u32,
    /// The bucket that is swept next.
    broom: usize,
}

impl Ghost {
    /// Remembers the last `capacity` insertions.
    pub(super) fn new(capacity: usize) -> Self {
        let buckets = (capacity * 5 / 4).div_ceil(WAYS).max(1);
        let insertions_per_tick = (capacity as u32 / TICKS_PER_LIFE).max(1);
        let insertions_per_sweep = ((capacity / buckets) as u32).max(1);
        Self {
            buckets: vec![[0; WAYS]; buckets],
            life: (capacity as u32).div_ceil(insertions_per_tick),
            insertions_per_tick,
            insertions_per_sweep,
            now: 0,
            until_tick: insertions_per_tick,
            until_sweep: insertions_per_sweep,
            broom: 0,
        }
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        self.buckets.len() * size_of::<[u32; WAYS]>()
    }

    #[inline]
    fn place(&self, key: u64) -> (usize, u32) {
        // Not the hash of the index, so that one cannot spoil the other.
        let hash = rng::mix(key ^ 0x9e37_79b9_7f4a_7c15);
        let bucket = ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize;
        (bucket, (hash as u32 & !AGE_MASK).max(1 << AGE_BITS))
    }

    /// Remembers a key.
    pub(super) fn insert(&mut self, key: u64) {
        if self.life == 0 {
            return;
        }
        self.pass_time();
        let (bucket, fingerprint) = self.place(key);
        let (now, life) = (self.now, self.life);
        let ways = &mut self.buckets[bucket];
        // The first place that is free, or else the oldest entry; a loop without branches.
        let (mut place, mut oldest) = (0, 0);
        for (way, &entry) in ways.iter().enumerate().rev() {
            let age = age(now, entry);
            let age = if entry == 0 || age >= life { u32::MAX } else { age };
            (place, oldest) = if age >= oldest { (way, age) } else { (place, oldest) };
        }
        ways[place] = fingerprint | now;
    }

    /// Forgets a key; gives whether it was remembered.
    #[inline]
    pub(super) fn remove(&mut self, key: u64) -> bool {
        let (bucket, fingerprint) = self.place(key);
        let (now, life) = (self.now, self.life);
        let ways = &mut self.buckets[bucket];
        let found = ways.iter().position(|&entry| entry & !AGE_MASK == fingerprint && age(now, entry) < life);
        if let Some(way) = found {
            ways[way] = 0;
        }
        found.is_some()
    }

    /// One insertion more: the tick, and a bucket swept now and then, so that no entry is left when ticks wrap.
    fn pass_time(&mut self) {
        self.until_tick -= 1;
        if self.until_tick == 0 {
            self.until_tick = self.insertions_per_tick;
            self.now = (self.now + 1) & AGE_MASK;
        }
        self.until_sweep -= 1;
        if self.until_sweep == 0 {
            self.until_sweep = self.insertions_per_sweep;
            let (now, life) = (self.now, self.life);
            for entry in &mut self.buckets[self.broom] {
                if age(now, *entry) >= life {
                    *entry = 0;
                }
            }
            self.broom = if self.broom + 1 == self.buckets.len() { 0 } else { self.broom + 1 };
        }
    }
}

/// Ticks since an entry came.
#[inline]
fn age(now: u32, entry: u32) -> u32 {
    now.wrapping_sub(entry) & AGE_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_about_as_many_as_it_is_for() {
        let mut ghost = Ghost::new(9_000);
        for key in 0..100_000u64 {
            ghost.insert(key);
        }
        let recent = (100_000 - 9_000..100_000u64).filter(|&key| ghost.remove(key)).count();
        // E[max(X - 16, 0)] / E[X] of a Poisson number with mean 12.8 is 2.8 %.
        assert!((8_650..8_850).contains(&recent), "{recent} of 9,000");
        let long_gone = (0..90_000u64).filter(|&key| ghost.remove(key)).count();
        assert!(long_gone < 45, "{long_gone}");
    }

    #[test]
    fn few_entries_are_remembered_exactly() {
        let mut ghost = Ghost::new(5);
        for key in 0..20u64 {
            ghost.insert(key);
        }
        let found: Vec<u64> = (0..20).filter(|&key| ghost.remove(key)).collect();
        assert_eq!(found, [15, 16, 17, 18, 19]);
        assert!(!ghost.remove(17), "a key that was taken out is forgotten");
    }
}
