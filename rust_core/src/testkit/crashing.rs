//! A backend that loses power.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::backend::{AlignedBuffer, Backend, BackendInfo, Extent, InFlight, IoBatch, Operation, RamBackend};
use crate::error::{Error, ErrorKind, Result};
use crate::rng;

/// What a drive writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Bytes in RAM behind a volatile write cache: what was written since the last `sync` survives a crash
/// sector by sector or not, as the seed says and in no order.
pub struct CrashingBackend {
    /// What a reader sees.
    seen: RamBackend,
    state: Mutex<CrashState>,
}

struct CrashState {
    /// What is safe.
    durable: RamBackend,
    /// Sectors written since, in order.
    volatile: Vec<(u64, Vec<u8>)>,
    down: bool,
}

fn put(backend: &RamBackend, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut buffer = AlignedBuffer::zeroed(bytes.len());
    buffer.copy_from_slice(bytes);
    let extents = vec![Extent { offset, buffer_offset: 0, nbytes: bytes.len() }];
    backend.write(IoBatch { buffer, extents }).1
}

impl CrashingBackend {
    /// `len_bytes` zero bytes, all of them safe.
    pub fn new(len_bytes: u64) -> Result<Self> {
        let state = CrashState { durable: RamBackend::new(len_bytes)?, volatile: Vec::new(), down: false };
        Ok(Self { seen: RamBackend::new(len_bytes)?, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, CrashState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_up(state: &CrashState) -> Result<()> {
        if state.down { Err(Error::new(ErrorKind::Closed, "the device has no power")) } else { Ok(()) }
    }

    /// Takes the power away: every operation fails until `restart`.
    pub fn crash(&self, seed: u64) -> Result<()> {
        let mut state = self.lock();
        state.down = true;
        for (number, (offset, bytes)) in std::mem::take(&mut state.volatile).into_iter().enumerate() {
            if rng::draw(seed, number as u64) & 1 == 1 {
                put(&state.durable, offset, &bytes)?;
            }
        }
        Ok(())
    }

    /// Gives the power back: readers see what was safe, and nothing else.
    pub fn restart(&self) -> Result<()> {
        let mut state = self.lock();
        let mut offset = 0;
        while offset < self.seen.len_bytes() {
            let nbytes = (self.seen.len_bytes() - offset).min(1 << 20) as usize;
            let extents = vec![Extent { offset, buffer_offset: 0, nbytes }];
            let (batch, read) = state.durable.read(IoBatch { buffer: AlignedBuffer::zeroed(nbytes), extents });
            read.and_then(|()| self.seen.write(batch).1)?;
            offset += nbytes as u64;
        }
        state.down = false;
        Ok(())
    }
}

impl Backend for CrashingBackend {
    fn len_bytes(&self) -> u64 {
        self.seen.len_bytes()
    }

    fn alignment_bytes(&self) -> usize {
        1
    }

    fn info(&self) -> BackendInfo {
        self.seen.info()
    }

    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight {
        let mut state = self.lock();
        if let Err(error) = Self::check_up(&state) {
            return InFlight::done(batch, Err(error));
        }
        let (batch, result) = match operation {
            Operation::Read => self.seen.read(batch),
            Operation::Write => self.seen.write(batch),
        };
        if result.is_ok() && operation == Operation::Write {
            for extent in &batch.extents {
                let bytes = &batch.buffer[extent.buffer_offset..extent.buffer_offset + extent.nbytes];
                let first = SECTOR_BYTES - extent.offset as usize % SECTOR_BYTES;
                let (head, rest) = bytes.split_at(first.min(bytes.len()));
                let mut offset = extent.offset;
                for sector in std::iter::once(head).chain(rest.chunks(SECTOR_BYTES)) {
                    state.volatile.push((offset, sector.to_vec()));
                    offset += sector.len() as u64;
                }
            }
        }
        InFlight::done(batch, result)
    }

    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        let mut state = self.lock();
        Self::check_up(&state)?;
        self.seen.discard(offset, nbytes)?;
        state.volatile.push((offset, vec![0; nbytes as usize]));
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.lock();
        Self::check_up(&state)?;
        for (offset, bytes) in std::mem::take(&mut state.volatile) {
            put(&state.durable, offset, &bytes)?;
        }
        Ok(())
    }
}
