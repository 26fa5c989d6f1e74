//! Bytes in a file, moved by `io_uring`: the file is registered, and so is the memory that `buffer` gives.
//!
//! A ring that is polled is one thread's at its best: while one polls, another one that hands over waits for it in the kernel.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, types};

use super::buffer::Arena;
use super::in_flight::{Coordinator, Piece, Ring};
use super::{
    AlignedBuffer, Backend, BackendInfo, CompletionMode, DataFile, Extent, InFlight, IoBatch, Operation, check_discard,
    check_extents,
};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Arc;

/// Memory that a ring registers. It counts against the limit on locked memory of an ordinary user, which is 8 MiB.
const ARENA_BYTES: usize = 4 << 20;
/// The kernel is told of this share of the queue at a time. More at once is fewer system calls, but a drive
/// that gets its work in bursts answers in bursts and is idle in between: with the whole queue at
/// once a virtual disk gave 0.65 to 0.85 of the throughput, at depths 8 and 32.
const GROUP_SHARE: usize = 16;
/// What is moved to see whether polling works.
const PROBE_BYTES: usize = 4096;
/// How often it is asked for before polling is held not to work.
const PROBE_POLLS_MAX: usize = 10_000;
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
    completion: CompletionMode,
}

/// `Ok` if this host has an `io_uring` with what the backend needs, else why not.
pub fn probe_io_uring() -> Result<()> {
    new_ring(4, CompletionMode::Interrupt).map(drop)
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

fn new_ring(entries: u32, completion: CompletionMode) -> Result<IoUring> {
    let mut builder = IoUring::builder();
    if completion == CompletionMode::Polling {
        builder.setup_iopoll();
    }
    // Not with COOP_TASKRUN: completions would wait until the thread that submitted enters the kernel again, and
    // here another one may be waiting for them.
    let ring = builder.build(entries).map_err(|error| refused(&error))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| refused(&error))?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::ReadFixed::CODE, opcode::WriteFixed::CODE];
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        Ok(ring)
    } else {
        Err(refused(&std::io::Error::from_raw_os_error(libc::ENOSYS)))
    }
}

/// A ring for a file whose drive interrupts.
fn interrupted_ring(entries: u32, data: &DataFile) -> Result<IoUring> {
    let ring = new_ring(entries, CompletionMode::Interrupt)?;
    ring.submitter().register_files(&[data.file().as_raw_fd()]).map_err(|error| refused(&error))?;
    Ok(ring)
}

/// A ring that polls for what it was handed, or why there is none. What filesystem and driver cannot do shows at the
/// first transfer only, so one is made.
fn polled_ring(entries: u32, data: &DataFile) -> std::result::Result<IoUring, String> {
    if !data.is_direct() {
        return Err("only direct I/O is polled".into());
    }
    if data.has_polled_queues() == Some(false) {
        return Err("the drive's driver has no polled queues (queue/io_poll is 0)".into());
    }
    if data.len_bytes() < PROBE_BYTES as u64 {
        return Err("the file is too short to try".into());
    }
    let mut ring = new_ring(entries, CompletionMode::Polling).map_err(|error| error.to_string())?;
    let failed = |error: std::io::Error| format!("this filesystem or its drive cannot: {error}");
    ring.submitter().register_files(&[data.file().as_raw_fd()]).map_err(failed)?;
    let mut block = AlignedBuffer::zeroed(PROBE_BYTES);
    if data.is_scratch() {
        // Reading what was never written would not reach the drive, and writing it would not be polled for.
        data.file().write_all_at(&block, 0).map_err(failed)?;
    }
    let entry = opcode::Read::new(FILE, block.as_mut_ptr(), PROBE_BYTES as u32).build();
    // SAFETY: the memory is there until the completion.
    let pushed = unsafe { ring.submission().push(&entry) };
    pushed.map_err(|error| error.to_string())?;
    // Who polls comes back early if the kernel has other work.
    let mut polls = 0..PROBE_POLLS_MAX;
    let completion = loop {
        let may_go_on = polls.next().is_some() && ring.submit_and_wait(1).is_ok();
        if let Some(completion) = ring.completion().next() {
            break completion;
        }
        if !may_go_on {
            // The kernel may still move it.
            std::mem::forget(block);
            return Err("this filesystem or its drive completes nothing that is polled for".into());
        }
    };
    match completion.result() {
        code if code < 0 => Err(failed(std::io::Error::from_raw_os_error(-code))),
        _ => Ok(ring),
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
    /// Takes a file over, with at most `depth` requests in flight, or says why this host cannot. If it cannot poll, it
    /// is interrupted.
    pub fn new(
        mut data: DataFile,
        depth: u32,
        completion: CompletionMode,
    ) -> std::result::Result<Self, Box<(DataFile, Error)>> {
        let entries = depth.next_power_of_two();
        let polled = (completion == CompletionMode::Polling).then(|| polled_ring(entries, &data));
        if let Some(Err(reason)) = &polled {
            data.note_fallback(&format!("completion is by interrupt, not by polling: {reason}"));
        }
        let polled = polled.and_then(std::result::Result::ok);
        let completion = if polled.is_some() { CompletionMode::Polling } else { CompletionMode::Interrupt };
        let ring = match polled.map_or_else(|| interrupted_ring(entries, &data), Ok) {
            Ok(ring) => ring,
            Err(error) => return Err(Box::new((data, error))),
        };
        let arena = match register_arena(&ring) {
            Ok(arena) => Some(arena),
            Err(error) => {
                data.note_fallback(&format!("buffers are not registered with the kernel ({error})"));
                None
            }
        };
        let ring = FileRing { ring, data, arena, depth: depth as usize, completion };
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

    fn wait(&self, limit: Option<Duration>) -> std::io::Result<()> {
        let submitter = self.ring.submitter();
        let Some(limit) = limit else { return submitter.submit_and_wait(1).map(drop) };
        if self.completion == CompletionMode::Polling || !self.ring.params().is_feature_ext_arg() {
            // Takes what is there; the caller knows how late it is.
            return submitter.submit().map(drop);
        }
        let limit = types::Timespec::from(limit);
        match submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&limit)) {
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            done => done.map(drop),
        }
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
        let &FileRing { ref data, ref arena, completion, .. } = self.ring();
        BackendInfo { registered_buffers: arena.is_some(), completion, ..data.info("io_uring") }
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
        let Ok(backend) = UringBackend::new(data, 8, CompletionMode::Interrupt) else { return };
        let Some(arena) = &backend.ring().arena else { return };
        let (held, more) = (backend.buffer(ARENA_BYTES), backend.buffer(4096));
        assert!(arena.contains(held.as_ptr()) && !arena.contains(more.as_ptr()));
        drop(held);
        assert!(arena.contains(backend.buffer(4096).as_ptr()));
    }
}
