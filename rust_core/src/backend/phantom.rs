//! No bytes at all, for sizes that exist on paper only.

use super::{Backend, BackendInfo, IoBatch, check_extents};
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
        BackendInfo { engine: "phantom", direct: false, fallback_reason: String::new() }
    }

    fn read(&self, mut batch: IoBatch) -> (IoBatch, Result<()>) {
        let checked = check_extents(self, &batch);
        if checked.is_ok() {
            for extent in &batch.extents {
                batch.buffer[extent.buffer_offset..extent.buffer_offset + extent.nbytes].fill(0);
            }
        }
        (batch, checked)
    }

    fn write(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        let checked = check_extents(self, &batch);
        (batch, checked)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
