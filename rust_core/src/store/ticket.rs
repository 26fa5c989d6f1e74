//! Tickets: the rows of one prefetched batch, from the request to the release.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Place, State, Store, WRITE_BACK_JOBS_MAX, no_table};
use crate::backend::AlignedBuffer;
use crate::device::{BatchHandle, Operation, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::tier::{Job, JobHandle, PlanBuilder, PlanCounts, Transfer, row_key, split_row_key};

/// One lookup of a batch: `offsets[b]` is the first position of bag `b` in `ids`.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// Table number.
    pub table: usize,
    /// Rows of all bags.
    pub ids: &'a [i64],
    /// First position of each bag; ascending, and the first is 0.
    pub offsets: &'a [i64],
}

/// The handle of one prefetched batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketId(pub u64);

/// A lookup after its rows have slots.
#[derive(Debug)]
pub(super) struct LookupPlan {
    pub(super) table: usize,
    pub(super) slots: Vec<u32>,
    pub(super) offsets: Vec<u32>,
}

/// A checked lookup that has no slots yet.
struct QueuedLookup {
    table: usize,
    rows: Vec<u64>,
    offsets: Vec<u32>,
}

/// A row that arrives with the ticket's job.
struct Fill {
    pool: usize,
    slot: u32,
    frame: usize,
    offset: usize,
}

/// A transfer of a wall-clock run, to be recorded once it is delivered.
pub(super) struct Arrived {
    requests: u64,
    submitted_ns: u64,
    due_ns: u64,
    ready_ns: u64,
}

/// Bytes on their way.
struct Arrival {
    job: JobHandle,
    /// Completion of the reads in virtual time.
    reads: Option<BatchHandle>,
    fills: Vec<Fill>,
    /// Place of each frame in the job's memory.
    places: Vec<usize>,
    requests: u64,
    submitted_ns: u64,
}

pub(super) struct Ticket {
    queued: Option<Vec<QueuedLookup>>,
    pub(super) lookups: Vec<Arc<LookupPlan>>,
    pins: Vec<(usize, u32)>,
    arrival: Option<Arrival>,
    /// Lookups whose gradients wait for a step.
    pub(super) pending: usize,
    /// Released by its owner; goes when `pending` is zero.
    pub(super) abandoned: bool,
}

impl Ticket {
    fn new(queued: Vec<QueuedLookup>) -> Self {
        let queued = Some(queued);
        Self { queued, lookups: Vec::new(), pins: Vec::new(), arrival: None, pending: 0, abandoned: false }
    }

    /// Whether its rows have slots.
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
        let mut state = self.lock()?;
        let queued = lookups.iter().map(|lookup| state.check_lookup(lookup)).collect::<Result<Vec<_>>>()?;
        self.check_fits(&state, &queued)?;
        let id = state.next_ticket;
        state.next_ticket += 1;
        state.tickets.insert(id, Ticket::new(queued));
        state.admit_in_order(self);
        Ok(TicketId(id))
    }

    /// Returns when the rows of a ticket are in memory, and on a wall clock when they are due.
    pub fn wait(&self, ticket: TicketId) -> Result<()> {
        self.fill_through(ticket)?;
        let (due_ns, arrivals) = {
            let mut state = self.lock()?;
            (state.arrived_ns, std::mem::take(&mut state.arrivals))
        };
        let asked_ns = self.clock.now_ns();
        self.clock.wait_until(due_ns);
        if !arrivals.is_empty() {
            let now_ns = self.clock.now_ns();
            let mut state = self.lock()?;
            for arrived in arrivals {
                // Whoever asks later than the due time gets at once what was ready before.
                let delivered_ns = if asked_ns < arrived.due_ns { now_ns } else { arrived.ready_ns };
                state.lateness.record(arrived.requests, arrived.submitted_ns, arrived.due_ns, delivered_ns);
            }
        }
        Ok(())
    }

    /// Gives the rows of a ticket back: they may stay cached, and changed ones that do not are
    /// written down. With gradients still waiting for a step, this happens at that step.
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
                state.admit_in_order(self);
                return Ok(());
            }
        }
        self.fill_through(ticket)?;
        let excess: Vec<JobHandle> = {
            let mut state = self.lock()?;
            let entry = state.tickets.remove(&ticket.0).ok_or_else(|| unknown(ticket))?;
            for &(pool, slot) in &entry.pins {
                state.pools[pool].slots.unpin(slot);
            }
            state.write_back_victims(self);
            state.admit_in_order(self);
            let count = state.write_backs.len().saturating_sub(WRITE_BACK_JOBS_MAX);
            state.write_backs.drain(..count).collect()
        };
        // The lock is free while the oldest write-back finishes: another thread may prefetch.
        for job in excess {
            let outcome = job.take().map(drop);
            if outcome.is_err() {
                return self.lock()?.poison(outcome);
            }
        }
        Ok(())
    }

    /// The most ids one forward-only lookup of this table may have so that it fits in staging memory.
    pub fn chunk_rows(&self, table: usize) -> Result<usize> {
        match self.places.get(table) {
            None => Err(no_table(table, self.places.len())),
            Some(Place::Resident(_)) => Ok(usize::MAX >> 1),
            Some(Place::Pooled(pool)) => Ok(self.staging_rows[*pool]),
        }
    }

    /// Copies what has arrived for this ticket and all before it into their slots.
    pub(super) fn fill_through(&self, ticket: TicketId) -> Result<()> {
        let jobs: Vec<JobHandle> = {
            let state = self.lock()?;
            let entry = state.tickets.get(&ticket.0).ok_or_else(|| unknown(ticket))?;
            if entry.queued.is_some() {
                return Err(Error::new(ErrorKind::Capacity, "the ticket waits for staging memory that earlier tickets hold; release them first, or raise staging_bytes")
                    .with_context("ticket", ticket.0)
                    .with_context("open_tickets", state.tickets.len()));
            }
            state
                .tickets
                .range(..=ticket.0)
                .filter_map(|(_, entry)| entry.arrival.as_ref().map(|arrival| arrival.job.clone()))
                .collect()
        };
        for job in jobs {
            job.wait();
        }
        let mut state = self.lock()?;
        let arrived: Vec<u64> =
            state.tickets.range(..=ticket.0).filter(|(_, entry)| entry.arrival.is_some()).map(|(&id, _)| id).collect();
        for id in arrived {
            let filled = state.fill(self, id);
            state.poison(filled)?;
        }
        Ok(())
    }

    /// A ticket that needs more than all of staging memory can never be admitted.
    fn check_fits(&self, state: &State, queued: &[QueuedLookup]) -> Result<()> {
        for (pool, &staging_rows) in self.staging_rows.iter().enumerate() {
            let mine =
                |lookup: &&QueuedLookup| matches!(state.tables[lookup.table].place, Place::Pooled(of) if of == pool);
            let positions: usize = queued.iter().filter(mine).map(|lookup| lookup.rows.len()).sum();
            if positions <= staging_rows {
                continue;
            }
            let keys: HashSet<u64> = queued
                .iter()
                .filter(mine)
                .flat_map(|lookup| lookup.rows.iter().map(|&row| row_key(lookup.table, row)))
                .collect();
            if keys.len() > staging_rows {
                let row_bytes = state.pools[pool].row_bytes();
                return Err(Error::new(
                    ErrorKind::Capacity,
                    "a batch needs more rows than staging memory holds; raise staging_bytes or use smaller batches",
                )
                .with_context("needed_bytes", keys.len() * row_bytes)
                .with_context("staging_bytes", staging_rows * row_bytes));
            }
        }
        Ok(())
    }

    /// Gives a job to the I/O thread and its requests to the timing model.
    pub(super) fn submit(&self, job: Job, keep_reads: bool) -> (JobHandle, Option<BatchHandle>) {
        let worker = self.worker.as_ref().expect("a store with block tiers has a worker");
        let mut handle = None;
        if let Some(now_ns) = job.submitted_ns.filter(|_| self.clock.is_virtual()) {
            let requests = |transfers: &[Transfer], operation| -> Vec<Request> {
                transfers.iter().map(|transfer| transfer.request(operation)).collect()
            };
            let mut schedule = self.schedule();
            let reads = schedule.submit(now_ns, &requests(&job.reads, Operation::Read));
            if !job.writes.is_empty() {
                let writes = schedule.submit_after(reads, now_ns, requests(&job.writes, Operation::Write));
                schedule.detach(writes);
            }
            if keep_reads {
                handle = Some(reads);
            } else {
                schedule.detach(reads);
            }
        }
        (worker.submit(job), handle)
    }

    /// Where jobs get their memory.
    pub(super) fn memory(&self) -> impl FnOnce(usize) -> AlignedBuffer + use<'_> {
        |nbytes| self.worker.as_ref().map_or_else(|| AlignedBuffer::zeroed(nbytes), |worker| worker.buffer(nbytes))
    }
}

impl State {
    fn check_lookup(&self, lookup: &Lookup<'_>) -> Result<QueuedLookup> {
        let table = self.table(lookup.table)?;
        let place = |error: Error| error.with_context("table", &table.config.name);
        let count = lookup.ids.len();
        let mut offsets = Vec::with_capacity(lookup.offsets.len());
        let mut before = 0;
        for (bag, &offset) in lookup.offsets.iter().enumerate() {
            if offset < before || offset > count as i64 || (bag == 0 && offset != 0) {
                return Err(place(Error::new(
                    ErrorKind::Input,
                    "offsets must start at 0, ascend, and stay within the ids",
                ))
                .with_context("bag", bag)
                .with_context("offset", offset)
                .with_context("ids", count));
            }
            before = offset;
            offsets.push(offset as u32);
        }
        if count > u32::MAX as usize || (lookup.offsets.is_empty() && count > 0) {
            return Err(place(Error::new(
                ErrorKind::Input,
                "a lookup needs an offset for each bag, and fewer than 2^32 ids",
            ))
            .with_context("ids", count));
        }
        let rows = lookup.ids.iter().enumerate().map(|(position, &id)| {
            u64::try_from(id).ok().filter(|&row| row < table.config.rows).ok_or_else(|| {
                place(Error::new(
                    ErrorKind::Input,
                    format!("id {id} is out of range; ids are 0 to {}", table.config.rows - 1),
                ))
                .with_context("position", position)
            })
        });
        Ok(QueuedLookup { table: lookup.table, rows: rows.collect::<Result<_>>()?, offsets })
    }

    /// Admits queued tickets, the oldest first, while staging memory has room.
    pub(super) fn admit_in_order(&mut self, store: &Store) {
        loop {
            let Some((&id, ticket)) = self.tickets.iter().find(|(_, ticket)| ticket.queued.is_some()) else { return };
            let Some(queued) = ticket.queued.as_ref() else { return };
            if !self.has_room(queued) {
                return;
            }
            let ticket = self.tickets.get_mut(&id).expect("found above");
            let queued = ticket.queued.take().expect("found above");
            self.admit(store, id, queued);
        }
    }

    /// Whether the rows that are not yet in flight fit in what is left of staging memory.
    fn has_room(&self, queued: &[QueuedLookup]) -> bool {
        self.pools.iter().enumerate().all(|(position, pool)| {
            let mine =
                |lookup: &&QueuedLookup| matches!(self.tables[lookup.table].place, Place::Pooled(of) if of == position);
            let room = pool.staging_rows() - pool.slots.pinned();
            let positions: usize = queued.iter().filter(mine).map(|lookup| lookup.rows.len()).sum();
            if positions <= room {
                return true;
            }
            let not_in_flight = |&key: &u64| pool.slots.get(key).is_none_or(|slot| !pool.slots.is_pinned(slot));
            let keys =
                queued.iter().filter(mine).flat_map(|lookup| lookup.rows.iter().map(|&row| row_key(lookup.table, row)));
            keys.filter(not_in_flight).collect::<HashSet<u64>>().len() <= room
        })
    }

    fn admit(&mut self, store: &Store, id: u64, queued: Vec<QueuedLookup>) {
        let mut lookups = Vec::with_capacity(queued.len());
        let (mut pins, mut fills) = (Vec::new(), Vec::new());
        let Self { tables, resident, pools, block_tiers, counters, .. } = self;
        let mut plan = block_tiers.as_mut().map(PlanBuilder::new);
        for QueuedLookup { table, rows, offsets } in queued {
            counters.asked_rows += rows.len() as u64;
            let slots = match tables[table].place {
                Place::Resident(at) => {
                    let home = &mut resident[at];
                    let dim = tables[table].config.dim;
                    for &row in &rows {
                        if home.present.insert(row) {
                            let start = row as usize * dim;
                            store.initialise(table, row, &mut home.weights.as_f32_mut()[start..start + dim]);
                            counters.initialised += 1;
                        } else {
                            counters.tier_hits[0] += 1;
                        }
                    }
                    // Nothing is deduplicated where a row is where it stays.
                    counters.unique_rows += rows.len() as u64;
                    rows.iter().map(|&row| row as u32).collect()
                }
                Place::Pooled(at) => {
                    let pool = &mut pools[at];
                    let plan = plan.as_mut().expect("a store with pools has block tiers");
                    let slots = rows.iter().map(|&row| {
                        let key = row_key(table, row);
                        if let Some(slot) = pool.slots.get(key) {
                            if pool.seen.insert(u64::from(slot)) {
                                counters.in_flight_hits += u64::from(pool.slots.is_pinned(slot));
                                counters.tier_hits[0] += 1;
                                pool.slots.pin(slot);
                                pins.push((at, slot));
                            }
                            return slot;
                        }
                        let slot = pool.slots.insert_pinned(key).expect("the ticket was admitted because its rows fit");
                        pool.seen.insert(u64::from(slot));
                        pins.push((at, slot));
                        if plan.row_is_present(table, row) {
                            let (frame, offset) = plan.read_row(table, row);
                            fills.push(Fill { pool: at, slot, frame, offset });
                        } else {
                            let (weights, state) = pool.row_mut(slot);
                            store.initialise(table, row, weights);
                            state.fill(0.0);
                            counters.initialised += 1;
                        }
                        slot
                    });
                    slots.collect()
                }
            };
            lookups.push(Arc::new(LookupPlan { table, slots, offsets }));
        }
        for &(pool, slot) in &pins {
            pools[pool].seen.remove(u64::from(slot));
        }
        counters.unique_rows += pins.len() as u64;
        let arrival = plan.filter(|plan| !plan.is_empty()).map(|plan| {
            let submitted_ns = store.clock.now_ns();
            let (job, places, counts) = plan
                .build(Some(submitted_ns), store.memory(), |table, row, weights| store.initialise(table, row, weights));
            counters.add_plan(&counts);
            let requests = job.reads.len() as u64;
            let (job, reads) = store.submit(job, true);
            Arrival { job, reads, fills, places, requests, submitted_ns }
        });
        let ticket = self.tickets.get_mut(&id).expect("an admitted ticket exists");
        ticket.lookups = lookups;
        ticket.pins = pins;
        ticket.arrival = arrival;
    }

    fn fill(&mut self, store: &Store, id: u64) -> Result<()> {
        let Some(ticket) = self.tickets.get_mut(&id) else { return Ok(()) };
        let Some(arrival) = ticket.arrival.take() else { return Ok(()) };
        let done = arrival.job.take()?;
        let due_ns = arrival.reads.map_or(done.due_ns, |reads| store.schedule().finish(reads));
        self.arrived_ns = self.arrived_ns.max(due_ns);
        if !store.clock.is_virtual() && arrival.requests > 0 {
            let Arrival { requests, submitted_ns, .. } = arrival;
            self.arrivals.push(Arrived { requests, submitted_ns, due_ns, ready_ns: done.ready_ns });
        }
        for fill in &arrival.fills {
            let start = (arrival.places[fill.frame] + fill.offset) / size_of::<f32>();
            let (weights, state) = self.pools[fill.pool].row_mut(fill.slot);
            let image = &done.buffer.as_f32()[start..start + weights.len() + state.len()];
            weights.copy_from_slice(&image[..weights.len()]);
            state.copy_from_slice(&image[weights.len()..]);
        }
        Ok(())
    }

    /// Brings every cache back within its budget; changed victims go down in one job.
    fn write_back_victims(&mut self, store: &Store) {
        let Self { pools, block_tiers, .. } = self;
        let Some(tiers) = block_tiers.as_mut() else { return };
        let mut plan = PlanBuilder::new(tiers);
        for pool in pools {
            pool.trim(|key, weights, state| {
                let (table, row) = split_row_key(key);
                plan.write_row(table, row, weights, state);
            });
        }
        if !plan.is_empty() {
            let (job, _, counts) = plan.build(Some(store.clock.now_ns()), store.memory(), |table, row, weights| {
                store.initialise(table, row, weights);
            });
            self.send_down(store, job, &counts);
        }
    }

    /// Queues a write-back job.
    pub(super) fn send_down(&mut self, store: &Store, job: Job, counts: &PlanCounts) {
        self.counters.add_plan(counts);
        let (job, _) = store.submit(job, false);
        self.write_backs.push_back(job);
    }
}
