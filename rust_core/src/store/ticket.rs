//! Tickets: the rows of one prefetched batch, from the request to the release.

use std::sync::Arc;
use std::time::Duration;

use super::lookup::{Lookup, QueuedLookup};
use super::{State, Store, WRITE_BACK_JOBS_MAX};
use crate::device::{BatchHandle, Operation, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::thread::{self, ThreadId};
use crate::tier::{Job, JobHandle, RowPool, Transfer};

/// How often a thread that waits for staging memory asks whether it was interrupted.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(50);

/// The handle of one prefetched batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketId(pub u64);

/// A lookup after its rows have places.
#[derive(Debug)]
pub(super) struct LookupPlan {
    pub(super) table: usize,
    /// Of each position, in the pool of the table.
    pub(super) places: Vec<u32>,
    pub(super) offsets: Vec<u32>,
}

/// Rows that were filled in and that nobody has waited for yet.
pub(super) struct Arrived {
    ticket: u64,
    /// In virtual time their completion is asked for when somebody waits, so that filling them in earlier changes nothing.
    reads: Option<BatchHandle>,
    requests: u64,
    submitted_ns: u64,
    due_ns: u64,
    ready_ns: u64,
}

/// Released tickets that nobody waited for may leave so many of these.
const ARRIVED_MAX: usize = 1024;

/// Bytes on their way.
pub(super) struct Arrival {
    pub(super) job: JobHandle,
    /// Completion of the reads in virtual time.
    pub(super) reads: Option<BatchHandle>,
    /// Pool and place of each row that arrives, in the order of the outcome.
    pub(super) fills: Vec<(usize, u32)>,
    pub(super) requests: u64,
    pub(super) submitted_ns: u64,
}

pub(super) struct Ticket {
    pub(super) queued: Option<Vec<QueuedLookup>>,
    pub(super) lookups: Vec<Arc<LookupPlan>>,
    /// Pool and place of each row that it holds.
    pub(super) pins: Vec<(usize, u32)>,
    pub(super) arrival: Option<Arrival>,
    /// Lookups whose gradients wait for a step.
    pub(super) pending: usize,
    /// Released by its owner; goes when `pending` is zero.
    pub(super) abandoned: bool,
    /// Who fetched it, or waited for it last.
    holder: ThreadId,
    /// When its rows are there, once somebody has waited for them.
    due_ns: u64,
}

impl Ticket {
    fn new(queued: Vec<QueuedLookup>) -> Self {
        Self {
            queued: Some(queued),
            lookups: Vec::new(),
            pins: Vec::new(),
            arrival: None,
            pending: 0,
            abandoned: false,
            holder: thread::current().id(),
            due_ns: 0,
        }
    }

    /// Whether its rows have places.
    pub(super) fn is_admitted(&self) -> bool {
        self.queued.is_none()
    }

    /// Whether nothing of its own is on its way; rows that it shares may be on that of an earlier ticket.
    pub(super) fn has_arrived(&self) -> bool {
        self.is_admitted() && self.arrival.is_none()
    }
}

fn unknown(ticket: TicketId) -> Error {
    Error::new(
        ErrorKind::Input,
        format!("ticket {} was released; a ticket is used between prefetch and release", ticket.0),
    )
}

impl Store {
    /// Queues the rows of a batch and returns at once. Tickets get their rows in order; one that
    /// finds no room in staging memory gets them as earlier tickets are released.
    pub fn prefetch(&self, lookups: &[Lookup<'_>]) -> Result<TicketId> {
        let queued = lookups.iter().map(|lookup| self.check_lookup(lookup)).collect::<Result<Vec<_>>>()?;
        if let Some(worker) = &self.worker {
            worker.check_backlog()?;
        }
        let mut state = self.lock()?;
        state.check_fits(self, &queued)?;
        let id = state.next_ticket;
        state.next_ticket += 1;
        state.tickets.insert(id, Ticket::new(queued));
        if let Err(error) = state.make_way(self) {
            // Admitted or not, nobody will ask for it.
            if let Some(ticket) = state.tickets.get_mut(&id).filter(|ticket| ticket.is_admitted()) {
                ticket.abandoned = true;
            } else {
                state.tickets.remove(&id);
            }
            return Err(error);
        }
        Ok(TicketId(id))
    }

    /// Tells the policies which rows a batch will ask for that is prefetched later. Batches are announced in the order
    /// in which they are prefetched, each before its prefetch.
    ///
    /// # Errors
    ///
    /// `Capacity` if more batches are announced than a policy can hold.
    pub fn announce(&self, lookups: &[Lookup<'_>]) -> Result<()> {
        let queued = lookups.iter().map(|lookup| self.check_lookup(lookup)).collect::<Result<Vec<_>>>()?;
        self.lock()?.announce(self, &queued)
    }

    /// What was announced and not yet prefetched will not come.
    pub fn withdraw_announced(&self) -> Result<()> {
        self.lock()?.withdraw_announced();
        Ok(())
    }

    /// Returns when the rows of a ticket are in memory, and on a wall clock when they are due. Blocks while earlier
    /// tickets hold the staging memory that this one needs; `is_interrupted` is asked now and then.
    ///
    /// # Errors
    ///
    /// `Capacity` if only the calling thread could give that memory back; the error of a tier, which another call tries again.
    pub fn wait(&self, ticket: TicketId, is_interrupted: &dyn Fn() -> bool) -> Result<()> {
        self.wait_for_room(ticket, is_interrupted)?;
        self.fill_through(ticket)?;
        let (arrived, due_ns) = {
            let mut state = self.lock()?;
            let mut arrived: Vec<Arrived> =
                state.arrived.extract_if(.., |arrived| arrived.ticket <= ticket.0).collect();
            let mut due_ns = 0;
            for arrived in &mut arrived {
                if let Some(reads) = arrived.reads.take() {
                    arrived.due_ns = self.schedule().finish(reads);
                }
                if let Some(entry) = state.tickets.get_mut(&arrived.ticket) {
                    entry.due_ns = arrived.due_ns;
                }
                due_ns = due_ns.max(arrived.due_ns);
            }
            // Another thread may be waiting for the same rows.
            let others = state.tickets.range(..=ticket.0).map(|(_, other)| other.due_ns).max();
            (arrived, due_ns.max(others.unwrap_or(0)))
        };
        let asked_ns = self.clock.now_ns();
        self.clock.wait_until(due_ns);
        if !self.clock.is_virtual() {
            let now_ns = self.clock.now_ns();
            let mut state = self.lock()?;
            for arrived in arrived.iter().filter(|arrived| arrived.requests > 0) {
                // Whoever asks later than the due time gets at once what was ready before.
                let delivered_ns = if asked_ns < arrived.due_ns { now_ns } else { arrived.ready_ns };
                state.lateness.record(arrived.requests, arrived.submitted_ns, arrived.due_ns, delivered_ns);
            }
        }
        Ok(())
    }

    fn wait_for_room(&self, ticket: TicketId, is_interrupted: &dyn Fn() -> bool) -> Result<()> {
        let me = thread::current().id();
        let mut state = self.lock()?;
        loop {
            let entry = state.tickets.get_mut(&ticket.0).ok_or_else(|| unknown(ticket))?;
            entry.holder = me;
            if entry.is_admitted() {
                return Ok(());
            }
            // Tickets that were released while a tier failed give their rows back as soon as these have come.
            state.make_way(self)?;
            if state.tickets.get(&ticket.0).is_some_and(Ticket::is_admitted) {
                return Ok(());
            }
            let abandoned = state.tickets.range(..ticket.0).find_map(|(_, earlier)| {
                let arrival = earlier.arrival.as_ref().filter(|_| earlier.abandoned && earlier.pending == 0)?;
                Some(arrival.job.clone())
            });
            if let Some(job) = abandoned {
                drop(state);
                job.wait()?;
                state = self.lock()?;
                continue;
            }
            if state.tickets.range(..ticket.0).all(|(_, earlier)| earlier.holder == me) {
                return Err(Error::new(
                    ErrorKind::Capacity,
                    "the ticket waits for staging memory that earlier tickets of this thread hold; release them first, \
                     or raise staging_bytes",
                )
                .with_context("ticket", ticket.0)
                .with_context("open_tickets", state.tickets.len()));
            }
            // Asking may run code of the caller, which may use the store.
            drop(state);
            if is_interrupted() {
                return Err(Error::new(ErrorKind::Io, "waiting for staging memory was interrupted"));
            }
            state = self.lock()?;
            let is_queued = state.tickets.get(&ticket.0).is_some_and(|entry| !entry.is_admitted());
            if is_queued {
                let waited = self.room.wait_timeout(state, INTERRUPT_INTERVAL);
                drop(waited);
                state = self.lock()?;
            }
        }
    }

    /// Gives the rows of a ticket back: they may stay cached, and changed ones that do not are
    /// written down. With gradients still waiting for a step, this happens at that step.
    ///
    /// # Errors
    ///
    /// That of a tier: of a read, after which the rows are given back as soon as they have come, or of an earlier
    /// write-back, which is kept and tried again by a later call.
    pub fn release(&self, ticket: TicketId) -> Result<()> {
        {
            let mut state = self.lock()?;
            let entry = state.tickets.get_mut(&ticket.0).ok_or_else(|| unknown(ticket))?;
            if entry.pending > 0 {
                entry.abandoned = true;
                return Ok(());
            }
            if entry.queued.is_some() {
                state.tickets.remove(&ticket.0);
                let made_way = state.make_way(self);
                self.room.notify_all();
                return made_way;
            }
        }
        if let Err(error) = self.fill_through(ticket) {
            if let Some(entry) = self.lock()?.tickets.get_mut(&ticket.0) {
                entry.abandoned = true;
            }
            return Err(error);
        }
        let oldest = {
            let mut state = self.lock()?;
            let entry = state.tickets.get_mut(&ticket.0).ok_or_else(|| unknown(ticket))?;
            if entry.pending > 0 {
                // Gradients came in between.
                entry.abandoned = true;
                return Ok(());
            }
            let closed = state.close_ticket(self, ticket.0);
            let made_way = state.make_way(self);
            self.room.notify_all();
            closed.and(made_way)?;
            if self.config.timeline {
                let dirty_rows = state.pools.iter().map(RowPool::dirty_count).sum();
                state.dirty_samples.push((self.clock.now_ns(), dirty_rows));
            }
            let excess = state.write_backs.len().saturating_sub(WRITE_BACK_JOBS_MAX);
            excess.checked_sub(1).map(|last| state.write_backs[last].clone())
        };
        // The lock is free while the oldest write-backs finish: another thread may prefetch.
        if let Some(oldest) = oldest {
            oldest.wait()?;
            self.lock()?.settle_write_backs(WRITE_BACK_JOBS_MAX)?;
        }
        Ok(())
    }

    /// The most ids one forward-only lookup of this table may have so that it fits in staging memory.
    pub fn chunk_rows(&self, table: usize) -> Result<usize> {
        let table = self.table(table)?;
        let state = self.lock()?;
        if !table.is_pooled {
            return Ok(usize::MAX >> 1);
        }
        Ok(state.pools[table.pool].size().staging_rows)
    }

    /// Copies what has arrived for this ticket and all before it into their places.
    pub(super) fn fill_through(&self, ticket: TicketId) -> Result<()> {
        let jobs: Vec<JobHandle> = {
            let state = self.lock()?;
            let entry = state.tickets.get(&ticket.0).ok_or_else(|| unknown(ticket))?;
            if !entry.is_admitted() {
                return Err(Error::new(ErrorKind::Input, "the ticket was not waited for; call wait() first")
                    .with_context("ticket", ticket.0));
            }
            state
                .tickets
                .range(..=ticket.0)
                .filter_map(|(_, entry)| entry.arrival.as_ref().map(|arrival| arrival.job.clone()))
                .collect()
        };
        for job in jobs {
            job.wait()?;
        }
        let mut state = self.lock()?;
        let arrived: Vec<u64> =
            state.tickets.range(..=ticket.0).filter(|(_, entry)| entry.arrival.is_some()).map(|(&id, _)| id).collect();
        for id in arrived {
            state.fill(self, id)?;
        }
        Ok(())
    }

    /// Gives a job to the I/O thread and its requests to the timing model.
    /// It begins when `after` has completed.
    pub(super) fn submit(
        &self,
        job: Job,
        is_taken: bool,
        after: Option<BatchHandle>,
    ) -> (JobHandle, Option<BatchHandle>) {
        let worker = self.worker.as_ref().expect("a store with lower tiers has a worker");
        let mut handle = None;
        if let Some(now_ns) = job.submitted_ns.filter(|_| self.clock.is_virtual()) {
            let requests = |transfers: &[Transfer], operation| -> Vec<Request> {
                transfers.iter().map(|transfer| transfer.request(operation)).collect()
            };
            let mut schedule = self.schedule();
            let reads = requests(&job.reads, Operation::Read);
            let reads = match after {
                Some(before) if reads.is_empty() => before,
                Some(before) => {
                    let reads = schedule.submit_after(before, now_ns, reads);
                    schedule.detach(before);
                    reads
                }
                None => schedule.submit(now_ns, &reads),
            };
            if !job.writes.is_empty() {
                let writes = schedule.submit_after(reads, now_ns, requests(&job.writes, Operation::Write));
                schedule.detach(writes);
            }
            if is_taken {
                handle = Some(reads);
            } else {
                schedule.detach(reads);
            }
        }
        (worker.submit(job, is_taken), handle)
    }
}

impl State {
    /// Gives the rows of a ticket back that has arrived. After an error the ticket is still there, with what is left of it.
    fn close_ticket(&mut self, store: &Store, id: u64) -> Result<()> {
        let entry = self.tickets.get_mut(&id).ok_or_else(|| unknown(TicketId(id)))?;
        let mut pins = std::mem::take(&mut entry.pins);
        let given_back = self.give_back(store, &mut pins);
        if given_back.is_err()
            && let Some(entry) = self.tickets.get_mut(&id)
        {
            entry.pins = pins;
            entry.abandoned = true;
        } else {
            self.tickets.remove(&id);
        }
        given_back
    }

    /// Gives rows back that could not be before, and admits who waits for their room. Both happen, whatever fails.
    pub(super) fn make_way(&mut self, store: &Store) -> Result<()> {
        let waiting = |state: &Self| state.tickets.values().filter(|ticket| !ticket.is_admitted()).count();
        let before = (self.tickets.len(), waiting(self));
        let closed = self.close_abandoned(store);
        let admitted = self.admit_in_order(store);
        if before != (self.tickets.len(), waiting(self)) {
            store.room.notify_all();
        }
        closed.and(admitted)
    }

    /// Closes the tickets that were released while a tier failed and whose rows have come since.
    fn close_abandoned(&mut self, store: &Store) -> Result<()> {
        let has_come = |ticket: &Ticket| ticket.arrival.as_ref().is_none_or(|arrival| arrival.job.is_finished());
        let closing: Vec<u64> = self
            .tickets
            .iter()
            .filter(|(_, ticket)| ticket.abandoned && ticket.pending == 0 && ticket.is_admitted() && has_come(ticket))
            .map(|(&id, _)| id)
            .collect();
        closing.into_iter().try_for_each(|id| {
            self.fill(store, id)?;
            self.close_ticket(store, id)
        })
    }

    fn fill(&mut self, store: &Store, id: u64) -> Result<()> {
        let Some(ticket) = self.tickets.get_mut(&id) else { return Ok(()) };
        let Some(arrival) = ticket.arrival.take() else { return Ok(()) };
        let done = arrival.job.take()?;
        if self.arrived.len() == ARRIVED_MAX
            && let Some(reads) = self.arrived.remove(0).reads
        {
            store.schedule().detach(reads);
        }
        let Arrival { reads, requests, submitted_ns, .. } = arrival;
        let (due_ns, ready_ns) = (done.due_ns, done.ready_ns);
        self.arrived.push(Arrived { ticket: id, reads, requests, submitted_ns, due_ns, ready_ns });
        let mut images = &done.kept[..];
        for &(pool, place) in &arrival.fills {
            let pool = &mut self.pools[pool];
            let (image, rest) = images.split_at(pool.row_bytes());
            pool.fill(place, image);
            images = rest;
        }
        Ok(())
    }
}
