//! No bytes at all, for sizes that exist on paper only.

use super::{Backend, BackendInfo, InFlight, IoBatch, Operation, check_discard, check_extents};
use crate::error::Result;

/// A backend of any size that stores nothing: reads give zeros, writes vanish. For studies of time
/// and counters; a store refuses it, since training on it could not be exact.
pub struct PhantomBackend {
    len_bytes: u64,
}

impl PhantomBackend {
    /// A phantom of `len_bytes`.
    pub fn new(len_bytes: u64) -> Self {
        Self { len_bytes }
    }
}

impl Backend for PhantomBackend {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn alignment_bytes(&self) -> usize {
        1
    }

    fn info(&self) -> BackendInfo {
        BackendInfo::new("phantom")
    }

    fn start(&self, operation: Operation, mut batch: IoBatch) -> InFlight {
        let checked = check_extents(self, &batch);
        if checked.is_ok() && operation == Operation::Read {
            for extent in &batch.extents {
                batch.buffer[extent.buffer_offset..extent.buffer_offset + extent.nbytes].fill(0);
            }
        }
        InFlight::done(batch, checked)
    }

    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        check_discard(self, offset, nbytes)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
