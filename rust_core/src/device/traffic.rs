//! What is asked of a device, and what is kept of it.

pub use crate::backend::Operation;
use crate::stats::{DeviceCounters, LatencyHistogram};

/// One request to one device of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Position of the device in the schedule.
    pub device: usize,
    /// Direction.
    pub operation: Operation,
    /// First byte.
    pub offset: u64,
    /// Length; not zero.
    pub nbytes: u64,
}

/// What one device did so far.
#[derive(Debug, Clone, Default)]
pub struct DeviceSnapshot {
    /// Counters.
    pub counters: DeviceCounters,
    /// Latency of reads, from issue to completion.
    pub read_latency: LatencyHistogram,
    /// Latency of writes, from issue to acknowledgement.
    pub write_latency: LatencyHistogram,
}
