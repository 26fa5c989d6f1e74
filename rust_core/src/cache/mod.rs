//! Which keys stay. A cache knows keys and slots, never bytes and never devices.

mod belady;
mod finder;
mod ghost;
mod index;
mod list;
mod policy;
mod replay;
mod row_cache;
mod slots;

pub use belady::{NEVER, replay_min};
pub use finder::KeySpace;
pub use index::{GROUP, KeyIndex};
pub use policy::{
    AnyPolicy, Auto, Clock, Lfu, Lookahead, Lru, Policy, PolicyKind, Random, S3Fifo, Sieve, WINDOW_BATCHES_MAX,
};
pub use replay::{Replay, replay};
pub(crate) use row_cache::check_capacity;
pub use row_cache::{Access, RowCache};
pub use slots::Slots;

/// Metadata bytes that one cached row may cost at most, index and links included (store contract, point 7).
pub const METADATA_BYTES_PER_ROW_MAX: usize = 24;
