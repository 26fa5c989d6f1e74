//! Whole ranges of rows in and out: state dicts, checks, `from_torch`. Maintenance: it costs no virtual time.

use std::sync::MutexGuard;

use super::ticket::TicketId;
use super::{Place, State, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::tier::{JobDone, PlanBuilder, row_key};

impl Store {
    /// Copies rows `start .. start + count` out: weights of count x D, state of count x S.
    pub fn read_rows(&self, table: usize, start: u64, weights: &mut [f32], state: &mut [f32]) -> Result<()> {
        let count = self.check_range(table, start, weights.len(), Some(state.len()))?;
        self.lock_filled()?.read_rows(self, table, start, count, weights, state)
    }

    /// Replaces rows `start ..` by weights of count x D and, if given, state of count x S; without it the state becomes zero.
    pub fn write_rows(&self, table: usize, start: u64, weights: &[f32], state: Option<&[f32]>) -> Result<()> {
        let count = self.check_range(table, start, weights.len(), state.map(<[f32]>::len))?;
        self.lock_filled()?.write_rows(self, table, start, count, weights, state)
    }

    fn check_range(&self, table: usize, start: u64, weights: usize, state: Option<usize>) -> Result<usize> {
        let guard = self.lock()?;
        let config = &guard.table(table)?.config;
        let count = weights / config.dim;
        let state_floats = self.config.optimizer.state_floats();
        let fits = start.checked_add(count as u64).is_some_and(|end| end <= config.rows);
        if !fits || count * config.dim != weights || state.is_some_and(|len| len != count * state_floats) {
            return Err(Error::new(
                ErrorKind::Input,
                "rows to copy must lie in the table, with all columns and all state of each",
            )
            .with_context("table", &config.name)
            .with_context("start", start)
            .with_context("weights", weights)
            .with_context("rows", config.rows));
        }
        Ok(count)
    }

    /// The state at an instant at which nothing is on its way, and every write-back so far has succeeded.
    pub(super) fn lock_filled(&self) -> Result<MutexGuard<'_, State>> {
        loop {
            let mut state = self.lock()?;
            let open = state.tickets.iter().rfind(|(_, ticket)| ticket.is_admitted() && !ticket.has_arrived());
            let Some((&id, _)) = open else {
                state.settle_write_backs(0)?;
                return Ok(state);
            };
            drop(state);
            match self.fill_through(TicketId(id)) {
                // Another thread released it in between.
                Err(error) if error.kind() == ErrorKind::Input => {}
                other => other?,
            }
        }
    }
}

impl State {
    fn read_rows(
        &mut self,
        store: &Store,
        table: usize,
        start: u64,
        count: usize,
        weights: &mut [f32],
        state: &mut [f32],
    ) -> Result<()> {
        let dim = self.tables[table].config.dim;
        let state_floats = store.config.optimizer.state_floats();
        let rows = (start..).take(count).zip(weights.chunks_exact_mut(dim));
        let mut arriving = Vec::new();
        match self.tables[table].place {
            Place::Resident(at) => {
                let home = &self.resident[at];
                for (row, out) in rows {
                    if home.present.contains(row) {
                        out.copy_from_slice(&home.weights.as_f32()[row as usize * dim..][..dim]);
                    } else {
                        store.initialise(table, row, out);
                    }
                }
                state.copy_from_slice(&home.state.as_f32()[start as usize * state_floats..][..count * state_floats]);
                return Ok(());
            }
            Place::Pooled(at) => {
                let tiers = self.block_tiers.as_mut().expect("a store with pools has block tiers");
                let mut plan = PlanBuilder::new(tiers);
                for (position, (row, out)) in rows.enumerate() {
                    let state_out = &mut state[position * state_floats..(position + 1) * state_floats];
                    if let Some(slot) = self.pools[at].slots.get(row_key(table, row)) {
                        let (row_weights, row_state) = self.pools[at].row(slot);
                        out.copy_from_slice(row_weights);
                        state_out.copy_from_slice(row_state);
                    } else if plan.row_is_present(table, row) {
                        let (frame, offset) = plan.peek_row(table, row);
                        arriving.push((position, frame, offset));
                    } else {
                        store.initialise(table, row, out);
                        state_out.fill(0.0);
                    }
                }
                let (job, places, _) = plan.build(None, store.memory(), |_, _, _| ());
                let outcome = store.submit(job, false).0.take();
                let JobDone { buffer, .. } = self.poison(outcome)?;
                for (position, frame, offset) in arriving {
                    let image = &buffer.as_f32()[(places[frame] + offset) / size_of::<f32>()..];
                    weights[position * dim..(position + 1) * dim].copy_from_slice(&image[..dim]);
                    state[position * state_floats..(position + 1) * state_floats]
                        .copy_from_slice(&image[dim..dim + state_floats]);
                }
            }
        }
        Ok(())
    }

    fn write_rows(
        &mut self,
        store: &Store,
        table: usize,
        start: u64,
        count: usize,
        weights: &[f32],
        state: Option<&[f32]>,
    ) -> Result<()> {
        let dim = self.tables[table].config.dim;
        let state_floats = store.config.optimizer.state_floats();
        let zeros = vec![0.0; state_floats];
        let state_of = |position: usize| {
            state.map_or(&zeros[..], |all| &all[position * state_floats..(position + 1) * state_floats])
        };
        let rows = (start..).take(count).zip(weights.chunks_exact(dim)).enumerate();
        match self.tables[table].place {
            Place::Resident(at) => {
                let home = &mut self.resident[at];
                for (position, (row, values)) in rows {
                    home.present.insert(row);
                    home.weights.as_f32_mut()[row as usize * dim..][..dim].copy_from_slice(values);
                    home.state.as_f32_mut()[row as usize * state_floats..][..state_floats]
                        .copy_from_slice(state_of(position));
                }
                Ok(())
            }
            Place::Pooled(at) => {
                let tiers = self.block_tiers.as_mut().expect("a store with pools has block tiers");
                let mut plan = PlanBuilder::new(tiers);
                for (position, (row, values)) in rows {
                    if let Some(slot) = self.pools[at].slots.get(row_key(table, row)) {
                        let (row_weights, row_state) = self.pools[at].row_mut(slot);
                        row_weights.copy_from_slice(values);
                        row_state.copy_from_slice(state_of(position));
                        self.pools[at].dirty.insert(u64::from(slot));
                    } else {
                        plan.write_row(table, row, values, state_of(position));
                    }
                }
                let (job, _, _) =
                    plan.build(None, store.memory(), |table, row, weights| store.initialise(table, row, weights));
                let outcome = store.submit(job, false).0.take().map(drop);
                self.poison(outcome)
            }
        }
    }

    /// Queues a write-back of every changed row in memory. Every admitted ticket was filled.
    pub(super) fn flush(&mut self, store: &Store) {
        let Self { pools, block_tiers, .. } = self;
        let Some(tiers) = block_tiers.as_mut() else { return };
        let mut plan = PlanBuilder::new(tiers);
        for pool in pools {
            for slot in pool.dirty.iter().collect::<Vec<_>>() {
                let (table, row) = crate::tier::split_row_key(pool.slots.key(slot as u32));
                let (weights, state) = pool.row(slot as u32);
                plan.write_row(table, row, weights, state);
                pool.dirty.remove(slot);
            }
        }
        if !plan.is_empty() {
            let (job, _, counts) = plan.build(Some(store.clock.now_ns()), store.memory(), |table, row, weights| {
                store.initialise(table, row, weights);
            });
            self.send_down(store, job, &counts);
        }
    }
}
