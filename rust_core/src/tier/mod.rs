//! Tiers: where a row's bytes are, how they move between tiers, and who moves them. Rows are
//! opaque images of a known width here; what they mean is `embedding`'s business.

mod block_cache;
mod layout;
mod plan;
mod pool;
mod worker;

pub use crate::bits::BitSet;
pub use block_cache::BlockCache;
pub use layout::{BLOCK_HEADER_BYTES, BlockKey, TableLayout, TableShape, row_key, split_row_key};
pub use plan::{BlockTiers, Frame, PlanBuilder, PlanCounts, Source};
pub use pool::RowPool;
pub use worker::{Job, JobDone, JobHandle, Patch, Transfer, Worker};
