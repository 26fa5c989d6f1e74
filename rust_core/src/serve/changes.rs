//! How tables change as a whole while queries are served: versions that are loaded, served, and rolled back to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::{Engine, NewVersion, State, locked};
use super::layout::{RowLayout, Span};
use super::overlay::Overlay;
use super::row_cache::RowKey;
use super::version::Version;
use crate::embedding::RowType;
use crate::error::{Error, ErrorKind, Result};

impl Engine {
    pub(super) fn check_table(&self, table: usize) -> Result<()> {
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
        let (previous, loading) = (state.previous.take(), state.loading.upgrade());
        let switched_at = state.switched_at;
        let mut state = self.wait_for_older(state, switched_at);
        state.begun += 1;
        let number = state.begun;
        drop(state);
        // What was begun and not committed gives its memory back, whoever still holds it.
        drop(previous);
        if let Some(loading) = loading {
            *locked(&loading) = None;
        }
        let layouts = self.layouts(region);
        let version = Arc::new(Mutex::new(Some(Version::new(&self.config.serve, number, region, layouts)?)));
        self.lock().loading = Arc::downgrade(&version);
        Ok(NewVersion { number, version })
    }

    fn layouts(&self, region: usize) -> Vec<RowLayout> {
        self.config.serve.layouts(region as u64 * self.region_bytes, self.config.serve.device.block_bytes).0
    }

    /// Loads the next rows of a table.
    ///
    /// # Errors
    ///
    /// `Input` if they are not what comes next, or cannot become codes; those of the backend; `Closed` if the version is over.
    pub fn load(&self, version: &NewVersion, table: usize, from: RowType, rows: &[u8]) -> Result<()> {
        self.check_table(table)?;
        let _changing = locked(&self.changing);
        let mut version = locked(&version.version);
        let version = version.as_mut().ok_or_else(is_over)?;
        version.load(&self.config.serve, &self.backends, table, from, rows).map_err(|error| self.on_device(error))
    }

    /// Sets the index map of a pruned table.
    ///
    /// # Errors
    ///
    /// `Input` if it is not one of this table; `Closed` if the version is over.
    pub fn set_index_map(&self, version: &NewVersion, table: usize, rows: Vec<i32>) -> Result<()> {
        self.check_table(table)?;
        let _changing = locked(&self.changing);
        locked(&version.version).as_mut().ok_or_else(is_over)?.set_index_map(&self.config.serve, table, rows)
    }

    /// Serves a version from now on; queries under way end with the one that they began with. Updates that were not of it are gone
    /// with the version that they were of, to which `roll_back` returns. With `warm` the rows that were cached are read again before
    /// this returns, while queries go on; those that cannot be read, or are of tables of which other rows were pruned, are left out and
    /// counted.
    ///
    /// # Errors
    ///
    /// `Input` if it is not whole, and can be loaded further; `Closed` if it is over.
    pub fn commit(&self, version: &NewVersion, warm: bool) -> Result<u64> {
        let changing = locked(&self.changing);
        let mut loaded = locked(&version.version);
        loaded.as_ref().ok_or_else(is_over)?.check_whole(&self.config.serve)?;
        let version = loaded.take().ok_or_else(is_over)?;
        drop(loaded);
        Ok(self.serve(changing, &Arc::new(version), Overlay::default(), warm))
    }

    /// Serves the version before again, at once.
    ///
    /// # Errors
    ///
    /// `Config` if there is none.
    pub fn roll_back(&self, warm: bool) -> Result<u64> {
        let changing = locked(&self.changing);
        let Some((version, overlay)) = self.lock().previous.take() else {
            let message = "there is no version to roll back to: none was replaced, or its place was taken by a new one";
            return Err(Error::new(ErrorKind::Config, message));
        };
        Ok(self.serve(changing, &version, overlay, warm))
    }

    /// Queries that began before this number have ended when this returns.
    pub(super) fn wait_for_older<'a>(&'a self, mut state: MutexGuard<'a, State>, number: u64) -> MutexGuard<'a, State> {
        while state.in_flight.keys().next().is_some_and(|&seen| seen < number) {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Serves a version with the rows of it that are not yet in their place. Other changes can come while the caches are warmed.
    fn serve(&self, changing: MutexGuard<'_, ()>, version: &Arc<Version>, overlay: Overlay, warm: bool) -> u64 {
        let before = self.lock().version.clone();
        // Where other rows were pruned a row is another id.
        let is_same = |table| before.as_ref().is_some_and(|before| version.has_ids_of(before, table));
        let same: Vec<bool> = (0..version.layouts.len()).map(is_same).collect();
        let mut state = self.lock();
        let keys = if warm { state.residency.rows.keys() } else { Vec::new() };
        state.residency.rows.clear();
        let pooled = state.residency.pooled.take();
        state.version = Some(Arc::clone(version));
        let waiting = std::mem::replace(&mut state.overlay, overlay);
        let gone = std::mem::replace(&mut state.previous, before.map(|before| (before, waiting)));
        state.number += 1;
        state.switched_at = state.number;
        drop(state);
        // Queries go on while memory is given back.
        drop((changing, pooled, gone));
        let cached = keys.len();
        let keys: Vec<RowKey> = keys.into_iter().filter(|key| same[key.table()]).collect();
        self.lock().traffic.cold_rows += (cached - keys.len()) as u64;
        for keys in keys.chunks(self.at_once()) {
            if self.warm(version, keys).is_err() {
                // What cannot be read must not keep its neighbours cold.
                let cold = keys.chunks(1).filter(|key| self.warm(version, key).is_err()).count();
                self.lock().traffic.cold_rows += cold as u64;
            }
        }
        version.number
    }

    /// Reads rows into the cache, unless another version is served by now. None of them is put in its place meanwhile.
    fn warm(&self, version: &Arc<Version>, keys: &[RowKey]) -> Result<()> {
        let _changing = locked(&self.changing);
        let is_served = |state: &State| state.version.as_ref().is_some_and(|served| served.number == version.number);
        if !is_served(&self.lock()) {
            return Ok(());
        }
        let tables = &self.config.serve.tables;
        let spans: Vec<Span> = keys.iter().map(|key| version.layouts[key.table()].blocks(key.row())).collect();
        let (batch, places) = self.read_spans(0..self.backends.len(), &spans)?;
        let mut state = self.lock();
        // From the last to the first, so that the latest used of a bucket ends as that.
        for ((key, span), place) in keys.iter().zip(&spans).zip(places).rev() {
            let begin = place + (version.layouts[key.table()].offset(key.row()) - span.offset) as usize;
            let row_bytes = tables[key.table()].row_bytes() as usize;
            if state.overlay.get(key.table(), key.row()).is_none() {
                state.residency.fill(key.table(), key.row(), &batch.buffer[begin..begin + row_bytes]);
            }
        }
        Ok(())
    }
}

fn is_over() -> Error {
    let message = "this version is over: it was committed, or another one was begun since; begin a new one";
    Error::new(ErrorKind::Closed, message)
}
