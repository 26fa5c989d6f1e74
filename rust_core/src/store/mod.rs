//! The facade: tables on a hierarchy. Prefetch, gather and pool, exact updates, statistics.
//!
//! All decisions (probe, victim, slot, request number, completion time) are made under one lock on
//! the calling thread, in program order; the I/O thread only moves bytes. Row memory is touched
//! under that lock only, so there is nothing to synchronise between a gather and a transfer.

mod config;
mod open;
mod rows;
mod stats;
mod ticket;
mod update;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use config::{Budget, ClockMode, StoreConfig, TierConfig};
pub use open::BackendWrapper;
pub use stats::{MemoryReport, StoreStats, TierStats};
pub use ticket::{Lookup, TicketId};
pub use update::Pooled;

use crate::backend::AlignedBuffer;
use crate::clock::Clock;
use crate::device::Schedule;
use crate::embedding::{TableConfig, initialise_row};
use crate::error::{Error, ErrorKind, Result};
use crate::tier::{BitSet, BlockTiers, JobHandle, RowPool, Worker};
use ticket::Ticket;
use update::Pending;

/// Write-back jobs that may be unfinished; one more release waits for the oldest.
const WRITE_BACK_JOBS_MAX: usize = 4;

/// A table whose home is the fastest tier.
struct ResidentTable {
    weights: AlignedBuffer,
    state: AlignedBuffer,
    /// Rows that have their initial values.
    present: BitSet,
}

/// Where a table's rows are in memory.
#[derive(Clone, Copy)]
enum Place {
    /// All rows, by row number, in this entry of `State::resident`.
    Resident(usize),
    /// The rows cached or in flight, by slot, in this entry of `State::pools`.
    Pooled(usize),
}

struct Table {
    config: TableConfig,
    place: Place,
}

struct State {
    tables: Vec<Table>,
    resident: Vec<ResidentTable>,
    pools: Vec<RowPool>,
    /// Absent if the fastest tier is the home of everything.
    block_tiers: Option<BlockTiers>,
    tickets: BTreeMap<u64, Ticket>,
    next_ticket: u64,
    pending: Vec<Pending>,
    write_backs: VecDeque<JobHandle>,
    counters: stats::Counters,
    /// Latest due time of the transfers that were filled in so far.
    arrived_ns: u64,
    /// Filled transfers whose delivery was not recorded yet; wall clock only.
    arrivals: Vec<ticket::Arrived>,
    /// How punctual deliveries were on a wall clock.
    lateness: crate::device::Lateness,
    /// The fastest tier's device; its batches run one at a time, on the calling thread.
    memory: Schedule,
    /// Why the store can no longer be used.
    poisoned: Option<Error>,
    closed: bool,
}

/// Tables on a hierarchy.
pub struct Store {
    config: StoreConfig,
    clock: Arc<Clock>,
    schedule: Arc<Mutex<Schedule>>,
    /// Declared before `state`, so that it ends first when the store is dropped.
    worker: Option<Worker>,
    state: Mutex<State>,
    memory: MemoryReport,
    places: Vec<Place>,
    staging_rows: Vec<usize>,
}

impl Store {
    /// Time on the store's clock.
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Accounts for dense work on a virtual clock; on a wall clock work takes its own time.
    pub fn advance(&self, duration_ns: u64) {
        self.clock.advance(duration_ns);
    }

    /// Floats of optimizer state in a row.
    pub fn state_floats(&self) -> usize {
        self.config.optimizer.state_floats()
    }

    /// Whether nobody waits.
    pub fn is_virtual(&self) -> bool {
        self.clock.is_virtual()
    }

    /// Writes every changed row down to the tier below and waits until that is done.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.lock_filled()?;
        state.flush(self);
        state.settle_write_backs(0)?;
        if let Some(worker) = &self.worker {
            worker.backends().iter().try_for_each(|backend| backend.sync())?;
        }
        Ok(())
    }

    /// Ends the store: finishes what is queued; every later call is `Closed`. Idempotent.
    pub fn close(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Ok(());
        }
        state.closed = true;
        let settled = state.settle_write_backs(0);
        state.tickets.clear();
        state.pending.clear();
        settled
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(Error::new(ErrorKind::Closed, "the store is closed; open a new one"));
        }
        if let Some(cause) = &state.poisoned {
            return Err(Error::new(
                ErrorKind::Closed,
                format!("the store stopped after an earlier failure: {cause}; open a new one"),
            ));
        }
        Ok(state)
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn initialise(&self, table: usize, row: u64, weights: &mut [f32]) {
        initialise_row(self.config.tables[table].init, self.config.seed, table, row, weights);
    }
}

fn no_table(table: usize, tables: usize) -> Error {
    Error::new(ErrorKind::Input, format!("table {table} does not exist; the store has {tables} tables"))
}

impl State {
    fn table(&self, table: usize) -> Result<&Table> {
        self.tables.get(table).ok_or_else(|| no_table(table, self.tables.len()))
    }

    /// After a failed transfer rows in memory and on the tiers no longer agree; nothing may go on.
    fn poison<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.poisoned.get_or_insert_with(|| error.duplicate());
        }
        result
    }

    /// Waits until at most `unfinished` write-back jobs are left.
    fn settle_write_backs(&mut self, unfinished: usize) -> Result<()> {
        while self.write_backs.len() > unfinished {
            let Some(oldest) = self.write_backs.pop_front() else { break };
            let outcome = oldest.take().map(drop);
            self.poison(outcome)?;
        }
        Ok(())
    }

    /// All weights of a table's memory, by slot.
    fn weights(&self, place: Place) -> &[f32] {
        match place {
            Place::Resident(table) => self.resident[table].weights.as_f32(),
            Place::Pooled(pool) => self.pools[pool].weights(),
        }
    }
}
