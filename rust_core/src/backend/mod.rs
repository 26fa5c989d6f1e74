//! Where bytes live and how they move. A backend never waits on purpose and knows no time.

mod buffer;
mod file;
mod open;
mod phantom;
mod ram;
mod uring;

pub use buffer::{AlignedBuffer, f32_as_bytes, physical_memory_bytes};
pub use file::{DirectIo, FileBackend, ScratchFile, free_bytes, scratch_file};
pub use open::{BackendConfig, Engine, open_backend};
pub use phantom::PhantomBackend;
pub use ram::RamBackend;
pub use uring::{UringBackend, probe_io_uring};

use crate::error::{Error, ErrorKind, Result};

/// One system call moves less than 2 GiB.
const EXTENT_BYTES_MAX: usize = 1 << 30;

/// One contiguous piece of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte on the backend.
    pub offset: u64,
    /// First byte in the batch's buffer.
    pub buffer_offset: usize,
    /// Length in bytes.
    pub nbytes: usize,
}

/// A batch of reads or of writes, with the memory that they use. The backend owns it while the
/// operation runs: no caller can free or change the memory under the kernel.
#[derive(Debug)]
pub struct IoBatch {
    /// Memory of all extents.
    pub buffer: AlignedBuffer,
    /// What to move.
    pub extents: Vec<Extent>,
}

/// What a backend is, for records and for `tiermem doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendInfo {
    /// The engine that really runs: `ram`, `file`, `io_uring` or `phantom`.
    pub engine: &'static str,
    /// Whether the page cache is bypassed.
    pub direct: bool,
    /// Why this engine or mode runs instead of the one preferred; empty if it is the preferred one.
    pub fallback_reason: String,
}

/// Where bytes live.
///
/// Caller: every extent lies inside the buffer and inside `len_bytes()`, and its three numbers are
/// multiples of `alignment_bytes()`. Implementer: either all extents are moved and the result is
/// `Ok`, or the result says which one failed and why; fewer bytes are never returned in silence.
/// The batch comes back in both cases, and nothing refers to its memory any more.
pub trait Backend: Send + Sync {
    /// Capacity in bytes.
    fn len_bytes(&self) -> u64;

    /// What offsets, lengths and memory addresses must be multiples of.
    fn alignment_bytes(&self) -> usize;

    /// What runs underneath.
    fn info(&self) -> BackendInfo;

    /// Fills every extent of the buffer from the backend. Bytes never written are zero.
    fn read(&self, batch: IoBatch) -> (IoBatch, Result<()>);

    /// Writes every extent of the buffer to the backend.
    fn write(&self, batch: IoBatch) -> (IoBatch, Result<()>);

    /// Returns after all completed writes are durable as far as the backend can make them.
    fn sync(&self) -> Result<()>;
}

/// Checks the caller's side of the contract; every implementation calls this first.
pub(crate) fn check_extents(backend: &dyn Backend, batch: &IoBatch) -> Result<()> {
    let alignment = backend.alignment_bytes();
    for extent in &batch.extents {
        let end = extent.offset.checked_add(extent.nbytes as u64);
        let inside = end.is_some_and(|end| end <= backend.len_bytes());
        let in_buffer = extent.buffer_offset.checked_add(extent.nbytes).is_some_and(|end| end <= batch.buffer.len());
        let aligned = extent.offset.is_multiple_of(alignment as u64)
            && extent.nbytes.is_multiple_of(alignment)
            && extent.buffer_offset.is_multiple_of(alignment);
        let problem = if extent.nbytes > EXTENT_BYTES_MAX {
            "a request is larger than 1 GiB"
        } else if !inside {
            "a request ends behind the end of the backend"
        } else if !in_buffer {
            "a request does not fit in its buffer"
        } else if !aligned {
            "a request is not aligned"
        } else {
            continue;
        };
        return Err(Error::new(ErrorKind::Input, problem)
            .with_context("offset", extent.offset)
            .with_context("nbytes", extent.nbytes)
            .with_context("capacity_bytes", backend.len_bytes())
            .with_context("alignment_bytes", alignment));
    }
    Ok(())
}
