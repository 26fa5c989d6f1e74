//! Bytes in ordinary memory, allocated as they are first written.

use std::sync::RwLock;

use super::{Backend, BackendInfo, Extent, IoBatch, check_extents};
use crate::error::{Error, ErrorKind, Result};

/// One lock and one allocation per this many bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// A backend in RAM. Untouched space costs one pointer a megabyte.
pub struct RamBackend {
    chunks: Vec<RwLock<Option<Box<[u8]>>>>,
    len_bytes: u64,
}

impl RamBackend {
    /// A backend of `len_bytes` zero bytes; `Capacity` if not even its index fits in memory.
    pub fn new(len_bytes: u64) -> Result<Self> {
        let count = len_bytes.div_ceil(CHUNK_BYTES as u64) as usize;
        let mut chunks = Vec::new();
        let refused = |_| {
            Error::new(ErrorKind::Capacity, "a backend of this size does not fit in memory; use a file or phantom")
                .with_context("nbytes", len_bytes)
        };
        chunks.try_reserve_exact(count).map_err(refused)?;
        chunks.extend((0..count).map(|_| RwLock::new(None)));
        Ok(Self { chunks, len_bytes })
    }

    /// Calls `visit(chunk, offset in the chunk, range in the buffer)` for each piece of an extent.
    fn pieces(extent: &Extent, mut visit: impl FnMut(usize, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < extent.nbytes {
            let at = extent.offset + done as u64;
            let within = (at % CHUNK_BYTES as u64) as usize;
            let nbytes = (CHUNK_BYTES - within).min(extent.nbytes - done);
            let start = extent.buffer_offset + done;
            visit((at / CHUNK_BYTES as u64) as usize, within, start..start + nbytes);
            done += nbytes;
        }
    }
}

impl Backend for RamBackend {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn alignment_bytes(&self) -> usize {
        1
    }

    fn info(&self) -> BackendInfo {
        BackendInfo { engine: "ram", direct: false, fallback_reason: String::new() }
    }

    fn read(&self, mut batch: IoBatch) -> (IoBatch, Result<()>) {
        if let Err(error) = check_extents(self, &batch) {
            return (batch, Err(error));
        }
        for extent in &batch.extents {
            Self::pieces(extent, |chunk, within, range| {
                let chunk = self.chunks[chunk].read().unwrap_or_else(std::sync::PoisonError::into_inner);
                let out = &mut batch.buffer[range];
                match chunk.as_deref() {
                    Some(bytes) => out.copy_from_slice(&bytes[within..within + out.len()]),
                    None => out.fill(0),
                }
            });
        }
        (batch, Ok(()))
    }

    fn write(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        if let Err(error) = check_extents(self, &batch) {
            return (batch, Err(error));
        }
        for extent in &batch.extents {
            Self::pieces(extent, |chunk, within, range| {
                let mut chunk = self.chunks[chunk].write().unwrap_or_else(std::sync::PoisonError::into_inner);
                let bytes = chunk.get_or_insert_with(|| vec![0; CHUNK_BYTES].into_boxed_slice());
                bytes[within..within + range.len()].copy_from_slice(&batch.buffer[range]);
            });
        }
        (batch, Ok(()))
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
