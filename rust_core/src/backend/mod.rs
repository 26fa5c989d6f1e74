//! Where bytes live and how they move. A backend never waits on purpose and knows no time.

mod buffer;
mod data_file;
mod file;
mod in_flight;
mod open;
mod phantom;
mod ram;
mod uring;

pub use buffer::{AlignedBuffer, PageSize, f32_as_bytes, huge_pages_allowed, physical_memory_bytes};
pub use data_file::{DataFile, DirectIo, free_bytes};
pub use file::FileBackend;
pub use in_flight::InFlight;
pub use open::{BackendConfig, CompletionMode, Engine, open_backend, open_file};
pub use phantom::PhantomBackend;
pub use ram::RamBackend;
pub use uring::{UringBackend, probe_io_uring};

use crate::error::{Error, ErrorKind, Result};

/// One system call moves less than 2 GiB.
const EXTENT_BYTES_MAX: usize = 1 << 30;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Bytes come from the device.
    Read,
    /// Bytes go to the device.
    Write,
}

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
    /// Whether huge pages were asked for, in a host that has them.
    pub huge_pages: bool,
    /// Whether the kernel knows the memory that `buffer` gives by number.
    pub registered_buffers: bool,
    /// How completions are learnt of.
    pub completion: CompletionMode,
    /// Why this engine or mode runs instead of the one preferred; empty if it is the preferred one.
    pub fallback_reason: String,
}

impl BackendInfo {
    pub(crate) fn new(engine: &'static str) -> Self {
        Self {
            engine,
            direct: false,
            huge_pages: false,
            registered_buffers: false,
            completion: CompletionMode::Interrupt,
            fallback_reason: String::new(),
        }
    }
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

    /// Memory that this backend moves fastest; what it holds is arbitrary. Any other memory will do.
    fn buffer(&self, nbytes: usize) -> AlignedBuffer {
        AlignedBuffer::zeroed(nbytes)
    }

    /// Begins to move a batch. Batches that are in flight together may be moved in any order, so
    /// they must not touch the same bytes unless all of them read. A batch whose handle is dropped is moved all the
    /// same, at the latest when the backend is dropped.
    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight;

    /// Makes a range read as zeros and gives its space back where that is possible.
    fn discard(&self, offset: u64, nbytes: u64) -> Result<()>;

    /// Returns after all completed writes are durable as far as the backend can make them.
    fn sync(&self) -> Result<()>;

    /// Fills every extent of the buffer from the backend. Bytes never written are zero.
    fn read(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        self.start(Operation::Read, batch).wait()
    }

    /// Writes every extent of the buffer to the backend.
    fn write(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        self.start(Operation::Write, batch).wait()
    }
}

/// A backend over another one, of which it changes what `start` does, and perhaps more.
pub trait Overlay: Send + Sync {
    /// The backend underneath.
    fn below(&self) -> &dyn Backend;

    /// As `Backend::start`.
    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight;

    /// As `Backend::discard`.
    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        self.below().discard(offset, nbytes)
    }

    /// As `Backend::sync`.
    fn sync(&self) -> Result<()> {
        self.below().sync()
    }
}

impl<T: Overlay> Backend for T {
    fn len_bytes(&self) -> u64 {
        self.below().len_bytes()
    }

    fn alignment_bytes(&self) -> usize {
        self.below().alignment_bytes()
    }

    fn info(&self) -> BackendInfo {
        self.below().info()
    }

    fn buffer(&self, nbytes: usize) -> AlignedBuffer {
        self.below().buffer(nbytes)
    }

    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight {
        Overlay::start(self, operation, batch)
    }

    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        Overlay::discard(self, offset, nbytes)
    }

    fn sync(&self) -> Result<()> {
        Overlay::sync(self)
    }
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

/// Checks the caller's side of `discard`.
pub(crate) fn check_discard(backend: &dyn Backend, offset: u64, nbytes: u64) -> Result<()> {
    let alignment = backend.alignment_bytes() as u64;
    let problem = if offset.checked_add(nbytes).is_none_or(|end| end > backend.len_bytes()) {
        "a discarded range ends behind the end of the backend"
    } else if !offset.is_multiple_of(alignment) || !nbytes.is_multiple_of(alignment) {
        "a discarded range is not aligned"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Input, problem)
        .with_context("offset", offset)
        .with_context("nbytes", nbytes)
        .with_context("capacity_bytes", backend.len_bytes())
        .with_context("alignment_bytes", alignment))
}
