//! What is counted, and how it is read.

mod histogram;

pub use histogram::{LatencyHistogram, LatencySummary};

/// Counters of one device. Bytes are counted at three places: asked for by the caller, moved over
/// the link, and touched on the medium.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Read requests completed.
    pub reads: u64,
    /// Write requests completed.
    pub writes: u64,
    /// Bytes that read requests moved over the link.
    pub read_bytes: u64,
    /// Bytes that write requests moved over the link.
    pub write_bytes: u64,
    /// Bytes that reads touched on the medium (whole granules).
    pub media_read_bytes: u64,
    /// Bytes that writes touched on the medium (whole granules).
    pub media_write_bytes: u64,
    /// Sum over media units of the time for which they were busy.
    pub media_busy_ns: u64,
    /// Time for which the controller was busy.
    pub controller_busy_ns: u64,
    /// Time for which the read link was busy.
    pub read_link_busy_ns: u64,
    /// Time for which the write link was busy.
    pub write_link_busy_ns: u64,
    /// Time with at least one request outstanding.
    pub active_ns: u64,
}
