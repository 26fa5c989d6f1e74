//! The thread that moves bytes. It decides nothing: a job says what to read, what to change in the
//! memory that was read, and what to write; jobs run one after the other in the order of their
//! submission, so a block has one read-modify-write at a time and a read follows every write
//! that was decided before it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::layout::{BlockKey, TableLayout};
use crate::backend::{AlignedBuffer, Backend, Extent, IoBatch};
use crate::clock::Clock;
use crate::device::{Operation, Request, Schedule};
use crate::error::{Error, ErrorKind, Result};

/// One contiguous transfer between the job's memory and a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Position of the tier among the block tiers.
    pub tier: usize,
    /// What to move.
    pub extent: Extent,
}

impl Transfer {
    /// The request that the timing model sees.
    pub fn request(&self, operation: Operation) -> Request {
        Request { device: self.tier, operation, offset: self.extent.offset, nbytes: self.extent.nbytes as u64 }
    }
}

/// A row image that replaces bytes of a block after it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// First byte in the job's memory.
    pub buffer_offset: usize,
    /// First byte in `Job::images`.
    pub image_offset: usize,
    /// Length in bytes.
    pub nbytes: usize,
}

/// Work for the I/O thread: reads, then changes in memory, then writes.
#[derive(Debug)]
pub struct Job {
    /// Memory of all blocks of the job.
    pub buffer: AlignedBuffer,
    /// Sorted by tier and offset.
    pub reads: Vec<Transfer>,
    /// Blocks whose header is checked after the reads, with their place in memory.
    pub expected: Vec<(BlockKey, usize)>,
    /// Row images to put in.
    pub patches: Vec<Patch>,
    /// Bytes of the patches.
    pub images: Vec<u8>,
    /// Sorted by tier and offset.
    pub writes: Vec<Transfer>,
    /// When it was submitted; `None` for maintenance, which is not timed.
    pub submitted_ns: Option<u64>,
}

/// What came of a job.
#[derive(Debug)]
pub struct JobDone {
    /// Memory of all blocks, read and changed.
    pub buffer: AlignedBuffer,
    /// When the reads are due on a wall clock; zero on a virtual one.
    pub due_ns: u64,
    /// When the bytes that were read were there, on the store's clock.
    pub ready_ns: u64,
}

#[derive(Debug, Default)]
struct JobState {
    outcome: Option<Result<JobDone>>,
    finished: bool,
}

#[derive(Debug, Default)]
struct JobCell {
    state: Mutex<JobState>,
    finished: Condvar,
}

/// A submitted job.
#[derive(Debug, Clone)]
pub struct JobHandle(Arc<JobCell>);

impl JobHandle {
    /// Blocks until the job has run.
    pub fn wait(&self) {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.finished.wait_while(state, |state| !state.finished).unwrap_or_else(PoisonError::into_inner));
    }

    /// The outcome, once; blocks until the job has run.
    pub fn take(&self) -> Result<JobDone> {
        self.wait();
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .outcome
            .take()
            .unwrap_or_else(|| Err(Error::new(ErrorKind::Closed, "the outcome of a transfer was taken twice")))
    }
}

struct Shared {
    backends: Vec<Box<dyn Backend>>,
    /// The tier whose memory jobs use: the first that moves its own faster, if one does.
    memory_tier: usize,
    clock: Arc<Clock>,
    schedule: Arc<Mutex<Schedule>>,
    /// The first failure. Tiers and memory no longer agree after it, so every later job fails with it.
    failed: Mutex<Option<Error>>,
}

/// The I/O thread and its queue. Dropping it finishes all queued jobs first.
pub struct Worker {
    sender: Option<Sender<(Job, Arc<JobCell>)>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Worker {
    /// Starts the thread over the block tiers, in the order of the schedule's devices.
    pub fn start(backends: Vec<Box<dyn Backend>>, clock: Arc<Clock>, schedule: Arc<Mutex<Schedule>>) -> Result<Self> {
        let memory_tier = backends.iter().position(|backend| backend.info().registered_buffers).unwrap_or(0);
        let shared = Arc::new(Shared { backends, memory_tier, clock, schedule, failed: Mutex::new(None) });
        let (sender, receiver) = channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("tiermem-io".into())
            .spawn(move || for_thread.serve(&receiver))
            .map_err(|error| Error::io("starting the I/O thread", error))?;
        Ok(Self { sender: Some(sender), thread: Some(thread), shared })
    }

    /// Queues a job; never blocks. The queue is bounded by the caller: staging bounds the tickets,
    /// and each release waits for the write-back of an earlier one.
    pub fn submit(&self, job: Job) -> JobHandle {
        let cell = Arc::new(JobCell::default());
        let sender = self.sender.as_ref().expect("the sender lives as long as the worker");
        if let Err(refused) = sender.send((job, Arc::clone(&cell))) {
            let (_, cell) = refused.0;
            finish(&cell, Err(Error::new(ErrorKind::Closed, "the I/O thread has ended")));
        }
        JobHandle(cell)
    }

    /// Memory for a job; what it holds is arbitrary.
    pub fn buffer(&self, nbytes: usize) -> AlignedBuffer {
        self.shared.backends[self.shared.memory_tier].buffer(nbytes)
    }

    /// What runs underneath each block tier.
    pub fn backends(&self) -> &[Box<dyn Backend>] {
        &self.shared.backends
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already turned into a failed job.
            let _ = thread.join();
        }
    }
}

fn finish(cell: &JobCell, outcome: Result<JobDone>) {
    let mut state = cell.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.outcome = Some(outcome);
    state.finished = true;
    cell.finished.notify_all();
}

impl Shared {
    fn serve(&self, receiver: &Receiver<(Job, Arc<JobCell>)>) {
        for (job, cell) in receiver {
            let earlier = self.failed.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Error::duplicate);
            let outcome = if let Some(error) = earlier {
                Err(error)
            } else {
                let run = std::panic::AssertUnwindSafe(|| self.run(job));
                std::panic::catch_unwind(run).unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Io, "the I/O thread panicked; please report this as a bug"))
                })
            };
            if let Err(error) = &outcome {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert_with(|| error.duplicate());
            }
            finish(&cell, outcome);
        }
    }

    fn run(&self, job: Job) -> Result<JobDone> {
        let Job { mut buffer, reads, expected, patches, images, writes, submitted_ns } = job;
        let on_wall = submitted_ns.filter(|_| !self.clock.is_virtual());
        buffer = self.transfer(buffer, &reads, Operation::Read)?;
        for (key, offset) in expected {
            TableLayout::check_header(key, &buffer[offset..])?;
        }
        let (mut due_ns, ready_ns) = (0, self.clock.now_ns());
        if let Some(submitted_ns) = on_wall.filter(|_| !reads.is_empty()) {
            due_ns = self.due(submitted_ns, &reads, Operation::Read);
        }
        for patch in patches {
            let image = &images[patch.image_offset..patch.image_offset + patch.nbytes];
            buffer[patch.buffer_offset..patch.buffer_offset + patch.nbytes].copy_from_slice(image);
        }
        if !writes.is_empty() {
            if let Some(submitted_ns) = on_wall {
                // Nobody waits for a write; it occupies the device all the same.
                self.due(submitted_ns.max(due_ns), &writes, Operation::Write);
            }
            buffer = self.transfer(buffer, &writes, Operation::Write)?;
        }
        Ok(JobDone { buffer, due_ns, ready_ns })
    }

    fn due(&self, submitted_ns: u64, transfers: &[Transfer], operation: Operation) -> u64 {
        let requests: Vec<Request> = transfers.iter().map(|transfer| transfer.request(operation)).collect();
        let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = schedule.submit(submitted_ns, &requests);
        schedule.finish(handle)
    }

    /// One batch per tier; transfers are sorted by tier.
    fn transfer(
        &self,
        mut buffer: AlignedBuffer,
        transfers: &[Transfer],
        operation: Operation,
    ) -> Result<AlignedBuffer> {
        for group in transfers.chunk_by(|a, b| a.tier == b.tier) {
            let backend = &self.backends[group[0].tier];
            let batch = IoBatch { buffer, extents: group.iter().map(|transfer| transfer.extent).collect() };
            let (batch, result) = match operation {
                Operation::Read => backend.read(batch),
                Operation::Write => backend.write(batch),
            };
            result?;
            buffer = batch.buffer;
        }
        Ok(buffer)
    }
}
