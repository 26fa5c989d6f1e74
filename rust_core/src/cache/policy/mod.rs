//! What a cache keeps. One small contract, and one file for each policy.

mod auto;
mod clock;
mod kind;
mod lfu;
mod lookahead;
mod lru;
mod random;
mod s3fifo;
mod sieve;

use crate::error::Result;

pub use auto::Auto;
pub use clock::Clock;
pub use kind::{AnyPolicy, PolicyKind};
pub use lfu::Lfu;
pub use lookahead::{Lookahead, WINDOW_BATCHES_MAX};
pub use lru::Lru;
pub use random::Random;
pub use s3fifo::S3Fifo;
pub use sieve::Sieve;

/// Orders the slots of a full cache by what should leave first.
///
/// A slot in use is *attached*, and may be chosen to leave, or *detached* while its row is in flight.
///
/// Caller: slots are below the number that the policy was made for; a slot is admitted before it is hit,
/// and not admitted again before it was evicted or forgotten; `keys[slot]` holds the key of every attached slot. A new
/// key is admitted after room was made for it, so a policy never sees more slots than it was made for.
/// Implementer: all of it is a function of the calls and of the seed, never of time or of an address; no call
/// but `announce`, `coldest_first` and a take-over of `auto` allocates, and metadata stays within the bound of
/// the store contract.
pub trait Policy {
    /// A key came in and lives in `slot`.
    fn admit(&mut self, slot: u32, key: u64);

    /// The key in `slot` was asked for.
    fn hit(&mut self, slot: u32, key: u64);

    /// Chooses who leaves, and forgets it. At least one slot is attached.
    fn evict(&mut self, keys: &[u64]) -> u32;

    /// The row in `slot` is in flight: it may be hit, and cannot leave until it is attached again.
    fn detach(&mut self, slot: u32);

    /// The row in `slot` may leave again. After a take-over of `auto` a policy may see the slot for the first time.
    fn attach(&mut self, slot: u32);

    /// Whether the row in `slot`, which is in use, is detached.
    fn is_detached(&self, slot: u32) -> bool;

    /// The key in `slot`, attached or not, left without having been chosen.
    fn forget(&mut self, slot: u32);

    /// A later batch will ask for these keys, once or several times; `slot_of` finds cached keys. Batches are
    /// announced in the order in which they begin, the first of them before `begin_batch` is called for it.
    ///
    /// # Errors
    ///
    /// `Capacity` if more batches are announced than the policy can hold.
    fn announce(&mut self, _keys: &[u64], _slot_of: impl Fn(u64) -> Option<u32>) -> Result<()> {
        Ok(())
    }

    /// From now on keys of the next announced batch are asked for.
    fn begin_batch(&mut self, _slot_of: impl Fn(u64) -> Option<u32>) {}

    /// Starts from the rows of another policy, those that should leave first in front. Nothing is admitted yet.
    fn adopt(&mut self, coldest_first: &[u32], keys: &[u64]) {
        for &slot in coldest_first {
            self.admit(slot, keys[slot as usize]);
        }
    }

    /// The attached slots, those that would leave first in front: what another policy starts from.
    fn coldest_first(&self) -> Vec<u32>;

    /// Bytes of memory, apart from keys and index.
    fn metadata_bytes(&self) -> usize;
}
