//! How tables change while queries are served: versions as a whole, and rows of the served one.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::engine::{Engine, NewVersion, State, locked, no_version};
use super::layout::{RowLayout, Span};
use super::overlay::Overlay;
use super::row_cache::RowKey;
use super::version::{Version, store_as};
use crate::backend::IoBatch;
use crate::device::{Operation, Request};
use crate::embedding::RowType;
use crate::error::{Error, ErrorKind, Result};

/// Rows of the new version that are read at once to warm the cache, and blocks of updates that are written at once.
const AT_ONCE: usize = 256;

impl Engine {
    fn check_table(&self, table: usize) -> Result<()> {
        let tables = self.config.serve.tables.len();
        let message = format!("there is no table {table}; the engine has {tables}");
        if table < tables { Ok(()) } else { Err(Error::new(ErrorKind::Input, message)) }
    }

    /// A version to load, beside the one that is served.
    ///
    /// # Errors
    ///
    /// `Config` if there is no place for a second one.
    pub fn new_version(&self) -> Result<NewVersion> {
        let _changing = locked(&self.changing);
        let mut state = self.lock();
        let region = match &state.version {
            None => 0,
            Some(_) if self.config.versions == 1 => {
                let message = "this engine keeps one version; open it with versions = 2 to refresh the tables";
                return Err(Error::new(ErrorKind::Config, message));
            }
            Some(served) => 1 - served.region,
        };
        // Its place is that of the one before; whoever still reads that one is waited for.
        state.previous = None;
        let switched_at = state.switched_at;
        let mut state = self.wait_for_older(state, switched_at);
        state.begun += 1;
        let number = state.begun;
        drop(state);
        let layouts = self.layouts(region);
        Ok(NewVersion(Version::new(&self.config.serve, number, region, layouts)?))
    }

    fn layouts(&self, region: usize) -> Vec<RowLayout> {
        self.config.serve.layouts(region as u64 * self.region_bytes, self.config.serve.device.block_bytes).0
    }

    /// A version that was begun later has the same place. Whoever asks holds `changing`, so that none is begun meanwhile.
    fn check_newest(&self, version: &NewVersion) -> Result<()> {
        let message = "another version was begun since; load and commit that one";
        let is_newest = version.0.number == self.lock().begun;
        if is_newest { Ok(()) } else { Err(Error::new(ErrorKind::Closed, message)) }
    }

    /// Loads the next rows of a table.
    ///
    /// # Errors
    ///
    /// `Input` if they are not what comes next, or cannot become codes; those of the backend.
    pub fn load(&self, version: &mut NewVersion, table: usize, from: RowType, rows: &[u8]) -> Result<()> {
        self.check_table(table)?;
        let _changing = locked(&self.changing);
        self.check_newest(version)?;
        version.0.load(&self.config.serve, &self.backends, table, from, rows).map_err(|error| self.on_device(error))
    }

    /// Sets the index map of a pruned table.
    ///
    /// # Errors
    ///
    /// `Input` if it is not one of this table.
    pub fn set_index_map(&self, version: &mut NewVersion, table: usize, rows: Vec<i32>) -> Result<()> {
        self.check_table(table)?;
        let _changing = locked(&self.changing);
        self.check_newest(version)?;
        version.0.set_index_map(&self.config.serve, table, rows)
    }

    /// Serves a version from now on; queries under way end with the one that they began with. Updates that were not of it are gone
    /// with the version that they were of, to which `roll_back` returns. With `warm` the rows that were cached are read again before this returns,
    /// while queries go on.
    ///
    /// # Errors
    ///
    /// `Input` if it is not whole; those of the backend.
    pub fn commit(&self, version: NewVersion, warm: bool) -> Result<u64> {
        let _changing = locked(&self.changing);
        self.check_newest(&version)?;
        version.0.check_whole(&self.config.serve)?;
        self.serve(&Arc::new(version.0), warm)
    }

    /// Serves the version before again, at once.
    ///
    /// # Errors
    ///
    /// `Config` if there is none.
    pub fn roll_back(&self, warm: bool) -> Result<u64> {
        let _changing = locked(&self.changing);
        let Some(previous) = self.lock().previous.clone() else {
            let message = "there is no version to roll back to: none was replaced, or its place was taken by a new one";
            return Err(Error::new(ErrorKind::Config, message));
        };
        self.serve(&previous, warm)
    }

    /// Queries that began before an overlay of this number was there have ended when this returns.
    fn wait_for_older<'a>(&'a self, mut state: MutexGuard<'a, State>, number: u64) -> MutexGuard<'a, State> {
        while state.in_flight.keys().next().is_some_and(|&seen| seen < number) {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// The caller holds `changing`.
    fn serve(&self, version: &Arc<Version>, warm: bool) -> Result<u64> {
        let mut state = self.lock();
        while !state.overlay.is_empty() {
            drop(state);
            self.put_in_place()?;
            state = self.lock();
        }
        let keys = if warm { state.residency.rows.keys() } else { Vec::new() };
        state.residency.rows.clear();
        state.residency.pooled.clear();
        state.previous = state.version.replace(Arc::clone(version));
        state.overlay = Arc::new(state.overlay.emptied());
        state.switched_at = state.overlay.number;
        drop(state);
        for keys in keys.chunks(AT_ONCE) {
            self.warm(version, keys)?;
        }
        Ok(version.number)
    }

    /// Reads rows into the cache.
    fn warm(&self, version: &Arc<Version>, keys: &[RowKey]) -> Result<()> {
        let tables = &self.config.serve.tables;
        let spans: Vec<Span> = keys.iter().map(|key| version.layouts[key.table()].blocks(key.row())).collect();
        let (batch, places) = self.read_spans(&spans)?;
        let mut state = self.lock();
        if state.version.as_ref().is_none_or(|served| served.number != version.number) {
            return Ok(());
        }
        // From the last to the first, so that the latest used of a bucket ends as that.
        for ((key, span), place) in keys.iter().zip(&spans).zip(places).rev() {
            let begin = place + (version.layouts[key.table()].offset(key.row()) - span.offset) as usize;
            let row_bytes = tables[key.table()].row_bytes() as usize;
            let is_updated = state.overlay.of(key.table()).is_some_and(|rows| rows.contains_key(&key.row()));
            if !is_updated {
                state.residency.fill(key.table(), key.row(), &batch.buffer[begin..begin + row_bytes]);
            }
        }
        Ok(())
    }

    /// Reads spans from the first device; gives where in the buffer each begins.
    fn read_spans(&self, spans: &[Span]) -> Result<(IoBatch, Vec<usize>)> {
        let (extents, places, nbytes) = self.extents(spans);
        let batch = IoBatch { buffer: self.backends[0].buffer(nbytes), extents };
        let (batch, result) = self.backends[0].read(batch);
        result.map_err(|error| self.on_device(error))?;
        self.account(Operation::Read, spans);
        Ok((batch, places))
    }

    /// Time of the model for what nobody waits for.
    fn account(&self, operation: Operation, spans: &[Span]) {
        if let Some(timing) = &self.timing
            && !spans.is_empty()
        {
            let devices = if operation == Operation::Read { 1 } else { self.backends.len() };
            let request =
                |device: usize, span: &Span| Request { device, operation, offset: span.offset, nbytes: span.nbytes };
            let requests: Vec<Request> =
                (0..devices).flat_map(|device| spans.iter().map(move |span| request(device, span))).collect();
            let mut schedule = locked(&timing.schedule);
            let batch = schedule.submit(self.clock.now_ns(), &requests);
            schedule.detach(batch);
        }
    }

    /// Updates rows of a table: every query that begins after this returned sees all of them, every one that began before none.
    /// They go to their place on the device later, with `flush`, or now if there is no room for more.
    ///
    /// # Errors
    ///
    /// `Input` if an id is no row, was pruned, or the values cannot become codes; `Capacity` if they are more than there is room for.
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
        loop {
            let mut state = self.lock();
            let Some(version) = state.version.clone() else { return Err(no_version()) };
            if state.overlay.memory_bytes() + needed > room {
                drop((state, version));
                self.flush()?;
                continue;
            }
            let mut rows = Vec::with_capacity(ids.len());
            for (&id, stored) in ids.iter().zip(stored.chunks_exact(of.row_bytes() as usize)) {
                let row = if id < of.ids { version.row_of(table, id) } else { None };
                let Some(row) = row else {
                    let message = "an id of an update has no row in the table";
                    return Err(place(Error::new(ErrorKind::Input, message)).with_context("id", id));
                };
                rows.push((row, Box::from(stored)));
            }
            state.overlay = Arc::new(state.overlay.with(table, rows.into_iter()));
            return Ok(());
        }
    }

    /// Puts all updated rows into their place, once no query is under way that must not see them.
    ///
    /// # Errors
    ///
    /// Those of the backend; the rows stay where they were then, and are served from there.
    pub fn flush(&self) -> Result<()> {
        let _changing = locked(&self.changing);
        self.put_in_place()
    }

    /// The caller holds `changing`.
    fn put_in_place(&self) -> Result<()> {
        let state = self.lock();
        let Some(version) = state.version.clone() else { return Ok(()) };
        let overlay = Arc::clone(&state.overlay);
        if overlay.is_empty() {
            return Ok(());
        }
        drop(self.wait_for_older(state, overlay.number));
        let mut written = 0;
        for (table, rows) in overlay.tables() {
            let mut rows: Vec<(u64, &[u8])> = rows.iter().map(|(&row, new)| (row, &*new.stored)).collect();
            rows.sort_unstable_by_key(|&(row, _)| row);
            if self.config.serve.is_on_device(table) {
                written += self.write_rows(&version.layouts[table], &rows)?;
            } else {
                rows.iter().for_each(|&(row, stored)| version.put_fixed(table, row, stored));
            }
        }
        let mut state = self.lock();
        for (table, rows) in overlay.tables() {
            rows.keys().for_each(|&row| state.residency.rows.remove(RowKey::new(table, row)));
            state.residency.pooled.invalidate(table, &rows.keys().copied().collect::<HashSet<_, _>>());
        }
        state.overlay = Arc::new(state.overlay.without(&overlay));
        state.traffic.written_blocks += written;
        Ok(())
    }

    /// Reads blocks, changes rows in them, and writes them to every device; gives their number.
    fn write_rows(&self, layout: &RowLayout, rows: &[(u64, &[u8])]) -> Result<u64> {
        let mut written = 0;
        for part in rows.chunk_by(|a, b| layout.blocks(a.0) == layout.blocks(b.0)).collect::<Vec<_>>().chunks(AT_ONCE) {
            let spans: Vec<Span> = part.iter().map(|rows| layout.blocks(rows[0].0)).collect();
            let (mut batch, places) = self.read_spans(&spans)?;
            for ((rows, span), place) in part.iter().zip(&spans).zip(places) {
                for &(row, stored) in *rows {
                    let begin = place + (layout.offset(row) - span.offset) as usize;
                    batch.buffer[begin..begin + stored.len()].copy_from_slice(stored);
                }
            }
            for backend in &self.backends {
                let result;
                (batch, result) = backend.write(batch);
                result.map_err(|error| self.on_device(error))?;
            }
            self.account(Operation::Write, &spans);
            written += part.len() as u64;
        }
        Ok(written)
    }
}
