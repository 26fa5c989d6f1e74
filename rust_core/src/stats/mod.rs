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
    /// Bytes that writes touched on the medium: whole granules, times the write amplification.
    pub media_write_bytes: u64,
    /// Sum over media units of the time for which reads kept them busy.
    pub media_read_busy_ps: u64,
    /// The same for programs, erases and stalls.
    pub media_background_busy_ps: u64,
    /// Time for which the controller was busy with reads.
    pub read_controller_busy_ps: u64,
    /// Time for which the controller was busy with writes.
    pub write_controller_busy_ps: u64,
    /// Time for which the read link was busy.
    pub read_link_busy_ps: u64,
    /// Time for which the write link was busy.
    pub write_link_busy_ps: u64,
    /// Time that draining the write buffer takes.
    pub drain_busy_ps: u64,
    /// Time with at least one request outstanding.
    pub active_ns: u64,
}

impl DeviceCounters {
    /// What was counted since an earlier reading of the same counters.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            reads: self.reads - earlier.reads,
            writes: self.writes - earlier.writes,
            read_bytes: self.read_bytes - earlier.read_bytes,
            write_bytes: self.write_bytes - earlier.write_bytes,
            media_read_bytes: self.media_read_bytes - earlier.media_read_bytes,
            media_write_bytes: self.media_write_bytes - earlier.media_write_bytes,
            media_read_busy_ps: self.media_read_busy_ps - earlier.media_read_busy_ps,
            media_background_busy_ps: self.media_background_busy_ps - earlier.media_background_busy_ps,
            read_controller_busy_ps: self.read_controller_busy_ps - earlier.read_controller_busy_ps,
            write_controller_busy_ps: self.write_controller_busy_ps - earlier.write_controller_busy_ps,
            read_link_busy_ps: self.read_link_busy_ps - earlier.read_link_busy_ps,
            write_link_busy_ps: self.write_link_busy_ps - earlier.write_link_busy_ps,
            drain_busy_ps: self.drain_busy_ps - earlier.drain_busy_ps,
            active_ns: self.active_ns.saturating_sub(earlier.active_ns),
        }
    }
}
