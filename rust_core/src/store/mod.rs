//! The facade: tables on a hierarchy. Prefetch, gather and pool, exact updates, statistics.
//!
//! All decisions (probe, victim, slot, request number, completion time) are made under one lock on
//! the calling thread, in program order; the I/O thread only moves bytes. Row memory is touched
//! under that lock only, so there is nothing to synchronise between a gather and a transfer.

mod admit;
mod budget;
mod compact;
mod config;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod lookup;
mod lower;
mod open;
mod parts;
mod rows;
mod snapshot;
mod stats;
mod ticket;
mod units;
mod update;
mod write_back;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};

pub use config::{Budget, ClockMode, HomeLayout, NonFinite, PartConfig, StoreConfig, TierConfig};
pub use lookup::Lookup;
pub use open::BackendWrapper;
pub use snapshot::verify_rows;
pub use stats::{MemoryReport, StoreStats, TableStats, TierStats, Timeline};
pub use ticket::TicketId;
pub use update::{Gathered, Gradient, Pooled};

use crate::clock::Clock;
use crate::device::Schedule;
use crate::embedding::{Instructions, Scratch, SimdLevel, TableInit, Threads};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::tier::{JobHandle, LowerTiers, RowPool, Worker};
use parts::{Part, Table};
use ticket::Ticket;
use update::Pending;

/// Write-back jobs that may be unfinished; one more release waits for the oldest.
const WRITE_BACK_JOBS_MAX: usize = 4;

struct State {
    parts: Vec<Part>,
    pools: Vec<RowPool>,
    /// By pool: whether memory caches every part that has rows in it.
    keeps_all: Vec<bool>,
    /// Absent if memory is the home of everything.
    lower: Option<LowerTiers>,
    tickets: BTreeMap<u64, Ticket>,
    next_ticket: u64,
    pending: Vec<Pending>,
    /// Fingerprints of the batches that were announced and not yet admitted.
    announced: VecDeque<u64>,
    write_backs: VecDeque<JobHandle>,
    compactions: Vec<compact::LogCompaction>,
    counters: Vec<stats::Counters>,
    /// Filled in, and not waited for yet.
    arrived: Vec<ticket::Arrived>,
    /// How punctual deliveries were on a wall clock.
    lateness: crate::device::Lateness,
    /// The fastest tier's device; its batches run one at a time, on the calling thread.
    memory: Schedule,
    /// Optimizer steps so far.
    steps: u64,
    scratch: Scratch,
    /// Gradient values that were not finite.
    non_finite_values: u64,
    /// For a timeline: dirty rows at the ends of releases.
    dirty_samples: Vec<(u64, u64)>,
    closed: bool,
}

/// Tables on a hierarchy.
pub struct Store {
    config: StoreConfig,
    tables: Vec<Table>,
    clock: Arc<Clock>,
    /// Nobody waits while it is locked.
    schedule: Arc<std::sync::Mutex<Schedule>>,
    /// Declared before `state`, so that it ends first when the store is dropped.
    worker: Option<Worker>,
    state: Mutex<State>,
    /// Staging memory became free, or the store was closed.
    room: Condvar,
    memory: MemoryReport,
    instructions: Instructions,
    threads: Threads,
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

    /// Floats of optimizer state in a row of a table.
    pub fn state_floats(&self, table: usize) -> Result<usize> {
        Ok(self.table(table)?.shape.state_floats)
    }

    /// Whether all rows of a table live in the fastest tier.
    pub fn is_resident(&self, table: usize) -> Result<bool> {
        Ok(!self.table(table)?.is_pooled)
    }

    /// Optimizer steps so far.
    pub fn steps(&self) -> Result<u64> {
        Ok(self.lock()?.steps)
    }

    /// Continues the count of optimizer steps, for a store whose rows were just replaced.
    pub fn set_steps(&self, steps: u64) -> Result<()> {
        self.lock()?.steps = steps;
        Ok(())
    }

    /// Instructions that the kernels use.
    pub fn simd_level(&self) -> SimdLevel {
        self.instructions.level()
    }

    /// Whether nobody waits.
    pub fn is_virtual(&self) -> bool {
        self.clock.is_virtual()
    }

    /// Writes every changed row down to the tier below and waits until that is done.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.lock_filled()?;
        state.flush(self)?;
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
        self.room.notify_all();
        settled
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(Error::new(ErrorKind::Closed, "the store is closed; open a new one"));
        }
        Ok(state)
    }

    fn schedule(&self) -> std::sync::MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self, table: usize) -> Result<&Table> {
        self.tables.get(table).ok_or_else(|| {
            Error::new(
                ErrorKind::Input,
                format!("table {table} does not exist; the store has {} tables", self.tables.len()),
            )
        })
    }

    fn initialise(&self, table: usize, row: u64, weights: &mut [u8]) {
        TableInit::of(&self.tables[table].config).write(self.config.seed, table, row, weights);
    }
}

impl State {
    /// Waits until at most `unfinished` write-back jobs are left.
    fn settle_write_backs(&mut self, unfinished: usize) -> Result<()> {
        while self.write_backs.len() > unfinished {
            let Some(oldest) = self.write_backs.front() else { break };
            oldest.wait()?;
            self.write_backs.pop_front();
        }
        Ok(())
    }
}
