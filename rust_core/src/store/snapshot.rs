//! All rows into a file, and back.

use std::path::Path;

use super::Store;
use super::rows::COPY_ROWS_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{RowFileReader, RowFileWriter, SavedRows, SavedTable};

/// Bytes of one chunk, so that a table is never in memory as a whole.
const CHUNK_BYTES_MAX: usize = 4 << 20;

impl Store {
    fn saved(&self, steps: u64) -> SavedRows {
        let table = |table: &super::Table| SavedTable {
            name: table.config.name.clone(),
            rows: table.config.rows,
            dim: table.config.dim,
            row_type: table.shape.row_type.name().to_owned(),
            weight_bytes: table.shape.weight_bytes(),
            state_floats: table.shape.state_floats,
        };
        SavedRows { tables: self.tables.iter().map(table).collect(), steps }
    }

    /// Writes all rows that exist to a new file, which is safe when this returns; gives their number. Costs no virtual time
    /// and changes nothing: batches in flight stay in flight, and no counter moves.
    pub fn save_rows(&self, path: &Path) -> Result<u64> {
        let writer = RowFileWriter::create(path, &self.saved(self.steps()?))?;
        self.save_to(writer).inspect_err(|_| {
            // Nothing half-written is left; that it could not be removed would hide the cause.
            let _ = std::fs::remove_file(path);
        })
    }

    fn save_to(&self, mut writer: RowFileWriter) -> Result<u64> {
        for (number, table) in self.tables.iter().enumerate() {
            let rows = table.config.rows;
            let (width, state_floats) = (table.shape.weight_bytes(), table.shape.state_floats);
            let chunk = (CHUNK_BYTES_MAX / (width + state_floats * size_of::<f32>())).clamp(1, COPY_ROWS_MAX);
            let (mut weights, mut state) = (vec![0; chunk * width], vec![0.0; chunk * state_floats]);
            let mut exist = vec![false; chunk];
            let mut start = 0;
            while start < rows {
                let count = chunk.min((rows - start) as usize);
                let (weights, state) = (&mut weights[..count * width], &mut state[..count * state_floats]);
                let exist = &mut exist[..count];
                self.lock_filled()?.read_rows(self, number, start, weights, state, exist)?;
                let mut first = 0;
                for run in exist.chunk_by(|a, b| a == b) {
                    let end = first + run.len();
                    if run[0] {
                        let weights = &weights[first * width..end * width];
                        let state = &state[first * state_floats..end * state_floats];
                        writer.write(number, start + first as u64, run.len(), weights, state)?;
                    }
                    first = end;
                }
                start += count as u64;
            }
        }
        writer.finish()
    }

    /// Replaces rows by those of a file, for a store that was just opened. The file is checked as a whole before any row is
    /// replaced.
    ///
    /// # Errors
    ///
    /// `Config` if the file is of other tables, `Corruption` and `Unsupported` as for [`verify_rows`].
    pub fn load_rows(&self, path: &Path) -> Result<u64> {
        let found = verify_rows(path)?;
        let expected = self.saved(found.steps);
        if found != expected {
            let difference = expected.tables.iter().zip(&found.tables).find(|(a, b)| a != b).map_or_else(
                || format!("it has {} tables; the store has {}", found.tables.len(), expected.tables.len()),
                |(a, b)| format!("it has {}; the store has {}", describe(b), describe(a)),
            );
            return Err(Error::new(ErrorKind::Config, format!("the file of rows is of other tables: {difference}"))
                .with_context("path", path.display()));
        }
        let mut reader = RowFileReader::open(path)?;
        let mut rows = 0;
        while let Some(run) = reader.read()? {
            rows += run.count as u64;
            self.write_stored_rows(run.table, run.first_row, run.weights(), Some(&run.state()))?;
        }
        self.lock()?.steps = found.steps;
        Ok(rows)
    }
}

fn describe(table: &SavedTable) -> String {
    let SavedTable { name, rows, dim, row_type, state_floats, .. } = table;
    format!(
        "\"{name}\" with {rows} rows of {dim} columns in {row_type} and {state_floats} floats of optimizer state a row"
    )
}

/// Reads a file of rows through; gives what it holds.
///
/// # Errors
///
/// `Corruption` if it was cut short or changed, `Unsupported` if it has another version; both name the file, the
/// former the offset.
pub fn verify_rows(path: &Path) -> Result<SavedRows> {
    let mut reader = RowFileReader::open(path)?;
    while reader.read()?.is_some() {}
    Ok(reader.saved().clone())
}
