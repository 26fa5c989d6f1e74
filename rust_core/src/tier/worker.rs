//! The thread that moves bytes. It decides nothing: a job says what to read, what to change in the
//! memory that was read, and what to write; jobs run one after the other in the order of their
//! submission, so a block has one read-modify-write at a time and a read follows every write
//! that was decided before it.
//!
//! A job that fails stays at the head of the queue with all its bytes, and the thread stands still. Whoever waits first
//! gets the error; who waits after that makes the thread try again. So nothing is lost, and what was decided while the
//! device failed holds as soon as it works again.

use std::collections::{HashMap, VecDeque};
use std::sync::PoisonError;

use super::job::{Job, JobDone, PlacedUnit, Transfer, Units};
use super::plan::Unit;
use crate::backend::{AlignedBuffer, Backend, Extent, IoBatch};
use crate::clock::Clock;
use crate::device::{Operation, Request, Schedule};
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Fault, is_planted};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, thread};

/// Memory of a job that is kept for the next one.
const SCRATCH_BYTES_MAX: usize = 32 << 20;
/// Jobs that may wait for a device that fails.
const BACKLOG_JOBS_MAX: usize = 64;

/// A job and how far it got.
struct Running {
    job: Job,
    /// Memory of its units while it runs.
    buffer: AlignedBuffer,
    is_read: bool,
    is_taken: bool,
    due_ns: u64,
    ready_ns: u64,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Running>,
    /// Jobs that have run; they run in order, so their numbers are below this.
    finished: u64,
    submitted: u64,
    done: HashMap<u64, JobDone>,
    /// The first job failed and waits to be tried again.
    stalled: bool,
    /// Its error, until somebody was told.
    failure: Option<Error>,
    /// The last error.
    last_failure: Option<Error>,
    closing: bool,
}

struct Shared {
    backends: Vec<Box<dyn Backend>>,
    names: Vec<String>,
    units: Box<dyn Units>,
    /// The tier whose memory jobs use: the first that moves its own faster, if one does.
    memory_tier: usize,
    clock: std::sync::Arc<Clock>,
    schedule: std::sync::Arc<std::sync::Mutex<Schedule>>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Of a planted fault.
    late: Mutex<Option<(Job, AlignedBuffer)>>,
}

/// A submitted job.
#[derive(Clone)]
pub struct JobHandle {
    number: u64,
    shared: Arc<Shared>,
}

impl JobHandle {
    /// Whether the job has run.
    pub fn is_finished(&self) -> bool {
        self.number < self.shared.lock().finished
    }

    /// Blocks until the job has run.
    ///
    /// # Errors
    ///
    /// That of a job that failed, this one or one before it. Waiting again tries it again.
    pub fn wait(&self) -> Result<()> {
        self.shared.wait(self.number).map(drop)
    }

    /// The outcome, once; blocks until the job has run.
    ///
    /// # Errors
    ///
    /// As `wait`; the outcome can still be taken later.
    pub fn take(&self) -> Result<JobDone> {
        let mut queue = self.shared.wait(self.number)?;
        queue
            .done
            .remove(&self.number)
            .ok_or_else(|| Error::new(ErrorKind::Closed, "the outcome of a transfer was taken twice"))
    }
}

impl JobHandle {
    /// As `take`; after an error nobody will take the outcome any more, and the job runs all the same.
    pub fn take_or_abandon(self) -> Result<JobDone> {
        self.take().inspect_err(|_| {
            let mut queue = self.shared.lock();
            queue.done.remove(&self.number);
            let position = self.number.wrapping_sub(queue.finished) as usize;
            if let Some(running) = queue.jobs.get_mut(position) {
                running.is_taken = false;
            }
        })
    }
}

/// The I/O thread and its queue. Dropping it finishes all queued jobs first, unless one fails.
pub struct Worker {
    thread: Option<thread::JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Worker {
    /// Starts the thread over the lower tiers, with their names, in the order of the schedule's devices.
    pub fn start(
        backends: Vec<(String, Box<dyn Backend>)>,
        units: Box<dyn Units>,
        clock: std::sync::Arc<Clock>,
        schedule: std::sync::Arc<std::sync::Mutex<Schedule>>,
    ) -> Result<Self> {
        let (names, backends): (Vec<_>, Vec<_>) = backends.into_iter().unzip();
        let memory_tier = backends.iter().position(|backend| backend.info().registered_buffers).unwrap_or(0);
        let shared = Arc::new(Shared {
            backends,
            names,
            units,
            memory_tier,
            clock,
            schedule,
            queue: Mutex::default(),
            changed: Condvar::new(),
            late: Mutex::new(None),
        });
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("tiermem-io".into())
            .spawn(move || for_thread.serve())
            .map_err(|error| Error::io("starting the I/O thread", error))?;
        Ok(Self { thread: Some(thread), shared })
    }

    /// Queues a job; never blocks. The queue is bounded by the caller: staging bounds the tickets,
    /// and each release waits for the write-back of an earlier one. With `is_taken` the outcome is to be taken.
    pub fn submit(&self, job: Job, is_taken: bool) -> JobHandle {
        let mut queue = self.shared.lock();
        let buffer = AlignedBuffer::zeroed(0);
        queue.jobs.push_back(Running { job, buffer, is_read: false, is_taken, due_ns: 0, ready_ns: 0 });
        let number = queue.submitted;
        queue.submitted += 1;
        drop(queue);
        self.shared.changed.notify_all();
        JobHandle { number, shared: Arc::clone(&self.shared) }
    }

    /// Refuses more work while a device fails and much is waiting for it already; never blocks.
    ///
    /// # Errors
    ///
    /// The last error of the device.
    pub fn check_backlog(&self) -> Result<()> {
        let mut queue = self.shared.lock();
        if !queue.stalled || queue.jobs.len() < BACKLOG_JOBS_MAX {
            return Ok(());
        }
        let Some(error) = queue.last_failure.as_ref().map(Error::duplicate) else { return Ok(()) };
        if queue.failure.take().is_none() {
            // Somebody was told before: the device is tried again for whoever comes next.
            queue.stalled = false;
            self.shared.changed.notify_all();
        }
        Err(error)
    }

    /// What runs underneath each lower tier.
    pub fn backends(&self) -> &[Box<dyn Backend>] {
        &self.shared.backends
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already turned into a failed job.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, number: u64) -> Result<MutexGuard<'_, Queue>> {
        let mut queue = self.lock();
        loop {
            if number < queue.finished {
                return Ok(queue);
            }
            if queue.stalled {
                if let Some(error) = queue.failure.take() {
                    return Err(error);
                }
                queue.stalled = false;
                self.changed.notify_all();
            }
            if queue.closing {
                return Err(Error::new(ErrorKind::Closed, "the I/O thread has ended"));
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn serve(&self) {
        let mut scratch = AlignedBuffer::zeroed(0);
        loop {
            let mut queue = self.lock();
            while !queue.closing && (queue.stalled || queue.jobs.is_empty()) {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.closing && queue.stalled {
                return;
            }
            let Some(running) = queue.jobs.pop_front() else { return };
            drop(queue);
            let run = std::panic::AssertUnwindSafe(|| self.run(running, &mut scratch));
            let outcome = std::panic::catch_unwind(run);
            let mut queue = self.lock();
            match outcome {
                Ok(Ok(done)) => {
                    if let Some(done) = done {
                        let number = queue.finished;
                        queue.done.insert(number, done);
                    }
                    queue.finished += 1;
                }
                Ok(Err((running, error))) => {
                    queue.jobs.push_front(*running);
                    queue.stalled = true;
                    queue.last_failure = Some(error.duplicate());
                    queue.failure = Some(error);
                }
                Err(_) => {
                    // The job is lost: nothing behind it may run.
                    queue.stalled = true;
                    queue.closing = true;
                    queue.failure =
                        Some(Error::new(ErrorKind::Io, "the I/O thread panicked; please report this as a bug"));
                    drop(queue);
                    self.changed.notify_all();
                    return;
                }
            }
            drop(queue);
            self.changed.notify_all();
        }
    }

    /// Gives the outcome if it is to be taken, or the job and its error.
    fn run(
        &self,
        mut running: Running,
        scratch: &mut AlignedBuffer,
    ) -> std::result::Result<Option<JobDone>, (Box<Running>, Error)> {
        if !running.is_read && running.buffer.is_empty() {
            running.buffer = self.memory(scratch, running.job.nbytes);
        }
        if let Err(error) = self.advance(&mut running) {
            return Err((Box::new(running), error));
        }
        let Running { job, buffer, due_ns, ready_ns, is_taken, .. } = running;
        let done = is_taken.then(|| {
            let mut kept = AlignedBuffer::zeroed(job.kept.iter().map(|&(_, nbytes)| nbytes).sum());
            let mut to = 0;
            for &(from, nbytes) in &job.kept {
                kept[to..to + nbytes].copy_from_slice(&buffer[from..from + nbytes]);
                to += nbytes;
            }
            JobDone { kept, due_ns, ready_ns }
        });
        if buffer.len() <= SCRATCH_BYTES_MAX {
            *scratch = buffer;
        }
        Ok(done)
    }

    /// Memory for a job; what it holds is arbitrary. The memory of the job before it serves again.
    fn memory(&self, scratch: &mut AlignedBuffer, nbytes: usize) -> AlignedBuffer {
        let before = std::mem::replace(scratch, AlignedBuffer::zeroed(0));
        if before.len() >= nbytes {
            return before;
        }
        drop(before);
        self.backends[self.memory_tier].buffer(nbytes)
    }

    /// Runs what is left of a job. Reads and writes may run again; what follows the reads runs once.
    fn advance(&self, running: &mut Running) -> Result<()> {
        let job = &running.job;
        let on_wall = job.submitted_ns.filter(|_| !self.clock.is_virtual());
        if !running.is_read {
            self.transfer(job, &mut running.buffer, Operation::Read)?;
            let buffer = &mut running.buffer;
            for placed in &job.units {
                if let (true, Unit::Block(key)) = (placed.is_checked, placed.unit) {
                    key.check_header(&buffer[placed.buffer_offset..])
                        .map_err(|error| error.with_context("rows", self.units.describe(&[(placed.unit, None)])))?;
                }
            }
            running.ready_ns = self.clock.now_ns();
            if let Some(submitted_ns) = on_wall.filter(|_| !job.reads.is_empty()) {
                running.due_ns = self.due(submitted_ns, &job.reads, Operation::Read);
            }
            for &(key, buffer_offset) in &job.fresh {
                self.units.initialise(key, &mut buffer[buffer_offset..]);
            }
            for copy in &job.copies {
                let to = copy.to..copy.to + copy.nbytes;
                if copy.from_images {
                    buffer[to].copy_from_slice(&job.images[copy.from..copy.from + copy.nbytes]);
                } else {
                    buffer.copy_within(copy.from..copy.from + copy.nbytes, copy.to);
                }
            }
            if let Some(submitted_ns) = on_wall.filter(|_| !job.writes.is_empty()) {
                // Nobody waits for a write; it occupies the device all the same.
                self.due(submitted_ns.max(running.due_ns), &job.writes, Operation::Write);
            }
            running.is_read = true;
        }
        if is_planted(Fault::StaleRead) {
            return self.write_late(running);
        }
        self.transfer(job, &mut running.buffer, Operation::Write)
    }

    /// A planted fault: what was to be written before is written now, and this job's writes later.
    fn write_late(&self, running: &Running) -> Result<()> {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((job, mut memory)) = late.take() {
            self.transfer(&job, &mut memory, Operation::Write)?;
        }
        let Job { writes, units, moves, .. } = &running.job;
        let mut memory = AlignedBuffer::zeroed(running.buffer.len());
        memory.copy_from_slice(&running.buffer);
        *late = Some((
            Job { writes: writes.clone(), units: units.clone(), moves: moves.clone(), ..Job::default() },
            memory,
        ));
        Ok(())
    }

    fn due(&self, submitted_ns: u64, transfers: &[Transfer], operation: Operation) -> u64 {
        let requests: Vec<Request> = transfers.iter().map(|transfer| transfer.request(operation)).collect();
        let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = schedule.submit(submitted_ns, &requests);
        schedule.finish(handle)
    }

    /// One batch per tier; transfers are sorted by tier.
    fn transfer(&self, job: &Job, memory: &mut AlignedBuffer, operation: Operation) -> Result<()> {
        let (reads, writes) = job.moves.as_ref().map_or((&job.reads, &job.writes), |(reads, writes)| (reads, writes));
        let transfers = if operation == Operation::Read { reads } else { writes };
        for group in transfers.chunk_by(|a, b| a.tier == b.tier) {
            let backend = &self.backends[group[0].tier];
            let buffer = std::mem::replace(memory, AlignedBuffer::zeroed(0));
            let batch = IoBatch { buffer, extents: group.iter().map(|transfer| transfer.extent).collect() };
            let (batch, result) = match operation {
                Operation::Read => backend.read(batch),
                Operation::Write => backend.write(batch),
            };
            *memory = batch.buffer;
            result.map_err(|error| self.explain(error, group, &job.units, memory, operation))?;
        }
        Ok(())
    }

    /// Adds to a failed transfer which tier it was and which rows were on their way.
    fn explain(
        &self,
        error: Error,
        group: &[Transfer],
        units: &[PlacedUnit],
        memory: &[u8],
        operation: Operation,
    ) -> Error {
        // A backend that knows the request names its offset.
        let at = error.context("offset").and_then(|offset| offset.parse::<u64>().ok());
        let within = |transfer: &&Transfer| {
            let Extent { offset, nbytes, .. } = transfer.extent;
            at.is_none_or(|at| (offset..offset + nbytes as u64).contains(&at))
        };
        let concerned: Vec<(Unit, Option<&[u8]>)> = group
            .iter()
            .filter(within)
            .flat_map(|transfer| {
                let Extent { buffer_offset, nbytes, .. } = transfer.extent;
                let first = units.partition_point(|unit| unit.buffer_offset <= buffer_offset).saturating_sub(1);
                units[first..].iter().take_while(move |unit| unit.buffer_offset < buffer_offset + nbytes)
            })
            .map(|placed| {
                let is_known = operation == Operation::Write;
                (placed.unit, is_known.then(|| &memory[placed.buffer_offset..]))
            })
            .collect();
        let what = if operation == Operation::Read { "reading" } else { "writing" };
        error
            .with_context("tier", &self.names[group[0].tier])
            .with_context("operation", what)
            .with_context("rows", self.units.describe(&concerned))
    }
}
