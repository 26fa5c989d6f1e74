//! Bytes in a file, moved by `io_uring`. The ring state owns the batch from the first submission to
//! the last completion, so that the kernel never writes into memory that somebody freed.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use io_uring::{IoUring, Probe, opcode, types};

use super::{AlignedBuffer, Backend, BackendInfo, IoBatch, ScratchFile, check_extents};
use crate::error::{Error, ErrorKind, Result};

/// Submission queue entries, and so the most operations in flight.
const RING_ENTRIES: u32 = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

struct RingState {
    ring: IoUring,
    /// The batch whose memory the kernel may be using. `None` while nothing is in flight.
    in_flight_batch: Option<IoBatch>,
    in_flight: usize,
}

/// A file backend over one `io_uring`.
pub struct UringBackend {
    state: Mutex<RingState>,
    scratch: ScratchFile,
}

/// `Ok` if this host has an `io_uring` with plain reads and writes, else why not.
pub fn probe_io_uring() -> Result<()> {
    new_ring(4).map(drop)
}

fn new_ring(entries: u32) -> Result<IoUring> {
    let refused = |error: std::io::Error| {
        let message = format!("io_uring is not usable on this host ({error}); use backend = \"auto\" or \"file\"");
        Error::new(ErrorKind::Unsupported, message)
    };
    let ring = IoUring::new(entries).map_err(refused)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(refused)?;
    if probe.is_supported(opcode::Read::CODE) && probe.is_supported(opcode::Write::CODE) {
        Ok(ring)
    } else {
        Err(refused(std::io::Error::from_raw_os_error(libc::ENOSYS)))
    }
}

impl UringBackend {
    /// Takes a scratch file over, or says why this host cannot.
    pub fn new(scratch: ScratchFile) -> std::result::Result<Self, (ScratchFile, Error)> {
        match new_ring(RING_ENTRIES) {
            Ok(ring) => {
                let state = RingState { ring, in_flight_batch: None, in_flight: 0 };
                Ok(Self { state: Mutex::new(state), scratch })
            }
            Err(error) => Err((scratch, error)),
        }
    }

    fn run(&self, batch: IoBatch, direction: Direction) -> (IoBatch, Result<()>) {
        if let Err(error) = check_extents(self, &batch) {
            return (batch, Err(error));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.drain();
        let fd = types::Fd(self.scratch.file.as_raw_fd());
        let result = state.run(fd, batch, direction);
        state.drain();
        let batch = state.in_flight_batch.take().expect("the batch is kept until it is drained");
        (batch, result)
    }
}

/// The kernel asks to try again.
fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn submit_and_wait(ring: &IoUring) -> Result<()> {
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => return Ok(()),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(Error::io("waiting for io_uring", error)),
        }
    }
}

/// One operation, or what is left of it after a short transfer.
#[derive(Clone, Copy)]
struct Piece {
    extent: u32,
    done: u32,
}

impl RingState {
    /// Moves all extents. On return operations may be in flight; `drain` waits for them.
    fn run(&mut self, fd: types::Fd, batch: IoBatch, direction: Direction) -> Result<()> {
        let Self { ring, in_flight_batch, in_flight } = self;
        let batch = in_flight_batch.insert(batch);
        let base = batch.buffer.as_mut_ptr();
        let extents = &batch.extents;
        let mut todo: VecDeque<Piece> =
            (0..extents.len()).map(|extent| Piece { extent: extent as u32, done: 0 }).collect();
        while !todo.is_empty() || *in_flight > 0 {
            while *in_flight < RING_ENTRIES as usize {
                let Some(piece) = todo.pop_front() else { break };
                let extent = extents[piece.extent as usize];
                let done = piece.done as usize;
                // SAFETY: `check_extents` saw that the extent lies inside the buffer, and `done` is below its length.
                let memory = unsafe { base.add(extent.buffer_offset + done) };
                let left = (extent.nbytes - done) as u32;
                let offset = extent.offset + done as u64;
                let entry = match direction {
                    Direction::Read => opcode::Read::new(fd, memory, left).offset(offset).build(),
                    Direction::Write => opcode::Write::new(fd, memory, left).offset(offset).build(),
                };
                let entry = entry.user_data((u64::from(piece.extent) << 32) | u64::from(piece.done));
                // SAFETY: the memory belongs to `in_flight_batch`, which is neither moved nor freed
                // before `in_flight` is back at zero (`drain`).
                let pushed = unsafe { ring.submission().push(&entry) };
                pushed.expect("the ring has room: in_flight is below its size");
                *in_flight += 1;
            }
            submit_and_wait(ring)?;
            let completions: Vec<(u64, i32)> =
                ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
            // All of these are done, whatever becomes of the batch below.
            *in_flight -= completions.len();
            for (user_data, code) in completions {
                let piece = Piece { extent: (user_data >> 32) as u32, done: user_data as u32 };
                let extent = extents[piece.extent as usize];
                let failed = |error: std::io::Error| {
                    let what = if direction == Direction::Read { "reading" } else { "writing" };
                    Error::io(&format!("{what} a scratch file through io_uring"), error)
                        .with_context("offset", extent.offset)
                        .with_context("nbytes", extent.nbytes)
                };
                if code == -libc::EINTR || code == -libc::EAGAIN {
                    todo.push_back(piece);
                } else if code < 0 {
                    return Err(failed(std::io::Error::from_raw_os_error(-code)));
                } else if code == 0 && extent.nbytes > 0 {
                    return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
                } else if piece.done as usize + (code as usize) < extent.nbytes {
                    todo.push_back(Piece { done: piece.done + code as u32, ..piece });
                }
            }
        }
        Ok(())
    }

    /// Returns when the kernel holds no pointer into the batch any more.
    fn drain(&mut self) {
        while self.in_flight > 0 {
            // Entries that were pushed and never submitted are submitted by this call as well.
            let waited = self.ring.submit_and_wait(1);
            let seen = self.ring.completion().count();
            self.in_flight -= seen;
            if waited.is_err_and(|error| !is_transient(&error)) && seen == 0 {
                // The ring itself is broken. Leaking the memory is the only safe thing left to do.
                let empty = IoBatch { buffer: AlignedBuffer::zeroed(0), extents: Vec::new() };
                std::mem::forget(self.in_flight_batch.replace(empty));
                self.in_flight = 0;
            }
        }
    }
}

impl Drop for RingState {
    fn drop(&mut self) {
        self.drain();
    }
}

impl Backend for UringBackend {
    fn len_bytes(&self) -> u64 {
        self.scratch.len_bytes
    }

    fn alignment_bytes(&self) -> usize {
        self.scratch.alignment_bytes()
    }

    fn info(&self) -> BackendInfo {
        self.scratch.info("io_uring")
    }

    fn read(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        self.run(batch, Direction::Read)
    }

    fn write(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        self.run(batch, Direction::Write)
    }

    fn sync(&self) -> Result<()> {
        self.scratch.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{DirectIo, Extent, scratch_file};

    /// A batch of which many requests fail used to hang: the completions behind the first failure
    /// were taken from the queue and never counted.
    #[test]
    fn a_batch_that_fails_in_many_places_returns_its_error_and_its_memory() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = scratch_file(directory.path(), 4 << 20, DirectIo::Off).unwrap();
        let Ok(backend) = UringBackend::new(scratch) else { return };
        backend.scratch.file.set_len(8192).unwrap();
        for _ in 0..3 {
            let extent = |n: usize| Extent { offset: n as u64 * 4096, buffer_offset: n * 4096, nbytes: 4096 };
            let batch = IoBatch { buffer: AlignedBuffer::zeroed(600 * 4096), extents: (0..600).map(extent).collect() };
            let (batch, result) = backend.read(batch);
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
            assert_eq!((batch.buffer.len(), batch.extents.len()), (600 * 4096, 600));
        }
        backend.scratch.file.set_len(4 << 20).unwrap();
        let extents = vec![Extent { offset: 0, buffer_offset: 0, nbytes: 4096 }];
        backend.read(IoBatch { buffer: AlignedBuffer::zeroed(4096), extents }).1.unwrap();
    }
}
