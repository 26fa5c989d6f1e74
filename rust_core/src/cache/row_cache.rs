//! A cache of keys: an index, one slot for each key, and a policy that says who leaves.

use super::index::KeyIndex;
use super::policy::Policy;
use crate::error::{Error, ErrorKind, Result};

/// What one access did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The key was there.
    Hit {
        /// Where it is.
        slot: u32,
    },
    /// The key came in.
    Miss {
        /// Where it is now.
        slot: u32,
        /// Who left for it.
        evicted: Option<u64>,
    },
}

impl Access {
    /// Whether the key was there.
    pub fn is_hit(self) -> bool {
        matches!(self, Self::Hit { .. })
    }
}

/// At most `capacity` keys, each in a slot of its own.
#[derive(Debug, Clone)]
pub struct RowCache<P> {
    keys: Vec<u64>,
    index: KeyIndex,
    policy: P,
    capacity: usize,
}

impl<P: Policy> RowCache<P> {
    /// An empty cache; `policy` was made for the same capacity.
    ///
    /// # Errors
    ///
    /// `Config` if the capacity is 0 or does not fit into 32 bits.
    pub fn new(capacity: usize, policy: P) -> Result<Self> {
        check_capacity(capacity)?;
        Ok(Self { keys: Vec::with_capacity(capacity), index: KeyIndex::new(capacity), policy, capacity })
    }

    /// Keys that are cached now.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys that can be cached.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether a key is cached; asks nothing of the policy.
    pub fn contains(&self, key: u64) -> bool {
        self.index.get(&self.keys, key).is_some()
    }

    /// The key in a slot that is in use.
    pub fn key(&self, slot: u32) -> u64 {
        self.keys[slot as usize]
    }

    /// The policy, to ask it about itself.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// Bytes of keys, index and policy.
    pub fn metadata_bytes(&self) -> usize {
        self.capacity * size_of::<u64>() + self.index.metadata_bytes() + self.policy.metadata_bytes()
    }

    /// Asks for a key; brings it in if it is not there.
    #[inline]
    pub fn access(&mut self, key: u64) -> Access {
        if let Some(slot) = self.index.get(&self.keys, key) {
            self.policy.hit(slot, key);
            return Access::Hit { slot };
        }
        let (slot, evicted) = if self.keys.len() < self.capacity {
            self.keys.push(key);
            (self.keys.len() as u32 - 1, None)
        } else {
            let slot = self.policy.evict(&self.keys);
            self.index.remove(&self.keys, slot);
            (slot, Some(std::mem::replace(&mut self.keys[slot as usize], key)))
        };
        self.index.insert(&self.keys, slot);
        self.policy.admit(slot, key);
        Access::Miss { slot, evicted }
    }

    /// Tells the policy what a later batch will ask for; see [`Policy::announce`].
    pub fn announce(&mut self, keys: &[u64]) -> Result<()> {
        self.policy.announce(keys, |key| self.index.get(&self.keys, key))
    }

    /// Tells the policy that the next announced batch begins.
    pub fn begin_batch(&mut self) {
        self.policy.begin_batch(|key| self.index.get(&self.keys, key));
    }
}

/// A capacity is a number of rows from 1 to 2^32 - 2.
pub(crate) fn check_capacity(capacity: usize) -> Result<()> {
    if capacity == 0 || capacity >= u32::MAX as usize {
        return Err(Error::new(
            ErrorKind::Config,
            format!("a cache of {capacity} rows is not possible; give it from 1 to {} rows", u32::MAX - 1),
        ));
    }
    Ok(())
}
