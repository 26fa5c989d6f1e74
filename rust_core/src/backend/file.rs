//! Bytes in a file, moved by `pread` and `pwrite`, one system call per extent.

use std::os::unix::fs::FileExt;

use super::{Backend, BackendInfo, DataFile, InFlight, IoBatch, Operation, check_discard, check_extents};
use crate::error::Result;

/// A file backend without queues: runs wherever files are.
pub struct FileBackend {
    data: DataFile,
}

impl FileBackend {
    /// Takes a file over.
    pub fn new(data: DataFile) -> Self {
        Self { data }
    }

    fn move_all(&self, operation: Operation, batch: &mut IoBatch) -> Result<()> {
        for extent in &batch.extents {
            let memory = &mut batch.buffer[extent.buffer_offset..extent.buffer_offset + extent.nbytes];
            let moved = match operation {
                Operation::Read => self.data.file().read_exact_at(memory, extent.offset),
                Operation::Write => self.data.file().write_all_at(memory, extent.offset),
            };
            moved.map_err(|error| self.data.moving_failed(operation, error, extent.offset, extent.nbytes))?;
        }
        Ok(())
    }
}

impl Backend for FileBackend {
    fn len_bytes(&self) -> u64 {
        self.data.len_bytes()
    }

    fn alignment_bytes(&self) -> usize {
        self.data.alignment_bytes()
    }

    fn info(&self) -> BackendInfo {
        self.data.info("file")
    }

    fn start(&self, operation: Operation, mut batch: IoBatch) -> InFlight {
        let result = check_extents(self, &batch).and_then(|()| self.move_all(operation, &mut batch));
        InFlight::done(batch, result)
    }

    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        check_discard(self, offset, nbytes)?;
        self.data.discard(offset, nbytes)
    }

    fn sync(&self) -> Result<()> {
        self.data.sync()
    }
}
