//! Files of rows: what a snapshot keeps of a store. They are written and read as streams, in chunks of bounded size.
//!
//! A file is a header (magic, version, length, the tables as JSON, checksum) and then chunks: 32 bytes (table, number of
//! rows, first row, length, checksum of all before it and of the payload, zero) and a payload (weights of all rows as they are
//! stored, then their optimizer state; 32-bit floats, little-endian). A chunk without a table ends the file and says how many rows
//! there are. Rows that never came into being are not in it.

mod reader;
mod writer;

use serde::{Deserialize, Serialize};

pub use reader::{RowFileReader, RowRun};
pub use writer::RowFileWriter;

const MAGIC: &[u8; 8] = b"TMROWS\r\n";
const VERSION: u32 = 2;
const CHUNK_HEADER_BYTES: usize = 32;
/// In the place of a table: the file ends here.
const END: u32 = u32::MAX;
const HEADER_BYTES_MAX: usize = 64 << 20;

/// A table, as the file knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTable {
    /// Its name.
    pub name: String,
    /// Number of rows.
    pub rows: u64,
    /// Columns.
    pub dim: usize,
    /// Type of the weights.
    pub row_type: String,
    /// Bytes of the weights of a row.
    pub weight_bytes: usize,
    /// Floats of optimizer state in a row.
    pub state_floats: usize,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRows {
    /// The tables.
    pub tables: Vec<SavedTable>,
    /// Optimizer steps so far.
    pub steps: u64,
}

/// The first 20 bytes of a chunk's header.
fn chunk_head(table: u32, count: u32, first_row: u64, nbytes: u32) -> [u8; 20] {
    let mut head = [0; 20];
    head[0..4].copy_from_slice(&table.to_le_bytes());
    head[4..8].copy_from_slice(&count.to_le_bytes());
    head[8..16].copy_from_slice(&first_row.to_le_bytes());
    head[16..20].copy_from_slice(&nbytes.to_le_bytes());
    head
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}
