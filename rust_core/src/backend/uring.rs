//! Bytes in a file, moved by `io_uring`: the file is registered, and so is the memory that `buffer` gives.

use std::os::fd::AsRawFd;

use io_uring::{IoUring, Probe, opcode, types};

use super::buffer::Arena;
use super::in_flight::{Coordinator, Piece, Ring};
use super::{
    AlignedBuffer, Backend, BackendInfo, DataFile, Extent, InFlight, IoBatch, Operation, check_discard, check_extents,
};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Arc;

/// Memory that a ring registers. It counts against the limit on locked memory of an ordinary user, which is 8 MiB.
const ARENA_BYTES: usize = 4 << 20;
/// The kernel is told of this share of the queue at a time. More at once is fewer system calls, but a drive
/// that gets its work in bursts answers in bursts and is idle in between: with the whole queue at
/// once a virtual disk gave 0.65 to 0.85 of the throughput, at depths 8 and 32.
const GROUP_SHARE: usize = 16;
/// The one registered file, and the one registered buffer.
const FILE: types::Fixed = types::Fixed(0);
const BUFFER: u16 = 0;

/// A file backend over one `io_uring`, shared by all threads that use it.
pub struct UringBackend {
    coordinator: Arc<Coordinator<FileRing>>,
}

struct FileRing {
    ring: IoUring,
    data: DataFile,
    arena: Option<std::sync::Arc<Arena>>,
    depth: usize,
}

/// `Ok` if this host has an `io_uring` with what the backend needs, else why not.
pub fn probe_io_uring() -> Result<()> {
    new_ring(4).map(drop)
}

fn refused(error: &std::io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has none",
        Some(libc::EPERM | libc::EACCES) => "this host forbids it",
        Some(libc::ENOMEM) => "its memory exceeds the limit on locked memory",
        Some(libc::EMFILE | libc::ENFILE) => "too many files are open",
        _ => "the kernel refused it",
    };
    let message = format!("io_uring is not usable: {why} ({error}); use engine = \"auto\" or \"file\"");
    Error::new(ErrorKind::Unsupported, message)
}

fn new_ring(entries: u32) -> Result<IoUring> {
    // Not with COOP_TASKRUN: completions would wait until the thread that submitted enters the kernel again, and
    // here another one may be waiting for them.
    let ring = IoUring::new(entries).map_err(|error| refused(&error))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| refused(&error))?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::ReadFixed::CODE, opcode::WriteFixed::CODE];
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        Ok(ring)
    } else {
        Err(refused(&std::io::Error::from_raw_os_error(libc::ENOSYS)))
    }
}

/// Pins an arena and tells the ring of it.
fn register_arena(ring: &IoUring) -> std::io::Result<std::sync::Arc<Arena>> {
    let arena = Arena::new(ARENA_BYTES).map_err(|_| std::io::Error::from_raw_os_error(libc::ENOMEM))?;
    let (start, nbytes) = arena.memory();
    let memory = libc::iovec { iov_base: start.cast_mut().cast(), iov_len: nbytes };
    // SAFETY: the arena lives in the same struct as the ring and is dropped after it.
    unsafe { ring.submitter().register_buffers(&[memory]) }?;
    Ok(arena)
}

impl UringBackend {
    /// Takes a file over, with at most `depth` requests in flight, or says why this host cannot.
    pub fn new(mut data: DataFile, depth: u32) -> std::result::Result<Self, Box<(DataFile, Error)>> {
        let ring = match new_ring(depth.next_power_of_two()) {
            Ok(ring) => ring,
            Err(error) => return Err(Box::new((data, error))),
        };
        if let Err(error) = ring.submitter().register_files(&[data.file().as_raw_fd()]) {
            return Err(Box::new((data, refused(&error))));
        }
        let arena = match register_arena(&ring) {
            Ok(arena) => Some(arena),
            Err(error) => {
                data.note_fallback(&format!("buffers are not registered with the kernel ({error})"));
                None
            }
        };
        let ring = FileRing { ring, data, arena, depth: depth as usize };
        Ok(Self { coordinator: Arc::new(Coordinator::new(ring)) })
    }

    fn ring(&self) -> &FileRing {
        self.coordinator.ring()
    }
}

impl Ring for FileRing {
    fn depth(&self) -> usize {
        self.depth
    }

    fn group(&self) -> usize {
        (self.depth / GROUP_SHARE).max(1)
    }

    unsafe fn push(&self, number: u64, piece: Piece) {
        let Piece { operation, memory, offset, nbytes } = piece;
        let is_registered = self.arena.as_ref().is_some_and(|arena| arena.contains(memory));
        let entry = match (operation, is_registered) {
            (Operation::Read, true) => opcode::ReadFixed::new(FILE, memory, nbytes, BUFFER).offset(offset).build(),
            (Operation::Read, false) => opcode::Read::new(FILE, memory, nbytes).offset(offset).build(),
            (Operation::Write, true) => opcode::WriteFixed::new(FILE, memory, nbytes, BUFFER).offset(offset).build(),
            (Operation::Write, false) => opcode::Write::new(FILE, memory, nbytes).offset(offset).build(),
        };
        let entry = entry.user_data(number);
        // SAFETY: called under the lock, so there is no other submission queue.
        let mut queue = unsafe { self.ring.submission_shared() };
        // SAFETY: the caller keeps the memory until the completion.
        let pushed = unsafe { queue.push(&entry) };
        pushed.expect("the ring has as many entries as requests may be in flight");
    }

    fn submit(&self) -> std::io::Result<()> {
        self.ring.submitter().submit().map(drop)
    }

    fn wait(&self) -> std::io::Result<()> {
        self.ring.submit_and_wait(1).map(drop)
    }

    fn take(&self, completions: &mut Vec<(u64, i32)>) {
        // SAFETY: called under the lock, so there is no other completion queue.
        let queue = unsafe { self.ring.completion_shared() };
        completions.extend(queue.map(|entry| (entry.user_data(), entry.result())));
    }

    fn failed(&self, operation: Operation, error: std::io::Error, extent: &Extent) -> Error {
        self.data.moving_failed(operation, error, extent.offset, extent.nbytes)
    }
}

impl Backend for UringBackend {
    fn len_bytes(&self) -> u64 {
        self.ring().data.len_bytes()
    }

    fn alignment_bytes(&self) -> usize {
        self.ring().data.alignment_bytes()
    }

    fn info(&self) -> BackendInfo {
        let FileRing { data, arena, .. } = self.ring();
        BackendInfo { registered_buffers: arena.is_some(), ..data.info("io_uring") }
    }

    fn buffer(&self, nbytes: usize) -> AlignedBuffer {
        let lent = self.ring().arena.as_ref().and_then(|arena| arena.lend(nbytes));
        lent.unwrap_or_else(|| AlignedBuffer::zeroed(nbytes))
    }

    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight {
        if let Err(error) = check_extents(self, &batch) {
            return InFlight::done(batch, Err(error));
        }
        let number = self.coordinator.start(operation, batch);
        InFlight::on_ring(&self.coordinator, number)
    }

    fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        check_discard(self, offset, nbytes)?;
        self.ring().data.discard(offset, nbytes)
    }

    fn sync(&self) -> Result<()> {
        self.ring().data.sync()
    }
}

impl Drop for UringBackend {
    /// Handles may outlive the backend: they find their outcomes.
    fn drop(&mut self) {
        self.coordinator.drain();
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::backend::DirectIo;

    #[test]
    fn memory_comes_from_the_registered_arena_while_that_has_room() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataFile::scratch(directory.path(), 1 << 20, DirectIo::Off).unwrap();
        let Ok(backend) = UringBackend::new(data, 8) else { return };
        let Some(arena) = &backend.ring().arena else { return };
        let (held, more) = (backend.buffer(ARENA_BYTES), backend.buffer(4096));
        assert!(arena.contains(held.as_ptr()) && !arena.contains(more.as_ptr()));
        drop(held);
        assert!(arena.contains(backend.buffer(4096).as_ptr()));
    }
}
