//! Bytes in ordinary memory, allocated as they are first written.

use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use super::{
    AlignedBuffer, Backend, BackendInfo, InFlight, IoBatch, Operation, PageSize, check_discard, check_extents,
    huge_pages_allowed, physical_memory_bytes,
};
use crate::error::{Error, ErrorKind, Result};

/// One lock and one allocation per this many bytes: one huge page.
const CHUNK_BYTES: u64 = 2 << 20;
/// A backend of more than this share of the host's memory keeps small pages, so that what is
/// scattered thinly over it costs no more than it has to.
const HUGE_SHARE: u64 = 4;

/// A backend in RAM. Untouched space costs a few words for every two megabytes.
pub struct RamBackend {
    chunks: Vec<RwLock<Option<AlignedBuffer>>>,
    len_bytes: u64,
    pages: PageSize,
}

impl RamBackend {
    /// A backend of `len_bytes` zero bytes; `Capacity` if not even its index fits in memory.
    pub fn new(len_bytes: u64) -> Result<Self> {
        let count = len_bytes.div_ceil(CHUNK_BYTES) as usize;
        let mut chunks = Vec::new();
        let refused = |_| {
            Error::new(ErrorKind::Capacity, "a backend of this size does not fit in memory; use a file or phantom")
                .with_context("nbytes", len_bytes)
        };
        chunks.try_reserve_exact(count).map_err(refused)?;
        chunks.extend((0..count).map(|_| RwLock::new(None)));
        let may_be_huge = len_bytes <= physical_memory_bytes() / HUGE_SHARE && huge_pages_allowed();
        let pages = if may_be_huge { PageSize::Huge } else { PageSize::Small };
        Ok(Self { chunks, len_bytes, pages })
    }

    /// Calls `visit(chunk, range in the chunk, bytes done before)` for each piece of a range.
    fn pieces(offset: u64, nbytes: u64, mut visit: impl FnMut(usize, Range<usize>, usize) -> Result<()>) -> Result<()> {
        let mut done = 0;
        while done < nbytes {
            let at = offset + done;
            let within = at % CHUNK_BYTES;
            let length = (CHUNK_BYTES - within).min(nbytes - done);
            visit((at / CHUNK_BYTES) as usize, within as usize..(within + length) as usize, done as usize)?;
            done += length;
        }
        Ok(())
    }

    fn read_all(&self, batch: &mut IoBatch) -> Result<()> {
        for extent in &batch.extents {
            let memory = &mut batch.buffer[extent.buffer_offset..extent.buffer_offset + extent.nbytes];
            Self::pieces(extent.offset, extent.nbytes as u64, |chunk, range, done| {
                let chunk = self.chunks[chunk].read().unwrap_or_else(PoisonError::into_inner);
                let out = &mut memory[done..done + range.len()];
                match chunk.as_deref() {
                    Some(bytes) => out.copy_from_slice(&bytes[range]),
                    None => out.fill(0),
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn write_all(&self, batch: &IoBatch) -> Result<()> {
        for extent in &batch.extents {
            let memory = &batch.buffer[extent.buffer_offset..extent.buffer_offset + extent.nbytes];
            Self::pieces(extent.offset, extent.nbytes as u64, |number, range, done| {
                let mut chunk = self.chunks[number].write().unwrap_or_else(PoisonError::into_inner);
                if chunk.is_none() {
                    let length = CHUNK_BYTES.min(self.len_bytes - number as u64 * CHUNK_BYTES);
                    *chunk = Some(AlignedBuffer::try_zeroed_with(length as usize, self.pages)?);
                }
                if let Some(bytes) = chunk.as_mut() {
                    bytes[range.clone()].copy_from_slice(&memory[done..done + range.len()]);
                }
                Ok(())
            })?;
        }
        Ok(())
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
        BackendInfo { huge_pages: self.pages == PageSize::Huge, ..BackendInfo::new("ram") }
    }

    fn start(&self, operation: Operation, mut batch: IoBatch) -> InFlight {
        let result = check_extents(self, &batch).and_then(|()| match operation {
            Operation::Read => self.read_all(&mut batch),
            Operation::Write => self.write_all(&batch),
        });
        InFlight::done(batch, result)
    }

    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        check_discard(self, offset, nbytes)?;
        Self::pieces(offset, nbytes, |number, range, _| {
            let mut chunk = self.chunks[number].write().unwrap_or_else(PoisonError::into_inner);
            match chunk.as_mut() {
                Some(bytes) if range.len() < bytes.len() => bytes[range].fill(0),
                _ => *chunk = None,
            }
            Ok(())
        })
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
