//! Which keys stay. A cache knows keys and slots, never bytes and never devices.

mod belady;
mod ghost;
mod index;
mod list;
mod lru;
mod policy;
mod replay;
mod row_cache;

pub use belady::{NEVER, replay_min};
pub use index::KeyIndex;
pub use lru::LruSlots;
pub use policy::{Auto, Clock, Lfu, Lookahead, Lru, Policy, PolicyKind, Random, S3Fifo, Sieve, WINDOW_BATCHES_MAX};
pub use replay::{Replay, replay};
pub(crate) use row_cache::check_capacity;
pub use row_cache::{Access, RowCache};

/// Metadata bytes that one cached row may cost at most, index and links included (store contract, point 7).
pub const METADATA_BYTES_PER_ROW_MAX: usize = 24;
