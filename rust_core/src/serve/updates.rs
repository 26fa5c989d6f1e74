//! How rows change while queries are served: they wait in the overlay, from where they are served, until they are put in their place.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::engine::{Engine, locked, no_version};
use super::layout::{RowLayout, Span};
use super::overlay::{Overlay, Waiting};
use super::row_cache::RowKey;
use super::version::{Version, store_as};
use crate::device::Operation;
use crate::embedding::RowType;
use crate::error::{Error, ErrorKind, Result};
use crate::rng::MixHasher;

/// Rows or results that are changed in one go, while queries wait.
const STEP: usize = 512;

impl Engine {
    /// Updates rows of a table: every query that begins after this returned sees all of them, every one that began before none.
    /// They go to their place on the device later, with `flush`, or now if there is no room for more; that waits for queries under
    /// way, so that a thread which has one of its own under way would wait for itself.
    ///
    /// # Errors
    ///
    /// `Input` if an id is no row, was pruned, or the values cannot become codes; `Capacity` if they are more than there is room for;
    /// those of the backend if room could not be made.
    pub fn update(&self, table: usize, ids: &[u64], values: &[u8]) -> Result<()> {
        self.check_table(table)?;
        let of = &self.config.serve.tables[table];
        let place = |error: Error| error.with_context("table", &of.name);
        if values.len() != ids.len() * of.columns * 4 {
            return Err(place(Error::new(ErrorKind::Input, "an update has a float for each column of each row")));
        }
        let stored = store_as(of.row_type, RowType::Fp32, of.columns, values).map_err(place)?;
        let room = self.config.serve.memory.update_bytes;
        let needed = Overlay::bytes_for(ids.len() as u64, of.row_bytes());
        if needed > room {
            let message = "an update is larger than the room for updated rows; cut it, or give more in update_bytes";
            return Err(place(Error::new(ErrorKind::Capacity, message))
                .with_context("needed_bytes", needed)
                .with_context("update_bytes", room));
        }
        let stored: Vec<Arc<[u8]>> = stored.chunks_exact(of.row_bytes() as usize).map(Arc::from).collect();
        let mut flushed = Ok(());
        loop {
            let mut state = self.lock();
            let Some(version) = state.version.clone() else { return Err(no_version()) };
            if state.overlay.memory_bytes() + needed > room {
                drop((state, version));
                flushed?;
                // It may have made room though some of it failed.
                flushed = self.flush();
                continue;
            }
            let row_of = |&id: &u64| {
                let row = if id < of.ids { version.row_of(table, id) } else { None };
                row.ok_or_else(|| {
                    let message = "an id of an update has no row in the table";
                    place(Error::new(ErrorKind::Input, message)).with_context("id", id)
                })
            };
            let rows: Vec<u64> = ids.iter().map(row_of).collect::<Result<_>>()?;
            state.number += 1;
            let number = state.number;
            for (row, stored) in rows.into_iter().zip(stored) {
                state.overlay.put(table, row, stored, of.row_bytes(), number);
            }
            return Ok(());
        }
    }

    /// Puts all updated rows into their place, once no query is under way that must not see them.
    ///
    /// # Errors
    ///
    /// The first of the backend; rows that could not be put into their place are served from where they were, and tried again.
    pub fn flush(&self) -> Result<()> {
        let state = self.lock();
        if state.overlay.is_empty() {
            return Ok(());
        }
        // Whoever changes versions need not wait for these queries: `changing` is taken when they have ended.
        let number = state.number;
        drop(self.wait_for_older(state, number));
        let _changing = locked(&self.changing);
        let state = self.lock();
        let Some(version) = state.version.clone() else { return Ok(()) };
        let mut waiting = state.overlay.waiting();
        drop(state);
        // Of another version, too, if it was changed meanwhile: queries that began before these updates have ended.
        waiting.retain(|waiting| waiting.number <= number);
        waiting.sort_unstable();
        let (mut written, mut failed) = (Vec::with_capacity(waiting.len()), None);
        for rows in waiting.chunk_by(|a, b| a.key.table() == b.key.table()) {
            let table = rows[0].key.table();
            if let Err(error) = self.put_in_place(&version, table, rows, &mut written) {
                failed = failed.or(Some(error.with_context("table", &self.config.serve.tables[table].name)));
            }
        }
        self.forget(&written);
        failed.map_or(Ok(()), Err)
    }

    /// Puts rows of a table into their place; those that are there go to `written`.
    fn put_in_place(
        &self,
        version: &Version,
        table: usize,
        rows: &[Waiting],
        written: &mut Vec<Waiting>,
    ) -> Result<()> {
        if self.config.serve.is_on_device(table) {
            return self.write_rows(&version.layouts[table], rows, written);
        }
        for rows in rows.chunks(STEP) {
            for (waiting, stored) in self.as_updated(rows) {
                version.put_fixed(table, waiting.key.row(), &stored);
                written.push(waiting);
            }
        }
        Ok(())
    }

    /// What rows were updated with, but for those that were updated again since.
    fn as_updated(&self, rows: &[Waiting]) -> Vec<(Waiting, Arc<[u8]>)> {
        let state = self.lock();
        let stored = |&waiting: &Waiting| Some((waiting, Arc::clone(state.overlay.get_of(waiting)?)));
        rows.iter().filter_map(stored).collect()
    }

    /// Reads blocks, changes rows in them, and writes them to every device. Blocks that cannot be read or written are passed over.
    fn write_rows(&self, layout: &RowLayout, rows: &[Waiting], written: &mut Vec<Waiting>) -> Result<()> {
        let blocks = |waiting: &Waiting| layout.blocks(waiting.key.row());
        let by_block: Vec<&[Waiting]> = rows.chunk_by(|a, b| blocks(a) == blocks(b)).collect();
        let mut outcome = Ok(());
        for part in by_block.chunks(self.at_once()) {
            let put = self.write_blocks(layout, part, written);
            if part.len() == 1 {
                outcome = outcome.and(put);
            } else if put.is_err() {
                // One block that is bad must not keep its neighbours from their place.
                for alone in part.chunks(1) {
                    outcome = outcome.and(self.write_blocks(layout, alone, written));
                }
            }
        }
        outcome
    }

    fn write_blocks(&self, layout: &RowLayout, blocks: &[&[Waiting]], written: &mut Vec<Waiting>) -> Result<()> {
        let spans: Vec<Span> = blocks.iter().map(|rows| layout.blocks(rows[0].key.row())).collect();
        let (mut batch, places) = self.read_spans(0..self.backends.len(), &spans)?;
        let mut put = Vec::new();
        for ((rows, span), place) in blocks.iter().zip(&spans).zip(places) {
            for (waiting, stored) in self.as_updated(rows) {
                let begin = place + (layout.offset(waiting.key.row()) - span.offset) as usize;
                batch.buffer[begin..begin + stored.len()].copy_from_slice(&stored);
                put.push(waiting);
            }
        }
        for backend in &self.backends {
            let result;
            (batch, result) = backend.write(batch);
            result.map_err(|error| self.on_device(error))?;
        }
        self.account(Operation::Write, 0..self.backends.len(), &spans);
        self.lock().traffic.written_blocks += spans.len() as u64;
        written.extend(put);
        Ok(())
    }

    /// Rows are in their place: what caches had of them goes, and they need not wait any longer. Queries go on in between: they see what
    /// waits as long as it does, and keep no result of it.
    fn forget(&self, written: &[Waiting]) {
        let keys: HashSet<RowKey, BuildHasherDefault<MixHasher>> = written.iter().map(|waiting| waiting.key).collect();
        let hashes = self.lock().residency.pooled.hashes();
        for hashes in hashes.chunks(STEP) {
            self.lock().residency.pooled.invalidate(hashes, &keys);
        }
        for written in written.chunks(STEP) {
            let mut state = self.lock();
            for &waiting in written {
                state.residency.rows.remove(waiting.key);
                state.overlay.remove(waiting, self.config.serve.tables[waiting.key.table()].row_bytes());
            }
        }
    }
}
