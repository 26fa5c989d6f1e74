//! One version of all tables: rows in memory, index maps, and a region of the device.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::config::ServeConfig;
use super::layout::RowLayout;
use crate::backend::{AlignedBuffer, Backend, Extent, IoBatch};
use crate::embedding::{Instructions, RowType, decode_rows, encode_rows};
use crate::error::{Error, ErrorKind, Result};
use crate::units::round_up;

/// Bytes that are written at once as a version is loaded.
const LOAD_BYTES: u64 = 1 << 20;
/// What no row of a table is.
const PRUNED: i32 = -1;

/// The tables of one version.
pub(super) struct Version {
    /// Counts versions from 1 on.
    pub(super) number: u64,
    /// Half of the device that it has.
    pub(super) region: usize,
    pub(super) layouts: Vec<RowLayout>,
    /// Rows of tables that are fixed in memory.
    fixed: Vec<Option<RwLock<AlignedBuffer>>>,
    /// Of pruned tables the row of each id, or none.
    index_maps: Vec<Option<Box<[i32]>>>,
    /// Rows that were loaded so far, table by table.
    loaded: Vec<u64>,
}

impl Version {
    /// Without any rows yet.
    pub(super) fn new(config: &ServeConfig, number: u64, region: usize, layouts: Vec<RowLayout>) -> Result<Self> {
        let mut fixed = Vec::new();
        for (table, of) in config.tables.iter().enumerate() {
            let nbytes = (of.rows * of.row_bytes()) as usize;
            let memory = (!config.is_on_device(table)).then(|| AlignedBuffer::try_zeroed(nbytes)).transpose();
            let memory = memory.map_err(|error| error.with_context("table", &of.name))?;
            fixed.push(memory.map(RwLock::new));
        }
        let tables = config.tables.len();
        let index_maps = (0..tables).map(|_| None).collect();
        Ok(Self { number, region, layouts, fixed, index_maps, loaded: vec![0; tables] })
    }

    /// The rows of a table that is fixed in memory.
    pub(super) fn fixed(&self, table: usize) -> Option<RwLockReadGuard<'_, AlignedBuffer>> {
        self.fixed[table].as_ref().map(|memory| memory.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes a row of a table that is fixed in memory.
    pub(super) fn put_fixed(&self, table: usize, row: u64, stored: &[u8]) {
        if let Some(memory) = &self.fixed[table] {
            let begin = row as usize * stored.len();
            let mut memory = memory.write().unwrap_or_else(PoisonError::into_inner);
            memory[begin..begin + stored.len()].copy_from_slice(stored);
        }
    }

    /// The row of an id, if it has one.
    #[inline]
    pub(super) fn row_of(&self, table: usize, id: u64) -> Option<u64> {
        match &self.index_maps[table] {
            None => Some(id),
            Some(rows) => u64::try_from(rows[id as usize]).ok(),
        }
    }

    /// Whether a table is pruned, so that ids are not rows.
    pub(super) fn is_pruned(&self, table: usize) -> bool {
        self.index_maps[table].is_some()
    }

    /// Whether the rows of a table are those of the same ids as in another version.
    pub(super) fn has_ids_of(&self, other: &Self, table: usize) -> bool {
        self.index_maps[table] == other.index_maps[table]
    }

    /// Sets the row of each id of a pruned table; -1: it was pruned.
    pub(super) fn set_index_map(&mut self, config: &ServeConfig, table: usize, rows: Vec<i32>) -> Result<()> {
        let of = &config.tables[table];
        let is_row = |&row: &i32| row == PRUNED || u64::try_from(row).is_ok_and(|row| row < of.rows);
        let why = if rows.len() as u64 != of.ids {
            "an index map has an entry for each id"
        } else if of.ids == of.rows {
            "a table with a row for each id has no index map"
        } else if !rows.iter().all(is_row) {
            "an entry of an index map is a row, or -1"
        } else {
            self.index_maps[table] = Some(rows.into_boxed_slice());
            return Ok(());
        };
        Err(Error::new(ErrorKind::Input, why).with_context("table", &of.name))
    }

    /// Rows to load at a time: whole blocks.
    pub(super) fn rows_per_load(config: &ServeConfig, table: usize) -> u64 {
        let row_bytes = config.tables[table].row_bytes();
        let per_block = (config.device.block_bytes / row_bytes).max(1);
        (LOAD_BYTES / row_bytes / per_block).max(1) * per_block
    }

    /// The next rows of a table, from the type in which they come to the one in which they are stored.
    ///
    /// # Errors
    ///
    /// `Input` if they are too many, not whole, or not finite where they are to become codes; those of the backends.
    pub(super) fn load(
        &mut self,
        config: &ServeConfig,
        backends: &[Box<dyn Backend>],
        table: usize,
        from: RowType,
        rows: &[u8],
    ) -> Result<()> {
        let of = &config.tables[table];
        let first = self.loaded[table];
        let count = (rows.len() / from.row_bytes(of.columns)) as u64;
        let per_load = Self::rows_per_load(config, table);
        let why = if !rows.len().is_multiple_of(from.row_bytes(of.columns)) {
            "rows are loaded whole"
        } else if first + count > of.rows {
            "more rows are loaded than the table has"
        } else if count > per_load || (count < per_load && first + count < of.rows) {
            "rows are loaded so many at a time as the engine says, and the rest last"
        } else {
            ""
        };
        let place = |error: Error| error.with_context("table", &of.name).with_context("first_row", first);
        if !why.is_empty() {
            return Err(place(Error::new(ErrorKind::Input, why)).with_context("rows", count));
        }
        if count == 0 {
            return Ok(());
        }
        let stored = store_as(of.row_type, from, of.columns, rows).map_err(place)?;
        if let Some(memory) = &self.fixed[table] {
            let begin = (first * of.row_bytes()) as usize;
            let mut memory = memory.write().unwrap_or_else(PoisonError::into_inner);
            memory[begin..begin + stored.len()].copy_from_slice(&stored);
        } else {
            self.write_rows(config, backends, table, first, &stored).map_err(place)?;
        }
        self.loaded[table] += count;
        Ok(())
    }

    /// Writes consecutive rows, the first of which begins a block, in whole blocks.
    fn write_rows(
        &self,
        config: &ServeConfig,
        backends: &[Box<dyn Backend>],
        table: usize,
        first: u64,
        stored: &[u8],
    ) -> Result<()> {
        let row_bytes = config.tables[table].row_bytes();
        let count = stored.len() as u64 / row_bytes;
        let layout = &self.layouts[table];
        let (begin, last) = (layout.offset(first), layout.blocks(first + count - 1));
        for backend in backends {
            let alignment = backend.alignment_bytes() as u64;
            let nbytes = round_up(last.offset + last.nbytes - begin, alignment);
            let mut buffer = backend.buffer(nbytes as usize);
            buffer.fill(0);
            for (row, bytes) in (first..).zip(stored.chunks_exact(row_bytes as usize)) {
                let at = (layout.offset(row) - begin) as usize;
                buffer[at..at + bytes.len()].copy_from_slice(bytes);
            }
            let extents = vec![Extent { offset: begin, buffer_offset: 0, nbytes: nbytes as usize }];
            backend.write(IoBatch { buffer, extents }).1?;
        }
        Ok(())
    }

    /// Whether every row of every table was loaded.
    ///
    /// # Errors
    ///
    /// `Input` names a table with rows or an index map missing.
    pub(super) fn check_whole(&self, config: &ServeConfig) -> Result<()> {
        for (table, of) in config.tables.iter().enumerate() {
            if self.loaded[table] != of.rows || (of.ids != of.rows && !self.is_pruned(table)) {
                return Err(Error::new(ErrorKind::Input, "a version lacks rows of a table, or its index map")
                    .with_context("table", &of.name)
                    .with_context("loaded_rows", self.loaded[table])
                    .with_context("rows", of.rows));
            }
        }
        Ok(())
    }
}

/// Rows of one type as rows of another one, each value rounded to the nearest.
///
/// # Errors
///
/// `Input` with the row if a row that becomes codes is not finite, or its range is beyond 16-bit floats.
pub(super) fn store_as(to: RowType, from: RowType, columns: usize, rows: &[u8]) -> Result<Vec<u8>> {
    if to == from {
        return Ok(rows.to_vec());
    }
    let best = Instructions::best();
    let count = rows.len() / from.row_bytes(columns);
    let mut values = vec![0.0; count * columns];
    decode_rows(best, from, columns, rows, &mut values);
    let mut stored = vec![0; count * to.row_bytes(columns)];
    encode_rows(best, to, columns, &values, None, &mut stored);
    if to.is_quantised() {
        decode_rows(best, to, columns, &stored, &mut values);
        if let Some(row) = values.chunks_exact(columns).position(|row| row.iter().any(|value| !value.is_finite())) {
            let why = "a row cannot become codes: it is not finite, or its range is beyond the scale's type; serve it as fp32 or fp16";
            return Err(Error::new(ErrorKind::Input, why).with_context("row", row));
        }
    }
    Ok(stored)
}
