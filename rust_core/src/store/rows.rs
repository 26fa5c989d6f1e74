//! Whole ranges of rows in and out: state dicts, checks, `from_torch`. Maintenance: it costs no virtual time.

use super::parts::Place;
use super::ticket::TicketId;
use super::{State, Store};
use crate::embedding::{decode_rows, encode_rows};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::MutexGuard;
use crate::tier::{Kept, PlanBuilder, copy_floats, row_key};

/// Rows in one job of a copy in or out.
pub(super) const COPY_ROWS_MAX: usize = 4096;

impl Store {
    /// Copies rows `start .. start + count` out: weights of count x D, state of count x S.
    pub fn read_rows(&self, table: usize, start: u64, weights: &mut [f32], state: &mut [f32]) -> Result<()> {
        let shape = self.table(table)?.shape;
        let count = self.check_range(table, start, (weights.len(), shape.dim), Some(state.len()))?;
        let mut stored = vec![0; count.min(COPY_ROWS_MAX) * shape.weight_bytes()];
        let mut exist = vec![false; count.min(COPY_ROWS_MAX)];
        let mut guard = self.lock_filled()?;
        for first in (0..count).step_by(COPY_ROWS_MAX) {
            let rows = first..(first + COPY_ROWS_MAX).min(count);
            let stored = &mut stored[..rows.len() * shape.weight_bytes()];
            let state = &mut state[rows.start * shape.state_floats..rows.end * shape.state_floats];
            guard.read_rows(self, table, start + first as u64, stored, state, &mut exist[..rows.len()])?;
            let weights = &mut weights[rows.start * shape.dim..rows.end * shape.dim];
            decode_rows(self.instructions, shape.row_type, shape.dim, stored, weights);
        }
        Ok(())
    }

    /// Replaces rows `start ..` by weights of count x D, each rounded to the nearest, and, if given, state of count x S;
    /// without it the state becomes zero.
    pub fn write_rows(&self, table: usize, start: u64, weights: &[f32], state: Option<&[f32]>) -> Result<()> {
        let shape = self.table(table)?.shape;
        let count = self.check_range(table, start, (weights.len(), shape.dim), state.map(<[f32]>::len))?;
        let mut stored = vec![0; count.min(COPY_ROWS_MAX) * shape.weight_bytes()];
        let mut guard = self.lock_filled()?;
        for first in (0..count).step_by(COPY_ROWS_MAX) {
            let rows = first..(first + COPY_ROWS_MAX).min(count);
            let stored = &mut stored[..rows.len() * shape.weight_bytes()];
            let weights = &weights[rows.start * shape.dim..rows.end * shape.dim];
            encode_rows(self.instructions, shape.row_type, shape.dim, weights, None, stored);
            let state = state.map(|all| &all[rows.start * shape.state_floats..rows.end * shape.state_floats]);
            guard.write_rows(self, table, start + first as u64, stored, state)?;
        }
        Ok(())
    }

    /// As `read_rows`, with the weights as they are stored: count x bytes of a row.
    pub fn read_stored_rows(&self, table: usize, start: u64, weights: &mut [u8], state: &mut [f32]) -> Result<()> {
        let shape = self.table(table)?.shape;
        let (nbytes, state_floats) = (shape.weight_bytes(), shape.state_floats);
        let count = self.check_range(table, start, (weights.len(), nbytes), Some(state.len()))?;
        let mut guard = self.lock_filled()?;
        let mut exist = vec![false; count.min(COPY_ROWS_MAX)];
        for first in (0..count).step_by(COPY_ROWS_MAX) {
            let rows = first..(first + COPY_ROWS_MAX).min(count);
            let exist = &mut exist[..rows.len()];
            let weights = &mut weights[rows.start * nbytes..rows.end * nbytes];
            let state = &mut state[rows.start * state_floats..rows.end * state_floats];
            guard.read_rows(self, table, start + first as u64, weights, state, exist)?;
        }
        Ok(())
    }

    /// As `write_rows`, with the weights as they are stored.
    pub fn write_stored_rows(&self, table: usize, start: u64, weights: &[u8], state: Option<&[f32]>) -> Result<()> {
        let shape = self.table(table)?.shape;
        let (nbytes, state_floats) = (shape.weight_bytes(), shape.state_floats);
        let count = self.check_range(table, start, (weights.len(), nbytes), state.map(<[f32]>::len))?;
        let mut guard = self.lock_filled()?;
        for first in (0..count).step_by(COPY_ROWS_MAX) {
            let rows = first..(first + COPY_ROWS_MAX).min(count);
            let state = state.map(|all| &all[rows.start * state_floats..rows.end * state_floats]);
            let weights = &weights[rows.start * nbytes..rows.end * nbytes];
            guard.write_rows(self, table, start + first as u64, weights, state)?;
        }
        Ok(())
    }

    /// How many rows of a width so many values are.
    fn check_range(
        &self,
        table: usize,
        start: u64,
        (values, width): (usize, usize),
        state: Option<usize>,
    ) -> Result<usize> {
        drop(self.lock()?);
        let table = self.table(table)?;
        let count = values / width;
        let fits = start.checked_add(count as u64).is_some_and(|end| end <= table.config.rows);
        if !fits || count * width != values || state.is_some_and(|len| len != count * table.shape.state_floats) {
            return Err(Error::new(
                ErrorKind::Input,
                "rows to copy must lie in the table, with all columns and all state of each",
            )
            .with_context("table", &table.config.name)
            .with_context("start", start)
            .with_context("weights", values)
            .with_context("rows", table.config.rows));
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
    /// Copies rows out, and says which of them exist; the others have their initial values.
    pub(super) fn read_rows(
        &mut self,
        store: &Store,
        table: usize,
        start: u64,
        weights: &mut [u8],
        state: &mut [f32],
        exist: &mut [bool],
    ) -> Result<()> {
        let of = &store.tables[table];
        let (weight_bytes, state_floats) = (of.shape.weight_bytes(), of.shape.state_floats);
        let Self { parts, pools, lower, .. } = self;
        let mut plan = lower.as_mut().map(PlanBuilder::uncounted);
        let mut arriving = Vec::new();
        exist.fill(true);
        for (position, out) in weights.chunks_exact_mut(weight_bytes).enumerate() {
            let table_row = start + position as u64;
            let (part, row) = of.part_of(parts, table_row);
            let state_out = &mut state[position * state_floats..(position + 1) * state_floats];
            let pool = &mut pools[of.pool];
            let (place, is_below) = match &parts[part].place {
                Place::Resident { first, present, .. } => (present.contains(row).then(|| first + row as u32), false),
                Place::Pooled { .. } => (pool.get(row_key(part, row)), true),
            };
            if let Some(place) = place {
                let (row_weights, row_state) = pool.row(place);
                out.copy_from_slice(row_weights);
                state_out.copy_from_slice(row_state);
            } else if let Some(found) = plan.as_mut().filter(|_| is_below).and_then(|plan| plan.peek_row(part, row)) {
                arriving.push((position, found));
            } else {
                exist[position] = false;
                store.initialise(table, table_row, out);
                state_out.fill(0.0);
            }
        }
        let Some(plan) = plan.filter(|plan| !plan.is_empty()) else { return Ok(()) };
        let nbytes = pools[of.pool].row_bytes();
        let kept: Vec<Kept> = arriving.iter().map(|(_, found)| (found.frame, found.offset, nbytes)).collect();
        let job = plan.build(None, &kept);
        let done = store.submit(job, true, None).0.take_or_abandon()?;
        for ((position, _), image) in arriving.iter().zip(done.kept.chunks_exact(nbytes)) {
            let (row_weights, row_state) = image.split_at(weight_bytes);
            weights[position * weight_bytes..(position + 1) * weight_bytes].copy_from_slice(row_weights);
            copy_floats(row_state, &mut state[position * state_floats..(position + 1) * state_floats]);
        }
        Ok(())
    }

    fn write_rows(
        &mut self,
        store: &Store,
        table: usize,
        start: u64,
        weights: &[u8],
        state: Option<&[f32]>,
    ) -> Result<()> {
        let of = &store.tables[table];
        let (weight_bytes, state_floats) = (of.shape.weight_bytes(), of.shape.state_floats);
        let zeros = vec![0.0; state_floats];
        self.make_log_room(store, weights.len() / weight_bytes)?;
        let Self { parts, pools, lower, .. } = self;
        let pool = &mut pools[of.pool];
        let mut plan = lower.as_mut().map(PlanBuilder::uncounted);
        for (position, values) in weights.chunks_exact(weight_bytes).enumerate() {
            let (part, row) = of.part_of(parts, start + position as u64);
            let state_values =
                state.map_or(&zeros[..], |all| &all[position * state_floats..(position + 1) * state_floats]);
            let place = match &mut parts[part].place {
                Place::Resident { first, present, absent } => {
                    *absent -= u64::from(present.insert(row));
                    Some(*first + row as u32)
                }
                Place::Pooled { .. } => pool.get(row_key(part, row)),
            };
            if let Some(place) = place {
                let (row_weights, row_state) = pool.row_mut(place);
                row_weights.copy_from_slice(values);
                row_state.copy_from_slice(state_values);
                pool.mark_dirty(place);
            } else if let Some(plan) = plan.as_mut() {
                plan.write_row(part, row, values, state_values, true);
            }
        }
        let Some(plan) = plan.filter(|plan| !plan.is_empty()) else { return Ok(()) };
        let job = plan.build(None, &[]);
        store.submit(job, false, None).0.wait()
    }
}
