//! Tiers: where a row's bytes are, how they move between tiers, and who moves them. Rows are
//! opaque images of a known width here; what they mean is `embedding`'s business.

mod build;
mod descend;
mod job;
mod layout;
mod log;
mod lower;
mod plan;
mod pool;
mod unit_cache;
mod worker;

pub use crate::bits::BitSet;
pub use build::{FreshBlocks, Kept};
pub use job::{Copy, Job, JobDone, PlacedUnit, Transfer, Units};
pub use layout::{BLOCK_HEADER_BYTES, BlockKey, ROW_BITS, TableLayout, TableShape, row_key, split_row_key};
pub use log::{Locations, LogShape, RowLog, log_block_size};
pub use lower::{Home, LogHome, LowerTiers, PartCounts, PartTiers, TierCache};
pub use plan::{PlanBuilder, RowPlace, Source, Unit};
pub use pool::{Met, PoolKeys, PoolSize, RowPool, copy_floats};
pub use unit_cache::UnitCache;
pub use worker::{JobHandle, Worker};
