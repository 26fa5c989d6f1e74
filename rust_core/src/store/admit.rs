//! Admission: the rows of a ticket get their places in memory, and what has to be read is decided.

use std::collections::HashSet;
use std::sync::Arc;

use super::lookup::{QueuedIds, QueuedLookup};
use super::parts::{Part, Place, Table};
use super::ticket::{Arrival, LookupPlan};
use super::{State, Store};
use crate::cache::{GROUP, WINDOW_BATCHES_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::rng;
use crate::tier::{Kept, Met, PlanBuilder, RowPool, row_key};

/// Keys of the rows of a pool that are not resident.
fn pooled_keys<'a>(
    tables: &'a [Table],
    parts: &'a [Part],
    queued: &'a [QueuedLookup],
    pool: usize,
) -> impl Iterator<Item = u64> + 'a {
    queued.iter().filter(move |lookup| tables[lookup.table].pool == pool).flat_map(move |lookup| {
        lookup.ids.fetched().iter().filter_map(move |&row| {
            let (part, row) = tables[lookup.table].part_of(parts, row);
            matches!(parts[part].place, Place::Pooled { .. }).then(|| row_key(part, row))
        })
    })
}

fn positions(tables: &[Table], queued: &[QueuedLookup], pool: usize) -> usize {
    queued.iter().filter(|lookup| tables[lookup.table].pool == pool).map(|lookup| lookup.ids.fetched().len()).sum()
}

/// What tells an announced batch from others.
fn fingerprint(queued: &[QueuedLookup]) -> u64 {
    queued.iter().fold(0, |sum, lookup| {
        let sum = rng::mix(sum ^ lookup.table as u64);
        match &lookup.ids {
            QueuedIds::Resident(places) => places.iter().fold(sum, |sum, &place| rng::mix(sum ^ u64::from(place))),
            QueuedIds::Rows(rows) => rows.iter().fold(sum, |sum, &row| rng::mix(sum ^ row)),
        }
    })
}

impl State {
    /// A ticket that needs more than all of staging memory can never be admitted.
    pub(super) fn check_fits(&self, store: &Store, queued: &[QueuedLookup]) -> Result<()> {
        for (number, pool) in self.pools.iter().enumerate() {
            let staging_rows = pool.size().staging_rows;
            if positions(&store.tables, queued, number) <= staging_rows {
                continue;
            }
            let rows = pooled_keys(&store.tables, &self.parts, queued, number).collect::<HashSet<u64>>().len();
            if rows > staging_rows {
                return Err(Error::new(
                    ErrorKind::Capacity,
                    "a batch needs more rows than staging memory holds; raise staging_bytes or use smaller batches",
                )
                .with_context("needed_bytes", rows * pool.row_bytes())
                .with_context("staging_bytes", staging_rows * pool.row_bytes()));
            }
        }
        Ok(())
    }

    /// Admits queued tickets, the oldest first, while staging memory has room.
    pub(super) fn admit_in_order(&mut self, store: &Store) -> Result<()> {
        loop {
            let Some((&id, ticket)) = self.tickets.iter().find(|(_, ticket)| ticket.queued.is_some()) else {
                return Ok(());
            };
            let Some(queued) = ticket.queued.as_ref() else { return Ok(()) };
            if !self.has_room(store, queued) {
                return Ok(());
            }
            let rows: usize = queued.iter().map(|lookup| lookup.ids.fetched().len()).sum();
            self.make_log_room(store, rows)?;
            let ticket = self.tickets.get_mut(&id).expect("found above");
            let queued = ticket.queued.take().expect("found above");
            self.admit(store, id, queued);
        }
    }

    /// Whether the rows that are not yet in flight fit in what is left of staging memory.
    fn has_room(&self, store: &Store, queued: &[QueuedLookup]) -> bool {
        self.pools.iter().enumerate().all(|(number, pool)| {
            let room = pool.size().staging_rows - pool.pinned();
            if positions(&store.tables, queued, number) <= room {
                return true;
            }
            let not_in_flight = |&key: &u64| pool.get(key).is_none_or(|place| !pool.is_pinned(place));
            let keys = pooled_keys(&store.tables, &self.parts, queued, number);
            keys.filter(not_in_flight).collect::<HashSet<u64>>().len() <= room
        })
    }

    /// Tells the policies of the memory tier what a later batch will ask for.
    pub(super) fn announce(&mut self, store: &Store, queued: &[QueuedLookup]) -> Result<()> {
        if self.announced.len() >= WINDOW_BATCHES_MAX {
            return Err(Error::new(
                ErrorKind::Capacity,
                format!(
                    "{WINDOW_BATCHES_MAX} batches are announced and not yet prefetched; prefetch one before the next"
                ),
            ));
        }
        for (number, pool) in self.pools.iter_mut().enumerate() {
            let keys: Vec<u64> = pooled_keys(&store.tables, &self.parts, queued, number).collect();
            pool.announce(&keys)?;
        }
        self.announced.push_back(fingerprint(queued));
        Ok(())
    }

    /// Batches that were announced and will not come.
    pub(super) fn withdraw_announced(&mut self) {
        for _ in self.announced.drain(..) {
            self.pools.iter_mut().for_each(RowPool::begin_batch);
        }
    }

    fn admit(&mut self, store: &Store, id: u64, queued: Vec<QueuedLookup>) {
        let mut lookups = Vec::with_capacity(queued.len());
        let mut admission = Admission { pins: Vec::new(), fills: Vec::new(), sources: Vec::new() };
        let Self { parts, pools, lower, counters, announced, .. } = self;
        if !announced.is_empty() {
            // Batches that nobody announced come in between; announced ones that never came are passed over.
            let this = fingerprint(&queued);
            if let Some(position) = announced.iter().position(|&other| other == this) {
                for _ in announced.drain(..=position) {
                    pools.iter_mut().for_each(RowPool::begin_batch);
                }
            }
        }
        let mut plan = lower.as_mut().map(PlanBuilder::new);
        for QueuedLookup { table, ids, offsets } in queued {
            let shape = &store.tables[table];
            let counts = &mut counters[table];
            counts.asked_rows += ids.len() as u64;
            let rows = match ids {
                QueuedIds::Rows(rows) => rows,
                QueuedIds::Resident(places) => {
                    // Nothing is deduplicated where a row is where it stays.
                    counts.unique_rows += places.len() as u64;
                    let fresh =
                        store.make_present(table, &mut parts[shape.first_part], &mut pools[shape.pool], &places);
                    counts.initialised_rows += fresh;
                    counts.memory_hits += places.len() as u64 - fresh;
                    lookups.push(Arc::new(LookupPlan { table, places, offsets }));
                    continue;
                }
            };
            let mut hints = Hints::default();
            let places = rows.iter().enumerate().map(|(position, &row)| {
                let hint = hints.of(position, &rows, shape, parts, &pools[shape.pool]);
                let (number, row) = shape.part_of(parts, row);
                let part = &mut parts[number];
                if let Place::Resident { first, present, absent } = &mut part.place {
                    let place = *first + row as u32;
                    // Nothing is deduplicated where a row is where it stays.
                    counts.unique_rows += 1;
                    if present.insert(row) {
                        counts.initialised_rows += 1;
                        *absent -= 1;
                        let weights = pools[shape.pool].row_mut(place).0;
                        store.initialise(table, part.first_row + row, weights);
                    } else {
                        counts.memory_hits += 1;
                    }
                    return place;
                }
                let pool = &mut pools[shape.pool];
                let key = row_key(number, row);
                let (place, met) = pool.admit(key, hint).expect("the ticket was admitted because its rows fit");
                if met == Met::Before {
                    return place;
                }
                counts.unique_rows += 1;
                admission.pins.push((shape.pool, place));
                if met != Met::New {
                    counts.memory_hits += 1;
                    counts.in_flight_hits += u64::from(met == Met::InFlight);
                    return place;
                }
                let plan = plan.as_mut().expect("a store with pooled rows has lower tiers");
                if let Some(found) = plan.read_row(number, row) {
                    admission.fills.push((shape.pool, place));
                    admission.sources.push((found.frame, found.offset, pool.row_bytes()));
                    if found.is_dirty {
                        pool.mark_dirty(place);
                    }
                } else {
                    counts.initialised_rows += 1;
                    let (weights, state) = pool.row_mut(place);
                    store.initialise(table, part.first_row + row, weights);
                    state.fill(0.0);
                }
                place
            });
            let places = places.collect();
            lookups.push(Arc::new(LookupPlan { table, places, offsets }));
        }
        let Admission { pins, fills, sources } = admission;
        for &(pool, place) in &pins {
            pools[pool].forget_seen(place);
        }
        let arrival = plan.filter(|plan| !plan.is_empty()).map(|plan| {
            let submitted_ns = store.clock.now_ns();
            let job = plan.build(Some(submitted_ns), &sources);
            let requests = job.reads.len() as u64;
            let (job, reads) = store.submit(job, true, None);
            Arrival { job, reads, fills, requests, submitted_ns }
        });
        let ticket = self.tickets.get_mut(&id).expect("an admitted ticket exists");
        ticket.lookups = lookups;
        ticket.pins = pins;
        ticket.arrival = arrival;
    }
}

impl Store {
    /// Gives rows of a resident part their initial values that have none yet; gives their number.
    fn make_present(&self, table: usize, part: &mut Part, pool: &mut RowPool, places: &[u32]) -> u64 {
        let Place::Resident { first, present, absent } = &mut part.place else { return 0 };
        let before = *absent;
        if before > 0 {
            for &place in places {
                let row = u64::from(place - *first);
                if present.insert(row) {
                    *absent -= 1;
                    self.initialise(table, part.first_row + row, pool.row_mut(place).0);
                }
            }
        }
        before - *absent
    }
}

/// Where rows are, looked up in groups ahead of their admission.
struct Hints {
    keys: [u64; GROUP],
    found: [u32; GROUP],
}

impl Default for Hints {
    fn default() -> Self {
        Self { keys: [0; GROUP], found: [u32::MAX; GROUP] }
    }
}

impl Hints {
    #[inline]
    fn of(&mut self, position: usize, rows: &[u64], table: &Table, parts: &[Part], pool: &RowPool) -> u32 {
        if !table.is_pooled {
            return u32::MAX;
        }
        if position.is_multiple_of(GROUP) {
            for (key, &row) in self.keys.iter_mut().zip(&rows[position..]) {
                let (part, row) = table.part_of(parts, row);
                *key = row_key(part, row);
            }
            pool.look_up(&self.keys, &mut self.found);
        }
        self.found[position % GROUP]
    }
}

struct Admission {
    pins: Vec<(usize, u32)>,
    fills: Vec<(usize, u32)>,
    /// Where each row arrives.
    sources: Vec<Kept>,
}
