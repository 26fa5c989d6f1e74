//! Which keys stay. A cache knows keys and slots, never bytes and never devices.

mod index;
mod lru;

pub use index::KeyIndex;
pub use lru::LruSlots;

/// Metadata bytes that one cached row may cost at most, index and links included (store contract, point 7).
pub const METADATA_BYTES_PER_ROW_MAX: usize = 24;
