//! A backend that tells what was asked of it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, InFlight, IoBatch, Operation, Overlay};
use crate::error::Result;

/// What was asked of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Batches of reads.
    pub read_batches: u64,
    /// Extents of those.
    pub reads: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Batches of writes.
    pub write_batches: u64,
    /// Extents of those.
    pub writes: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Ranges discarded.
    pub discards: u64,
    /// Calls of `sync`.
    pub syncs: u64,
}

/// Counts and passes on.
pub struct CountingBackend<B> {
    inner: B,
    /// In the order of the fields of `Counted`.
    counts: [AtomicU64; 8],
}

impl<B: Backend> CountingBackend<B> {
    /// Counts from zero.
    pub fn new(inner: B) -> Self {
        Self { inner, counts: Default::default() }
    }

    /// What was asked so far.
    pub fn counted(&self) -> Counted {
        let count = |field: usize| self.counts[field].load(Ordering::Acquire);
        Counted {
            read_batches: count(0),
            reads: count(1),
            read_bytes: count(2),
            write_batches: count(3),
            writes: count(4),
            write_bytes: count(5),
            discards: count(6),
            syncs: count(7),
        }
    }

    fn add(&self, field: usize, count: u64) {
        self.counts[field].fetch_add(count, Ordering::AcqRel);
    }
}

impl<B: Backend> Overlay for CountingBackend<B> {
    fn below(&self) -> &dyn Backend {
        &self.inner
    }

    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight {
        let first = if operation == Operation::Read { 0 } else { 3 };
        self.add(first, 1);
        self.add(first + 1, batch.extents.len() as u64);
        self.add(first + 2, batch.extents.iter().map(|extent| extent.nbytes as u64).sum());
        self.inner.start(operation, batch)
    }

    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        self.add(6, 1);
        self.inner.discard(offset, nbytes)
    }

    fn sync(&self) -> Result<()> {
        self.add(7, 1);
        self.inner.sync()
    }
}
