//! From a key to its slot: by hash, or by number where most of the keys that there are have a slot.

use super::index::{GROUP, KeyIndex};
use super::slots::NONE;

/// Which keys there are: groups of consecutive numbers. The upper bits of a key say which group, the lower ones which of it.
#[derive(Debug, Clone)]
pub struct KeySpace {
    /// Keys in each group.
    pub lens: Vec<u64>,
    /// Where the upper bits begin.
    pub shift: u32,
}

/// Finds slots.
#[derive(Debug, Clone)]
pub(super) enum Finder {
    Hashed(KeyIndex),
    /// One word for each key that there is: its slot and one more, or 0. One read instead of two, and no hash.
    Direct {
        groups: Vec<Vec<u32>>,
        shift: u32,
    },
}

impl Finder {
    /// By number if that takes no more memory than by hash, about.
    pub(super) fn new(slots: usize, space: Option<&KeySpace>) -> Self {
        let is_small = |space: &&KeySpace| space.lens.iter().sum::<u64>() <= slots as u64 * 3 / 2;
        match space.filter(is_small) {
            Some(KeySpace { lens, shift }) => {
                Self::Direct { groups: lens.iter().map(|&len| vec![0; len as usize]).collect(), shift: *shift }
            }
            None => Self::Hashed(KeyIndex::new(slots)),
        }
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        match self {
            Self::Hashed(index) => index.metadata_bytes(),
            Self::Direct { groups, .. } => groups.iter().map(|group| group.len() * size_of::<u32>()).sum(),
        }
    }

    #[inline]
    pub(super) fn get(&self, keys: &[u64], key: u64) -> Option<u32> {
        match self {
            Self::Hashed(index) => index.get(keys, key),
            Self::Direct { groups, shift } => groups[(key >> shift) as usize][low(key, *shift)].checked_sub(1),
        }
    }

    /// The slots of several keys; where there is none, `NONE`.
    #[inline]
    pub(super) fn get_group(&self, keys: &[u64], wanted: &[u64; GROUP], found: &mut [u32; GROUP]) {
        match self {
            Self::Hashed(index) => index.get_group(keys, wanted, found),
            Self::Direct { groups, shift } => {
                for (found, &key) in found.iter_mut().zip(wanted) {
                    // Zero becomes `NONE`. A group that is not full ends with keys of before, or with key 0.
                    let group = groups.get((key >> shift) as usize);
                    let slot = group.and_then(|group| group.get(low(key, *shift)));
                    *found = slot.map_or(NONE, |slot| slot.wrapping_sub(1));
                }
            }
        }
    }

    /// Adds a key that is not present; `keys[slot]` already holds it.
    #[inline]
    pub(super) fn insert(&mut self, keys: &[u64], slot: u32) {
        match self {
            Self::Hashed(index) => index.insert(keys, slot),
            Self::Direct { groups, shift } => {
                let key = keys[slot as usize];
                groups[(key >> *shift) as usize][low(key, *shift)] = slot + 1;
            }
        }
    }

    /// Removes the key of a slot that is present.
    #[inline]
    pub(super) fn remove(&mut self, keys: &[u64], slot: u32) {
        match self {
            Self::Hashed(index) => index.remove(keys, slot),
            Self::Direct { groups, shift } => {
                let key = keys[slot as usize];
                groups[(key >> *shift) as usize][low(key, *shift)] = 0;
            }
        }
    }
}

#[inline]
fn low(key: u64, shift: u32) -> usize {
    (key & ((1 << shift) - 1)) as usize
}
