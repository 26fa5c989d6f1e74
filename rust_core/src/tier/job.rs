//! Work for the I/O thread, and what comes of it.

use super::layout::BlockKey;
use super::plan::Unit;
use crate::backend::{AlignedBuffer, Extent};
use crate::device::{Operation, Request};

/// One contiguous transfer between the job's memory and a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Position of the tier among the lower tiers.
    pub tier: usize,
    /// What to move.
    pub extent: Extent,
}

impl Transfer {
    /// The request that the timing model sees.
    pub fn request(&self, operation: Operation) -> Request {
        Request { device: self.tier, operation, offset: self.extent.offset, nbytes: self.extent.nbytes as u64 }
    }
}

/// Bytes that replace others in a job's memory after the reads, in the order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Out of `Job::images`, or else out of the job's memory.
    pub from_images: bool,
    /// First byte there.
    pub from: usize,
    /// First byte in the job's memory.
    pub to: usize,
    /// Length in bytes.
    pub nbytes: usize,
}

/// A unit in a job's memory.
#[derive(Debug, Clone, Copy)]
pub struct PlacedUnit {
    /// Which.
    pub unit: Unit,
    /// Its first byte.
    pub buffer_offset: usize,
    /// Whether it has a header that is checked after the reads.
    pub is_checked: bool,
}

/// Work for the I/O thread: reads and fresh blocks, then changes in memory, then writes.
#[derive(Debug, Default)]
pub struct Job {
    /// Memory that all units need.
    pub nbytes: usize,
    /// Sorted by tier and offset.
    pub reads: Vec<Transfer>,
    /// Blocks that come into being, with their places in memory.
    pub fresh: Vec<(BlockKey, usize)>,
    /// What is where in the memory, in ascending order.
    pub units: Vec<PlacedUnit>,
    /// What to change.
    pub copies: Vec<Copy>,
    /// Row images that come in.
    pub images: Vec<u8>,
    /// Sorted by tier and offset.
    pub writes: Vec<Transfer>,
    /// Reads and writes that move the bytes, where these are fewer than those that the devices are charged for.
    pub moves: Option<(Vec<Transfer>, Vec<Transfer>)>,
    /// Ranges of memory that the outcome keeps, as (first byte, length).
    pub kept: Vec<(usize, usize)>,
    /// When it was submitted; `None` for maintenance, which is not timed.
    pub submitted_ns: Option<u64>,
}

/// What came of a job.
#[derive(Debug)]
pub struct JobDone {
    /// What was to be kept, one range after the other.
    pub kept: AlignedBuffer,
    /// When the reads are due on a wall clock; zero on a virtual one.
    pub due_ns: u64,
    /// When the bytes that were read were there, on the store's clock.
    pub ready_ns: u64,
}

/// What the thread has to know about units.
pub trait Units: Send + Sync {
    /// Names their rows, for errors; of some the bytes are known.
    fn describe(&self, units: &[(Unit, Option<&[u8]>)]) -> String;

    /// Writes a block that comes into being.
    fn initialise(&self, key: BlockKey, block: &mut [u8]);
}
