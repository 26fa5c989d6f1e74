//! Batches in flight on one ring that several threads share.
//!
//! Whoever waits for a batch drives the ring for all: one thread at a time, the leader, waits in the
//! kernel without the lock and takes the completions; the others sleep until it comes back. There is
//! no thread of our own, so a batch of one thread costs no switch to another. Memory of a batch
//! belongs to this module from `start` until its last completion, whatever becomes of its handle.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{AlignedBuffer, Extent, IoBatch, Operation};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};

/// So often a batch is tried again before EFAULT counts as what it says.
const ORPHANED_MAX: u32 = 64;

/// One request to the kernel: an extent, or what is left of it after a short transfer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Direction.
    pub(super) operation: Operation,
    /// First byte of memory.
    pub(super) memory: *mut u8,
    /// First byte of the file.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) nbytes: u32,
}

/// What of a ring the coordinator needs; an `io_uring`, or a simulation of one.
pub(super) trait Ring: Send + Sync {
    /// Requests that may be in flight.
    fn depth(&self) -> usize;

    /// How many requests are told to the kernel at a time.
    fn group(&self) -> usize;

    /// Hands a request over; `number` comes back with its completion. Called under the lock.
    ///
    /// # Safety
    ///
    /// The memory stays valid, and nobody else touches it, until the completion was taken.
    unsafe fn push(&self, number: u64, piece: Piece);

    /// Tells the kernel of what was pushed. Called under the lock.
    fn submit(&self) -> std::io::Result<()>;

    /// Tells the kernel of what was pushed and returns when a completion is there, or when the limit is over. Called by
    /// the leader, without the lock.
    fn wait(&self, limit: Option<Duration>) -> std::io::Result<()>;

    /// Takes all completions, as (number, result of the system call). Called under the lock, and by the leader
    /// alone while there is one.
    fn take(&self, completions: &mut Vec<(u64, i32)>);

    /// The error of a piece that failed, or moved nothing (`UnexpectedEof`).
    fn failed(&self, operation: Operation, error: std::io::Error, extent: &Extent) -> Error;
}

/// A batch and how far it is.
struct Flight {
    operation: Operation,
    batch: IoBatch,
    /// First byte of the batch's memory. Valid while the batch stays where it is.
    memory: *mut u8,
    /// Next extent that was not handed over yet.
    next: usize,
    /// Rests of short transfers, and what is to be tried again: (extent, bytes done).
    again: Vec<(u32, u32)>,
    in_flight: usize,
    error: Option<Error>,
    /// Requests that were tried again because the thread that handed them over had ended.
    orphaned: u32,
    /// Nobody will take the outcome.
    abandoned: bool,
}

// SAFETY: the pointer leads into the batch, which the flight owns.
unsafe impl Send for Flight {}

impl Flight {
    fn is_done(&self) -> bool {
        self.in_flight == 0 && !self.has_more()
    }

    fn has_more(&self) -> bool {
        self.error.is_none() && (self.next < self.batch.extents.len() || !self.again.is_empty())
    }
}

/// Where a request in flight belongs: its flight, its extent, and the bytes done before it.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    flight: u32,
    extent: u32,
    done: u32,
}

#[derive(Default)]
struct State {
    flights: Vec<Option<Flight>>,
    /// Flights with extents that were not handed over, oldest first.
    unfinished: VecDeque<u32>,
    places: Vec<Place>,
    free_places: Vec<u32>,
    /// A thread waits in the kernel.
    led: bool,
    completions: Vec<(u64, i32)>,
    /// The ring itself failed; nothing that was handed to it comes back.
    broken: Option<Error>,
}

/// Batches in flight on one ring.
pub(super) struct Coordinator<R> {
    ring: R,
    state: Mutex<State>,
    changed: Condvar,
}

fn is_transient(code: i32) -> bool {
    matches!(code, libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ECANCELED)
}

impl<R: Ring> Coordinator<R> {
    pub(super) fn new(ring: R) -> Self {
        let depth = ring.depth();
        let state = State {
            places: vec![Place::default(); depth],
            free_places: (0..depth as u32).rev().collect(),
            ..State::default()
        };
        Self { ring, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn ring(&self) -> &R {
        &self.ring
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to move a batch whose extents were checked.
    pub(super) fn start(&self, operation: Operation, mut batch: IoBatch) -> usize {
        let memory = batch.buffer.as_mut_ptr();
        let flight = Flight {
            operation,
            batch,
            memory,
            next: 0,
            again: Vec::new(),
            in_flight: 0,
            error: None,
            orphaned: 0,
            abandoned: false,
        };
        let mut state = self.lock();
        let flight = Flight { error: state.broken.as_ref().map(Error::duplicate), ..flight };
        let number = state.flights.iter().position(Option::is_none).unwrap_or(state.flights.len());
        if number == state.flights.len() {
            state.flights.push(Some(flight));
        } else {
            state.flights[number] = Some(flight);
        }
        state.unfinished.push_back(number as u32);
        state.hand_over(&self.ring);
        if let Err(error) = self.ring.submit() {
            state.note_failure(&error);
        }
        number
    }

    /// The outcome of a flight, driving the ring until it is there.
    fn wait(&self, number: usize) -> (IoBatch, Result<()>) {
        let mut state = self.drive(None, |state| state.is_done(number));
        match state.flights[number].take() {
            Some(Flight { batch, error, .. }) => (batch, error.map_or(Ok(()), Err)),
            None => (empty_batch(), Err(Error::new(ErrorKind::Closed, "the outcome of a batch was taken twice"))),
        }
    }

    /// Drives the ring until a flight is done, or for so long; whether it is done.
    fn wait_for(&self, number: usize, limit: Duration) -> bool {
        self.drive(Some(limit), |state| state.is_done(number)).is_done(number)
    }

    /// Returns when nothing is in flight any more.
    pub(super) fn drain(&self) {
        drop(self.drive(None, |state| state.flights.iter().flatten().all(Flight::is_done)));
    }

    /// Nobody will ask for this flight.
    fn abandon(&self, number: usize) {
        let mut state = self.lock();
        if !state.led {
            state.take_completions(&self.ring);
        }
        if let Some(flight) = &mut state.flights[number] {
            if flight.is_done() {
                state.flights[number] = None;
            } else {
                flight.abandoned = true;
            }
        }
    }

    /// Drives the ring until it is over, or for so long.
    fn drive(&self, limit: Option<Duration>, is_over: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let began = limit.map(|_| Instant::now());
        let left = || limit.zip(began).map(|(limit, began)| limit.saturating_sub(began.elapsed()));
        let mut state = self.lock();
        loop {
            if state.led {
                let left = left();
                if is_over(&state) || left.is_some_and(|left| left.is_zero()) {
                    return state;
                }
                state = match left {
                    None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                    Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                };
                continue;
            }
            state.take_completions(&self.ring);
            state.hand_over(&self.ring);
            let left = left();
            if is_over(&state) || left.is_some_and(|left| left.is_zero()) {
                // What was handed over above must not stay unknown to the kernel.
                if let Err(error) = self.ring.submit() {
                    state.note_failure(&error);
                }
                return state;
            }
            state.led = true;
            drop(state);
            let waited = self.ring.wait(left);
            state = self.lock();
            state.led = false;
            if let Err(error) = waited {
                state.note_failure(&error);
            }
            self.changed.notify_all();
        }
    }
}

impl State {
    fn is_done(&self, flight: usize) -> bool {
        self.flights[flight].as_ref().is_none_or(Flight::is_done)
    }

    /// Gives the ring as much as it takes, oldest flight first.
    fn hand_over<R: Ring>(&mut self, ring: &R) {
        let mut pushed = 0;
        while let Some(&number) = self.unfinished.front() {
            let flight = self.flights[number as usize].as_mut().filter(|flight| flight.has_more());
            let Some(flight) = flight else {
                self.unfinished.pop_front();
                continue;
            };
            let Some(slot) = self.free_places.pop() else { return };
            let (extent, done) = flight.again.pop().unwrap_or_else(|| {
                flight.next += 1;
                (flight.next as u32 - 1, 0)
            });
            let Extent { offset, buffer_offset, nbytes } = flight.batch.extents[extent as usize];
            self.places[slot as usize] = Place { flight: number, extent, done };
            flight.in_flight += 1;
            let piece = Piece {
                operation: flight.operation,
                // SAFETY: the extent was seen to lie inside the batch's memory, and `done` is below its length.
                memory: unsafe { flight.memory.add(buffer_offset + done as usize) },
                offset: offset + u64::from(done),
                nbytes: nbytes as u32 - done,
            };
            // SAFETY: the memory belongs to the flight, which keeps its batch until `in_flight` is back at zero.
            unsafe { ring.push(u64::from(slot), piece) };
            pushed += 1;
            if pushed % ring.group() == 0
                && let Err(error) = ring.submit()
            {
                self.note_failure(&error);
            }
        }
    }

    fn take_completions<R: Ring>(&mut self, ring: &R) {
        let mut completions = std::mem::take(&mut self.completions);
        ring.take(&mut completions);
        if self.broken.is_some() {
            // Of requests that were given up.
            completions.clear();
        }
        for (slot, code) in completions.drain(..) {
            let Place { flight: number, extent, done } = self.places[slot as usize];
            self.free_places.push(slot as u32);
            let Some(flight) = self.flights[number as usize].as_mut() else { continue };
            flight.in_flight -= 1;
            let whole = flight.batch.extents[extent as usize];
            let rest = whole.nbytes - done as usize;
            // The memory is there: the kernel says so if the thread that handed the request over has ended meanwhile.
            let is_orphan = code == -libc::EFAULT && flight.orphaned < ORPHANED_MAX;
            if is_orphan {
                flight.orphaned += 1;
            }
            let mut fail = |error| {
                flight.error.get_or_insert_with(|| ring.failed(flight.operation, error, &whole));
            };
            if code < 0 && !is_transient(-code) && !is_orphan {
                fail(std::io::Error::from_raw_os_error(-code));
            } else if code == 0 && rest > 0 {
                fail(std::io::ErrorKind::UnexpectedEof.into());
            } else {
                let moved = code.max(0) as u32;
                if (moved as usize) < rest {
                    flight.again.push((extent, done + moved));
                    self.unfinished.push_back(number);
                }
            }
            if flight.abandoned && flight.is_done() {
                self.flights[number as usize] = None;
            }
        }
        self.completions = completions;
    }

    /// The ring refused a call. If only for now, whoever waits next tries again. Otherwise what it was handed is
    /// lost: those batches fail, and their memory is leaked, which is the only safe thing left to do.
    fn note_failure(&mut self, error: &std::io::Error) {
        if error.raw_os_error().is_some_and(is_transient) {
            return;
        }
        for flight in self.flights.iter_mut().flatten().filter(|flight| !flight.is_done()) {
            if flight.in_flight > 0 {
                std::mem::forget(std::mem::replace(&mut flight.batch, empty_batch()));
                flight.in_flight = 0;
            }
            flight.error.get_or_insert_with(|| Error::io("using io_uring", duplicate(error)));
        }
        self.unfinished.clear();
        self.broken.get_or_insert_with(|| Error::io("using io_uring", duplicate(error)));
    }
}

fn empty_batch() -> IoBatch {
    IoBatch { buffer: AlignedBuffer::zeroed(0), extents: Vec::new() }
}

fn duplicate(error: &std::io::Error) -> std::io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), std::io::Error::from_raw_os_error)
}

/// What an `InFlight` asks of the ring that its batch is on.
trait Waiting: Send + Sync {
    fn wait(&self, number: usize) -> (IoBatch, Result<()>);
    fn wait_for(&self, number: usize, limit: Duration) -> bool;
    fn abandon(&self, number: usize);
}

impl<R: Ring> Waiting for Coordinator<R> {
    fn wait(&self, number: usize) -> (IoBatch, Result<()>) {
        Self::wait(self, number)
    }

    fn wait_for(&self, number: usize, limit: Duration) -> bool {
        Self::wait_for(self, number, limit)
    }

    fn abandon(&self, number: usize) {
        Self::abandon(self, number);
    }
}

enum Progress {
    Done(IoBatch, Result<()>),
    OnRing(Arc<dyn Waiting>, usize),
    Taken,
}

/// A batch that was started. Dropping it gives up the outcome and the memory, not the transfer.
#[must_use = "the outcome of a transfer says whether the bytes were moved"]
pub struct InFlight(Progress);

impl InFlight {
    /// A batch that has been moved, or failed, already.
    pub fn done(batch: IoBatch, result: Result<()>) -> Self {
        Self(Progress::Done(batch, result))
    }

    /// A batch that a ring moves.
    pub(super) fn on_ring<R: Ring + 'static>(coordinator: &Arc<Coordinator<R>>, number: usize) -> Self {
        let coordinator: Arc<Coordinator<R>> = Arc::clone(coordinator);
        Self(Progress::OnRing(coordinator, number))
    }

    /// Blocks until the batch was moved or failed; gives it back.
    pub fn wait(mut self) -> (IoBatch, Result<()>) {
        match std::mem::replace(&mut self.0, Progress::Taken) {
            Progress::Done(batch, result) => (batch, result),
            Progress::OnRing(ring, number) => ring.wait(number),
            Progress::Taken => unreachable!("only `wait` takes the progress, and it consumes the handle"),
        }
    }
}

impl InFlight {
    /// Blocks until the batch was moved or failed, but no longer than `limit`; whether it was.
    pub fn wait_for(&self, limit: Duration) -> bool {
        match &self.0 {
            Progress::OnRing(ring, number) => ring.wait_for(*number, limit),
            Progress::Done(..) | Progress::Taken => true,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Progress::OnRing(ring, number) = &self.0 {
            ring.abandon(*number);
        }
    }
}

#[cfg(all(test, feature = "shuttle"))]
#[path = "in_flight_interleavings.rs"]
mod interleavings;

#[cfg(all(test, not(feature = "shuttle")))]
#[path = "in_flight_tests.rs"]
mod tests;
