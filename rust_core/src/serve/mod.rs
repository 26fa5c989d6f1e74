//! Inference with tables on storage-class memory: what a query reads from where, and when it would be done.
//!
//! Source: Ardestani et al., Supporting Massive DLRM Inference through Software Defined Memory, arXiv 2110.11489.

mod changes;
mod config;
mod dense_rows;
mod engine;
mod fast_rows;
mod flight;
mod gate;
mod layout;
mod limits;
mod lookup;
mod mapped;
mod overlay;
mod pooled_cache;
mod queries;
mod reads;
mod replicas;
mod residency;
mod row_cache;
mod run;
mod simulate;
mod updates;
mod version;
mod virtual_reads;

pub use config::{DeviceUse, MemoryConfig, MemoryUse, ServeConfig, TableConfig};
pub use engine::{DeviceTime, Engine, EngineConfig, EngineStats, EngineTraffic, NewVersion};
pub use flight::HostCosts;
pub use limits::ReadLimits;
pub use lookup::Lookup;
pub use pooled_cache::SameList;
pub use queries::{ListLaw, QueryConfig};
pub use residency::{CacheCounters, Placement};
pub use simulate::{Load, Simulation, SimulationConfig, SimulationReport, WarmUpPart, WriteLoad};
pub use virtual_reads::ReadCounters;
